"""Weights stored as int8: a quarter of the bytes, read back as float32.

Every kernel becomes an int8 array and a float32 scale for each output channel; the kernel is their product. The scale's
name is the kernel's with ".scale" appended. Each stacked block and expert has its own scales. Biases, norms and
positions are small and stay as they are. `vitpose/quantized.py` keeps the kernels of blocks so in memory, too.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int8

from .finite import all_finite

SCALE = ".scale"
LARGEST = 127


def quantize(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a model as an int8 checkpoint stores them.

    Args:
        tensors: by flat name (`parameters.flatten`), floating-point; kernels that are integers stay as they are.

    Returns:
        Kernels as int8, each with its scale; all others unchanged. Rounding changes a weight by at most half a scale,
        which is 1/254 of the largest weight of its output channel.

    Raises:
        ValueError: if a kernel is not finite.
    """
    result = {}
    for name, tensor in tensors.items():
        tensor = np.asarray(tensor)
        if not name.endswith("kernel") or not jnp.issubdtype(tensor.dtype, jnp.floating):
            result[name] = tensor
            continue
        result[name], result[name + SCALE] = round_kernel(name, tensor.astype(np.float32))
    return result


def round_kernel(
    name: str, weights: Float[np.ndarray, "..."]
) -> tuple[Int8[np.ndarray, "..."], Float32[np.ndarray, "..."]]:
    """The int8 values and the scale of one kernel.

    Args:
        name: its flat name, which says which axes are inputs.
        weights: the kernel; of stacked blocks also that of a single layer.

    Raises:
        ValueError: if it is not finite.
    """
    check_kernel(name, weights, "int8")
    largest = np.abs(weights).max(axis=_input_axes(name, weights.ndim), keepdims=True)
    scale = np.maximum(largest / LARGEST, np.finfo(np.float32).tiny)
    return np.rint(weights / scale).astype(np.int8), scale


def check_kernel(name: str, weights: Float[np.ndarray, "..."], kind: str) -> None:
    """Check that a kernel can be rounded.

    Raises:
        ValueError: naming it, if it is not finite.
    """
    if not all_finite(weights):
        raise ValueError(f"{name}: expected finite numbers to store as {kind}, got NaN or infinity")


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
    """One line for every int8 tensor without a scale, and for every scale of another shape or dtype than expected."""
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype != np.int8:
            continue
        expected = scale_shape(name, tuple(tensor.shape))
        if name + SCALE not in tensors:
            yield f"missing {name}{SCALE}, expected shape {expected}, because {name} is int8"
        elif tuple(tensors[name + SCALE].shape) != expected:
            yield f"{name}{SCALE}: expected shape {expected}, got {tuple(tensors[name + SCALE].shape)}"
        else:
            yield from dtype_problems(name + SCALE, tensors[name + SCALE])


def dtype_problems(name: str, scale: Any) -> Iterable[str]:
    """One line for a scale that is not floating-point."""
    if not jnp.issubdtype(scale.dtype, jnp.floating):
        yield f"{name}: expected floating-point numbers, got {scale.dtype}"


def _input_axes(name: str, axes: int) -> tuple[int, ...]:
    # The last axis has the output channels. In stacked blocks the leading axes are layers and experts.
    return (axes - 2,) if ".blocks." in name else tuple(range(axes - 1))
