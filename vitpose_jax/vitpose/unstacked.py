"""Blocks that are stored one by one, for programs on CPUs.

In a scan over stacked blocks, XLA on a CPU copies the weights of each block out of the stack before it multiplies with
them, and it widens a whole stack of bfloat16 weights to float32. Neither happens if each block has arrays of its own,
and such a program takes hardly longer to compile (figures in benchmarks/README.md). On a CPU these arrays are views of
the stacked ones, so they take no memory; only kernels that are wider than the computation are rounded, once.

On GPUs and TPUs the scan copies nothing, and its program is smaller.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from vitpose_jax.vitpose.adapters import AdaptedKernel
from vitpose_jax.vitpose.modeling import Backbone, Block
from vitpose_jax.vitpose.quantized import QuantizedKernel

Modules = TypeVar("Modules")


def unstack_blocks(modules: Modules) -> Modules:
    """The same module, or tuple of modules, in which each block of each `Backbone` has its own arrays.

    Backbones with quantized or adapted kernels stay as they are: inside the scan, the weights of one block at a time
    become floating-point numbers.

    Args:
        modules: not changed; its arrays are on CPUs.
    """
    copies: Any = nnx.merge(*nnx.split(modules))
    for copy in copies if isinstance(copies, tuple) else (copies,):
        for _, module in nnx.iter_modules(copy):
            if isinstance(module, Backbone) and isinstance(module.blocks, Block) and _has_plain_kernels(module.blocks):
                module.blocks = nnx.List(_split(module.blocks, module.dtype))
    return copies


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
