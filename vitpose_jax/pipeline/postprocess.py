"""From heatmaps to keypoints; pure array functions, all of them jit-able.

    heatmaps   Float[n 64 48 K]
      find_peaks     the highest pixel of each heatmap; its value is the score
      refine         points between pixels, Float[n K 2] in heatmap pixels
      crop_to_image  keypoints Float[n K 2], (x, y) in pixels of the image (regions.py)
      peak_covariances  how wide the peaks are, Float[n K 2 2] in square pixels of the image

The decodings differ in how they refine:

* "udp": DARK (Zhang et al. 2020, arXiv:1910.06278) as the original ViTPose runs it (`post_dark_udp`): the
  heatmap blurred with an 11x11 Gaussian of standard deviation 2, then one Newton step on its logarithm.
* "transformers": the same with standard deviation 0.8 and another border, as in the processor of transformers.
  It also does what that does with a heatmap without a positive pixel: see `_without_peak`.
* "quarter": a quarter of a pixel towards the higher neighbour in x and in y. The original uses it for its datasets
  without UDP; it goes with the affine map `udp=False` of regions.py.
* "argmax": no refinement.

In the other decodings, a heatmap without a positive pixel is not refined: its point is the highest pixel, inside the
crop, and its score is 0 or below. Arithmetic is float32 whatever the dtype of the heatmaps.
"""

from typing import Literal, NamedTuple, TypeAlias

import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from vitpose_jax.pipeline.regions import BOX_PADDING, Regions, boxes_to_regions, check_boxes, crop_to_image

Decode: TypeAlias = Literal["udp", "transformers", "quarter", "argmax"]

# Pixels on a side of the Gaussian.
KERNEL_SIZE = 11
LOG_RANGE = (0.001, 50.0)
# The smallest variance of a peak, in square heatmap pixels: half a pixel is the finest that one can see.
MIN_VARIANCE = 0.25


class Decoding(NamedTuple):
    """The settings of one decoding.

    Attributes:
        udp: the affine map that it goes with.
        sigma: standard deviation of the Gaussian before the Newton step, in heatmap pixels; None for no such step.
        border: of the blur, a mode of `np.pad`.
    """

    udp: bool
    sigma: float | None = None
    border: Literal["reflect", "symmetric"] = "reflect"


TRANSFORMERS = Decoding(udp=True, sigma=0.8, border="symmetric")
DECODINGS = {
    "udp": Decoding(udp=True, sigma=2.0, border="reflect"),
    "transformers": TRANSFORMERS,
    "quarter": Decoding(udp=False),
    "argmax": Decoding(udp=True),
}


def get_decoding(decode: str) -> Decoding:
    """The settings of a decoding, by name.

    Raises:
        ValueError: for an unknown name. The message lists the known ones.
    """
    if decode not in DECODINGS:
        raise ValueError(f"decode: expected one of {', '.join(DECODINGS)}, got {decode!r}")
    return DECODINGS[decode]


def flip_back(
    heatmaps: Float[Array, "n height width K"], flip_indices: tuple[int, ...], *, shift: bool = False
) -> Float[Array, "n height width K"]:
    """Turn heatmaps of mirrored crops into heatmaps of the crops.

    Args:
        heatmaps: of crops mirrored left to right.
        flip_indices: `Skeleton.flip_indices`.
        shift: move the result one pixel to the right, except the first column: `shift_heatmap` of the original. For
            crops without UDP, whose mirror image is off by one pixel.
    """
    heatmaps = heatmaps[:, :, ::-1, np.asarray(flip_indices)]
    return jnp.concatenate([heatmaps[:, :, :1], heatmaps[:, :, :-1]], axis=2) if shift else heatmaps


def find_peaks(heatmaps: Float[Array, "n height width K"]) -> tuple[Float[Array, "n K 2"], Float[Array, "n K"]]:
    """The highest pixel of each heatmap, the first of equal ones: its (x, y) and its value, as float32."""
    n, height, width, channels = heatmaps.shape
    flat = heatmaps.reshape(n, height * width, channels)
    index = jnp.argmax(flat, axis=1)
    return jnp.stack([index % width, index // width], axis=-1).astype(jnp.float32), flat.max(axis=1)


def refine(
    heatmaps: Float[Array, "n height width K"],
    points: Float[Array, "n K 2"],
    decode: Decode = "udp",
    *,
    kernel_size: int = KERNEL_SIZE,
) -> Float[Array, "n K 2"]:
    """Move points from the highest pixels to the peaks, which lie between pixels.

    Args:
        heatmaps: float32.
        points: (x, y) of the highest pixels, from `find_peaks`.
        decode: see the top of this file.
        kernel_size: of the Gaussian, in heatmap pixels, an odd number; the original and transformers use 11.

    Returns:
        (x, y) in heatmap pixels.

    Raises:
        ValueError: for an unknown decoding, and for a kernel size that is not a positive odd number.
    """
    decoding = get_decoding(decode)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected a positive odd number, got {kernel_size}")
    height, width = heatmaps.shape[1:3]
    if decode == "quarter":
        patch = _neighbourhoods(heatmaps, points, np.eye(height), np.eye(width))
        slope = jnp.stack([patch[..., 1, 2] - patch[..., 1, 0], patch[..., 2, 1] - patch[..., 0, 1]], axis=-1)
        inner = jnp.all((points > 1) & (points < jnp.asarray([width - 1, height - 1])), axis=-1, keepdims=True)
        return points + jnp.where(inner, 0.25 * jnp.sign(slope), 0.0)
    if decoding.sigma is None:
        return points
    patch = _log_patches(heatmaps, points, decoding, kernel_size)
    return points - _newton_step(patch)


def _log_patches(
    heatmaps: Float[Array, "n height width K"], points: Float[Array, "n K 2"], decoding: Decoding, kernel_size: int
) -> Float[Array, "n K 3 3"]:
    """The logarithms of the 3x3 pixels around points of the blurred heatmaps."""
    blur = [_blur_matrix(side, decoding.sigma or 0.0, decoding.border, kernel_size) for side in heatmaps.shape[1:3]]
    return jnp.log(jnp.clip(_neighbourhoods(heatmaps, points, *blur), *LOG_RANGE))


def _without_peak(heatmaps: Float[Array, "n height width K"], kernel_size: int) -> Float[Array, "n K 2"]:
    """What transformers returns for heatmaps without a positive pixel, (x, y) in heatmap pixels.

    It sets the peak to (-1, -1), and its flat index then reads across the borders of the padded heatmaps. Beside and
    below are copies of the upper left pixel; above and to the left are the lower corners of the heatmap before: of the
    keypoint before, of the crop before for the first keypoint, and of the last crop for the first of all. If these are
    0 or below, as they are with a flat background, the point is (-1, -1). If not, it can be anywhere; and if only the
    right one is above 0, its y in transformers is decided by rounding errors, and is -1 here.
    """
    n, height, width, channels = heatmaps.shape

    def corner(x: int, y: int) -> Float[Array, "n K"]:
        points = jnp.broadcast_to(jnp.asarray([x, y], jnp.float32), (n, channels, 2))
        return _log_patches(heatmaps, points, TRANSFORMERS, kernel_size)[..., 1, 1]

    own, left, right = corner(0, 0), corner(0, height - 1), corner(width - 1, height - 1)
    left, right = (jnp.roll(values.reshape(-1), 1).reshape(n, channels) for values in (left, right))
    # Less the middle, so that equal values cancel exactly.
    left, right, zero = left - own, right - own, jnp.zeros_like(own)
    rows = [[right, left, zero], [right, zero, zero], [zero, zero, zero]]
    return -1.0 - _newton_step(jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2))


def _blur_matrix(
    size: int, sigma: float, border: Literal["reflect", "symmetric"], kernel_size: int
) -> Float[np.ndarray, "size size"]:
    """The matrix that blurs a line of `size` pixels with a Gaussian of `kernel_size` pixels."""
    radius = kernel_size // 2
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    sources = np.pad(np.arange(size), radius, mode=border)
    matrix = np.zeros((size, size))
    for tap, weight in enumerate(taps / taps.sum()):
        np.add.at(matrix, (np.arange(size), sources[tap : tap + size]), weight)
    return matrix


def _neighbourhoods(
    heatmaps: Float[Array, "n height width K"],
    points: Float[Array, "n K 2"],
    blur_rows: Float[np.ndarray, "height height"],
    blur_columns: Float[np.ndarray, "width width"],
) -> Float[Array, "n K 3 3"]:
    """The 3x3 pixels around each point of the blurred heatmaps; outside, the edge is repeated.

    Only the three rows and columns around each point are blurred: with the blur as a matrix, that takes two small
    products.
    """
    near = jnp.asarray([-1, 0, 1])
    columns, rows = jnp.moveaxis(points.astype(jnp.int32)[..., None] + near, 2, 0)
    rows = jnp.asarray(blur_rows, jnp.float32)[jnp.clip(rows, 0, len(blur_rows) - 1)]
    columns = jnp.asarray(blur_columns, jnp.float32)[jnp.clip(columns, 0, len(blur_columns) - 1)]
    exact = jax.lax.Precision.HIGHEST
    patch = jnp.einsum("nkah,nhwk->nkaw", rows, heatmaps, precision=exact)
    return jnp.einsum("nkaw,nkbw->nkab", patch, columns, precision=exact)


def _newton_step(patch: Float[Array, "n K 3 3"]) -> Float[Array, "n K 2"]:
    """Inverse Hessian times gradient at the middle of a 3x3 patch [y, x]: minus the way to the peak."""
    left, right, above, below = patch[..., 1, 0], patch[..., 1, 2], patch[..., 0, 1], patch[..., 2, 1]
    dx, dy = 0.5 * (right - left), 0.5 * (below - above)
    dxx, dyy, dxy = _hessian(patch)
    determinant = dxx * dyy - dxy * dxy
    safe = jnp.where(determinant == 0, 1.0, determinant)
    step = jnp.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], axis=-1) / safe[..., None]
    return jnp.where((determinant == 0)[..., None], 0.0, step)


def _hessian(patch: Float[Array, "n K 3 3"]) -> tuple[Float[Array, "n K"], Float[Array, "n K"], Float[Array, "n K"]]:
    """The second derivatives xx, yy and xy at the middle of a 3x3 patch [y, x]."""
    middle = patch[..., 1, 1]
    left, right, above, below = patch[..., 1, 0], patch[..., 1, 2], patch[..., 0, 1], patch[..., 2, 1]
    # The reference adds the same epsilon, so that the Hessian of a flat patch has an inverse.
    epsilon = np.finfo(np.float32).eps
    dxx = right - 2 * middle + left + epsilon
    dyy = below - 2 * middle + above + epsilon
    dxy = 0.5 * (patch[..., 2, 2] - right - below + 2 * middle - left - above + patch[..., 0, 0])
    return dxx, dyy, dxy


def peak_covariances(
    heatmaps: Float[Array | np.ndarray, "n height width K"], regions: Regions, *, decode: Decode = "udp"
) -> Float[Array, "n K 2 2"]:
    """The covariance matrix of the Gaussian that fits each peak, in square pixels of the image.

    The Newton step knows it: minus the inverse of the Hessian of the logarithm, less the variance of the blur. It is
    how wide the peak is, not how far the keypoint may be off: the targets of the training are Gaussians with a standard
    deviation of 2 pixels of a heatmap of 64 x 48, so even a sure keypoint is about as wide. A wider one was unsure,
    along the longer axis of the ellipse.

    Args:
        heatmaps: of any floating dtype.
        regions: of the crops.
        decode: "udp" or "transformers", which blur differently.

    Returns:
        x comes first. NaN where there is no peak: a highest pixel of 0 or below, or a patch that is not hollow; and for
        decodings without a Newton step.

    Raises:
        ValueError: for an unknown decoding.
    """
    decoding = get_decoding(decode)
    heatmaps = jnp.asarray(heatmaps, jnp.float32)
    (n, height, width, channels), sigma = heatmaps.shape, decoding.sigma
    if sigma is None:
        return jnp.full((n, channels, 2, 2), jnp.nan)
    peaks, scores = find_peaks(heatmaps)
    dxx, dyy, dxy = _hessian(_log_patches(heatmaps, peaks, decoding, KERNEL_SIZE))
    determinant = dxx * dyy - dxy * dxy
    is_peak = (scores > 0) & (dxx < 0) & (determinant > 0)
    safe = jnp.where(is_peak, determinant, 1.0)
    xx, yy, xy = -dyy / safe - sigma**2, -dxx / safe - sigma**2, dxy / safe
    # Both axes of the ellipse are at least MIN_VARIANCE long.
    mean, half = (xx + yy) / 2, (xx - yy) / 2
    radius = jnp.sqrt(half**2 + xy**2)
    longer, shorter = jnp.maximum(mean + radius, MIN_VARIANCE), jnp.maximum(mean - radius, MIN_VARIANCE)
    stretch = (longer - shorter) / 2 / jnp.maximum(radius, np.finfo(np.float32).tiny)
    middle = (longer + shorter) / 2
    xx, yy, xy = middle + stretch * half, middle - stretch * half, stretch * xy
    matrices = jnp.stack([jnp.stack([xx, xy], axis=-1), jnp.stack([xy, yy], axis=-1)], axis=-2)
    matrices = jnp.where(is_peak[..., None, None], matrices, jnp.nan)
    # Where the corner of a heatmap and its neighbours in x and y are in the image.
    corner = jnp.broadcast_to(jnp.asarray([[0, 0], [1, 0], [0, 1]], jnp.float32), (n, 3, 2))
    origin, right, below = jnp.moveaxis(crop_to_image(corner, regions, (height, width), udp=decoding.udp), 1, 0)
    jacobian = jnp.stack([right - origin, below - origin], axis=-1)
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("nij,nkjl,nml->nkim", jacobian, matrices, jacobian, precision=exact)


def decode_regions(
    heatmaps: Float[Array | np.ndarray, "n height width K"],
    regions: Regions,
    *,
    decode: Decode = "udp",
    kernel_size: int = KERNEL_SIZE,
) -> tuple[Float[Array, "n K 2"], Float[Array, "n K"]]:
    """As `decode_heatmaps`, for the regions that were cropped."""
    if heatmaps.shape[0] != regions.count:
        raise ValueError(f"heatmaps: expected one row for each of {regions.count} boxes, got {heatmaps.shape[0]}")
    heatmaps = jnp.asarray(heatmaps, jnp.float32)
    peaks, scores = find_peaks(heatmaps)
    refined = refine(heatmaps, peaks, decode, kernel_size=kernel_size)
    unrefined = _without_peak(heatmaps, kernel_size) if decode == "transformers" else peaks
    points = jnp.where(scores[..., None] > 0, refined, unrefined)
    height, width = heatmaps.shape[1:3]
    return crop_to_image(points, regions, (height, width), udp=get_decoding(decode).udp), scores


def decode_heatmaps(
    heatmaps: Float[Array | np.ndarray, "n height width K"],
    boxes: Num[Array | np.ndarray, "n 4"],
    *,
    decode: Decode = "udp",
    size: tuple[int, int] | None = None,
    padding: float = BOX_PADDING,
    kernel_size: int = KERNEL_SIZE,
) -> tuple[Float[Array, "n K 2"], Float[Array, "n K"]]:
    """Keypoints in pixels of the image.

    Args:
        heatmaps: of any floating dtype.
        boxes: x y w h in pixels of the image, as given to `crop_boxes`.
        decode: "udp", "transformers", "quarter" or "argmax"; see the top of this file.
        size: height and width of the crops; only their ratio counts. None for the ratio of the heatmaps.
        padding: as in `crop_boxes`.
        kernel_size: as in `refine`.

    Returns:
        keypoints (n, K, 2), float32, (x, y) in pixels of the image; scores (n, K), float32, the peak values.
        They are not probabilities and can exceed 1.

    Raises:
        ValueError: for an unknown decoding; if the numbers of boxes and heatmaps differ; for boxes without area or
            not finite, unless traced by `jax.jit`.
    """
    if not isinstance(boxes, jax.core.Tracer):
        boxes = check_boxes(boxes)
    height, width = size or heatmaps.shape[1:3]
    regions = boxes_to_regions(boxes, (height, width), padding=padding)
    return decode_regions(heatmaps, regions, decode=decode, kernel_size=kernel_size)
