"""Datasets: annotations, boxes and images on disk, read into one plain structure.

dataset = read_dataset("coco", "person_keypoints_val2017.json", "val2017", detections="detections.json")
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitpose_jax.datasets.archives import ImageStore as ImageStore
    from vitpose_jax.datasets.box_files import BoxFile as BoxFile
    from vitpose_jax.datasets.box_files import ImageBoxes as ImageBoxes
    from vitpose_jax.datasets.coco import CocoAnnotations as CocoAnnotations
    from vitpose_jax.datasets.coco import read_annotations as read_annotations
    from vitpose_jax.datasets.dataset import Dataset as Dataset
    from vitpose_jax.datasets.dataset import People as People
    from vitpose_jax.datasets.dataset import Sample as Sample
    from vitpose_jax.datasets.dataset import read_dataset as read_dataset
    from vitpose_jax.datasets.protocols import PROTOCOLS as PROTOCOLS
    from vitpose_jax.datasets.protocols import Protocol as Protocol
    from vitpose_jax.datasets.protocols import get_protocol as get_protocol

# Imported at first use, like the names of vitpose_jax itself.
_HOMES = {
    "archives": ("ImageStore",),
    "box_files": ("BoxFile", "ImageBoxes"),
    "coco": ("CocoAnnotations", "read_annotations"),
    "dataset": ("Dataset", "People", "Sample", "read_dataset"),
    "protocols": ("PROTOCOLS", "Protocol", "get_protocol"),
}

__all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str):
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"vitpose_jax.datasets.{module}"), name)
    raise AttributeError(f"module 'vitpose_jax.datasets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
