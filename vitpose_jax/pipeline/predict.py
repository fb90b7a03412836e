"""The whole path from pixels and boxes to keypoints, as one pure function."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from vitpose_jax.pipeline.postprocess import Decode, decode_regions, flip_back, get_decoding
from vitpose_jax.pipeline.preprocess import BOX_PADDING, Border, boxes_to_center_scale, crop_regions, normalize
from vitpose_jax.vitpose.modeling import VitPose


def predict(
    model: VitPose,
    pixels: UInt8[Array, "p 3"],
    shapes: Int[Array, "n 3"],
    boxes: Float[Array, "n 4"],
    *,
    dataset_index: int = 0,
    flip_test: bool = False,
    decode: Decode = "udp",
    border: Border = "scipy",
    padding: float = BOX_PADDING,
    stretch: bool = False,
) -> tuple[Float[Array, "n K 2"], Float[Array, "n K"]]:
    """From images and boxes to keypoints, for one data set; jit-able.

    Args:
        model: any `VitPose`.
        pixels: RGB of all images, one behind another, from `pack_images`.
        shapes: for each box: where its image begins in `pixels`, its height, its width.
        boxes: x y w h in pixels of each box's image.
        dataset_index: which expert and head.
        flip_test: also run the mirrored crops and average the heatmaps.
        decode: see postprocess.py; it also decides between the UDP crop and the older one.
        border: see preprocess.py.
        padding, stretch: of the boxes; see `boxes_to_center_scale`.

    Returns:
        keypoints (n, K, 2), (x, y) in pixels of each box's image, and scores (n, K), both float32.
    """
    config, decoding = model.config, get_decoding(decode)
    center, scale = boxes_to_center_scale(boxes, config.image_size, padding=padding, stretch=stretch)
    grey = crop_regions(pixels, shapes, center, scale, config.image_size, udp=decoding.udp, border=border)
    crops = normalize(grey, config.image_mean, config.image_std)
    if flip_test:
        heatmaps = model(jnp.concatenate([crops, crops[:, :, ::-1]]), dataset_index).astype(jnp.float32)
        upright, mirrored = jnp.split(heatmaps, 2)
        flip_indices = config.skeleton(dataset_index).flip_indices
        heatmaps = (upright + flip_back(mirrored, flip_indices, shift=not decoding.udp)) / 2
    else:
        heatmaps = model(crops, dataset_index)
    return decode_regions(heatmaps, center, scale, decode=decode)
