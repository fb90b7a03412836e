"""Tensors and JSON on disk: safetensors files are read lazily, model folders are written whole or not at all."""

import dataclasses
import functools
import json
import math
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .atomic import remove_leftovers
from .text import printable

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# Bytes. The index of a model with 10,000 tensors has 1 MB.
LARGEST_JSON = 64 * 2**20

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


class Quantized(NamedTuple):
    """The integers and scales that a tensor is stored as.

    Attributes:
        values: int8; or uint8, two int4 values to a byte.
        scale: what the values are multiplied with, for each output channel or group.
    """

    values: Any
    scale: Any


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file: shape and dtype are known, and `np.asarray` reads the numbers, each time it is called.

    Attributes:
        shape, dtype: of the array that is read.
        read: returns that array.
        stored: the dtype in the file, if it differs (int8, or uint8 for int4); else None.
        read_layer: returns the part with an index along the first axis; None to read everything for it.
        quantized: the integers and scales, if the tensor is stored as such.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    stored: np.dtype | None = None
    read_layer: Callable[[int], np.ndarray] | None = None
    quantized: Quantized | None = None

    def layer(self, index: int) -> np.ndarray:
        """The part with an index along the first axis."""
        return self.read()[index] if self.read_layer is None else self.read_layer(index)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype=dtype, copy=copy)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if the file is missing, cannot be read, is too large, is not JSON or holds no object.
    """
    values = parse_json(read_text(path), source=str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def read_text(path: Path, largest: int = LARGEST_JSON) -> str:
    """The text of a small UTF-8 file, with or without a byte-order mark.

    Raises:
        ValueError: if the file is missing, cannot be read, has more than `largest` bytes or is not UTF-8.
    """
    try:
        content = read_bytes(path, largest)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got {error.reason} at byte {error.start}") from error


def read_bytes(path: Path, largest: int) -> bytes:
    """The content of a file, a pipe or a device, of at most `largest` bytes.

    Raises:
        ValueError: if there are more.
        OSError: if the file cannot be read.
    """
    pieces, size = [], 0
    with path.open("rb") as file:
        while piece := file.read(2**20):
            pieces.append(piece)
            size += len(piece)
            if size > largest:
                raise ValueError(f"{path}: expected at most {largest} bytes, got more")
    return b"".join(pieces)


def parse_json(content: str, *, source: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: naming the source, if it is not valid JSON or is nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{source}: not valid JSON (nested too deeply)") from error
    except ValueError as error:
        raise ValueError(f"{source}: not valid JSON ({printable(error)})") from error


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file by name. Only the header is read here.

    Raises:
        ValueError: if the file is missing, damaged, truncated or holds an unknown dtype.
    """
    try:
        file = safe_open(path, framework="numpy")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or truncated ({printable(error)})") from error
    # safetensors maps the whole file, and what was read stays in the memory of the process as long as its handle. So it
    # only checks the file, and each tensor is read by a mapping of its own.
    places, content = _places(path), _Content(path)
    tensors = {}
    for name in file.keys():  # noqa: SIM118 (it is not a mapping)
        header = file.get_slice(name)
        if header.get_dtype() not in _DTYPES:
            raise ValueError(f"{path}: {printable(name)} has the unknown dtype {header.get_dtype()}")
        dtype, shape = np.dtype(_DTYPES[header.get_dtype()]), tuple(header.get_shape())
        where = (dtype, shape, places[name])
        read, read_layer = functools.partial(content.read, *where), functools.partial(content.read_layer, *where)
        tensors[name] = LazyTensor(shape, dtype, read, read_layer=read_layer)
    return tensors


class _Content:
    """An open file, from which arrays are read. It stays the same file if another takes its name."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)

    def read(self, dtype: np.dtype, shape: tuple[int, ...], place: int) -> np.ndarray:
        """The array that begins at a byte."""
        if math.prod(shape) == 0:
            return np.empty(shape, dtype)
        return np.array(np.memmap(self._file, dtype, "r", place, shape))

    def read_layer(self, dtype: np.dtype, shape: tuple[int, ...], place: int, index: int) -> np.ndarray:
        """Its part with an index along the first axis."""
        return self.read(dtype, shape[1:], place + index * math.prod(shape[1:]) * dtype.itemsize)


def _places(path: Path) -> dict[str, int]:
    """Where each tensor of a valid safetensors file begins, in bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def write_folder(
    folder: str | Path,
    tensors: Mapping[str, Any],
    documents: Mapping[str, Mapping[str, Any]],
    *,
    metadata: dict[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write model.safetensors and JSON files into a folder, whole or not at all.

    Everything is written under temporary names first. An old config.json is deleted first, and the new one is renamed
    last: a folder that has a config.json is complete. Temporary files of killed processes in it are deleted.

    Args:
        folder: created if it does not exist.
        tensors: arrays by name.
        documents: JSON objects by file name, config.json among them.
        metadata: for the header of the safetensors file.
        overwrite: replace a checkpoint that is already there.

    Raises:
        ValueError: if `folder` holds a checkpoint and `overwrite` is not set, or is not a folder.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder, got a file")
    existing = [name for name in (WEIGHTS_FILE, *documents) if (folder / name).exists()]
    if existing and not overwrite:
        raise ValueError(f"{folder}: already holds {', '.join(existing)}; choose another folder, or ask to overwrite")
    # save_file writes the memory of an array as it is: an array that is not contiguous would be garbled.
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    names = [WEIGHTS_FILE, *sorted(documents, key=lambda name: name == CONFIG_FILE)]
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in names}
    try:
        # save_file creates files that only their owner may read; give this one the default permissions.
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
