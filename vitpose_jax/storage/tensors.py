"""Tensors and JSON on disk: safetensors files are read lazily, model folders are written whole or not at all."""

import dataclasses
import errno
import functools
import json
import math
import os
import re
import threading
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

    The file is opened once: header and numbers are of the same file, also if another one takes its name.

    Raises:
        ValueError: if the file is missing, damaged, truncated or holds an unknown dtype. Reading a tensor raises it if
            the file was cut after it was opened.
    """
    try:
        content = _Content(path)
        # It only checks the file, and maps it for this: a file that is mapped while it is read ends the process if
        # another program cuts it, and what was read counts as memory of the process.
        with safe_open(path, framework="numpy"):
            pass
        header, begin, size = content.read_header()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or truncated ({printable(error)})") from error
    tensors = {}
    for name, entry in sorted(header.items()):
        if name == "__metadata__":
            continue
        try:
            kind, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: damaged header: {printable(name)}") from error
        if not isinstance(kind, str) or kind not in _DTYPES:
            raise ValueError(f"{path}: {printable(name)} has the unknown dtype {printable(kind)}")
        dtype, numbers = np.dtype(_DTYPES[kind]), (*shape, first, last)
        if any(type(number) is not int or number < 0 for number in numbers) or last > size - begin:
            raise ValueError(f"{path}: damaged header: {printable(name)}")
        if last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{path}: damaged header: {printable(name)}: {last - first} bytes for shape {shape}")
        where = (name, dtype, shape, begin + first)
        read, read_layer = functools.partial(content.read, *where), functools.partial(content.read_layer, *where)
        tensors[name] = LazyTensor(shape, dtype, read, read_layer=read_layer)
    return tensors


class _Content:
    """An open file, from which arrays are read. It stays the same file if another takes its name."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)

    def read_header(self) -> tuple[dict[str, Any], int, int]:
        """The header, the byte at which the numbers begin, and the size of the file.

        Raises:
            ValueError: if there is none.
        """
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self.read("the header", np.dtype(np.uint8), (8,), 0).tobytes(), "little")
        if length > size - 8:
            raise ValueError(f"{self._path}: truncated: expected a header of {length} bytes, got {size - 8}")
        text = self.read("the header", np.dtype(np.uint8), (length,), 8).tobytes()
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._path}: damaged header: not valid JSON ({printable(error)})") from error
        if not isinstance(header, dict):
            raise ValueError(f"{self._path}: damaged header: expected an object, got {type(header).__name__}")
        return header, 8 + length, size

    def read(self, name: str, dtype: np.dtype, shape: tuple[int, ...], place: int) -> np.ndarray:
        """The array that begins at a byte.

        Raises:
            ValueError: naming the file and the tensor, if the file ends too early or cannot be read.
        """
        array = np.empty(shape, dtype)
        memory, done = array.reshape(-1).view(np.uint8).data, 0
        try:
            with self._lock:  # threads share the place in the file
                self._file.seek(place)
                while done < array.nbytes:
                    count = self._file.readinto(memory[done:])
                    if not count:
                        raise ValueError(
                            f"{self._path}: {printable(name)}: expected {array.nbytes} bytes, got {done}: the file was "
                            "cut after it was opened"
                        )
                    done += count
        except OSError as error:
            raise ValueError(f"{self._path}: {printable(name)}: cannot be read ({error.strerror or error})") from error
        return array

    def read_layer(self, name: str, dtype: np.dtype, shape: tuple[int, ...], place: int, index: int) -> np.ndarray:
        """Its part with an index along the first axis."""
        return self.read(name, dtype, shape[1:], place + index * math.prod(shape[1:]) * dtype.itemsize)


def write_safetensors(path: Path, tensors: Mapping[str, Any], *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the default permissions.

    Args:
        path: of a file that does not exist; a temporary one.
        tensors: arrays by name.
        metadata: for the header.

    Raises:
        OSError: naming the file, if it exists or cannot be written.
    """
    # save_file writes the memory of an array as it is: an array that is not contiguous would be garbled.
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    # save_file creates files that only their owner may read.
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    try:
        save_file(arrays, path, metadata=metadata)
    except SafetensorError as error:
        # It is no OSError, but says the system's number.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(errno.EIO, printable(error), str(path)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(mode)


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
        OSError: naming the file or the folder, if it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder, got a file")
    existing = [name for name in (WEIGHTS_FILE, *documents) if (folder / name).exists()]
    if existing and not overwrite:
        raise ValueError(f"{folder}: already holds {', '.join(existing)}; choose another folder, or ask to overwrite")
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    names = [WEIGHTS_FILE, *sorted(documents, key=lambda name: name == CONFIG_FILE)]
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in names}
    try:
        # From an earlier process of this number, or planted.
        temporary[WEIGHTS_FILE].unlink(missing_ok=True)
        write_safetensors(temporary[WEIGHTS_FILE], tensors, metadata=metadata)
        for name, values in documents.items():
            temporary[name].write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for name in names:
            os.replace(temporary[name], folder / name)
    except OSError as error:
        files = {str(path): folder / name for name, path in temporary.items()}
        raise OSError(error.errno, error.strerror, str(files.get(str(error.filename), folder))) from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        if created and not any(folder.iterdir()):
            folder.rmdir()
