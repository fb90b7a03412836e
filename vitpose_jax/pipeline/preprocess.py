"""From an image and boxes to normalised crops; pure array functions, all of them jit-able.

Coordinates, here and everywhere: (x, y); the centre of a pixel is at whole numbers; boxes are (x, y, w, h) in
pixels of the image, unless a name says xyxy.

A box is widened to the aspect of the crop and padded by 1.25: that gives a `center` and a `scale` (width and
height, both in pixels). Two affine maps lead from there to the crop:

* `udp=True`: unbiased data processing (Huang et al. 2020, arXiv:1911.07524): pixel 0 of the crop lies at one
  edge of the region, the last pixel at the other: steps of scale / (size - 1). ViTPose on COCO and MPII.
* `udp=False`: the older rule, steps of scale / size. The original's other four data sets.

What lies outside the image is `border`, "scipy" or "opencv"; see warp.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from vitpose_jax.pipeline.warp import Border, check_border, warp, warp_upright
from vitpose_jax.vitpose.config import IMAGENET_MEAN, IMAGENET_STD

BOX_PADDING = 1.25
# Beyond it float32 has no whole pixels left.
MAX_COORDINATE = 2.0**24


def check_boxes(boxes: object, *, name: str = "boxes") -> Float[np.ndarray, "n 4"]:
    """Boxes as float32 (n, 4), x y w h, once they are known to be boxes. Not jit-able.

    Raises:
        ValueError: where the shape is not (n, 4), or a box is not finite, has no area or lies
            beyond all images, naming it.
        TypeError: where they are not numbers.
    """
    try:
        array = np.asarray(boxes, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}: expected n rows of four numbers x y w h, got {str(boxes)[:80]}") from error
    if array.shape == (0,):
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{name}: expected shape (n, 4), x y w h, got {array.shape}")
    for index in np.flatnonzero(~np.isfinite(array).all(axis=1)):
        raise ValueError(f"{name}: box {index} is not finite: {array[index].tolist()}")
    for index in np.flatnonzero((np.abs(array) > MAX_COORDINATE).any(axis=1)):
        raise ValueError(f"{name}: box {index} is more than {MAX_COORDINATE:g} pixels away: {array[index].tolist()}")
    array = array.astype(np.float32)
    for index in np.flatnonzero((array[:, 2:] <= 0).any(axis=1)):
        raise ValueError(f"{name}: box {index} has no area; expected w > 0 and h > 0, got {array[index].tolist()}")
    return array


def boxes_to_center_scale(
    boxes: Num[Array | np.ndarray, "n 4"],
    size: tuple[int, int] = (256, 192),
    *,
    padding: float = BOX_PADDING,
    stretch: bool = False,
) -> tuple[Float[Array, "n 2"], Float[Array, "n 2"]]:
    """Centre and padded size of the regions to crop.

    The shorter side of a box grows until its aspect is that of the crop, then both sides grow by `padding`.
    Equal to `box_to_center_and_scale` of transformers and `_xywh2cs` of the original, except that their
    scales are in units of 200 pixels.

    Args:
        boxes: x y w h in pixels of the image.
        size: height and width of the crop.
        padding: factor on both sides.
        stretch: leave the box its own aspect, so that the crop is stretched; so the original crops MPII.

    Returns:
        center (n, 2) and scale (n, 2), float32, in pixels of the image.
    """
    boxes = jnp.asarray(boxes, jnp.float32)
    corner, extent = boxes[:, :2], boxes[:, 2:]
    if stretch:
        return corner + extent * 0.5, extent * padding
    aspect = size[1] / size[0]
    width = jnp.maximum(extent[:, 0], extent[:, 1] * aspect)
    height = jnp.maximum(extent[:, 1], extent[:, 0] / aspect)
    return corner + extent * 0.5, jnp.stack([width, height], axis=-1) * padding


def crop_to_image(
    points: Float[Array, "n *points 2"],
    center: Float[Array, "n 2"],
    scale: Float[Array, "n 2"],
    size: tuple[int, int],
    *,
    udp: bool | Bool[Array, " n"] = True,
    rotation: Float[Array, "#n"] | Float[Array, ""] | float = 0.0,
) -> Float[Array, "n *points 2"]:
    """Points of a crop, or of its heatmaps, in pixels of the image.

    Args:
        points: (x, y) in pixels of a crop (or heatmap) of the given size.
        center, scale: of each crop's region, in pixels of the image.
        size: height and width of the crop or heatmap.
        udp: the affine map, one for all or one each; see the top of this file.
        rotation: degrees by which the region is turned about its centre, one for all or one each.

    Returns:
        (x, y) in pixels of the image. The inverse of `get_warp_matrix` (UDP) and `get_affine_transform` of
        the original; the sense of the rotation is that of `get_warp_matrix` for both.
    """
    per_crop = (len(center), *(1,) * (points.ndim - 2), 2)
    step = _steps(scale, size, udp)
    offset = points * step.reshape(per_crop) - scale.reshape(per_crop) / 2
    angle = jnp.deg2rad(jnp.broadcast_to(jnp.asarray(rotation, jnp.float32), len(center))).reshape(per_crop[:-1])
    return _turn(offset, angle) + center.reshape(per_crop)


def image_to_crop(
    points: Float[Array, "n *points 2"],
    center: Float[Array, "n 2"],
    scale: Float[Array, "n 2"],
    size: tuple[int, int],
    *,
    udp: bool | Bool[Array, " n"] = True,
    rotation: Float[Array, "#n"] | Float[Array, ""] | float = 0.0,
) -> Float[Array, "n *points 2"]:
    """Points of the image in pixels of a crop, or of its heatmaps: the inverse of `crop_to_image`.

    Args:
        points: (x, y) in pixels of the image.
        center, scale, size, udp, rotation: as in `crop_to_image`.

    Returns:
        (x, y) in pixels of a crop (or heatmap) of the given size; they may lie outside it.
    """
    per_crop = (len(center), *(1,) * (points.ndim - 2), 2)
    step = _steps(scale, size, udp)
    angle = jnp.deg2rad(jnp.broadcast_to(jnp.asarray(rotation, jnp.float32), len(center))).reshape(per_crop[:-1])
    offset = _turn(points - center.reshape(per_crop), -angle)
    return (offset + scale.reshape(per_crop) / 2) / step.reshape(per_crop)


def _steps(scale: Float[Array, "n 2"], size: tuple[int, int], udp: bool | Bool[Array, " n"]) -> Float[Array, "n 2"]:
    """Pixels of the image from one pixel of a crop to the next, in x and in y."""
    height, width = size
    return scale / (jnp.asarray([width, height], jnp.float32) - jnp.asarray(udp, jnp.float32)[..., None])


def _turn(offset: Float[Array, "n *points 2"], angle: Float[Array, "..."]) -> Float[Array, "n *points 2"]:
    x = offset[..., 0] * jnp.cos(angle) + offset[..., 1] * jnp.sin(angle)
    y = offset[..., 1] * jnp.cos(angle) - offset[..., 0] * jnp.sin(angle)
    return jnp.stack([x, y], axis=-1)


def normalize(
    grey: Float[Array, "... channels"],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Float[Array, "... channels"]:
    """Grey levels 0..255 to what the network reads: scaled to 0..1, less the mean, over the deviation."""
    return (grey / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def crop_regions(
    pixels: UInt8[Array, "p 3"],
    shapes: Int[Array, "n 3"],
    center: Float[Array, "n 2"],
    scale: Float[Array, "n 2"],
    size: tuple[int, int] = (256, 192),
    *,
    udp: bool | Bool[Array, " n"] = True,
    rotation: Float[Array, "#n"] | Float[Array, ""] | float = 0.0,
    border: Border = "scipy",
) -> Float[Array, "n height width 3"]:
    """Cut regions out of images packed as `warp` wants them.

    Returns:
        Grey levels 0 to 255 as float32, whole numbers, not yet normalised.

    Raises:
        ValueError: for an unknown border.
    """
    check_border(border)
    height, width = size
    x, y = jnp.arange(width, dtype=jnp.float32), jnp.arange(height, dtype=jnp.float32)
    if isinstance(rotation, int | float) and rotation == 0:
        columns, rows = (jnp.broadcast_to(at[:, None], (len(center), len(at), 2)) for at in (x, y))
        columns, rows = (crop_to_image(points, center, scale, size, udp=udp) for points in (columns, rows))
        return warp_upright(pixels, shapes, columns[..., 0], rows[..., 1], border=border)
    grid = jnp.broadcast_to(jnp.stack(jnp.meshgrid(x, y), axis=-1), (len(center), height, width, 2))
    points = crop_to_image(grid, center, scale, size, udp=udp, rotation=rotation)
    return warp(pixels, shapes, points, border=border)


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
        boxes: x y w h in pixels of the image; they may leave it.
        size: height and width of a crop.
        padding: factor on both sides of a box, after it got the crop's aspect.
        udp: the affine map, one for all or one each; see the top of this file.
        rotation: degrees by which each region is turned about its centre.
        border: what lies outside the image; see the top of this file.
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
    center, scale = boxes_to_center_scale(boxes, size, padding=padding)
    pixels = jnp.reshape(jnp.asarray(image), (image_height * image_width, 3))
    shapes = jnp.broadcast_to(jnp.asarray([0, image_height, image_width], jnp.int32), (len(boxes), 3))
    if not isinstance(rotation, int | float):
        rotation = jnp.asarray(rotation, jnp.float32)
    grey = crop_regions(pixels, shapes, center, scale, size, udp=udp, rotation=rotation, border=border)
    return normalize(grey, mean, std)
