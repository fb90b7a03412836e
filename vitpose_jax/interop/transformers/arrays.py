"""Arrays of three kinds: what comes in as NumPy, JAX or PyTorch goes out as the same.

PyTorch is imported only for a user who asks for its tensors (`return_tensors="pt"`) or hands one over.
"""

import importlib
import sys
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vitpose_jax.pixels.arrays import on_host
from vitpose_jax.storage.text import shorten

# Options of `from_pretrained` that choose the files.
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only")
# Names of `return_tensors`.
KINDS = ("np", "jax", "pt")


def is_torch(value: Any) -> bool:
    """Whether a value is a tensor of PyTorch; no such tensor exists before PyTorch is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def load_torch() -> Any:
    """PyTorch.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ValueError("return_tensors: expected 'np' or 'jax' without PyTorch, got 'pt'; install torch") from error


def kind_of(value: Any) -> str:
    """The name of an array's kind; "np" for anything else, such as lists."""
    return "pt" if is_torch(value) else "jax" if isinstance(value, jax.Array) else "np"


def to_array(value: Any) -> Any:
    """A tensor, an array or lists of numbers as an array of NumPy or JAX."""
    if is_torch(value):
        return on_host(value)
    if isinstance(value, list | tuple) and any(map(is_torch, value)):
        return np.stack([to_array(item) for item in value])
    return value if isinstance(value, jax.Array) else np.asarray(value)


def to_kind(value: Any, kind: str, like: Any = None) -> Any:
    """An array as another kind.

    Args:
        value: of NumPy or JAX.
        kind: "np", "jax" or "pt".
        like: a tensor of PyTorch on whose device the result lies; None for the CPU.

    Raises:
        ValueError: for an unknown kind, and for "pt" without PyTorch.
    """
    if kind not in KINDS:
        raise ValueError(f"return_tensors: expected one of {', '.join(KINDS)}, got {shorten(kind)}")
    if kind == "jax":
        return jnp.asarray(value)
    array = np.asarray(value)
    if kind == "np":
        return array
    torch = load_torch()
    if array.dtype == jnp.bfloat16:
        tensor = torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array.copy())
    return tensor.to(like.device) if is_torch(like) else tensor


def parse_dtype(dtype: Any) -> Any:
    """A dtype of NumPy, JAX or PyTorch, or its name, as JAX knows it.

    Raises:
        ValueError: for anything else.
    """
    try:
        return jnp.dtype(str(dtype).removeprefix("torch.") if not isinstance(dtype, type) else dtype)
    except TypeError as error:
        raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {shorten(dtype)}") from error


class BatchFeature(dict):
    """Inputs of a model by name; also attributes."""

    @property
    def data(self) -> dict[str, Any]:
        """Itself, as in transformers."""
        return self

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"expected one of {', '.join(self)}, got {name}")

    def to(self, *args: Any, **kwargs: Any) -> "BatchFeature":
        """Move tensors of PyTorch to a device, or change the dtype of floating-point arrays; in place.

        NumPy and JAX arrays stay where they are: the model moves them to its own device.
        """
        targets = [*args, *kwargs.values()]
        dtypes = [parse_dtype(target) for target in targets if _is_dtype(target)]
        devices = [target for target in targets if not _is_dtype(target) and target is not None]
        for name, value in self.items():
            for device in devices if is_torch(value) else ():
                value = value.to(str(device)) if _torch_knows(str(device)) else value
            for dtype in dtypes:
                if is_torch(value) and value.is_floating_point():
                    value = value.to(getattr(load_torch(), dtype.name))
                elif not is_torch(value) and jnp.issubdtype(value.dtype, jnp.floating):
                    value = value.astype(dtype)
            self[name] = value
        return self


def _is_dtype(target: Any) -> bool:
    if isinstance(target, str):
        return "float" in target
    return "float" in str(target) or isinstance(target, np.dtype)


def _torch_knows(device: str) -> bool:
    # The PyTorch of a machine need not know the accelerator that JAX computes on; its tensors then stay on the CPU.
    torch = load_torch()
    return device.split(":")[0] == "cpu" or (device.startswith("cuda") and torch.cuda.is_available())


class ModelOutput(dict):
    """What a model returns: by name, as an attribute, or by position among the fields that are there."""

    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **values: Any):
        unknown = values.keys() - set(self.FIELDS)
        if unknown:
            raise TypeError(f"{type(self).__name__}: expected {', '.join(self.FIELDS)}, got {', '.join(unknown)}")
        super().__init__({name: values[name] for name in self.FIELDS if values.get(name) is not None})

    def __getattr__(self, name: str) -> Any:
        if name in type(self).FIELDS:
            return self.get(name)
        raise AttributeError(f"{type(self).__name__}: expected one of {', '.join(self.FIELDS)}, got {name}")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, in order."""
        return tuple(self.values())
