"""What the results in a folder depend on: a record beside them, which a later run must agree with."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitpose_jax.datasets.fields import read_json
from vitpose_jax.detector import DetectionModel, Detector
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.export.estimation import ExportedModel, RuntimeModel
from vitpose_jax.storage import parameters
from vitpose_jax.storage.atomic import write_whole
from vitpose_jax.vitpose.modeling import VitPose

# No .json: that ending is of results.
SETTINGS_FILE = "settings.jsonl"
# Its name before.
OLD_SETTINGS_FILE = "settings.json"


def check_settings(path: pathlib.Path, settings: Mapping[str, Any], *, has_results: bool) -> None:
    """Check that the results in a folder have these settings.

    Args:
        path: of the record of the settings in this folder; neither need exist.
        settings: by name, ready for JSON.
        has_results: whether the folder holds results of the images of this run.

    Raises:
        ValueError: naming the settings that differ, or if there are results without settings.
    """
    folder, found = path.parent, find_settings(path)
    if found is None:
        if has_results:
            raise ValueError(
                f"{folder}: holds results without {path.name}, so their settings are not known; "
                "overwrite them or choose another folder"
            )
        return
    differing = describe_differences(_read(found), settings)
    if differing:
        raise ValueError(
            f"{folder}: holds results with other settings: {'; '.join(differing)}; "
            "overwrite them or choose another folder"
        )


def describe_differences(earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What differs between two records of settings, "NAME was VALUE, now VALUE"."""
    return [
        f"{name} was {json.dumps(earlier.get(name))}, now {json.dumps(settings.get(name))}"
        for name in sorted({*earlier, *settings})
        if earlier.get(name) != settings.get(name)
    ]


def settings_differ(path: pathlib.Path, settings: Mapping[str, Any]) -> bool:
    """Whether there is a record of settings, and they are not these."""
    found = find_settings(path)
    return found is not None and _read(found) != dict(settings)


def write_settings(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Write the record of the settings."""
    earlier = find_settings(path)
    write_whole(path, (json.dumps(settings, sort_keys=True) + "\n").encode())
    if earlier is not None and earlier.name == OLD_SETTINGS_FILE:
        earlier.unlink()


def find_settings(path: pathlib.Path) -> pathlib.Path | None:
    """The record of the settings, perhaps under its old name; None if there is none."""
    if path.is_file() or path.name != SETTINGS_FILE:
        return path if path.is_file() else None
    old = path.with_name(OLD_SETTINGS_FILE)
    # An image may be named settings, too.
    return old if old.is_file() and _read(old).keys() >= {"boxes", "decode", "format"} else None


def estimator_settings(estimator: PoseEstimator) -> dict[str, Any]:
    """What poses depend on in an estimator: its model, its dtype, its crops."""
    return {
        "model_sha256": hash_model(estimator.model),
        "dtype": estimator.dtype.name,
        "border": estimator.border,
        "padding": estimator.padding,
        "stretch": estimator.stretch,
    }


def detector_settings(detector: Detector) -> dict[str, Any]:
    """What boxes depend on in a detector: its model, its classes, its limits."""
    return {
        "detector_sha256": hash_model(detector.model),
        "labels": [detector.labels] if isinstance(detector.labels, str) else list(detector.labels),
        "min_score": detector.threshold,
        "max_detections": detector.max_detections,
    }


def hash_model(model: VitPose | ExportedModel | RuntimeModel | DetectionModel) -> str:
    """SHA-256 of the configuration and of all weights; of an exported model, of what its file says and its runtime.

    A model in another runtime has the hash of the ONNX file of it there; with several heads, its own with the runtime.
    """
    if isinstance(model, RuntimeModel):
        if isinstance(model.source, ExportedModel):
            return hash_model(model.source)
        return hashlib.sha256(f"{hash_model(model.source)} {model.runtime}".encode()).hexdigest()
    if isinstance(model, ExportedModel):
        # The metadata hold the checksum of the rest of the file, which was compared when it was loaded. Which versions
        # wrote it changes no results.
        values = dataclasses.asdict(model.exported.metadata) | {"versions": {}, "runtime": model.runtime}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    config = dataclasses.asdict(model.config)
    if config.get("second_stage", config) is None:
        del config["second_stage"]  # finders without one keep the hash that they had before there was any
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, leaf in sorted(parameters.flatten(model).items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def hash_file(path: pathlib.Path) -> str:
    """A file's name and its SHA-256; for a folder, of its .txt files."""
    if path.is_dir():
        return f"{path.name} {hashlib.sha256(''.join(map(hash_file, sorted(path.glob('*.txt')))).encode()).hexdigest()}"
    with path.open("rb") as file:
        return f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _read(path: pathlib.Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected the settings of a run")
    return content
