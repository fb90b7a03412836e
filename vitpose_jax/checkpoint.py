"""The native format: a folder with config.json and model.safetensors.

config.json holds the fields of `VitPoseConfig` with `"model_type": "vitpose_jax"` and a format number;
model.safetensors holds every parameter and running statistic under its flat name (`parameters.flatten`).
Reading it needs neither torch nor orbax, and does not initialise a model first. Kernels may be stored as int8
(int8.py); nobody who reads a checkpoint need know.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vitpose_jax.storage import int8 as int8_kernels
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, WEIGHTS_FILE, LazyTensor, open_safetensors, read_json, write_folder
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose

MODEL_TYPE = "vitpose_jax"
FORMAT = 1


def save(model: VitPose, folder: str | Path, *, overwrite: bool = False, int8: bool = False) -> None:
    """Write a model in the native format, whole or not at all.

    Args:
        model: its parameters are stored in the dtype they have.
        folder: made where it does not exist.
        overwrite: replace a checkpoint that is there already.
        int8: store the kernels as int8 with float scales, see int8.py; they lose digits.

    Raises:
        ValueError: where `folder` holds a checkpoint and `overwrite` is not set, or is not a folder.
    """
    values = {"model_type": MODEL_TYPE, "format": FORMAT, **model.config.to_dict()}
    tensors = parameters.flatten(model)
    write_folder(
        folder, int8_kernels.quantize(tensors) if int8 else tensors, {CONFIG_FILE: values}, overwrite=overwrite
    )


def load(folder: str | Path, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike | None = None) -> VitPose:
    """Read a model in the native format.

    Args:
        folder: as `save` wrote it.
        dtype: in which the model computes.
        param_dtype: in which it stores its parameters; None means `dtype`.

    Raises:
        ValueError: where a file is missing or damaged, is of another kind or a newer format, or where tensors
            are missing, unexpected or mis-shaped: all of those are listed at once.
    """
    folder = Path(folder)
    config = native_config(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    abstract = abstract_vitpose(config, dtype=dtype, param_dtype=dtype if param_dtype is None else param_dtype)
    path = folder / WEIGHTS_FILE
    return parameters.fill(abstract, dequantized(open_safetensors(path), source=str(path)), source=str(path))


def native_config(values: Mapping[str, Any], path: Path) -> VitPoseConfig:
    """The configuration in a config.json of the native format.

    Args:
        values: what the file says.
        path: the file, for the error.

    Raises:
        ValueError: where it is of another kind or format, or its fields are missing, unknown or contradictory.
    """
    if values.get("model_type") != MODEL_TYPE:
        raise ValueError(f"{path}: expected model_type {MODEL_TYPE!r}, got {values.get('model_type')!r}")
    if values.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {values.get('format')!r}")
    fields = {name: value for name, value in values.items() if name not in ("model_type", "format")}
    try:
        return VitPoseConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def dequantized(tensors: Mapping[str, LazyTensor], *, source: str) -> dict[str, LazyTensor]:
    """The tensors of a native file with every int8 kernel and its scale made one float32 tensor.

    Args:
        tensors: as they are stored.
        source: where they come from, for the error.

    Raises:
        ValueError: where scales are missing or mis-shaped: all of them at once.
    """
    parameters.raise_problems(int8_kernels.problems(tensors), source=source)
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == np.int8:
            scale = result.pop(name + int8_kernels.SCALE)
            read = functools.partial(_dequantize, tensor, scale)
            result[name] = LazyTensor(tensor.shape, np.dtype(np.float32), read, tensor.dtype)
    return result


def _dequantize(values: LazyTensor, scale: LazyTensor) -> np.ndarray:
    return int8_kernels.dequantize(values.read(), scale.read().astype(np.float32))
