"""Images of any size in one flat pixel buffer, so that one compiled program serves them all.

    images         [UInt8[height width 3], ...] of any sizes
      pack_images  host: one image behind another, the end filled with zeros
    PackedImages   pixels UInt8[p 3], shapes Int[n 3]
      warp         device: samples the buffer (warp.py)

Programs are compiled for fixed shapes. Buffers have one of a few lengths (`PIXEL_BUCKETS`).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

# Lengths of buffers: from 512 x 512 pixels up, in steps of four.
PIXEL_BUCKETS = tuple(4**power for power in range(9, 16))


class PackedImages(NamedTuple):
    """RGB images in one flat pixel buffer; a JAX pytree.

    Attributes:
        pixels: all images row by row, one image behind another; zeros at the end.
        shapes: for each image: its first pixel in `pixels`, its height, its width. Functions that cut crops take one
            row for each crop instead: see `select`.
    """

    pixels: UInt8[Array, "p 3"] | UInt8[np.ndarray, "p 3"]
    shapes: Int[Array, "n 3"] | Int[np.ndarray, "n 3"]

    def select(self, index: Int[np.ndarray, " crops"] | slice) -> "PackedImages":
        """The same pixels, with the shapes of these images: one for each crop."""
        return self._replace(shapes=self.shapes[index])


def pixel_bucket(pixels: int) -> int:
    """The length of the shortest buffer that holds `pixels` pixels.

    Raises:
        ValueError: for more pixels than the longest buffer holds.
    """
    for bucket in PIXEL_BUCKETS:
        if pixels <= bucket:
            return bucket
    raise ValueError(f"image: expected at most {PIXEL_BUCKETS[-1]} pixels, got {pixels}")


def pack_images(images: list[UInt8[np.ndarray, "_height _width 3"]], length: int | None = None) -> PackedImages:
    """Copy images into one flat pixel buffer; on the host.

    Args:
        images: RGB, of any sizes.
        length: pixels in the buffer, at least the sum over the images. None for exactly the sum.
    """
    counts = [math.prod(image.shape[:2]) for image in images]
    starts = np.cumsum([0, *counts])
    pixels = np.zeros((max(starts[-1], 1) if length is None else length, 3), np.uint8)
    for image, start, count in zip(images, starts, counts, strict=False):
        pixels[start : start + count] = image.reshape(-1, 3)
    shapes = [(start, *image.shape[:2]) for start, image in zip(starts, images, strict=False)]
    return PackedImages(pixels, np.asarray(shapes, np.int32).reshape(-1, 3))


def unpack_image(
    pixels: UInt8[Array | np.ndarray, "p 3"], shape: Int[Array | np.ndarray, "3"], size: tuple[int, int]
) -> UInt8[Array, "rows columns 3"]:
    """One image of a flat pixel buffer, with black below it and to its right; jit-able.

    Args:
        pixels: the buffer of `PackedImages`.
        shape: the image's row of `PackedImages.shapes`.
        size: rows and columns of the result, at least the image's height and width.
    """
    begin, height, width = shape
    y, x = jnp.arange(size[0], dtype=jnp.int32)[:, None], jnp.arange(size[1], dtype=jnp.int32)
    inside = (y < height) & (x < width)
    return jnp.where(inside[..., None], jnp.asarray(pixels)[jnp.where(inside, begin + y * width + x, 0)], 0)
