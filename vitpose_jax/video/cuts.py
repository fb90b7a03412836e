"""Cuts between scenes: from one frame to the next, colours and places both change."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

# A frame is compared by every STEP-th pixel of every STEP-th row.
STEP = 4
# A cut changes this fraction of the histogram of colours, and pixels by this much on average, of 255. A camera that
# moves changes pixels but few colours; the lights change colours but no place as much.
HISTOGRAM, DIFFERENCE = 0.2, 32.0


class Look(NamedTuple):
    """What a frame looks like: a histogram of 512 colours, and the brightness of its pixels, made coarse."""

    colours: Float[np.ndarray, "512"]
    brightness: Float[np.ndarray, "rows columns"]


class CutFinder:
    """Says of each frame of a video whether a new scene begins with it. The first frame begins none."""

    def __init__(self) -> None:
        self._last: Look | None = None

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> bool:
        """Whether a scene begins with this frame, RGB."""
        look, last = look_of(image), self._last
        self._last = look
        if last is None or last.brightness.shape != look.brightness.shape:
            return False
        changed = 1 - np.minimum(look.colours, last.colours).sum()
        return bool(changed > HISTOGRAM and np.abs(look.brightness - last.brightness).mean() > DIFFERENCE)


def look_of(image: UInt8[np.ndarray, "height width 3"]) -> Look:
    """What a frame looks like."""
    pixels = image[::STEP, ::STEP]
    bins = (pixels >> 5).astype(np.int64) @ np.asarray([64, 8, 1])
    colours = np.bincount(bins.reshape(-1), minlength=512) / bins.size
    return Look(colours, pixels.mean(axis=-1, dtype=np.float64))
