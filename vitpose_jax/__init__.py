"""ViTPose and ViTPose++ in JAX: from an image and boxes to keypoints in one XLA program."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitpose_jax.detections import Detections as Detections
    from vitpose_jax.detector import Detector as Detector
    from vitpose_jax.draw import draw_boxes as draw_boxes
    from vitpose_jax.draw import draw_heatmaps as draw_heatmaps
    from vitpose_jax.draw import draw_poses as draw_poses
    from vitpose_jax.estimator import PoseEstimator as PoseEstimator
    from vitpose_jax.images import load_image as load_image
    from vitpose_jax.pipeline.postprocess import decode_heatmaps as decode_heatmaps
    from vitpose_jax.pipeline.preprocess import crop_boxes as crop_boxes
    from vitpose_jax.poses import Poses as Poses
    from vitpose_jax.pretrained import from_pretrained as from_pretrained
    from vitpose_jax.serving.flow import ItemError as ItemError
    from vitpose_jax.single_program import SingleProgramEstimator as SingleProgramEstimator
    from vitpose_jax.skeletons import Skeleton as Skeleton
    from vitpose_jax.vitpose.config import VitPoseConfig as VitPoseConfig
    from vitpose_jax.vitpose.modeling import VitPose as VitPose

__version__ = "0.1.0"

# Names are imported when first used: jax and flax take a second, which `vitpose-jax --help` need not wait for.
_HOMES = {
    "Detections": "detections",
    "Detector": "detector",
    "ItemError": "serving.flow",
    "PoseEstimator": "estimator",
    "Poses": "poses",
    "SingleProgramEstimator": "single_program",
    "Skeleton": "skeletons",
    "VitPose": "vitpose.modeling",
    "VitPoseConfig": "vitpose.config",
    "crop_boxes": "pipeline.preprocess",
    "decode_heatmaps": "pipeline.postprocess",
    "draw_boxes": "draw",
    "draw_heatmaps": "draw",
    "draw_poses": "draw",
    "from_pretrained": "pretrained",
    "load_image": "images",
}
# Modules and rooms that are reached as attributes, as in `vitpose_jax.checkpoint.save`.
_MODULES = ("bulk", "checkpoint", "convert", "datasets", "evaluation", "export", "skeletons", "training", "video")

__all__ = [
    "Detections",
    "Detector",
    "ItemError",
    "PoseEstimator",
    "Poses",
    "SingleProgramEstimator",
    "Skeleton",
    "VitPose",
    "VitPoseConfig",
    "crop_boxes",
    "decode_heatmaps",
    "draw_boxes",
    "draw_heatmaps",
    "draw_poses",
    "from_pretrained",
    "load_image",
]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"vitpose_jax.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"vitpose_jax.{name}")
    raise AttributeError(f"module 'vitpose_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_MODULES])
