"""From resized images to objects: the RT-DETR, with its pre- and post-processing; jit-able."""

import numpy as np
from jaxtyping import Array, Bool, Num, UInt8

from vitpose_jax.detections import Objects
from vitpose_jax.rtdetr.modeling import RtDetr
from vitpose_jax.rtdetr.postprocess import find_objects
from vitpose_jax.rtdetr.preprocess import prepare


def detect(
    model: RtDetr,
    images: UInt8[Array, "n height width 3"],
    sizes: Num[Array | np.ndarray, "n 2"],
    resized: Num[Array | np.ndarray, "n 2"],
    class_mask: Bool[Array | np.ndarray, " classes"],
    count: int,
) -> Objects:
    """Find objects in a batch of images.

    Args:
        model: the network.
        images: resized to the network's input.
        sizes: height and width of each image before it was resized, in pixels.
        resized: after that; not needed, because the network's boxes are fractions of an image.
        class_mask: True for each class to find.
        count: number of objects in an image.
    """
    output = model(prepare(images, model.config))
    return find_objects(output.logits, output.boxes, sizes, class_mask, count)
