"""Weights in int4: two to a byte, with a float32 scale for each group of inputs of each output channel.

    weights (..., in, out) -> groups of `group_size` inputs -> values from -7 to 7, scale (..., in / group_size, out)
                           -> packed (..., in / 2, out), uint8: input 2i in the low four bits, 2i + 1 in the high ones

The weights are the values times the scales. Leading axes are stacked blocks and experts. `vitpose/quantized.py` holds
the same arrays in the memory of a device; there is one copy of the arithmetic for NumPy and one for JAX.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int8, UInt8

from .int8 import SCALE, dtype_problems

LARGEST = 7
GROUP_SIZE = 128


def quantize(
    weights: Float[np.ndarray, "*n inputs outputs"], group_size: int = GROUP_SIZE
) -> tuple[UInt8[np.ndarray, "*n half_inputs outputs"], Float32[np.ndarray, "*n groups outputs"]]:
    """Round weights to int4. A weight changes by at most half a scale, which is 1/14 of the largest of its group.

    Args:
        weights: finite.
        group_size: number of inputs that share a scale; it divides the number of inputs.

    Returns:
        The packed values, and the scales.

    Raises:
        ValueError: for a group size that does not divide the inputs, and for an odd number of inputs.
    """
    *lead, inputs, outputs = weights.shape
    check_group_size(inputs, group_size)
    groups = weights.astype(np.float32).reshape(*lead, inputs // group_size, group_size, outputs)
    largest = np.abs(groups).max(axis=-2, keepdims=True, initial=0)
    scale = np.maximum(largest / LARGEST, np.finfo(np.float32).tiny)
    values = np.rint(groups / scale).astype(np.int8).reshape(weights.shape)
    return pack(values), scale[..., 0, :]


def dequantize(
    packed: UInt8[np.ndarray, "*n half_inputs outputs"], scale: Float[np.ndarray, "*n groups outputs"]
) -> Float32[np.ndarray, "*n inputs outputs"]:
    """The weights that packed values and scales stand for."""
    values = unpack(packed)
    *lead, inputs, outputs = values.shape
    grouped = values.reshape(*lead, scale.shape[-2], -1, outputs)
    # A scale that is not finite is an error of the file, and is reported where the result is checked.
    with np.errstate(all="ignore"):
        return (grouped * scale[..., None, :].astype(np.float32)).reshape(*lead, inputs, outputs)


def pack(values: Int8[np.ndarray, "*n inputs outputs"]) -> UInt8[np.ndarray, "*n half_inputs outputs"]:
    """Two values from -8 to 7 in each byte; the number of inputs is even."""
    bits = values.view(np.uint8)
    return (bits[..., 0::2, :] & 15) | (bits[..., 1::2, :] << 4)


def unpack(packed: UInt8[np.ndarray, "*n half_inputs outputs"]) -> Int8[np.ndarray, "*n inputs outputs"]:
    """The values of `pack`."""
    *lead, half, outputs = packed.shape
    values = np.empty((*lead, 2 * half, outputs), np.int8)
    values[..., 0::2, :] = (packed << 4).view(np.int8) >> 4
    values[..., 1::2, :] = packed.view(np.int8) >> 4
    return values


def check_group_size(inputs: int, group_size: int) -> None:
    """Check that groups fill the inputs of a layer, and bytes too.

    Raises:
        ValueError: naming the sizes that do.
    """
    if inputs % 2:
        raise ValueError(f"int4: expected layers with an even number of inputs, got {inputs}")
    if group_size < 1 or inputs % group_size:
        divisors = [str(size) for size in range(2, inputs + 1) if inputs % size == 0]
        raise ValueError(
            f"group_size: expected a divisor of the {inputs} inputs of a layer "
            f"({', '.join(divisors[:3])}, ..., {divisors[-1]}), got {group_size}"
        )


def problems(tensors: Mapping[str, Any]) -> Iterable[str]:
    """One line for every packed tensor without a scale, and for every scale whose groups do not fill
    the inputs, or that is not floating-point."""
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype != np.uint8:
            continue
        shape = tuple(tensor.shape)
        if len(shape) < 2:
            yield f"{name}: expected two axes or more of packed int4, got shape {shape}"
            continue
        expected = f"{(*shape[:-2], 'groups', shape[-1])}, with groups a divisor of {2 * shape[-2]}".replace("'", "")
        if name + SCALE not in tensors:
            yield f"missing {name}{SCALE}, expected shape {expected}, because {name} is int4"
            continue
        scale = tuple(tensors[name + SCALE].shape)
        fits = len(scale) == len(shape) and (*scale[:-2], scale[-1]) == (*shape[:-2], shape[-1])
        if not fits or not scale[-2] or 2 * shape[-2] % scale[-2]:
            yield f"{name}{SCALE}: expected shape {expected}, got {scale}"
        else:
            yield from dtype_problems(name + SCALE, tensors[name + SCALE])
