"""From images of any size to what the detector reads: resized just as Pillow resizes.

Pillow's bilinear filter widens by the factor that it shrinks by, so that every pixel counts. It runs over columns,
rounds to whole grey levels, then over rows. Either pass is a product with a matrix, which depends on the two sizes
alone: the host makes it, the device multiplies. Matrices and images are padded with zeros to a few sides, so that few
programs serve images of all sizes.

Pillow computes with whole numbers: its weights are multiples of 2**-22. So that float32 rounds nothing either, every
weight is split into a coarse part, a multiple of 2**-11, and a fine rest.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vitpose_jax.rtdetr.config import DetectorConfig

# Sides are padded to these: four in every octave, so that at most a quarter is added.
SMALLEST_SIDE = 256
# Pillow's weights are multiples of the fine step.
FINE, COARSE = 2.0**-22, 2.0**-11


def side_bucket(side: int) -> int:
    """The side that an image's is padded to."""
    step = max(SMALLEST_SIDE, 1 << (side - 1).bit_length()) // 8
    return max(SMALLEST_SIDE, -(-side // step) * step)


@functools.lru_cache(maxsize=64)
def resize_matrix(old: int, new: int) -> Float[np.ndarray, "2 new padded"]:
    """What Pillow's bilinear resizing multiplies a row of `old` pixels with, padded to `side_bucket(old)`.

    Weights of a triangle about each new pixel's centre, rounded as Pillow rounds them; their coarse parts, then their
    fine ones.
    """
    matrix = np.zeros((new, side_bucket(old)))
    if old == new:
        np.fill_diagonal(matrix, 1)
        return _split(matrix)
    scale = old / new
    support = max(scale, 1.0)
    for row in range(new):
        centre = (row + 0.5) * scale
        begin, end = max(0, int(centre - support + 0.5)), min(old, int(centre + support + 0.5))
        places = np.arange(begin, end)
        weights = np.maximum(1 - np.abs(places - centre + 0.5) / support, 0)
        matrix[row, begin:end] = np.floor(weights / weights.sum() / FINE + 0.5) * FINE
    return _split(matrix)


def _split(matrix: Float[np.ndarray, "new padded"]) -> Float[np.ndarray, "2 new padded"]:
    coarse = np.round(matrix / COARSE) * COARSE
    return np.stack([coarse, matrix - coarse]).astype(np.float32)


def pad_image(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """An image with black added below and to the right, up to `side_bucket` of its sides. Not jit-able."""
    height, width, channels = image.shape
    padded = np.zeros((side_bucket(height), side_bucket(width), channels), np.uint8)
    padded[:height, :width] = image
    return padded


def resize(
    pixels: UInt8[Array | np.ndarray, "rows columns channels"],
    down: Float[Array | np.ndarray, "2 height rows"],
    across: Float[Array | np.ndarray, "2 width columns"],
) -> UInt8[Array, "height width channels"]:
    """An image resized, bit for bit as by Pillow; jit-able.

    Args:
        pixels: from `pad_image`.
        down, across: `resize_matrix` of its height and of its width.
    """
    # In full float32: a processor's shorter product would be whole grey levels off.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    grey = _round(product("kwx,yxc->kywc", across, pixels.astype(jnp.float32)))
    return _round(product("khy,ywc->khwc", down, grey)).astype(jnp.uint8)


def _round(parts: Float[Array, "2 ..."]) -> Float[Array, "..."]:
    # The sum of the coarse and the fine part to the nearest whole number, halves up as in Pillow. No step is inexact.
    coarse, fine = parts[0] + 0.5, parts[1]
    whole = jnp.floor(coarse)
    return (whole + jnp.floor(coarse - whole + fine)).clip(0, 255)


def prepare(
    grey: UInt8[Array | np.ndarray, "*rows channels"], config: DetectorConfig
) -> Float[Array, "*rows channels"]:
    """Grey levels 0 to 255 as the detector reads them: scaled, less the mean, over the deviation."""
    scaled = grey.astype(jnp.float32) * np.float32(config.rescale_factor)
    return (scaled - jnp.asarray(config.image_mean, jnp.float32)) / jnp.asarray(config.image_std, jnp.float32)


def unpack_image(
    row: UInt8[Array, "p 3"], shape: Int[Array, "3"], size: tuple[int, int]
) -> UInt8[Array, "rows columns 3"]:
    """An image of a row of pixels, as `pack_images` lays them, padded as `pad_image` does; jit-able.

    Args:
        row: pixels of one or more images.
        shape: where the image begins in the row, its height, its width.
        size: `side_bucket` of its height and its width.
    """
    begin, height, width = shape
    y, x = jnp.arange(size[0], dtype=jnp.int32)[:, None], jnp.arange(size[1], dtype=jnp.int32)
    inside = (y < height) & (x < width)
    return jnp.where(inside[..., None], row[jnp.where(inside, begin + y * width + x, 0)], 0)
