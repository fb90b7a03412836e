"""Evaluation: the protocols and metrics of the paper's datasets, and those of detectors.

dataset = read_dataset("coco", "person_keypoints_val2017.json", "val2017", detections="detections.json")
evaluate(estimator, dataset).metrics["AP"]

evaluate_detector(Detector.from_pretrained(), "person_keypoints_val2017.json", "val2017").metrics["AP"]
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitpose_jax.datasets.dataset import Dataset as Dataset
    from vitpose_jax.datasets.dataset import read_dataset as read_dataset
    from vitpose_jax.datasets.protocols import get_protocol as get_protocol
    from vitpose_jax.evaluation.accuracy import auc as auc
    from vitpose_jax.evaluation.accuracy import epe as epe
    from vitpose_jax.evaluation.accuracy import nme as nme
    from vitpose_jax.evaluation.accuracy import pck as pck
    from vitpose_jax.evaluation.accuracy import pckh as pckh
    from vitpose_jax.evaluation.average_precision import crowdpose_average_precision as crowdpose_average_precision
    from vitpose_jax.evaluation.average_precision import keypoint_average_precision as keypoint_average_precision
    from vitpose_jax.evaluation.average_precision import wholebody_average_precision as wholebody_average_precision
    from vitpose_jax.evaluation.detected import compare_boxes as compare_boxes
    from vitpose_jax.evaluation.detected import detect_dataset as detect_dataset
    from vitpose_jax.evaluation.detection import box_average_precision as box_average_precision
    from vitpose_jax.evaluation.detection import recall_at_precision as recall_at_precision
    from vitpose_jax.evaluation.detector_runner import DetectorEvaluation as DetectorEvaluation
    from vitpose_jax.evaluation.detector_runner import evaluate_detector as evaluate_detector
    from vitpose_jax.evaluation.oks import object_keypoint_similarity as object_keypoint_similarity
    from vitpose_jax.evaluation.oks import oks_nms as oks_nms
    from vitpose_jax.evaluation.runner import Evaluation as Evaluation
    from vitpose_jax.evaluation.runner import evaluate as evaluate

# Imported at first use, like the names of vitpose_jax itself. The names of vitpose_jax.datasets that every evaluation
# uses are available here, too.
_HOMES = {
    "datasets.dataset": ("Dataset", "read_dataset"),
    "datasets.protocols": ("get_protocol",),
    "evaluation.accuracy": ("auc", "epe", "nme", "pck", "pckh"),
    "evaluation.average_precision": (
        "crowdpose_average_precision",
        "keypoint_average_precision",
        "wholebody_average_precision",
    ),
    "evaluation.detected": ("compare_boxes", "detect_dataset"),
    "evaluation.detection": ("box_average_precision", "recall_at_precision"),
    "evaluation.detector_runner": ("DetectorEvaluation", "evaluate_detector"),
    "evaluation.oks": ("object_keypoint_similarity", "oks_nms"),
    "evaluation.runner": ("Evaluation", "evaluate"),
}

__all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str):
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"vitpose_jax.{module}"), name)
    raise AttributeError(f"module 'vitpose_jax.evaluation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
