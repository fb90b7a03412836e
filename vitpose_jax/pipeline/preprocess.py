"""From an image and boxes to normalised crops; pure array functions, all of them jit-able.

    boxes   Float[n 4]   x y w h in pixels of the image
      boxes_to_regions   center, scale (regions.py)
      crop_regions       pixel values Float[n 256 192 3], 0 to 255 (warp.py)
      normalize          crops Float[n 256 192 3], with ImageNet's mean and standard deviation

What lies outside the image is `border`, "scipy" or "opencv"; see warp.py.
"""

import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, UInt8

from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.regions import BOX_PADDING, Regions, boxes_to_regions, check_boxes, crop_to_image
from vitpose_jax.pipeline.warp import Border, check_border, warp, warp_upright
from vitpose_jax.vitpose.config import IMAGENET_MEAN, IMAGENET_STD


def normalize(
    values: Float[Array, "... channels"],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Float[Array, "... channels"]:
    """Pixel values 0 to 255 as the network reads them: scaled to 0..1, minus the mean, over the standard deviation."""
    return (values / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def crop_regions(
    images: PackedImages,
    regions: Regions,
    size: tuple[int, int] = (256, 192),
    *,
    udp: bool | Bool[Array, " n"] = True,
    border: Border = "scipy",
) -> Float[Array, "n height width 3"]:
    """Crop regions of packed images.

    Args:
        images: with one row of `shapes` for each region.
        regions: in pixels of their images.
        size: height and width of a crop.
        udp: the affine map, one for all or one for each region; see regions.py.
        border: what lies outside the image; see warp.py.

    Returns:
        Pixel values 0 to 255 as float32, whole numbers, not yet normalised.

    Raises:
        ValueError: for an unknown border.
    """
    check_border(border)
    height, width = size
    x, y = jnp.arange(width, dtype=jnp.float32), jnp.arange(height, dtype=jnp.float32)
    if regions.rotation is None:
        columns, rows = (jnp.broadcast_to(at[:, None], (regions.count, at.shape[0], 2)) for at in (x, y))
        columns, rows = (crop_to_image(points, regions, size, udp=udp) for points in (columns, rows))
        return warp_upright(images, columns[..., 0], rows[..., 1], border=border)
    grid = jnp.broadcast_to(jnp.stack(jnp.meshgrid(x, y), axis=-1), (regions.count, height, width, 2))
    return warp(images, crop_to_image(grid, regions, size, udp=udp), border=border)


def crop_boxes(
    image: UInt8[Array | np.ndarray, "image_height image_width 3"],
    boxes: Num[Array | np.ndarray, "n 4"],
    size: tuple[int, int] = (256, 192),
    *,
    padding: float = BOX_PADDING,
    udp: bool | Bool[Array, " n"] = True,
    rotation: Float[Array | np.ndarray, " n"] | float = 0.0,
    border: Border = "scipy",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Float[Array, "n height width 3"]:
    """Normalised crops of boxes; with the defaults, what `VitPoseImageProcessorPil` of transformers returns.

    Args:
        image: RGB.
        boxes: x y w h in pixels of the image; they may extend beyond it.
        size: height and width of a crop.
        padding: factor on both sides of a box, after it got the crop's aspect.
        udp: the affine map, one for all or one for each box; see regions.py.
        rotation: degrees by which each region is turned about its centre, one for all or one for each box.
        border: what lies outside the image; see warp.py.
        mean, std: for each channel, of pixels scaled to 0..1.

    Returns:
        (n, height, width, 3), float32.

    Raises:
        ValueError: for an unknown border, and an image of another shape or dtype; for boxes without area or not
            finite, unless traced by `jax.jit`.
    """
    if not isinstance(boxes, jax.core.Tracer):
        boxes = check_boxes(boxes)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype != np.uint8:
        raise ValueError(f"image: expected uint8 of shape (height, width, 3), got {image.dtype} of {image.shape}")
    image_height, image_width, _ = image.shape
    regions = boxes_to_regions(boxes, size, padding=padding)
    if not isinstance(rotation, int | float) or rotation != 0:
        degrees = jnp.broadcast_to(jnp.asarray(rotation, jnp.float32), regions.count)
        regions = regions._replace(rotation=degrees)
    pixels = jnp.reshape(jnp.asarray(image), (image_height * image_width, 3))
    shapes = jnp.broadcast_to(jnp.asarray([0, image_height, image_width], jnp.int32), (boxes.shape[0], 3))
    return normalize(crop_regions(PackedImages(pixels, shapes), regions, size, udp=udp, border=border), mean, std)
