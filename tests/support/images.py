"""Images without people, and boxes in them."""

import numpy as np
from PIL import Image


def random_image(seed: int = 0, height: int = 120, width: int = 160) -> np.ndarray:
    """Smooth, so that one unit of rounding moves no peak."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def random_boxes(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(0, 80, (count, 2)), rng.uniform(20, 80, (count, 2))], axis=1).astype(np.float32)
