"""The whole path from images and boxes to keypoints, as one pure function."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.postprocess import Decode, decode_regions, flip_back, get_decoding, peak_covariances
from vitpose_jax.pipeline.preprocess import crop_regions, normalize
from vitpose_jax.pipeline.regions import BOX_PADDING, boxes_to_regions
from vitpose_jax.pipeline.warp import Border
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose


def predict(
    model: VitPose,
    images: PackedImages,
    boxes: Float[Array, "n 4"],
    *,
    dataset_index: int = 0,
    flip_test: bool = False,
    decode: Decode = "udp",
    border: Border = "scipy",
    padding: float = BOX_PADDING,
    stretch: bool = False,
) -> tuple[Float[Array, "n K 2"], Float[Array, "n K"], Float[Array, "n K 2 2"]]:
    """From images and boxes to keypoints, for one dataset; jit-able.

    Args:
        model: any `VitPose`.
        images: with one row of `shapes` for each box; see `PackedImages.select`.
        boxes: x y w h in pixels of each box's image.
        dataset_index: the expert and head.
        flip_test: also run the mirrored crops and average the heatmaps.
        decode: see postprocess.py; it also decides between the UDP crop and the older one.
        border: what lies outside the image; see warp.py.
        padding, stretch: of the boxes; see `boxes_to_regions`.

    Returns:
        keypoints (n, K, 2), (x, y) in pixels of each box's image, scores (n, K), and the keypoints' `peak_covariances`
        (n, K, 2, 2) in square pixels, all float32.
    """
    config = model.config
    crops = make_crops(
        config, images, boxes, flip_test=flip_test, decode=decode, border=border, padding=padding, stretch=stretch
    )
    return read_heatmaps(
        config,
        model(crops, dataset_index),
        boxes,
        dataset_index=dataset_index,
        flip_test=flip_test,
        decode=decode,
        padding=padding,
        stretch=stretch,
    )


def make_crops(
    config: VitPoseConfig,
    images: PackedImages,
    boxes: Float[Array, "n 4"],
    *,
    flip_test: bool = False,
    decode: Decode = "udp",
    border: Border = "scipy",
    padding: float = BOX_PADDING,
    stretch: bool = False,
) -> Float[Array, "crops height width 3"]:
    """What `predict` does before the network; jit-able.

    Args:
        config: of the network.
        images, boxes, flip_test, decode, border, padding, stretch: as in `predict`.

    Returns:
        Normalised crops, float32; with a flip test, the mirrored ones after them.
    """
    regions = boxes_to_regions(boxes, config.image_size, padding=padding, stretch=stretch)
    values = crop_regions(images, regions, config.image_size, udp=get_decoding(decode).udp, border=border)
    crops = normalize(values, config.image_mean, config.image_std)
    return jnp.concatenate([crops, crops[:, :, ::-1]]) if flip_test else crops


def read_heatmaps(
    config: VitPoseConfig,
    heatmaps: Float[Array, "crops rows columns K"],
    boxes: Float[Array, "n 4"],
    *,
    dataset_index: int = 0,
    flip_test: bool = False,
    decode: Decode = "udp",
    padding: float = BOX_PADDING,
    stretch: bool = False,
) -> tuple[Float[Array, "n K 2"], Float[Array, "n K"], Float[Array, "n K 2 2"]]:
    """What `predict` does after the network; jit-able.

    Args:
        config: of the network.
        heatmaps: of the crops that `make_crops` returns, in their order.
        boxes, dataset_index, flip_test, decode, padding, stretch: as in `predict`.

    Returns:
        As `predict`.
    """
    if flip_test:
        upright, mirrored = jnp.split(heatmaps.astype(jnp.float32), 2)
        flip_indices = config.skeleton(dataset_index).flip_indices
        heatmaps = (upright + flip_back(mirrored, flip_indices, shift=not get_decoding(decode).udp)) / 2
    regions = boxes_to_regions(boxes, config.image_size, padding=padding, stretch=stretch)
    return *decode_regions(heatmaps, regions, decode=decode), peak_covariances(heatmaps, regions, decode=decode)
