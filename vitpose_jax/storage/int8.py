"""Weights stored as int8: a quarter of the bytes, read back as float32.

Every kernel is an int8 array with one float32 scale for each output channel, beside it under the name of the kernel
with ".scale" behind; the kernel is their product. Blocks and experts are stacked, and each has scales of its own.
Biases, norms and positions are few and stay as they are. Only the file is smaller: a model computes as ever.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int8

SCALE = ".scale"
LARGEST = 127


def quantize(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a model as they are stored in int8.

    Args:
        tensors: by flat name (`parameters.flatten`), floating-point.

    Returns:
        Kernels as int8, each with its scale; all others unchanged. Rounding moves a weight by at most half a scale,
        that is 1/254 of the largest weight of its output channel.
    """
    result = {}
    for name, tensor in tensors.items():
        tensor = np.asarray(tensor)
        if not name.endswith("kernel"):
            result[name] = tensor
            continue
        weights = tensor.astype(np.float32)
        largest = np.abs(weights).max(axis=_inputs(name, weights.ndim), keepdims=True)
        scale = np.maximum(largest / LARGEST, np.finfo(np.float32).tiny)
        result[name] = np.rint(weights / scale).astype(np.int8)
        result[name + SCALE] = scale
    return result


def dequantize(values: Int8[np.ndarray, "..."], scale: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """The weights that are stored."""
    return values * scale


def scale_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a kernel's scale, which is multiplied with it as it stands."""
    inputs = _inputs(name, len(shape))
    return tuple(1 if axis in inputs else side for axis, side in enumerate(shape))


def problems(tensors: Mapping[str, Any]) -> Iterable[str]:
    """One line for every int8 tensor without its scale, and for every scale of another shape than expected."""
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype != np.int8:
            continue
        expected = scale_shape(name, tuple(tensor.shape))
        if name + SCALE not in tensors:
            yield f"missing {name}{SCALE}, expected shape {expected}, because {name} is int8"
        elif tuple(tensors[name + SCALE].shape) != expected:
            yield f"{name}{SCALE}: expected shape {expected}, got {tuple(tensors[name + SCALE].shape)}"


def _inputs(name: str, axes: int) -> tuple[int, ...]:
    # The last axis is that of the output channels. Leading axes of the blocks count layers and experts.
    return (axes - 2,) if ".blocks." in name else tuple(range(axes - 1))
