"""The tensors of a checkpoint file, read lazily.

Only this file of the package may import torch, and only for .pth, .pt and .bin: safetensors are read without torch.
Pickles are loaded with `weights_only`, so that a file cannot run code. Before that, the sizes that an archive states
are compared with the size of the file: a small file cannot fill the memory.
"""

import argparse
import functools
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitpose_jax.storage.tensors import LazyTensor, open_safetensors, read_json
from vitpose_jax.storage.text import join, printable, shorten

from .wrappers import KEYS, unwrap

PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLES)

# The names in a folder as on the Hub, in order of preference.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


# Bytes of the pickle in an archive, which has names and shapes but no numbers: a large training state has 1 MB.
LARGEST_PICKLE = 8 * 2**20

# A compressed archive may become this many times larger, plus `_SMALL` bytes.
_LARGEST_RATIO = 16
_SMALL = 64 * 2**20

# Everything that torch.load raises for damaged files. It is no promise of torch: fuzzing has found them.
_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    pickle.PickleError,
    RuntimeError,
    struct.error,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)

_DTYPES = {
    **{name: np.dtype(name) for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8")},
    "bfloat16": np.dtype(jnp.bfloat16),
    "bool": np.dtype(np.bool_),
}


class _Skipped:
    """Stands for an object beside the tensors. It takes what the real one takes, and does nothing with it."""

    def __new__(cls, *arguments: object) -> "_Skipped":
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# What training scripts write beside the tensors, by the name in the pickle. The real objects are not made, nothing of
# numpy or mmengine runs.
_SKIPPED = (
    "builtins.getattr",
    "collections.defaultdict",
    "datetime.datetime",
    "datetime.timedelta",
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ),
)


def find_weights(folder: Path) -> Path:
    """The file with the weights, or the index of their shards, in a folder as on the Hub.

    Raises:
        ValueError: if there is none.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder}: no weights; expected one of {', '.join(WEIGHT_FILES)}")


def open_tensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint by name.

    Args:
        path: a .safetensors, .pth, .pt or .bin file, or an index.json that names shards beside it. A pickle may hold
            the tensors themselves, or hold them under one of `wrappers.KEYS`.

    Raises:
        ValueError: if a file is missing, damaged or truncated, would run code, or holds no tensors; or if torch is
            needed and not installed.
    """
    if _is_index(path):
        return _open_shards(path)
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix in PICKLES:
        return _open_pickle(path)
    raise ValueError(f"{path}: expected a file name that ends in {', '.join(SUFFIXES)}")


def weight_paths(path: Path) -> list[Path]:
    """The files that hold the weights: the file itself, or the shards that an index.json names.

    Raises:
        ValueError: if an index.json is damaged or names a shard that is missing.
    """
    return [path.parent / name for name in sorted(set(_shards(path).values()))] if _is_index(path) else [path]


def _is_index(path: Path) -> bool:
    return path.name.endswith(".index.json")


def _shards(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index}: expected a weight_map from tensors to files")
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise ValueError(f"{index}: expected shards in the same folder, got {shorten(name)}")
        if Path(name).suffix not in SUFFIXES:
            raise ValueError(f"{index}: expected shards that end in {', '.join(SUFFIXES)}, got {shorten(name)}")
        if not _is_file(index.parent / name):
            raise ValueError(f"{index}: the shard {printable(name)} is missing")
    return weight_map


def _open_shards(index: Path) -> dict[str, LazyTensor]:
    weight_map = _shards(index)
    shards = {path.name: open_tensors(path) for path in weight_paths(index)}
    missing = [f"{name} is not in {file}" for name, file in sorted(weight_map.items()) if name not in shards[file]]
    unlisted = [f"{name} in {file} is not listed" for file in shards for name in shards[file] if name not in weight_map]
    if missing or unlisted:
        raise ValueError(f"{index}: " + join(missing + unlisted, "; "))
    return {name: shards[file][name] for name, file in weight_map.items()}


def _open_pickle(path: Path) -> dict[str, LazyTensor]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f'{path}: reading this file needs torch: pip install "vitpose-jax[torch]" (safetensors do not need it)'
        ) from error
    content = unwrap(_load(path))
    if not isinstance(content, Mapping) or not content:
        keys = ", ".join(map(repr, KEYS))
        raise ValueError(f"{path}: expected tensors by name, or under one of {keys}, got {_type_and_keys(content)}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: expected tensors by name, got {_type_and_keys(value)} for {shorten(name)}")
    return {name: _lazy(tensor, f"{path}: {printable(name)}") for name, tensor in content.items()}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _check_archive(path: Path) -> bool:
    """Check the sizes that a zip archive states; return whether its members can be memory-mapped.

    Raises:
        ValueError: if the archive is encrypted, or its content would be far larger than the file.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            return False  # the format of torch before 1.6
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        name = printable(member.filename)
        if member.flag_bits & 1:
            raise ValueError(f"{path}: {name} is encrypted")
        if member.filename.endswith("/data.pkl") and member.file_size > LARGEST_PICKLE:
            raise ValueError(f"{path}: {name}: expected at most {LARGEST_PICKLE} bytes, got {member.file_size}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{path}: {name}: the compression method {member.compress_type} is not supported")
    compressed = [member for member in members if member.compress_type != zipfile.ZIP_STORED]
    largest = _SMALL + _LARGEST_RATIO * path.stat().st_size
    size = sum(member.file_size for member in compressed)
    if size > largest:
        raise ValueError(f"{path}: expected at most {largest} bytes when it is decompressed, got {size}")
    return not compressed


def _load(path: Path) -> Any:
    import torch

    skipped = [(_Skipped, name) for name in _SKIPPED]
    try:
        mmap = _check_archive(path)
        # Some checkpoints contain their script's settings as a Namespace, which runs no code.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, *skipped]):
            # Warnings concern the version of the pickle; the errors below say what matters.
            warnings.simplefilter("ignore")
            # Neither compressed archives nor files from before torch 1.6, which are none, can be memory-mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(
                f"{path}: refused, because reading it would run code ({printable(code[1])}); only tensors, numbers "
                "and text are allowed"
            ) from error
        raise ValueError(f"{path}: not a PyTorch checkpoint with only tensors, or damaged") from error
    except _DAMAGED as error:
        if str(error).startswith(f"{path}: "):
            raise  # of `_check_archive`
        reason = str(error).split(".")[0].split("\n")[0] or "the file ends too early"
        raise ValueError(f"{path}: not a PyTorch checkpoint, or damaged ({printable(reason)})") from error


def _lazy(tensor: Any, where: str) -> LazyTensor:
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"{where} has the dtype {name}; expected one of {', '.join(_DTYPES)}")
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError(f"{where}: expected a dense tensor with its numbers, got {tensor.layout} on {tensor.device}")
    # A tensor of a few bytes can be expanded to any shape.
    stored = tensor.untyped_storage().nbytes()
    if tensor.nbytes > stored:
        raise ValueError(f"{where}: expected {tensor.nbytes} bytes for shape {tuple(tensor.shape)}, got {stored}")
    dtype = _DTYPES[name]
    return LazyTensor(tuple(tensor.shape), dtype, functools.partial(_to_numpy, tensor))


def _to_numpy(tensor: Any) -> np.ndarray:
    """A copy: the tensor's own memory is the mapped file, which another program may change or cut."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return np.array(tensor.view(torch.int16).numpy()).view(jnp.bfloat16)
    return np.array(tensor.numpy())


def _type_and_keys(value: Any) -> str:
    keys = f" with {', '.join(map(shorten, list(value)[:5]))}" if isinstance(value, Mapping) else ""
    return f"{type(value).__name__}{keys}"
