"""Weights in the form in which programs on CPUs read them, so that no call copies them (figures: benchmarks/README.md).

- In a scan over stacked blocks, XLA on a CPU copies the weights of each block out of the stack before it multiplies
  with them, and it widens a whole stack of bfloat16 weights to float32. Neither happens if each block has arrays of its
  own, and such a program takes hardly longer to compile. These arrays are views of the stacked ones, so they take no
  memory; only kernels that are wider than the computation are rounded, once.
- The kernels of transposed convolutions are arranged by parity (ops.py).

Programs for GPUs and TPUs keep the scan, whose program is smaller.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitpose_jax.vitpose import ops
from vitpose_jax.vitpose.adapters import AdaptedKernel
from vitpose_jax.vitpose.modeling import Backbone, Block, ClassicDecoder, Deconv
from vitpose_jax.vitpose.quantized import QuantizedKernel

Modules = TypeVar("Modules")


class ParityDeconv(nnx.Module):
    """A `Deconv` whose kernel is arranged by parity."""

    def __init__(self, deconv: Deconv):
        self.kernel = nnx.Param(ops.parity_kernel(deconv.kernel[...].astype(deconv.dtype)))

    def __call__(self, x: Float[Array, "n height width features_in"]) -> Float[Array, "n 2*height 2*width features"]:
        return ops.deconv_by_parity(x, self.kernel[...])


def prepare_for_cpu(modules: Modules) -> Modules:
    """The same module, or tuple of modules, with `ParityDeconv`s, and blocks that have arrays of their own.

    Blocks with quantized or adapted kernels stay stacked: inside the scan, the weights of one at a time become
    floating-point numbers.

    Args:
        modules: not changed; its arrays are on CPUs.
    """
    copies: Any = nnx.merge(*nnx.split(modules))
    for copy in copies if isinstance(modules, tuple) else (copies,):
        for _, module in list(nnx.iter_modules(copy)):
            _prepare(module)
    return copies


def _prepare(module: Any) -> None:
    if isinstance(module, Backbone) and isinstance(module.blocks, Block) and _has_plain_kernels(module.blocks):
        module.blocks = nnx.List(_split(module.blocks, module.dtype))
    elif isinstance(module, ClassicDecoder):
        for name in ("deconv1", "deconv2"):
            setattr(module, name, ParityDeconv(getattr(module, name)))


def _has_plain_kernels(blocks: Block) -> bool:
    return not any(isinstance(module, QuantizedKernel | AdaptedKernel) for _, module in nnx.iter_modules(blocks))


def _split(blocks: Block, dtype: DTypeLike) -> list[Block]:
    graphdef, state = nnx.split(blocks)
    leaves, structure = jax.tree.flatten(state)
    rows = [_rows(leaf, dtype) for leaf in leaves]
    return [nnx.merge(graphdef, jax.tree.unflatten(structure, row)) for row in zip(*rows, strict=True)]


def _rows(stacked: jax.Array, dtype: DTypeLike) -> list[Any]:
    """The rows of a stacked array; of kernels, in the dtype of the computation if it is narrower."""
    is_kernel = stacked.ndim > 2 and jnp.issubdtype(stacked.dtype, jnp.floating)
    if is_kernel and jnp.dtype(dtype).itemsize < stacked.dtype.itemsize:
        return [row.astype(dtype) for row in stacked]
    array = np.asarray(stacked)
    return [jax.device_put(row) for row in array]
