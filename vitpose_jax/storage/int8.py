"""Weights stored as int8: a quarter of the bytes, read back as float32.

Every kernel becomes an int8 array and a float32 scale for each output channel; the kernel is their product. The scale's
name is the kernel's with ".scale" appended. Each stacked block and expert has its own scales. Biases, norms and
positions are small and stay as they are. Only the file is smaller: the model computes in floating point as before.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int8

from .finite import all_finite

SCALE = ".scale"
LARGEST = 127


def quantize(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a model as an int8 checkpoint stores them.

    Args:
        tensors: by flat name (`parameters.flatten`), floating-point.

    Returns:
        Kernels as int8, each with its scale; all others unchanged. Rounding changes a weight by at most half a scale,
        which is 1/254 of the largest weight of its output channel.

    Raises:
        ValueError: if a kernel is not finite.
    """
    result = {}
    for name, tensor in tensors.items():
        tensor = np.asarray(tensor)
        if not name.endswith("kernel"):
            result[name] = tensor
            continue
        weights = tensor.astype(np.float32)
        if not all_finite(weights):
            raise ValueError(f"{name}: expected finite numbers to store as int8, got NaN or infinity")
        largest = np.abs(weights).max(axis=_input_axes(name, weights.ndim), keepdims=True)
        scale = np.maximum(largest / LARGEST, np.finfo(np.float32).tiny)
        result[name] = np.rint(weights / scale).astype(np.int8)
        result[name + SCALE] = scale
    return result


def dequantize(values: Int8[np.ndarray, "..."], scale: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """The weights that are stored as int8 values and a scale."""
    # A scale that is not finite is an error of the file, and is reported where the result is checked.
    with np.errstate(all="ignore"):
        return values * scale


def scale_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a kernel's scale, which broadcasts against the kernel."""
    input_axes = _input_axes(name, len(shape))
    return tuple(1 if axis in input_axes else size for axis, size in enumerate(shape))


def problems(tensors: Mapping[str, Any]) -> Iterable[str]:
    """One line for every int8 tensor without a scale, and for every scale of another shape than expected."""
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype != np.int8:
            continue
        expected = scale_shape(name, tuple(tensor.shape))
        if name + SCALE not in tensors:
            yield f"missing {name}{SCALE}, expected shape {expected}, because {name} is int8"
        elif tuple(tensors[name + SCALE].shape) != expected:
            yield f"{name}{SCALE}: expected shape {expected}, got {tuple(tensors[name + SCALE].shape)}"


def _input_axes(name: str, axes: int) -> tuple[int, ...]:
    # The last axis has the output channels. In stacked blocks the leading axes are layers and experts.
    return (axes - 2,) if ".blocks." in name else tuple(range(axes - 1))
