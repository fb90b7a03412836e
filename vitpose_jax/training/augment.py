"""Random crops for training, made on the device from one key; pure array functions, all of them jit-able.

What happens to a region follows the original, in its order: its centre is jittered; it is mirrored; it becomes
the upper or the lower half of the body; it is scaled and turned. The crop is then sampled from the image once,
as preprocess.py does it. Changes of colour and random erasing, which the original does not have, are off by
default.

The original mirrors the whole image first. The same crop comes from reading the image at mirrored columns of
the crop. Column x of the mirrored crop is column width - 1 - x of the upright one with UDP, and column
width - x without it, where a crop's last column lies one step before the end of its region: so a non-UDP crop
cannot be mirrored after it was made, it lacks a column. In both cases keypoints move with the pixels.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, UInt8

from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.preprocess import normalize
from vitpose_jax.pipeline.regions import BOX_PADDING, Regions, crop_to_image, image_to_crop
from vitpose_jax.pipeline.warp import Border, check_border, warp
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.vitpose.config import IMAGENET_MEAN, IMAGENET_STD

# Red, green and blue to brightness and two differences of colour, as television once did; hues turn in the last two.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
# Erased rectangles are up to this much wider than high, or higher than wide.
WIDEST_ERASED = 1 / 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How crops are varied in training. The defaults are the original's; `Augmentation.none()` varies nothing.

    Attributes:
        jitter: largest shift of the centre, in widths and heights of the box.
        jitter_probability: of a shift.
        flip: probability that a crop is mirrored.
        half_body: probability that the region becomes that of the upper or lower body alone.
        half_body_keypoints: more visible keypoints than this are needed for it.
        half_body_padding: of the region of half a body, in place of the box's 1.25.
        scale: deviation of the factor on the region's size, and its largest distance from 1.
        rotation: deviation of the angle in degrees; twice that is the largest.
        rotation_probability: of a turn.
        brightness, contrast, saturation: largest distance from 1 of the factors on them; 0 for no change.
            Contrast is changed about the mean brightness of the crop, what lies outside the image included.
        hue: largest turn of the hues, as a share of the full circle; 0 for no change.
        erasing: probability that a rectangle is blotted out with the mean colour (Zhong et al. 2020,
            arXiv:1708.04896).
        erased_area: smallest and largest rectangle, as a share of the crop.

    Raises:
        ValueError: for a number out of its range.
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
        """No change at all: the crops of inference."""
        return cls(jitter=0.0, flip=0.0, half_body=0.0, scale=0.0, rotation=0.0)


class AugmentedRegions(NamedTuple):
    """What to cut out of the images, one of each for every crop.

    Attributes:
        center, scale: Float[n 2], in pixels of the image.
        rotation: Float[n], degrees by which the region is turned in the image, before it is mirrored.
        flip: Bool[n], whether the crop is mirrored left to right.
    """

    center: Float[Array, "n 2"]
    scale: Float[Array, "n 2"]
    rotation: Float[Array, " n"]
    flip: Bool[Array, " n"]


def skeleton_arrays(
    skeletons: Sequence[Skeleton], num_keypoints: int | None = None
) -> tuple[Int[np.ndarray, "skeletons K"], Bool[np.ndarray, "skeletons K"]]:
    """What augmentation needs to know of skeletons, as arrays; index them by the data set of each crop.

    Args:
        skeletons: for example those of a model's heads.
        num_keypoints: K, at least the largest skeleton's; None for just that.

    Returns:
        flip_indices, int32, and upper_body. Keypoints that a skeleton does not have stay where they are.

    Raises:
        ValueError: where a skeleton has more than `num_keypoints`.
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
    center: Float[Array, "n 2"],
    scale: Float[Array, "n 2"],
    keypoints: Float[Array, "n K 2"],
    visible: Bool[Array, "n K"] | Num[Array, "n K"],
    *,
    upper_body: Bool[Array, "n K"],
    size: tuple[int, int] = (256, 192),
    extent: Float[Array, "n 2"] | None = None,
    augmentation: Augmentation = Augmentation(),
) -> AugmentedRegions:
    """Vary the regions of a batch.

    Args:
        key: decides everything random.
        center, scale: of each region in pixels of its image, from `boxes_to_regions`.
        keypoints: (x, y) in pixels of the image; where not visible they may be anything.
        visible: which keypoints are labelled: those above 0.
        upper_body: which keypoints belong to the upper body; where none does, there are no half bodies.
        size: height and width of the crops; only their ratio counts.
        extent: width and height of the boxes, in which jitter is measured; None for the regions without their
            padding, which is a little more for boxes of another aspect. 0 for no jitter.
        augmentation: how; static under `jax.jit`.
    """
    n = len(center)
    # Every number is drawn, used or not: what is turned off does not change the rest.
    even_key, normal_key = jax.random.split(key)
    if_jitter, jitter_x, jitter_y, if_flip, if_half, if_turn = jax.random.uniform(even_key, (6, n))
    which_half, factor, angle = jax.random.normal(normal_key, (3, n))

    if augmentation.jitter:
        extent = scale / BOX_PADDING if extent is None else extent
        shift = extent * augmentation.jitter * (2 * jnp.stack([jitter_x, jitter_y], axis=-1) - 1)
        center = center + jnp.where((if_jitter < augmentation.jitter_probability)[:, None], shift, 0.0)
    flip = if_flip < augmentation.flip
    if augmentation.half_body:
        enough = jnp.sum(visible > 0, axis=1) > augmentation.half_body_keypoints
        # The original compares a normal number with 0.5, where an even one may have been meant: 69 % upper.
        half_center, half_scale, possible = _half_bodies(keypoints, visible > 0, upper_body, which_half < 0.5, size)
        wanted = (enough & possible & (if_half < augmentation.half_body))[:, None]
        center = jnp.where(wanted, half_center, center)
        scale = jnp.where(wanted, half_scale * augmentation.half_body_padding, scale)
    if augmentation.scale:
        spread = augmentation.scale
        scale = scale * jnp.clip(1 + spread * factor, 1 - spread, 1 + spread)[:, None]
    degrees = augmentation.rotation * jnp.clip(angle, -2, 2)
    rotation = jnp.where(if_turn < augmentation.rotation_probability, degrees, 0.0)
    return AugmentedRegions(center, scale, rotation, flip)


def augment_crops(
    key: PRNGKeyArray,
    pixels: UInt8[Array, "p 3"],
    shapes: Int[Array, "n 3"],
    center: Float[Array, "n 2"],
    scale: Float[Array, "n 2"],
    keypoints: Float[Array, "n K 2"],
    visible: Bool[Array, "n K"] | Num[Array, "n K"],
    *,
    flip_indices: Int[Array, "n K"],
    upper_body: Bool[Array, "n K"],
    size: tuple[int, int] = (256, 192),
    udp: bool | Bool[Array, " n"] = True,
    extent: Float[Array, "n 2"] | None = None,
    augmentation: Augmentation = Augmentation(),
    border: Border = "opencv",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> tuple[Float[Array, "n height width 3"], Float[Array, "n K 2"], Bool[Array, "n K"] | Num[Array, "n K"]]:
    """Crops for training and where the keypoints are in them.

    Args:
        key: decides everything random.
        pixels, shapes: images and each crop's place among them, as `warp` wants them.
        center, scale, keypoints, visible, upper_body, extent, augmentation: as in `augment_regions`.
        flip_indices: of each crop's skeleton, see `skeleton_arrays`.
        size: height and width of the crops.
        udp: the affine map of preprocess.py, one for all or one for each crop.
        border: what lies outside the image, see preprocess.py.
        mean, std: for each channel, of pixels scaled to 0..1.

    Returns:
        crops, normalised, float32; keypoints, (x, y) in pixels of the crops; visible. Both of the latter are in the
        order of the skeleton again where the crop is mirrored. Keypoints that have left the crop stay visible:
        `gaussian_heatmaps` decides by how far they are from it.

    Raises:
        ValueError: for an unknown border.
    """
    check_border(border)
    region_key, color_key, erase_key = jax.random.split(key, 3)
    regions = augment_regions(
        region_key,
        center,
        scale,
        keypoints,
        visible,
        upper_body=upper_body,
        size=size,
        extent=extent,
        augmentation=augmentation,
    )
    height, width = size
    columns, rows = jnp.meshgrid(jnp.arange(width, dtype=jnp.float32), jnp.arange(height, dtype=jnp.float32))
    grid = jnp.broadcast_to(jnp.stack([columns, rows], axis=-1), (len(center), height, width, 2))
    regions, flip = Regions(regions.center, regions.scale, regions.rotation), regions.flip
    sources = crop_to_image(_mirror(grid, flip, width, udp), regions, size, udp=udp)
    grey = warp(PackedImages(pixels, shapes), sources, border=border)
    crops = normalize(_change_colors(color_key, grey, augmentation), mean, std)
    if augmentation.erasing:
        crops = jnp.where(_erased(erase_key, len(crops), size, augmentation)[..., None], 0.0, crops)

    keypoints = image_to_crop(keypoints, regions, size, udp=udp)
    keypoints = _mirror(keypoints, flip, width, udp)
    order = jnp.where(flip[:, None], flip_indices, jnp.arange(flip_indices.shape[1]))
    keypoints = jnp.take_along_axis(keypoints, order[..., None], axis=1)
    return crops, keypoints, jnp.take_along_axis(visible, order, axis=1)


def _mirror(
    points: Float[Array, "n *points 2"], flip: Bool[Array, " n"], width: int, udp: bool | Bool[Array, " n"]
) -> Float[Array, "n *points 2"]:
    """Points of a crop in its mirror image, where `flip`; its own inverse. See the top of this file."""
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
    """Centre and size, not yet padded, of the visible keypoints of half a body, and where there is one.

    A half needs three keypoints to be chosen over the other one; `half_body_transform` of the original.
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
    # Keypoints in one place make no region.
    possible = (count >= 2) & (width > 0) & jnp.any(upper_body, axis=1)
    return center, jnp.stack([width, width / aspect], axis=-1), possible


def _change_colors(
    key: PRNGKeyArray, grey: Float[Array, "n height width 3"], augmentation: Augmentation
) -> Float[Array, "n height width 3"]:
    """Change brightness, contrast, saturation and hue; grey levels stay within 0 to 255.

    All four together are one matrix for the three colours and one number added to them: contrast is changed
    about the mean brightness of the crop.
    """
    spreads = (augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue)
    if not any(spreads):
        return grey
    draws = jax.random.uniform(key, (4, len(grey)), minval=-1, maxval=1)
    brightness, contrast, saturation = (1 + spread * draw for spread, draw in zip(spreads[:3], draws[:3], strict=True))
    angle = 2 * math.pi * augmentation.hue * draws[3]
    cos, sin = saturation * jnp.cos(angle), saturation * jnp.sin(angle)
    zero, one = jnp.zeros_like(angle), jnp.ones_like(angle)
    turns = jnp.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=-1).reshape(-1, 3, 3)
    exact = jax.lax.Precision.HIGHEST
    matrices = jnp.einsum("ij,njk,kl->nil", np.linalg.inv(YIQ), turns, YIQ, precision=exact).astype(jnp.float32)
    matrices *= (brightness * contrast)[:, None, None]
    middle = jnp.mean(grey, axis=(1, 2)) @ jnp.asarray(YIQ[0], jnp.float32)
    shift = brightness * (1 - contrast) * middle
    levels = jnp.einsum("nij,nhwj->nhwi", matrices, grey, precision=exact)
    return jnp.clip(levels + shift[:, None, None, None], 0.0, 255.0)


def _erased(
    key: PRNGKeyArray, n: int, size: tuple[int, int], augmentation: Augmentation
) -> Bool[Array, "n height width"]:
    """The pixels of one random rectangle in each crop that gets one; it lies inside the crop."""
    if_erase, area, aspect, top, left = jax.random.uniform(key, (5, n))
    smallest, largest = augmentation.erased_area
    area = (smallest + (largest - smallest) * area) * math.prod(size)
    aspect = jnp.exp(math.log(WIDEST_ERASED) * (2 * aspect - 1))
    sides = jnp.asarray(size, jnp.float32)[:, None]
    lengths = jnp.minimum(jnp.sqrt(area * jnp.stack([1 / aspect, aspect])), sides)
    starts = jnp.stack([top, left]) * (sides - lengths)
    rows, columns = (
        (jnp.arange(side) >= start[:, None]) & (jnp.arange(side) < (start + length)[:, None])
        for side, start, length in zip(size, starts, lengths, strict=True)
    )
    return rows[:, :, None] & columns[:, None, :] & (if_erase < augmentation.erasing)[:, None, None]
