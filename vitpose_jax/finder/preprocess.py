"""From images of any size to the person finder's input.

    image     UInt8[height width 3], pixel values 0 to 255
      resize  UInt8[rows columns 3], its longer side `image_size`; zeros fill the rest of the input
      prepare Float[height width 3], normalised
      shrink  Float[rows columns 3], for a second look at a smaller scale

The sides of the input are multiples of 128, so that photographs need few programs: 512 x 512 for a square one,
384 x 512 for one of 3:4 or of 9:16.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vitpose_jax.finder.config import STRIDES, FinderConfig

SIDE_STEP = 128


def resized_size(height: int, width: int, config: FinderConfig) -> tuple[int, int]:
    """Height and width in pixels that an image is resized to: its longer side becomes `image_size`."""
    longer = max(height, width)
    rows, columns = (max(1, round(side * config.image_size / longer)) for side in (height, width))
    return rows, columns


def input_size(sizes: list[tuple[int, int]], config: FinderConfig) -> tuple[int, int]:
    """Height and width in pixels of the input that holds resized images of these sizes."""
    height, width = (-(-max(sides) // SIDE_STEP) * SIDE_STEP for sides in zip(*sizes, strict=True))
    return height, width


def prepare(
    pixels: UInt8[Array | np.ndarray, "*rows channels"], config: FinderConfig
) -> Float[Array, "*rows channels"]:
    """Pixel values 0 to 255 as the network's input: minus the mean, divided by the standard deviation."""
    mean, std = jnp.asarray(config.image_mean, jnp.float32), jnp.asarray(config.image_std, jnp.float32)
    return (jnp.asarray(pixels, jnp.float32) - mean) / std


def shrink(pixels: Float[Array, "n height width channels"], scale: float) -> Float[Array, "n rows columns channels"]:
    """Images at a smaller scale, bilinear with a filter as wide as a new pixel; zeros up to a multiple of 32 pixels.

    Args:
        pixels: normalised.
        scale: 1 or less.
    """
    if scale == 1:
        return pixels
    n, *sides, channels = pixels.shape
    rows, columns = (math.ceil(side * scale / STRIDES[-1]) * STRIDES[-1] for side in sides)
    factors = jnp.full(2, scale, jnp.float32)
    return jax.image.scale_and_translate(
        pixels, (n, rows, columns, channels), (1, 2), factors, jnp.zeros(2), "linear", antialias=True
    )
