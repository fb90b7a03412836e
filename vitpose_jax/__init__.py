"""ViTPose and ViTPose++ in JAX: from an image and boxes to keypoints in one XLA program."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitpose_jax.config import VitPoseConfig as VitPoseConfig
    from vitpose_jax.detection.result import Detections as Detections
    from vitpose_jax.detector import Detector as Detector
    from vitpose_jax.estimator import PoseEstimator as PoseEstimator
    from vitpose_jax.modeling import VitPose as VitPose
    from vitpose_jax.onestep import OneStepEstimator as OneStepEstimator
    from vitpose_jax.poses import Poses as Poses
    from vitpose_jax.pretrained import from_pretrained as from_pretrained
    from vitpose_jax.skeletons import Skeleton as Skeleton

__version__ = "0.1.0"

# Names are imported when first used: jax and flax take a second, which `vitpose-jax --help` need not wait for.
_HOMES = {
    "Detections": "detection.result",
    "Detector": "detector",
    "OneStepEstimator": "onestep",
    "Poses": "poses",
    "PoseEstimator": "estimator",
    "Skeleton": "skeletons",
    "VitPose": "modeling",
    "VitPoseConfig": "config",
    "from_pretrained": "pretrained",
}
_MODULES = (
    "checkpoint",
    "config",
    "convert",
    "draw",
    "estimator",
    "modeling",
    "postprocess",
    "preprocess",
    "skeletons",
)

__all__ = [
    "Detections",
    "Detector",
    "OneStepEstimator",
    "PoseEstimator",
    "Poses",
    "Skeleton",
    "VitPose",
    "VitPoseConfig",
    "from_pretrained",
]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"vitpose_jax.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"vitpose_jax.{name}")
    raise AttributeError(f"module 'vitpose_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_MODULES])
