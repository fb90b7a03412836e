"""From images of any size to the RT-DETR's input.

image     UInt8[height width 3], pixel values 0 to 255
  resize  UInt8[640 640 3], as Pillow: pipeline/resize.py
  prepare Float[640 640 3], scaled and normalised
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vitpose_jax.rtdetr.config import DetectorConfig


def resized_size(height: int, width: int, config: DetectorConfig) -> tuple[int, int]:
    """Height and width in pixels that an image is resized to: always the input's, whatever the image's aspect."""
    return config.image_size


def input_size(sizes: list[tuple[int, int]], config: DetectorConfig) -> tuple[int, int]:
    """Height and width in pixels of the input that holds resized images of these sizes."""
    return config.image_size


def prepare(
    pixels: UInt8[Array | np.ndarray, "*rows channels"], config: DetectorConfig
) -> Float[Array, "*rows channels"]:
    """Pixel values 0 to 255 as the detector's input: scaled, minus the mean, divided by the standard deviation."""
    scaled = jnp.asarray(pixels, jnp.float32) * np.float32(config.rescale_factor)
    return (scaled - jnp.asarray(config.image_mean, jnp.float32)) / jnp.asarray(config.image_std, jnp.float32)
