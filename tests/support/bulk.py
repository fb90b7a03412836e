"""Images, and an estimator that runs in no time, for predictions on many machines."""

import functools
import os
import pathlib
import time

import numpy as np
from PIL import Image

from tests.support.models import SMALLEST, smallest_model
from vitpose_jax import PoseEstimator

# Without a detector: whole images.
OPTIONS = {"whole_image": True, "settings": {"model": "smallest"}}


def write_images(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """Small images, no two the same, in two sub-folders."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        path = folder / f"{number % 2}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + number % 3, 24, 3), np.uint8)).save(path)
        paths.append(path)
    return sorted(paths)


def smallest_estimator() -> PoseEstimator:
    return PoseEstimator(smallest_model(), max_batch=4)


class SlowEstimator(PoseEstimator):
    """Waits before each image; ends its process at an image of this height, as a crash would."""

    def __init__(self, seconds: float, fatal_height: int | None):
        super().__init__(smallest_model(), max_batch=4)
        self._seconds, self._fatal_height = seconds, fatal_height

    def stream(self, items, **options):
        for poses in super().stream(items, **options):
            time.sleep(self._seconds)
            if self._fatal_height is not None and len(poses) and poses.boxes[0, 3] == self._fatal_height:
                os._exit(1)
            yield poses


def slow_estimator(seconds: float, fatal_height: int | None = None):
    """A function that loads one."""
    return functools.partial(SlowEstimator, seconds, fatal_height)


__all__ = ["OPTIONS", "SMALLEST", "slow_estimator", "smallest_estimator", "write_images"]
