"""Random crops for training, made on the device from one key; pure functions of arrays that work under `jax.jit`.

Regions change as in the original, in the same order: jitter of the centre, mirroring, half body, scale, rotation. The
crop is then sampled once from the image, as in preprocess.py. Colour changes and random erasing, which the original
does not have, are off by default.

The original mirrors the whole image first. Here the image is sampled at mirrored columns of the crop, which gives the
same crop. Column x of the mirrored crop is column width - 1 - x of the upright crop with UDP, and column width - x
without. Without UDP the last column of a crop is one step before the end of its region, so a finished crop cannot be
mirrored: it lacks one column. In both cases keypoints move with the pixels.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.preprocess import normalize
from vitpose_jax.pipeline.regions import BOX_PADDING, Regions, crop_to_image, image_to_crop
from vitpose_jax.pipeline.warp import Border, check_border, warp
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.vitpose.config import IMAGENET_MEAN, IMAGENET_STD

# RGB to luma and two chroma channels (NTSC). Hue is a rotation in the two chroma channels.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
# Maximum ratio of the longer to the shorter side of an erased rectangle.
MAX_ERASED_ASPECT = 1 / 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How crops are varied in training. The defaults are the original's; `Augmentation.none()` changes nothing.

    Attributes:
        jitter: maximum shift of the centre, in widths and heights of the box.
        jitter_probability: probability of a shift.
        flip: probability that a crop is mirrored, if its skeleton has flip pairs.
        half_body: probability that the region is reduced to the upper or the lower body.
        half_body_keypoints: a half body needs more visible keypoints than this.
        half_body_padding: padding of a half body's region, instead of the box's 1.25.
        scale: standard deviation of the factor on the region's size, and its maximum distance from 1.
        rotation: standard deviation of the angle in degrees; the maximum is twice that.
        rotation_probability: probability of a rotation.
        brightness, contrast, saturation: maximum distance of their factors from 1; 0 for no change. Contrast changes
            about the mean luma of the crop, including pixels outside the image.
        hue: maximum rotation of the hue, as a fraction of the full circle; 0 for no change.
        erasing: probability that a rectangle is filled with the mean colour (Zhong et al. 2020, arXiv:1708.04896).
        erased_area: smallest and largest area of the rectangle, as fractions of the crop.

    Raises:
        ValueError: for a number out of range.
    """

    jitter: int | float = 0.2
    jitter_probability: int | float = 0.3
    flip: int | float = 0.5
    half_body: int | float = 0.3
    half_body_keypoints: int = 8
    half_body_padding: int | float = 1.5
    scale: int | float = 0.5
    rotation: int | float = 40.0
    rotation_probability: int | float = 0.6
    brightness: int | float = 0.0
    contrast: int | float = 0.0
    saturation: int | float = 0.0
    hue: int | float = 0.0
    erasing: int | float = 0.0
    erased_area: tuple[int | float, int | float] = (0.02, 0.33)

    def __post_init__(self) -> None:
        for name in ("jitter_probability", "flip", "half_body", "rotation_probability", "erasing"):
            self._check(name, 0 <= getattr(self, name) <= 1, "a probability from 0 to 1")
        for name in ("jitter", "brightness", "contrast", "saturation"):
            self._check(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        self._check("half_body_keypoints", self.half_body_keypoints >= 0, "0 or more")
        self._check("half_body_padding", 0 < self.half_body_padding < math.inf, "a positive number")
        self._check("scale", 0 <= self.scale < 1, "a number from 0 to below 1")
        self._check("rotation", 0 <= self.rotation <= 180, "degrees from 0 to 180")
        self._check("hue", 0 <= self.hue <= 0.5, "a number from 0 to 0.5")
        smallest, largest = self.erased_area
        self._check("erased_area", 0 < smallest <= largest <= 1, "two numbers, 0 < smallest <= largest <= 1")

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ValueError(f"Augmentation: {name}: expected {expected}, got {getattr(self, name)}")

    @classmethod
    def none(cls) -> "Augmentation":
        """No augmentation: the crops of inference."""
        return cls(jitter=0.0, flip=0.0, half_body=0.0, scale=0.0, rotation=0.0)


class AugmentedRegions(NamedTuple):
    """The augmented regions of a batch of crops.

    Attributes:
        regions: in pixels of the image, before mirroring.
        flip: whether the crop is mirrored left to right.
    """

    regions: Regions
    flip: Bool[Array, " n"]


def skeleton_arrays(
    skeletons: Sequence[Skeleton], num_keypoints: int | None = None
) -> tuple[Int[np.ndarray, "skeletons K"], Bool[np.ndarray, "skeletons K"]]:
    """Skeletons as arrays for augmentation; index them with the dataset of each crop.

    Args:
        skeletons: for example the skeletons of a model's heads.
        num_keypoints: K; None for that of the largest skeleton.

    Returns:
        flip_indices, int32, and upper_body. A keypoint that a skeleton does not have is its own mirror image.

    Raises:
        ValueError: if a skeleton has more than `num_keypoints` keypoints.
    """
    largest = max(skeleton.num_keypoints for skeleton in skeletons)
    num_keypoints = largest if num_keypoints is None else num_keypoints
    if num_keypoints < largest:
        raise ValueError(f"num_keypoints: expected at least {largest}, got {num_keypoints}")
    flip_indices = np.tile(np.arange(num_keypoints, dtype=np.int32), (len(skeletons), 1))
    upper_body = np.zeros((len(skeletons), num_keypoints), bool)
    for row, skeleton in enumerate(skeletons):
        flip_indices[row, : skeleton.num_keypoints] = skeleton.flip_indices
        upper_body[row, list(skeleton.upper_body)] = True
    return flip_indices, upper_body


def augment_regions(
    key: PRNGKeyArray,
    regions: Regions,
    keypoints: Float[Array | np.ndarray, "n K 2"],
    visible: Bool[Array | np.ndarray, "n K"] | Num[Array | np.ndarray, "n K"],
    *,
    upper_body: Bool[Array | np.ndarray, "n K"],
    size: tuple[int, int] = (256, 192),
    extent: Float[Array | np.ndarray, "n 2"] | None = None,
    augmentation: Augmentation = Augmentation(),
) -> AugmentedRegions:
    """Augment the regions of a batch at random.

    Args:
        key: key of all random numbers.
        regions: one for each crop in pixels of its image, from `boxes_to_regions`.
        keypoints: (x, y) in pixels of the image; any value if not visible.
        visible: labelled keypoints are above 0.
        upper_body: True for keypoints of the upper body; a skeleton without any gets no half bodies.
        size: height and width of the crops; only their ratio matters.
        extent: width and height of the boxes, the unit of jitter; None for the regions without their padding, which are
            slightly larger than boxes of another aspect. 0 for no jitter.
        augmentation: how regions are varied; static under `jax.jit`.

    Raises:
        ValueError: for regions that are already rotated.
    """
    if regions.rotation is not None:
        raise ValueError("regions: expected upright regions, got a rotation")
    center, scale = jnp.asarray(regions.center), jnp.asarray(regions.scale)
    keypoints, visible, upper_body = jnp.asarray(keypoints), jnp.asarray(visible), jnp.asarray(upper_body)
    n = regions.count
    # All numbers are drawn, even if unused: turning one augmentation off does not change the others.
    uniform_key, normal_key = jax.random.split(key)
    if_jitter, jitter_x, jitter_y, if_flip, if_half, if_rotate = jax.random.uniform(uniform_key, (6, n))
    which_half, factor, angle = jax.random.normal(normal_key, (3, n))

    if augmentation.jitter:
        extent = scale / BOX_PADDING if extent is None else extent
        shift = extent * augmentation.jitter * (2 * jnp.stack([jitter_x, jitter_y], axis=-1) - 1)
        center = center + jnp.where((if_jitter < augmentation.jitter_probability)[:, None], shift, 0.0)
    flip = if_flip < augmentation.flip
    if augmentation.half_body:
        enough = jnp.sum(visible > 0, axis=1) > augmentation.half_body_keypoints
        # The original compares a normal number with 0.5, perhaps instead of a uniform one: 69 % are upper bodies.
        half_center, half_scale, possible = _half_bodies(keypoints, visible > 0, upper_body, which_half < 0.5, size)
        take_half = (enough & possible & (if_half < augmentation.half_body))[:, None]
        center = jnp.where(take_half, half_center, center)
        scale = jnp.where(take_half, half_scale * augmentation.half_body_padding, scale)
    if augmentation.scale:
        spread = augmentation.scale
        scale = scale * jnp.clip(1 + spread * factor, 1 - spread, 1 + spread)[:, None]
    degrees = augmentation.rotation * jnp.clip(angle, -2, 2)
    rotation = jnp.where(if_rotate < augmentation.rotation_probability, degrees, 0.0)
    return AugmentedRegions(Regions(center, scale, rotation), flip)


def augment_crops(
    key: PRNGKeyArray,
    images: PackedImages,
    regions: Regions,
    keypoints: Float[Array | np.ndarray, "n K 2"],
    visible: Bool[Array | np.ndarray, "n K"] | Num[Array | np.ndarray, "n K"],
    *,
    flip_indices: Int[Array | np.ndarray, "n K"],
    upper_body: Bool[Array | np.ndarray, "n K"],
    size: tuple[int, int] = (256, 192),
    udp: bool | Bool[Array | np.ndarray, " n"] = True,
    extent: Float[Array | np.ndarray, "n 2"] | None = None,
    augmentation: Augmentation = Augmentation(),
    border: Border = "opencv",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> tuple[Float[Array, "n height width 3"], Float[Array, "n K 2"], Bool[Array, "n K"] | Num[Array, "n K"]]:
    """Augmented crops for training, and their keypoints.

    Args:
        key: key of all random numbers.
        images: with one row of `shapes` for each crop.
        regions, keypoints, visible, upper_body, extent, augmentation: as in `augment_regions`.
        flip_indices: of each crop's skeleton, see `skeleton_arrays`. Without flip pairs a crop is not mirrored: a left
            ear in it would become a right one with the label of the left.
        size: height and width of the crops.
        udp: the affine map (preprocess.py), for all crops or for each.
        border: pixel values outside the image, see preprocess.py.
        mean, std: of each channel, for pixels scaled to 0..1.

    Returns:
        crops, float32, normalised; keypoints, (x, y) in pixels of the crops; visible. In mirrored crops keypoints and
        visible are reordered, so they are in the order of the skeleton. Keypoints outside the crop stay visible:
        `gaussian_heatmaps` decides by their distance.

    Raises:
        ValueError: for an unknown border; for regions that are already rotated.
    """
    check_border(border)
    udp = udp if isinstance(udp, bool) else jnp.asarray(udp)
    region_key, color_key, erase_key = jax.random.split(key, 3)
    regions, flip = augment_regions(
        region_key,
        regions,
        keypoints,
        visible,
        upper_body=upper_body,
        size=size,
        extent=extent,
        augmentation=augmentation,
    )
    order = jnp.arange(flip_indices.shape[1])
    flip &= jnp.any(jnp.asarray(flip_indices) != order, axis=1) | (len(order) == 1)
    height, width = size
    columns, rows = jnp.meshgrid(jnp.arange(width, dtype=jnp.float32), jnp.arange(height, dtype=jnp.float32))
    grid = jnp.broadcast_to(jnp.stack([columns, rows], axis=-1), (regions.count, height, width, 2))
    sources = crop_to_image(_mirror(grid, flip, width, udp), regions, size, udp=udp)
    crops = warp(images, sources, border=border)
    crops = normalize(_change_colors(color_key, crops, augmentation), mean, std)
    if augmentation.erasing:
        crops = jnp.where(_erased(erase_key, len(crops), size, augmentation)[..., None], 0.0, crops)

    keypoints = image_to_crop(jnp.asarray(keypoints), regions, size, udp=udp)
    keypoints = _mirror(keypoints, flip, width, udp)
    order = jnp.where(flip[:, None], flip_indices, order)
    keypoints = jnp.take_along_axis(keypoints, order[..., None], axis=1)
    return crops, keypoints, jnp.take_along_axis(jnp.asarray(visible), order, axis=1)


def _mirror(
    points: Float[Array, "n *points 2"], flip: Bool[Array, " n"], width: int, udp: bool | Bool[Array, " n"]
) -> Float[Array, "n *points 2"]:
    """Points of a crop in its mirror image, for crops with `flip`; its own inverse. See the top of this file."""
    per_crop = (len(flip), *(1,) * (points.ndim - 2))
    last = jnp.broadcast_to(width - jnp.asarray(udp, jnp.float32), len(flip)).reshape(per_crop)
    x = jnp.where(flip.reshape(per_crop), last - points[..., 0], points[..., 0])
    return jnp.stack([x, points[..., 1]], axis=-1)


def _half_bodies(
    keypoints: Float[Array, "n K 2"],
    visible: Bool[Array, "n K"],
    upper_body: Bool[Array, "n K"],
    prefer_upper: Bool[Array, " n"],
    size: tuple[int, int],
) -> tuple[Float[Array, "n 2"], Float[Array, "n 2"], Bool[Array, " n"]]:
    """Centre and unpadded size of the visible keypoints of half a body, and whether there is such a half.

    A half with fewer than three keypoints is not preferred over the other; `half_body_transform` of the original.
    """
    upper, lower = visible & upper_body, visible & ~upper_body
    enough_upper, enough_lower = (jnp.sum(half, axis=1) > 2 for half in (upper, lower))
    take_upper = (prefer_upper & enough_upper) | ~enough_lower
    chosen = jnp.where(take_upper[:, None], upper, lower)
    count = jnp.sum(chosen, axis=1)
    mask = chosen[..., None]
    center = jnp.sum(jnp.where(mask, keypoints, 0.0), axis=1) / jnp.maximum(count, 1)[:, None]
    extent = jnp.max(keypoints, axis=1, where=mask, initial=-jnp.inf) - jnp.min(
        keypoints, axis=1, where=mask, initial=jnp.inf
    )
    aspect = size[1] / size[0]
    width = jnp.maximum(extent[:, 0], extent[:, 1] * aspect)
    # Keypoints at a single place have no extent.
    possible = (count >= 2) & (width > 0) & jnp.any(upper_body, axis=1)
    return center, jnp.stack([width, width / aspect], axis=-1), possible


def _change_colors(
    key: PRNGKeyArray, pixels: Float[Array, "n height width 3"], augmentation: Augmentation
) -> Float[Array, "n height width 3"]:
    """Change brightness, contrast, saturation and hue; pixel values stay within 0 to 255.

    All four are one affine map of the three colours: a matrix, and a shift, as contrast changes about the mean luma.
    """
    spreads = (augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue)
    if not any(spreads):
        return pixels
    draws = jax.random.uniform(key, (4, len(pixels)), minval=-1, maxval=1)
    brightness, contrast, saturation = (1 + spread * draw for spread, draw in zip(spreads[:3], draws[:3], strict=True))
    angle = 2 * math.pi * augmentation.hue * draws[3]
    cos, sin = saturation * jnp.cos(angle), saturation * jnp.sin(angle)
    zero, one = jnp.zeros_like(angle), jnp.ones_like(angle)
    rotations = jnp.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=-1).reshape(-1, 3, 3)
    exact = jax.lax.Precision.HIGHEST
    matrices = jnp.einsum("ij,njk,kl->nil", np.linalg.inv(YIQ), rotations, YIQ, precision=exact).astype(jnp.float32)
    matrices *= (brightness * contrast)[:, None, None]
    mean_luma = jnp.mean(pixels, axis=(1, 2)) @ jnp.asarray(YIQ[0], jnp.float32)
    shift = brightness * (1 - contrast) * mean_luma
    changed = jnp.einsum("nij,nhwj->nhwi", matrices, pixels, precision=exact)
    return jnp.clip(changed + shift[:, None, None, None], 0.0, 255.0)


def _erased(
    key: PRNGKeyArray, n: int, size: tuple[int, int], augmentation: Augmentation
) -> Bool[Array, "n height width"]:
    """True inside a random rectangle of each crop, with probability `erasing`; the rectangle is inside the crop."""
    if_erase, area, aspect, top, left = jax.random.uniform(key, (5, n))
    smallest, largest = augmentation.erased_area
    area = (smallest + (largest - smallest) * area) * math.prod(size)
    aspect = jnp.exp(math.log(MAX_ERASED_ASPECT) * (2 * aspect - 1))
    sides = jnp.asarray(size, jnp.float32)[:, None]
    lengths = jnp.minimum(jnp.sqrt(area * jnp.stack([1 / aspect, aspect])), sides)
    starts = jnp.stack([top, left]) * (sides - lengths)
    rows, columns = (
        (jnp.arange(side) >= start[:, None]) & (jnp.arange(side) < (start + length)[:, None])
        for side, start, length in zip(size, starts, lengths, strict=True)
    )
    return rows[:, :, None] & columns[:, None, :] & (if_erase < augmentation.erasing)[:, None, None]
