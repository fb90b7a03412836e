"""The tensors of a checkpoint file, read lazily.

Only this file of the package may import torch, and only for .pth, .pt and .bin: safetensors are read without torch.
Pickles are loaded with `weights_only`, so that a file cannot run code.
"""

import argparse
import functools
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitpose_jax.storage.tensors import LazyTensor, open_safetensors, read_json

# Keys under which training scripts store the tensors.
_WRAPPERS = ("state_dict", "model")

PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLES)

# The names in a folder as on the Hub, in order of preference.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
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
            the tensors themselves, or hold them under "state_dict" or "model".

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
            raise ValueError(f"{index}: expected shards in the same folder, got {name!r}")
        if not (index.parent / name).is_file():
            raise ValueError(f"{index}: the shard {name} is missing")
    return weight_map


def _open_shards(index: Path) -> dict[str, LazyTensor]:
    weight_map = _shards(index)
    shards = {path.name: open_tensors(path) for path in weight_paths(index)}
    missing = [f"{name} is not in {file}" for name, file in sorted(weight_map.items()) if name not in shards[file]]
    unlisted = [f"{name} in {file} is not listed" for file in shards for name in shards[file] if name not in weight_map]
    if missing or unlisted:
        raise ValueError(f"{index}: " + "; ".join(missing + unlisted))
    return {name: shards[file][name] for name, file in weight_map.items()}


def _open_pickle(path: Path) -> dict[str, LazyTensor]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f'{path}: reading this file needs torch: pip install "vitpose-jax[torch]" (safetensors do not need it)'
        ) from error
    content = _load(path)
    if isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if key in content), content)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{path}: expected tensors by name, or under 'state_dict' or 'model', got {_type_and_keys(content)}"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: expected tensors by name, got {_type_and_keys(value)} for {name!r}")
    return {name: _lazy(tensor, f"{path}: {name}") for name, tensor in content.items()}


def _load(path: Path) -> Any:
    import torch

    try:
        # Some checkpoints contain their script's settings as a Namespace, which runs no code.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            # Warnings concern the version of the pickle; the errors below say what matters.
            warnings.simplefilter("ignore")
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                # Files from before torch 1.6 are not zip archives and cannot be memory-mapped.
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError) as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(
                f"{path}: refused, because reading it would run code ({code[1]}); only tensors, numbers and text "
                "are allowed"
            ) from error
        raise ValueError(f"{path}: not a PyTorch checkpoint with only tensors, or damaged") from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, AttributeError, TypeError) as error:
        reason = str(error).split(".")[0].split("\n")[0] or "the file ends too early"
        raise ValueError(f"{path}: not a PyTorch checkpoint, or damaged ({reason})") from error


def _lazy(tensor: Any, where: str) -> LazyTensor:
    name = str(tensor.dtype).removeprefix("torch.")
    try:
        dtype = np.dtype(jnp.bfloat16 if name == "bfloat16" else name)
    except TypeError as error:
        raise ValueError(f"{where} has the unknown dtype {name}") from error
    return LazyTensor(tuple(tensor.shape), dtype, functools.partial(_to_numpy, tensor))


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def _type_and_keys(value: Any) -> str:
    keys = f" with {', '.join(map(repr, list(value)[:5]))}" if isinstance(value, Mapping) else ""
    return f"{type(value).__name__}{keys}"
