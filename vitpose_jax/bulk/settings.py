"""What the results in a folder depend on: a record beside them, which a later run must agree with."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitpose_jax.datasets.fields import read_json
from vitpose_jax.detector import DetectionModel
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.storage import parameters
from vitpose_jax.storage.atomic import write_whole
from vitpose_jax.vitpose.modeling import VitPose

SETTINGS_FILE = "settings.json"


def check_settings(folder: pathlib.Path, settings: Mapping[str, Any], *, has_results: bool) -> None:
    """Check that the results in a folder have these settings.

    Args:
        folder: of the results; it need not exist.
        settings: by name, ready for JSON.
        has_results: whether the folder holds results of the images of this run.

    Raises:
        ValueError: naming the settings that differ, or if there are results without settings.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        if has_results:
            raise ValueError(
                f"{folder}: holds results without {SETTINGS_FILE}, so their settings are not known; "
                "overwrite them or choose another folder"
            )
        return
    earlier = _read(path)
    differing = [
        f"{name} was {json.dumps(earlier.get(name))}, now {json.dumps(settings.get(name))}"
        for name in sorted({*earlier, *settings})
        if earlier.get(name) != settings.get(name)
    ]
    if differing:
        raise ValueError(
            f"{folder}: holds results with other settings: {'; '.join(differing)}; "
            "overwrite them or choose another folder"
        )


def settings_differ(folder: pathlib.Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder has a record of settings, and they are not these."""
    path = folder / SETTINGS_FILE
    return path.is_file() and _read(path) != dict(settings)


def write_settings(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Write the record of the settings."""
    write_whole(folder / SETTINGS_FILE, (json.dumps(settings, indent=1, sort_keys=True) + "\n").encode())


def estimator_settings(estimator: PoseEstimator) -> dict[str, Any]:
    """What poses depend on in an estimator: its model, its dtype, its crops."""
    return {
        "model_sha256": hash_model(estimator.model),
        "dtype": np.dtype(estimator.model.backbone.dtype).name,
        "border": estimator.border,
        "padding": estimator.padding,
        "stretch": estimator.stretch,
    }


def hash_model(model: VitPose | DetectionModel) -> str:
    """SHA-256 of the configuration and of all weights."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model.config), sort_keys=True, default=str).encode())
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
