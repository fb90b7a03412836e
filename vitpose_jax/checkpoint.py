"""The native format: a folder with config.json and model.safetensors.

config.json holds the fields of `VitPoseConfig` with `"model_type": "vitpose_jax"` and a format number;
model.safetensors holds every parameter and running statistic under its flat name (`parameters.flatten`).
Reading it needs neither torch nor orbax, and does not initialise a model first. Kernels may be stored as int8
(quantized.py); nobody who reads a checkpoint need know.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vitpose_jax import parameters, quantized
from vitpose_jax.config import VitPoseConfig
from vitpose_jax.modeling import VitPose, abstract_vitpose

MODEL_TYPE = "vitpose_jax"
FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file: shape and dtype are known, the numbers are read whenever they are asked for.

    Attributes:
        shape, dtype: of what is read.
        read: does it.
        stored: the dtype in the file, where that is another one: int8.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    stored: np.dtype | None = None

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype=dtype, copy=copy)


def save(model: VitPose, folder: str | Path, *, overwrite: bool = False, int8: bool = False) -> None:
    """Write a model in the native format, whole or not at all.

    Args:
        model: its parameters are stored in the dtype they have.
        folder: made where it does not exist.
        overwrite: replace a checkpoint that is there already.
        int8: store the kernels as int8 with float scales, see quantized.py; they lose digits.

    Raises:
        ValueError: where `folder` holds a checkpoint and `overwrite` is not set, or is not a folder.
    """
    values = {"model_type": MODEL_TYPE, "format": FORMAT, **model.config.to_dict()}
    tensors = parameters.flatten(model)
    write_folder(folder, quantized.quantize(tensors) if int8 else tensors, {CONFIG_FILE: values}, overwrite=overwrite)


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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: where the file is missing, cannot be read, is not JSON or holds no object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file by name. Only its header is read here.

    Raises:
        ValueError: where the file is missing, damaged, cut short or holds a dtype that is not known.
    """
    try:
        file = safe_open(path, framework="numpy")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or cut short ({error})") from error
    tensors = {}
    for name in file.keys():  # noqa: SIM118 (it is not a mapping)
        header = file.get_slice(name)
        if header.get_dtype() not in _DTYPES:
            raise ValueError(f"{path}: {name} has the dtype {header.get_dtype()}, which is not known here")
        dtype = np.dtype(_DTYPES[header.get_dtype()])
        tensors[name] = LazyTensor(tuple(header.get_shape()), dtype, functools.partial(file.get_tensor, name))
    return tensors


def dequantized(tensors: Mapping[str, LazyTensor], *, source: str) -> dict[str, LazyTensor]:
    """The tensors of a native file with every int8 kernel and its scale made one float32 tensor.

    Args:
        tensors: as they are stored.
        source: where they come from, for the error.

    Raises:
        ValueError: where scales are missing or mis-shaped: all of them at once.
    """
    parameters.refuse(quantized.problems(tensors), source=source)
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == np.int8:
            scale = result.pop(name + quantized.SCALE)
            read = functools.partial(_dequantize, tensor, scale)
            result[name] = LazyTensor(tensor.shape, np.dtype(np.float32), read, tensor.dtype)
    return result


def _dequantize(values: LazyTensor, scale: LazyTensor) -> np.ndarray:
    return quantized.dequantize(values.read(), scale.read().astype(np.float32))


def write_folder(
    folder: str | Path,
    tensors: Mapping[str, Any],
    documents: Mapping[str, Mapping[str, Any]],
    *,
    metadata: dict[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write model.safetensors and JSON files into a folder, whole or not at all.

    Everything is written under temporary names first. config.json appears last, and an old one goes first: a
    folder that has one is complete.

    Args:
        folder: made where it does not exist.
        tensors: arrays by name.
        documents: JSON objects by file name, config.json among them.
        metadata: for the header of the safetensors file.
        overwrite: replace a checkpoint that is there already.

    Raises:
        ValueError: where `folder` holds a checkpoint and `overwrite` is not set, or is not a folder.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder, got a file")
    old = [name for name in (WEIGHTS_FILE, *documents) if (folder / name).exists()]
    if old and not overwrite:
        raise ValueError(f"{folder}: already holds {', '.join(old)}; choose another folder, or ask to overwrite")
    # save_file writes an array's memory as it lies: one that is not contiguous would be garbled.
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    names = [WEIGHTS_FILE, *sorted(documents, key=lambda name: name == CONFIG_FILE)]
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in names}
    try:
        # save_file makes files that nobody else may read; give this one the permissions of any other.
        temporary[WEIGHTS_FILE].touch()
        mode = temporary[WEIGHTS_FILE].stat().st_mode
        save_file(arrays, temporary[WEIGHTS_FILE], metadata=metadata)
        temporary[WEIGHTS_FILE].chmod(mode)
        for name, values in documents.items():
            temporary[name].write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for name in names:
            os.replace(temporary[name], folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        if created and not any(folder.iterdir()):
            folder.rmdir()
