"""From boxes to the regions of an image that are cropped, and between pixels of the image and of a crop.

Coordinates, here and everywhere: (x, y); pixel centres at integers; boxes are (x, y, w, h) in pixels of the image,
unless a name says xyxy.

A box is widened to the aspect of the crop and padded by 1.25: that is its region. Two affine maps lead from a region
to a crop:

* `udp=True`: unbiased data processing (Huang et al. 2020, arXiv:1911.07524). The crop's first pixel lies on one edge
  of the region and its last pixel on the other: steps of scale / (size - 1). ViTPose on COCO and MPII.
* `udp=False`: the older rule, steps of scale / size. The other four datasets of the original.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from vitpose_jax.pixels.arrays import on_host

BOX_PADDING = 1.25
# Beyond it float32 does not hold every whole number.
MAX_COORDINATE = 2.0**24


class Regions(NamedTuple):
    """Rectangles of an image that are cropped; a JAX pytree.

    Attributes:
        center: (x, y) in pixels of the image.
        scale: width and height in pixels of the image.
        rotation: degrees by which each is turned about its centre; None for upright regions, which are cropped faster.
    """

    center: Float[Array, "n 2"] | Float[np.ndarray, "n 2"]
    scale: Float[Array, "n 2"] | Float[np.ndarray, "n 2"]
    rotation: Float[Array, " n"] | Float[np.ndarray, " n"] | None = None

    @property
    def count(self) -> Any:
        """The number of regions, n; a symbol where `jax.export` exports a batch of any size."""
        return self.center.shape[0]


def check_boxes(boxes: Any, *, name: str = "boxes") -> Float[np.ndarray, "n 4"]:
    """Boxes as a float32 array; on the host, not jit-able.

    Args:
        boxes: (n, 4) numbers, x y w h.
        name: of the argument, for the error.

    Raises:
        ValueError: if the shape is not (n, 4), or a box is not finite, has no area or lies beyond every image. The
            message names the box.
        TypeError: if they are not numbers.
    """
    try:
        array = np.asarray(on_host(boxes), np.float64)
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


def boxes_to_regions(
    boxes: Num[Array | np.ndarray, "n 4"],
    size: tuple[int, int] = (256, 192),
    *,
    padding: float = BOX_PADDING,
    stretch: bool = False,
) -> Regions:
    """The upright regions to crop for boxes.

    The shorter side of a box grows until the box has the aspect of the crop, then both sides grow by `padding`. Equal
    to `box_to_center_and_scale` of transformers and `_xywh2cs` of the original, except that their scales are in units
    of 200 pixels.

    Args:
        boxes: x y w h in pixels of the image.
        size: height and width of the crop.
        padding: factor on both sides.
        stretch: keep the aspect of the box, so that the crop is stretched. The original crops MPII like this.
    """
    boxes = jnp.asarray(boxes, jnp.float32)
    corner, extent = boxes[:, :2], boxes[:, 2:]
    if stretch:
        return Regions(corner + extent * 0.5, extent * padding)
    aspect = size[1] / size[0]
    width = jnp.maximum(extent[:, 0], extent[:, 1] * aspect)
    height = jnp.maximum(extent[:, 1], extent[:, 0] / aspect)
    return Regions(corner + extent * 0.5, jnp.stack([width, height], axis=-1) * padding)


def crop_to_image(
    points: Float[Array, "n *points 2"],
    regions: Regions,
    size: tuple[int, int],
    *,
    udp: bool | Bool[Array, " n"] = True,
) -> Float[Array, "n *points 2"]:
    """Points of a crop, or of its heatmaps, in pixels of the image.

    Args:
        points: (x, y) in pixels of a crop (or heatmap) of the given size.
        regions: of the crops, in pixels of the image.
        size: height and width of the crop or heatmap.
        udp: the affine map, one for all or one for each crop; see the top of this file.

    Returns:
        (x, y) in pixels of the image. The inverse of `get_warp_matrix` (UDP) and `get_affine_transform` of the
        original; the direction of the rotation is that of `get_warp_matrix` for both.
    """
    per_crop = (regions.count, *(1,) * (points.ndim - 2), 2)
    step = _steps(regions.scale, size, udp)
    offset = points * step.reshape(per_crop) - regions.scale.reshape(per_crop) / 2
    return _rotate(offset, regions.rotation, 1) + regions.center.reshape(per_crop)


def image_to_crop(
    points: Float[Array, "n *points 2"],
    regions: Regions,
    size: tuple[int, int],
    *,
    udp: bool | Bool[Array, " n"] = True,
) -> Float[Array, "n *points 2"]:
    """Points of the image in pixels of a crop, or of its heatmaps: the inverse of `crop_to_image`.

    Args:
        points: (x, y) in pixels of the image.
        regions, size, udp: as in `crop_to_image`.

    Returns:
        (x, y) in pixels of a crop (or heatmap) of the given size; they may lie outside it.
    """
    per_crop = (regions.count, *(1,) * (points.ndim - 2), 2)
    step = _steps(regions.scale, size, udp)
    offset = _rotate(points - regions.center.reshape(per_crop), regions.rotation, -1)
    return (offset + regions.scale.reshape(per_crop) / 2) / step.reshape(per_crop)


def _steps(
    scale: Float[Array | np.ndarray, "n 2"], size: tuple[int, int], udp: bool | Bool[Array, " n"]
) -> Float[Array, "n 2"]:
    """Pixels of the image from one pixel of a crop to the next, in x and in y."""
    height, width = size
    return jnp.asarray(scale) / (jnp.asarray([width, height], jnp.float32) - jnp.asarray(udp, jnp.float32)[..., None])


def _rotate(
    offset: Float[Array, "n *points 2"], rotation: Float[Array | np.ndarray, " n"] | None, direction: int
) -> Float[Array, "n *points 2"]:
    if rotation is None:
        return offset
    angle = direction * jnp.deg2rad(jnp.asarray(rotation, jnp.float32)).reshape(-1, *(1,) * (offset.ndim - 2))
    x = offset[..., 0] * jnp.cos(angle) + offset[..., 1] * jnp.sin(angle)
    y = offset[..., 1] * jnp.cos(angle) - offset[..., 0] * jnp.sin(angle)
    return jnp.stack([x, y], axis=-1)
