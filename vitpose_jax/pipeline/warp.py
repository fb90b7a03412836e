"""Bilinear sampling of images, to whole grey levels as the uint8 functions of SciPy and OpenCV do.

The images lie one behind another in one row of pixels (`pack_images` of preprocess.py), so that any number of images
of any size makes one compiled program.

Two rules for what lies outside an image, named after the functions they equal:

* `border="scipy"`: scipy.ndimage.affine_transform(order=1, mode="constant"), which the transformers processor
  uses: a sample is 0 as soon as its centre leaves the outermost pixel centres; results rounded half up.
* `border="opencv"`: cv2.warpAffine(INTER_LINEAR, BORDER_CONSTANT), which the original uses: pixels outside are
  0 and take part in the interpolation; results rounded half to even.

And two forms, equal in every bit: pixels are gathered one by one, which suits CPUs and GPUs, or, where a crop is not
turned, picked by products with 0 and 1, which suits the matrix units of a TPU.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8, UInt32

Border: TypeAlias = Literal["scipy", "opencv"]
BORDERS = ("scipy", "opencv")
# Pixels of a row of the image that one product picks from.
TILE = 512
# Pixels that a TPU loads at once.
LANES = 128


def check_border(border: str) -> None:
    """See that a border is known.

    Raises:
        ValueError: for an unknown one, listing those that are.
    """
    if border not in BORDERS:
        raise ValueError(f"border: expected one of {', '.join(BORDERS)}, got {border!r}")


def warp(
    pixels: UInt8[Array, "p 3"],
    shapes: Int[Array, "n 3"],
    points: Float[Array, "n height width 2"],
    *,
    border: Border = "scipy",
) -> Float[Array, "n height width 3"]:
    """Sample at any places.

    Args:
        pixels: RGB of all images, row by row.
        shapes: for each crop: where its image begins in `pixels`, its height, its width.
        points: for each pixel of each crop: (x, y) in its image.
        border: what lies outside; see the top of this file.

    Returns:
        Grey levels 0 to 255 as float32.
    """
    return _gathered(pixels, shapes, points[..., 0], points[..., 1], border)


def warp_upright(
    pixels: UInt8[Array, "p 3"],
    shapes: Int[Array, "n 3"],
    x: Float[Array, "n width"],
    y: Float[Array, "n height"],
    *,
    border: Border = "scipy",
) -> Float[Array, "n height width 3"]:
    """As `warp`, for crops that are not turned: `x` of their columns, rising, and `y` of their rows."""

    def gathered(pixels, shapes, x, y):
        return _gathered(pixels, shapes, x[:, None, :], y[:, :, None], border)

    def picked(pixels, shapes, x, y):
        return _picked(pixels, shapes, x, y, border)

    return jax.lax.platform_dependent(pixels, shapes, x, y, tpu=picked, default=gathered)


def _gathered(
    pixels: UInt8[Array, "p 3"],
    shapes: Int[Array, "n 3"],
    x: Float[Array, "n #height width"],
    y: Float[Array, "n height #width"],
    border: Border,
) -> Float[Array, "n height width 3"]:
    """Every pixel by its index."""
    start, height, width = (shapes[:, column, None, None] for column in range(3))
    (left, _), (top, _) = _places(x, width), _places(y, height)

    def tap(lower: int, right: int):
        row, column = jnp.clip(top + lower, 0, height - 1), jnp.clip(left + right, 0, width - 1)
        return pixels.at[start + row * width + column].get(mode="promise_in_bounds").astype(jnp.float32)

    return _blend(tap, x, y, height, width, border)


def _picked(
    pixels: UInt8[Array, "p 3"],
    shapes: Int[Array, "n 3"],
    x: Float[Array, "n width"],
    y: Float[Array, "n height"],
    border: Border,
) -> Float[Array, "n height width 3"]:
    """Whole stretches of the images' rows, and of those the columns by products with 0 and 1."""
    start, height, width = (shapes[:, column, None] for column in range(3))
    (left, _), (top, _) = _places(x, width), _places(y, height)
    columns = jnp.clip(jnp.concatenate([left, left + 1], axis=1), 0, width - 1)
    rows = jnp.clip(jnp.concatenate([top, top + 1], axis=1), 0, height - 1)
    first = columns.min(axis=1, keepdims=True)
    begin = start + rows * width + first
    lines = _lines(pixels)

    def add(tile, total):
        picks = (columns - first - tile * TILE)[:, None, :] == jnp.arange(TILE)[:, None]
        # Each sum has one term, a grey level: exact also where a product rounds its factors to bfloat16.
        found = _stretches(lines, begin + tile * TILE).astype(jnp.float32)
        return total + jnp.einsum("nrtc,ntw->nrwc", found, picks.astype(jnp.float32))

    tiles = (columns - first).max(initial=0) // TILE + 1
    grey = jax.lax.fori_loop(0, tiles, add, jnp.zeros((*rows.shape, columns.shape[1], 3), jnp.float32))
    grey = grey.reshape(len(x), 2, y.shape[1], 2, x.shape[1], 3)

    def tap(lower: int, right: int):
        return grey[:, lower, :, right]

    return _blend(tap, x[:, None, :], y[:, :, None], height[..., None], width[..., None], border)


def _lines(pixels: UInt8[Array, "p 3"]) -> UInt32[Array, "lines lanes"]:
    """Each pixel as a word, in whole lines of LANES words, which is what a TPU loads; behind the last pixel zeros."""
    words = pixels.astype(jnp.uint32)
    words = words[:, 0] | words[:, 1] << 8 | words[:, 2] << 16
    return jnp.pad(words, (0, -len(words) % LANES + TILE + LANES)).reshape(-1, LANES)


def _stretches(lines: UInt32[Array, "lines lanes"], begin: Int[Array, "n rows"]) -> UInt8[Array, "n rows tile 3"]:
    """TILE pixels from each place on.

    The lines that hold them are loaded, and each row is shifted by the place of its first pixel in its line: by 64 or
    not, by 32 or not, and so on.
    """
    first, place = begin // LANES, begin % LANES
    found = [lines.at[first + k].get(mode="promise_in_bounds") for k in range(TILE // LANES + 1)]
    found = jnp.concatenate(found, axis=-1)
    step = LANES // 2
    while step:
        found = jnp.where((place & step)[..., None] > 0, found[..., step:], found[..., :-step])
        step //= 2
    found = found[..., :TILE, None] >> jnp.arange(0, 24, 8, dtype=jnp.uint32)
    return (found & 255).astype(jnp.uint8)


def _places(at: Float[Array, "..."], size: Int[Array, "..."]) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """The pixel before each place, and how far behind it the place is."""
    # What is far outside stays outside, where its whole part still fits an int32.
    at = jnp.clip(at, -2.0, size + 1.0)
    before = jnp.floor(at)
    return before.astype(jnp.int32), at - before


def _blend(
    tap: Callable[[int, int], Float[Array, "n height width 3"]],
    x: Float[Array, "n #height width"],
    y: Float[Array, "n height #width"],
    height: Int[Array, "n 1 1"],
    width: Int[Array, "n 1 1"],
    border: Border,
) -> Float[Array, "n height width 3"]:
    """Mix the four pixels around each place: `tap(lower, right)` has those above or below, left or right of it."""
    (left, x_weight), (top, y_weight) = _places(x, width), _places(y, height)
    x_weight, y_weight = x_weight[..., None], y_weight[..., None]

    def pixel(lower: int, right: int):
        grey = tap(lower, right)
        if border == "scipy":
            return grey
        row, column = top + lower, left + right
        return jnp.where(((row >= 0) & (row < height) & (column >= 0) & (column < width))[..., None], grey, 0.0)

    upper = pixel(0, 0) * (1 - x_weight) + pixel(0, 1) * x_weight
    lower = pixel(1, 0) * (1 - x_weight) + pixel(1, 1) * x_weight
    grey = upper * (1 - y_weight) + lower * y_weight
    if border == "opencv":
        return jnp.round(grey)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return jnp.where(inside[..., None], jnp.floor(grey + 0.5), 0.0)
