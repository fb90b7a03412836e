"""Images of any size in one flat pixel buffer."""

import math

import numpy as np
from jaxtyping import Int, UInt8


def pack_images(
    images: list[UInt8[np.ndarray, "_height _width 3"]], length: int | None = None
) -> tuple[UInt8[np.ndarray, "p 3"], Int[np.ndarray, "images 3"]]:
    """Lay images one behind another in one row of pixels, as `warp` reads them. Not jit-able.

    Args:
        images: RGB, of any sizes.
        length: pixels in the row, at least the sum of the images'; the rest is 0. None for just the sum.

    Returns:
        The pixels, and for each image where it begins, its height and its width.
    """
    counts = [math.prod(image.shape[:2]) for image in images]
    starts = np.cumsum([0, *counts])
    pixels = np.zeros((max(starts[-1], 1) if length is None else length, 3), np.uint8)
    for image, start, count in zip(images, starts, counts, strict=False):
        pixels[start : start + count] = image.reshape(-1, 3)
    shapes = [(start, *image.shape[:2]) for start, image in zip(starts, images, strict=False)]
    return pixels, np.asarray(shapes, np.int32).reshape(-1, 3)
