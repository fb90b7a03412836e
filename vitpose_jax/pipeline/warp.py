"""Bilinear sampling of packed images, rounded to whole pixel values as the uint8 functions of SciPy and OpenCV do.

The images lie one behind another in one flat pixel buffer (packing.py), so one compiled program samples any number of
images of any size.

Two rules for what lies outside an image, named after the functions they equal:

* `border="scipy"`: scipy.ndimage.affine_transform(order=1, mode="constant"), which the transformers processor
  uses: a sample is 0 as soon as its centre leaves the outermost pixel centres; results rounded half up.
* `border="opencv"`: cv2.warpAffine(INTER_LINEAR, BORDER_CONSTANT), which the original uses: pixels outside are
  0 and take part in the interpolation; results rounded half to even.

Two forms give the same bits. CPUs and GPUs gather pixels one by one. On a TPU, for upright crops, aligned runs of
pixels are loaded and one-hot matrix products select the columns, which suits its matrix units.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8, UInt32

from vitpose_jax.pipeline.packing import PackedImages

Border: TypeAlias = Literal["scipy", "opencv"]
BORDERS = ("scipy", "opencv")
# Pixels of an image row that one product selects from.
TILE = 512
# Pixels that a TPU loads at once.
LANES = 128


def check_border(border: str) -> None:
    """Check that a border is known.

    Raises:
        ValueError: for an unknown border. The message lists the known ones.
    """
    if border not in BORDERS:
        raise ValueError(f"border: expected one of {', '.join(BORDERS)}, got {border!r}")


def warp(
    images: PackedImages,
    points: Float[Array, "n height width 2"],
    *,
    border: Border = "scipy",
) -> Float[Array, "n height width 3"]:
    """Sample packed images at any points.

    Args:
        images: with one row of `shapes` for each crop.
        points: for each pixel of each crop: (x, y) in pixels of its image.
        border: what lies outside the image; see the top of this file.

    Returns:
        Pixel values 0 to 255 as float32.
    """
    return _gathered(images, points[..., 0], points[..., 1], border)


def warp_upright(
    images: PackedImages,
    x: Float[Array, "n width"],
    y: Float[Array, "n height"],
    *,
    border: Border = "scipy",
) -> Float[Array, "n height width 3"]:
    """As `warp`, for upright crops: `x` of their columns, increasing, and `y` of their rows."""

    def gathered(images, x, y):
        return _gathered(images, x[:, None, :], y[:, :, None], border)

    def selected(images, x, y):
        return _selected(images, x, y, border)

    images = PackedImages(*map(jnp.asarray, images))
    return jax.lax.platform_dependent(images, x, y, tpu=selected, default=gathered)


def _gathered(
    images: PackedImages,
    x: Float[Array, "n #height width"],
    y: Float[Array, "n height #width"],
    border: Border,
) -> Float[Array, "n height width 3"]:
    """Load every pixel by its index."""
    pixels = jnp.asarray(images.pixels)
    start, height, width = (images.shapes[:, column, None, None] for column in range(3))
    (left, _), (top, _) = _split(x, width), _split(y, height)

    def tap(lower: int, right: int):
        row, column = jnp.clip(top + lower, 0, height - 1), jnp.clip(left + right, 0, width - 1)
        return pixels.at[start + row * width + column].get(mode="promise_in_bounds").astype(jnp.float32)

    return _blend(tap, x, y, height, width, border)


def _selected(
    images: PackedImages,
    x: Float[Array, "n width"],
    y: Float[Array, "n height"],
    border: Border,
) -> Float[Array, "n height width 3"]:
    """Load runs of pixels of each image row, then select the columns with a one-hot product."""
    start, height, width = (images.shapes[:, column, None] for column in range(3))
    (left, _), (top, _) = _split(x, width), _split(y, height)
    columns = jnp.clip(jnp.concatenate([left, left + 1], axis=1), 0, width - 1)
    rows = jnp.clip(jnp.concatenate([top, top + 1], axis=1), 0, height - 1)
    first = columns.min(axis=1, keepdims=True)
    begin = start + rows * width + first
    lines = _lines(images.pixels)

    def add(tile, total):
        one_hot = (columns - first - tile * TILE)[:, None, :] == jnp.arange(TILE)[:, None]
        # Each sum has one term, a pixel value: exact also where a product rounds its factors to bfloat16.
        runs = _load_runs(lines, begin + tile * TILE).astype(jnp.float32)
        return total + jnp.einsum("nrtc,ntw->nrwc", runs, one_hot.astype(jnp.float32))

    tiles = (columns - first).max(initial=0) // TILE + 1
    values = jax.lax.fori_loop(0, tiles, add, jnp.zeros((*rows.shape, columns.shape[1], 3), jnp.float32))
    values = values.reshape(x.shape[0], 2, y.shape[1], 2, x.shape[1], 3)

    def tap(lower: int, right: int):
        return values[:, lower, :, right]

    return _blend(tap, x[:, None, :], y[:, :, None], height[..., None], width[..., None], border)


def _lines(pixels: UInt8[Array | np.ndarray, "p 3"]) -> UInt32[Array, "lines lanes"]:
    """Each pixel as one word, in whole lines of LANES words, which is what a TPU loads; zeros after the last pixel."""
    words = jnp.asarray(pixels, jnp.uint32)
    words = words[:, 0] | words[:, 1] << 8 | words[:, 2] << 16
    # In a form that `jax.export` follows for a buffer of any length.
    count = words.shape[0] // LANES + TILE // LANES + 2
    return jnp.pad(words, (0, count * LANES - words.shape[0])).reshape(count, LANES)


def _load_runs(lines: UInt32[Array, "lines lanes"], begin: Int[Array, "n rows"]) -> UInt8[Array, "n rows tile 3"]:
    """TILE pixels from each index on.

    The lines that hold them are loaded. Each run is then shifted by the offset of its first pixel in its line, one bit
    of the offset at a time: by 64 or not, by 32 or not, and so on.
    """
    first, offset = begin // LANES, begin % LANES
    words = [lines.at[first + k].get(mode="promise_in_bounds") for k in range(TILE // LANES + 1)]
    words = jnp.concatenate(words, axis=-1)
    step = LANES // 2
    while step:
        words = jnp.where((offset & step)[..., None] > 0, words[..., step:], words[..., :-step])
        step //= 2
    channels = words[..., :TILE, None] >> jnp.arange(0, 24, 8, dtype=jnp.uint32)
    return (channels & 255).astype(jnp.uint8)


def _split(
    at: Float[Array, "..."], size: Int[Array | np.ndarray, "..."]
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """The pixel at or before each coordinate, and the distance from that pixel."""
    # A coordinate far outside stays outside, and its whole part fits an int32.
    at = jnp.clip(at, -2.0, size + 1.0)
    before = jnp.floor(at)
    return before.astype(jnp.int32), at - before


def _blend(
    tap: Callable[[int, int], Float[Array, "n height width 3"]],
    x: Float[Array, "n #height width"],
    y: Float[Array, "n height #width"],
    height: Int[Array | np.ndarray, "n 1 1"],
    width: Int[Array | np.ndarray, "n 1 1"],
    border: Border,
) -> Float[Array, "n height width 3"]:
    """Mix the four pixels around each point: `tap(lower, right)` gives those above or below, left or right of it."""
    (left, x_weight), (top, y_weight) = _split(x, width), _split(y, height)
    x_weight, y_weight = x_weight[..., None], y_weight[..., None]

    def pixel(lower: int, right: int):
        values = tap(lower, right)
        if border == "scipy":
            return values
        row, column = top + lower, left + right
        return jnp.where(((row >= 0) & (row < height) & (column >= 0) & (column < width))[..., None], values, 0.0)

    upper = pixel(0, 0) * (1 - x_weight) + pixel(0, 1) * x_weight
    lower = pixel(1, 0) * (1 - x_weight) + pixel(1, 1) * x_weight
    values = upper * (1 - y_weight) + lower * y_weight
    if border == "opencv":
        return jnp.round(values)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return jnp.where(inside[..., None], jnp.floor(values + 0.5), 0.0)
