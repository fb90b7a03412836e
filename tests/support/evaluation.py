"""An evaluation of small images by a model that runs in no time."""

import pathlib
from typing import Any

from vitpose_jax import PoseEstimator
from vitpose_jax.evaluation import Dataset, read_dataset

SQUARE = {
    "image_size": (32, 32),
    "hidden_size": 12,
    "num_layers": 1,
    "num_heads": 1,
    "mlp_ratio": 1,
    "decoder": "simple",
}


def small_dataset(folder: pathlib.Path) -> Dataset:
    return read_dataset("coco", folder / "annotations.json", folder)


def small_estimator(folder: pathlib.Path, **options: Any) -> PoseEstimator:
    return PoseEstimator.from_pretrained(folder / "model", max_batch=2, border="opencv", **options)
