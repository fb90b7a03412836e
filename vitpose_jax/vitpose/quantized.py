"""Linear layers whose weights stay int8 or int4 in the memory of the device, with float32 scales.

    int8    values (in, out), int8             scale (1, out)        a scale for each output channel
    int4    values (in / 2, out), uint8        scale (groups, out)   a scale for each group of inputs of each channel

In stacked blocks, all have a leading axis of layers, and experts one more. The weights become floating-point numbers
inside the product, for one layer at a time: the scan over the blocks slices the integers, so there is never a
floating-point copy of the model. Compilers may be tempted to widen the whole stack before the loop; a test holds the
memory of the compiled program.

Quantized are the kernels of the blocks, which are 96 % of the weights of a base model and more of a larger one. Patch
embedding, positions, norms, biases and heads stay in floating point. A quantized model predicts; it does not train.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vitpose_jax.storage import int4, int8
from vitpose_jax.storage.tensors import LazyTensor, Quantized
from vitpose_jax.vitpose import products

Kind: TypeAlias = Literal["int8", "int4"]
KINDS = ("int8", "int4")
VALUES = ".values"

# The dtype that holds the values of each kind.
DTYPES = {"int8": np.dtype(np.int8), "int4": np.dtype(np.uint8)}

_KERNELS = re.compile(r"backbone\.blocks\.(?:attention\.(?:qkv|proj)\.|mlp\.(?:fc1|fc2)\.|mlp\.experts_)kernel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the kernels of the blocks are stored.

    Attributes:
        kind: "int8" or "int4".
        group_size: of int4: the number of inputs that share a scale.
    """

    kind: Kind
    group_size: int = int4.GROUP_SIZE

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"quantize: expected {' or '.join(map(repr, KINDS))}, got {self.kind!r}")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of a kernel (..., in, out).

        Raises:
            ValueError: for a group size that does not divide the inputs.
        """
        if self.kind == "int8":
            return (*shape[:-2], 1, shape[-1])
        int4.check_group_size(shape[-2], self.group_size)
        return (*shape[:-2], shape[-2] // self.group_size, shape[-1])

    def values_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the stored values of a kernel (..., in, out)."""
        return shape if self.kind == "int8" else (*shape[:-2], shape[-2] // 2, shape[-1])

    def round(self, name: str, weights: Float[np.ndarray, "*n inputs outputs"]) -> tuple[np.ndarray, np.ndarray]:
        """The values and scales of a kernel; `name` is its flat name, for error messages."""
        if self.kind == "int8":
            return int8.round_kernel(name, weights)
        int8.check_kernel(name, weights, "int4")
        return int4.quantize(weights, self.group_size)


class QuantizedVariable(nnx.Variable):
    """The integers of a kernel, or their scales. Not an `nnx.Param`: they have no gradient."""


class QuantizedKernel(nnx.Module):
    """A kernel as integers and scales.

    Attributes:
        values: (..., in, out) int8; or (..., in / 2, out) uint8, two int4 values to a byte.
        scale: (..., 1, out) or (..., groups, out) float32.
        shape: of the stacked kernel of all layers in floating point, (..., in, out).
    """

    def __init__(self, shape: tuple[int, ...], quantization: Quantization):
        dtype = DTYPES[quantization.kind]
        self.values = QuantizedVariable(jnp.zeros(quantization.values_shape(shape), dtype))
        self.scale = QuantizedVariable(jnp.zeros(quantization.scale_shape(shape), jnp.float32))
        self.shape = shape

    def product(
        self, x: Float[Array, "*n rows inputs"], index: int | Int[Array, "..."] | Int[np.ndarray, "..."] | None = None
    ) -> Float[Array, "*n rows outputs"]:
        """The product with the weights, in the dtype of `x`.

        Args:
            x: one or more matrices.
            index: along the leading axis of the kernel, the expert to use: one, or one for each matrix of `x`.
        """
        values, scale = self.values[...], self.scale[...]
        if index is not None:
            values, scale = values[index], scale[index]
        if values.dtype == jnp.int8:
            # Integers up to 127 are exact in every floating-point dtype; the scale multiplies the float32 sums.
            return (products.matmul(x, values.astype(x.dtype), jnp.float32) * scale).astype(x.dtype)
        return products.matmul(x, dequantize_int4(values, scale).astype(x.dtype))


def dequantize_int4(packed: Array, scale: Float[Array, "*n groups outputs"]) -> Float[Array, "*n inputs outputs"]:
    """The float32 weights of packed int4 values; `storage.int4.dequantize` for arrays of JAX."""
    bits = jax.lax.bitcast_convert_type(packed, jnp.int8)
    # Shifts keep the sign.
    values = jnp.stack([(bits << 4) >> 4, bits >> 4], axis=-2)
    *lead, groups, outputs = scale.shape
    grouped = values.reshape(*lead, groups, -1, outputs).astype(jnp.float32)
    return (grouped * scale[..., None, :]).reshape(*lead, -1, outputs)


class KernelLinear(nnx.Module):
    """An `nnx.Linear` whose kernel is a module with a `product`, such as a `QuantizedKernel`."""

    def __init__(self, linear: Any, kernel: Any):
        self.kernel = kernel
        self.bias: nnx.Param[Array] | None = linear.bias
        self.dtype: Any = linear.dtype

    def __call__(self, x: Float[Array, "*n rows inputs"]) -> Float[Array, "*n rows outputs"]:
        result = self.kernel.product(x.astype(self.dtype))
        return result if self.bias is None else result + self.bias[...].astype(self.dtype)


def with_quantized_kernels(blocks: Any, quantization: Quantization) -> None:
    """Replace the kernels of stacked blocks by zeros of the quantized kind, in place. Used on abstract models.

    Args:
        blocks: a stacked `Block`.
        quantization: the kind.

    Raises:
        ValueError: for a group size that does not divide the inputs of a layer.
    """
    for module, names in ((blocks.attention, ("qkv", "proj")), (blocks.mlp, ("fc1", "fc2"))):
        for name in names:
            linear = getattr(module, name)
            setattr(module, name, KernelLinear(linear, QuantizedKernel(linear.kernel[...].shape, quantization)))
    if hasattr(blocks.mlp, "experts_kernel"):
        shape = blocks.mlp.experts_kernel[...].shape
        blocks.mlp.experts_kernel = QuantizedKernel(shape, quantization)


def is_quantized(name: str) -> bool:
    """Whether a parameter with this flat name is quantized: the kernels of the blocks are."""
    return _KERNELS.fullmatch(name) is not None


def quantize_tensors(tensors: Mapping[str, Any], quantization: Quantization) -> dict[str, Any]:
    """The tensors of a quantized model, from those of a model in floating point.

    Nothing is computed here: each result is computed when it is read, layer by layer, so that no more than the kernel
    of one layer is in floating point at a time. Kernels that a file has in this kind are taken as they are.

    Args:
        tensors: by flat name, lazy or arrays.
        quantization: the kind.

    Returns:
        The tensors by flat name, each kernel of a block as ".values" and ".scale".
    """
    result = {}
    for name, tensor in tensors.items():
        if not is_quantized(name):
            result[name] = tensor  # also the values and scales of a kernel that is quantized already
            continue
        stored = tensor.quantized if isinstance(tensor, LazyTensor) else None
        if stored is not None and _same(stored, quantization):
            result[name + VALUES], result[name + int8.SCALE] = stored.values, stored.scale
            continue
        pair = _Pair(name, tensor, quantization)
        shape = tuple(tensor.shape)
        values_shape, scale_shape = quantization.values_shape(shape), quantization.scale_shape(shape)
        result[name + VALUES] = LazyTensor(values_shape, DTYPES[quantization.kind], pair.values)
        result[name + int8.SCALE] = LazyTensor(scale_shape, np.dtype(np.float32), pair.scale)
    return result


def dequantize_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a model in floating point, from those of a quantized model; float32, computed when read."""
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(VALUES):
            kernel = name.removesuffix(VALUES)
            result[kernel] = dequantized(tensor, tensors[kernel + int8.SCALE])
        elif name.removesuffix(int8.SCALE) + VALUES not in tensors:
            result[name] = tensor
    return result


def stored_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by the names in a native file, where the values of a kernel have the kernel's own name."""
    return {name.removesuffix(VALUES): tensor for name, tensor in tensors.items()}


def dequantized(values: Any, scale: Any) -> LazyTensor:
    """The float32 tensor that stored values and their scales stand for; it remembers them."""
    shape, stored = tuple(values.shape), np.dtype(values.dtype)
    convert: Callable[..., np.ndarray] = int8.dequantize
    if stored == DTYPES["int4"]:
        shape, convert = (*shape[:-2], 2 * shape[-2], shape[-1]), int4.dequantize
    return LazyTensor(
        shape,
        np.dtype(np.float32),
        lambda: convert(np.asarray(values), np.asarray(scale, np.float32)),
        stored,
        read_layer=lambda index: convert(_layer(values, index), _layer(scale, index).astype(np.float32)),
        quantized=Quantized(values, scale),
    )


def stored_group_size(stored: Quantized) -> int:
    """The number of inputs that share a scale in a stored int4 kernel."""
    return 2 * stored.values.shape[-2] // stored.scale.shape[-2]


def _same(stored: Quantized, quantization: Quantization) -> bool:
    if stored.values.dtype != DTYPES[quantization.kind]:
        return False
    return quantization.kind == "int8" or stored_group_size(stored) == quantization.group_size


def _layer(tensor: Any, index: int) -> np.ndarray:
    return tensor.layer(index) if isinstance(tensor, LazyTensor) else np.asarray(tensor[index])


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array whose memory JAX takes over on CPUs, instead of copying it: it begins at a multiple of 64."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


class _Pair:
    """Computes the values and the scales of a stacked kernel together; keeps one until it is read too."""

    def __init__(self, name: str, tensor: Any, quantization: Quantization):
        self._name, self._tensor, self._quantization = name, tensor, quantization
        self._waiting: dict[str, np.ndarray] = {}

    def values(self) -> np.ndarray:
        return self._take("values")

    def scale(self) -> np.ndarray:
        return self._take("scale")

    def _take(self, part: str) -> np.ndarray:
        if part not in self._waiting:
            shape = tuple(self._tensor.shape)
            values = _aligned(self._quantization.values_shape(shape), DTYPES[self._quantization.kind])
            scale = np.empty(self._quantization.scale_shape(shape), np.float32)
            for index in range(shape[0]):
                weights = np.asarray(_layer(self._tensor, index), np.float32)
                values[index], scale[index] = self._quantization.round(self._name, weights)
            self._waiting = {"values": values, "scale": scale}
        return self._waiting.pop(part)


def num_bytes(module: nnx.Module) -> int:
    """Bytes of all arrays of a module."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(module)))


def num_parameters(module: nnx.Module) -> int:
    """The number of parameters of a module: of its `nnx.Param`s, and the weights of quantized kernels."""
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
    for path, variable in nnx.to_flat_state(nnx.state(module, QuantizedVariable)):
        values = variable.get_value()
        if path[-1] == "values":
            total += values.size * (2 if values.dtype == DTYPES["int4"] else 1)
    return total


def check_group_size(kind: str | None, group_size: int | None) -> None:
    """Check that a group size comes with int4 only.

    Raises:
        ValueError: if it does not.
    """
    if group_size is not None and kind != "int4":
        raise ValueError(f"group_size: expected only with int4, got {group_size} with {kind or 'floating point'}")


def check_not_quantized(model: Any, purpose: str) -> None:
    """Check that a model is not quantized.

    Args:
        model: of any kind.
        purpose: what needs it, for the error message: "training".

    Raises:
        ValueError: if it is.
    """
    quantization = getattr(model, "quantization", None)
    if quantization is not None:
        raise ValueError(
            f"{purpose}: expected a model with parameters in floating point, got {quantization.kind}; "
            "load it without quantize"
        )
