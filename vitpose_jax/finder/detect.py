"""From resized images to people: the person finder, with its pre- and post-processing; jit-able."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Num, UInt8

from vitpose_jax.detections import Objects
from vitpose_jax.finder.modeling import PersonFinder
from vitpose_jax.finder.postprocess import find_objects
from vitpose_jax.finder.preprocess import prepare, shrink


def detect(
    model: PersonFinder,
    images: UInt8[Array, "n height width 3"],
    sizes: Num[Array | np.ndarray, "n 2"],
    resized: Num[Array | np.ndarray, "n 2"],
    class_mask: Bool[Array | np.ndarray, " classes"],
    count: int,
) -> Objects:
    """Find people in a batch of images, at each scale of the configuration; of two boxes of a person the better stays.

    Args:
        model: the network.
        images: resized, in the upper left corner of the network's input, with zeros around them.
        sizes: height and width of each image before it was resized, in pixels.
        resized: height and width after that.
        class_mask: True for each class to find.
        count: number of people in an image.
    """
    config = model.config
    pixels = prepare(images, config)
    looks = [model(shrink(pixels, scale)) for scale in config.scales]
    logits = jnp.concatenate([look.logits for look in looks], axis=1)
    boxes = jnp.concatenate([look.boxes / scale for look, scale in zip(looks, config.scales, strict=True)], axis=1)
    # Boxes end at the border of the image, not of the input.
    limit = jnp.tile(jnp.asarray(resized)[:, ::-1].astype(jnp.float32), 2)[:, None]
    return find_objects(
        logits,
        jnp.clip(boxes, 0, limit),
        jnp.asarray(sizes, jnp.float32) / jnp.asarray(resized, jnp.float32),
        class_mask,
        num_candidates=config.num_candidates,
        nms_iou=config.nms_iou,
        count=count,
    )
