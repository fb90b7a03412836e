"""Many image files: inputs, results, and prediction and detection over all of them.

predict_files(estimator, ["photographs/"], "poses", boxes="detections.json", format="coco")
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitpose_jax.bulk.detect import detect_files as detect_files
    from vitpose_jax.bulk.inputs import find_images as find_images
    from vitpose_jax.bulk.predict import predict_files as predict_files
    from vitpose_jax.bulk.report import Summary as Summary

# Imported when first used, as the names of vitpose_jax itself are.
_HOMES = {"Summary": "report", "detect_files": "detect", "find_images": "inputs", "predict_files": "predict"}

__all__ = ["Summary", "detect_files", "find_images", "predict_files"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"vitpose_jax.bulk.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vitpose_jax.bulk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
