"""Resizing bit for bit as Pillow's bilinear filter does it, as two matrix products; jit-able.

When Pillow's bilinear filter shrinks an image by a factor, it widens by the same factor, so that all pixels count. It
resizes the width, rounds to whole pixel values, then resizes the height. Each pass is a product with a matrix that
depends only on the old and the new size: the host computes the matrix, the device multiplies. Matrices and images are
padded with zeros to a few sizes, so that few programs serve images of all sizes. (For some shapes, such as portraits of
1080 x 1920 pixels, Pillow 13 resizes the height first: up to a quarter of its pixel values then differ by one.)

Pillow computes in integers: its weights are multiples of 2**-22. To be exact in float32 too, each weight is split into
a coarse part, a multiple of 2**-11, and a fine remainder.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# Sides are padded to one of four sizes between powers of two, from this one on: by at most a quarter.
SMALLEST_SIDE = 256
# Pillow's weights are multiples of FINE; their coarse parts are multiples of COARSE.
FINE, COARSE = 2.0**-22, 2.0**-11


def side_bucket(side: int) -> int:
    """The size that a side of an image is padded to, in pixels."""
    step = max(SMALLEST_SIDE, 1 << (side - 1).bit_length()) // 8
    return max(SMALLEST_SIDE, -(-side // step) * step)


@functools.lru_cache(maxsize=64)
def resize_matrix(old: int, new: int, rows: int | None = None) -> Float[np.ndarray, "2 rows padded"]:
    """The matrix of Pillow's bilinear resizing from `old` to `new` pixels, padded to `side_bucket(old)` columns.

    A row holds the weights of a new pixel: a triangle around its centre, rounded as Pillow rounds. The first matrix has
    the coarse parts, the second the fine parts.

    Args:
        old, new: height or width in pixels, before and after.
        rows: with more rows than `new`, the others are zero: they fill the rest of a larger input.
    """
    matrix = np.zeros((new if rows is None else rows, side_bucket(old)))
    if old == new:
        np.fill_diagonal(matrix[:new], 1)
        return _split(matrix)
    scale = old / new
    support = max(scale, 1.0)
    for row in range(new):
        centre = (row + 0.5) * scale
        begin, end = max(0, int(centre - support + 0.5)), min(old, int(centre + support + 0.5))
        columns = np.arange(begin, end)
        weights = np.maximum(1 - np.abs(columns - centre + 0.5) / support, 0)
        matrix[row, begin:end] = np.floor(weights / weights.sum() / FINE + 0.5) * FINE
    return _split(matrix)


def _split(matrix: Float[np.ndarray, "new padded"]) -> Float[np.ndarray, "2 new padded"]:
    coarse = np.round(matrix / COARSE) * COARSE
    return np.stack([coarse, matrix - coarse]).astype(np.float32)


def resize(
    pixels: UInt8[Array | np.ndarray, "rows columns channels"],
    down: Float[Array | np.ndarray, "2 height rows"],
    across: Float[Array | np.ndarray, "2 width columns"],
) -> UInt8[Array, "height width channels"]:
    """Resize an image, bit for bit as Pillow does; jit-able.

    Args:
        pixels: with rows and columns added below and to the right, up to `side_bucket` of its height and width.
        down, across: `resize_matrix` of its height and of its width.
    """
    # In full float32: products of lower precision would be off by whole pixel values.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    narrow = _round(product("kwx,yxc->kywc", across, pixels.astype(jnp.float32)))
    return _round(product("khy,ywc->khwc", down, narrow)).astype(jnp.uint8)


def _round(parts: Float[Array, "2 ..."]) -> Float[Array, "..."]:
    # The sum of both parts, rounded to the nearest integer, halves up as in Pillow. All steps are exact.
    coarse, fine = parts[0] + 0.5, parts[1]
    whole = jnp.floor(coarse)
    return (whole + jnp.floor(coarse - whole + fine)).clip(0, 255)
