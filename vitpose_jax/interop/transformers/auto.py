"""Auto classes: the class is chosen by what a checkpoint's files say."""

import os
from typing import Any

from vitpose_jax.convert.formats.rtdetr import VERSIONS
from vitpose_jax.convert.hub import resolve_source
from vitpose_jax.interop.transformers.arrays import HUB_OPTIONS
from vitpose_jax.interop.transformers.detection import RTDetrForObjectDetection, RTDetrImageProcessor
from vitpose_jax.interop.transformers.image_processing import VitPoseImageProcessor
from vitpose_jax.interop.transformers.modeling import VitPoseForPoseEstimation
from vitpose_jax.storage.tensors import CONFIG_FILE, read_json


class AutoImageProcessor:
    """The processor of a ViTPose or an RT-DETR."""

    @staticmethod
    def from_pretrained(name: str | os.PathLike[str], **kwargs: Any) -> Any:
        """A `VitPoseImageProcessor` or an `RTDetrImageProcessor`; the arguments are theirs.

        Raises:
            ValueError: if there is no such checkpoint.
        """
        options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        kwargs.pop("use_fast", None)  # here there is one kind of each
        path = resolve_source(name, weights=False, **options)
        values = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {}
        is_detector = values.get("model_type") in tuple(VERSIONS)
        return (RTDetrImageProcessor if is_detector else VitPoseImageProcessor).from_pretrained(name, **kwargs)


class AutoProcessor(AutoImageProcessor):
    """The processor of a ViTPose or an RT-DETR."""


class AutoModelForPoseEstimation:
    """A model that estimates poses: a ViTPose."""

    @staticmethod
    def from_pretrained(name: str | os.PathLike[str], **kwargs: Any) -> VitPoseForPoseEstimation:
        """`VitPoseForPoseEstimation.from_pretrained`."""
        return VitPoseForPoseEstimation.from_pretrained(name, **kwargs)


class AutoModelForObjectDetection:
    """A model that finds objects: an RT-DETR."""

    @staticmethod
    def from_pretrained(name: str | os.PathLike[str], **kwargs: Any) -> RTDetrForObjectDetection:
        """`RTDetrForObjectDetection.from_pretrained`."""
        return RTDetrForObjectDetection.from_pretrained(name, **kwargs)
