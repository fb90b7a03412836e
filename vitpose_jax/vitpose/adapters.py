"""Low-rank adapters on kernels of the blocks: LoRA (Hu et al. 2021, arXiv:2106.09685).

    kernel      base        (..., in, out)     does not change; floating point, int8 or int4
                lora_a      (..., in, rank)    random at the start
                lora_b      (..., rank, out)   zero at the start, so that the model is the same
    product     x base + alpha / rank * (x lora_a) lora_b

In stacked blocks, all have a leading axis of layers, and experts one more: each expert has an adapter of its own. The
scan over the blocks slices adapters as it slices kernels. The gradient never has the size of a kernel.

A model with adapters is for training (training/lora.py). `merge_adapters` makes a plain model of it, whose kernels are
base + alpha / rank * lora_a lora_b.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from vitpose_jax.storage import int8
from vitpose_jax.vitpose import products
from vitpose_jax.vitpose.quantized import VALUES, KernelLinear, QuantizedKernel

BASE, LORA_A, LORA_B = ".base", ".lora_a", ".lora_b"

_KERNELS = re.compile(r"backbone\.blocks\.(attention\.(?:qkv|proj)|mlp\.(?:fc1|fc2|experts))[._]kernel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Which kernels have adapters, and how large these are.

    Attributes:
        rank: the number of columns of `lora_a` and of rows of `lora_b`.
        alpha: the product of the two is multiplied with alpha / rank.
        kernels: flat names of kernels of the blocks, sorted, each once.

    Raises:
        ValueError: for a rank below 1, a factor that is not positive and finite, or names of no such kernels.
    """

    rank: int
    alpha: float
    kernels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: expected 1 or more, got {self.rank}")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha: expected a positive number, got {self.alpha}")
        if not self.kernels or list(self.kernels) != sorted(set(self.kernels)):
            raise ValueError(f"kernels: expected one or more names, sorted, each once, got {self.kernels}")
        for name in self.kernels:
            if not is_adaptable(name):
                raise ValueError(f"kernels: expected names of kernels of the blocks, got {name!r}")

    @property
    def factor(self) -> float:
        """What the product of an adapter is multiplied with."""
        return self.alpha / self.rank

    def shapes(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shapes of the adapter of a kernel with this name and shape, by flat name."""
        *lead, inputs, outputs = shape
        return {name + LORA_A: (*lead, inputs, self.rank), name + LORA_B: (*lead, self.rank, outputs)}


class AdaptedKernel(nnx.Module):
    """A kernel with an adapter.

    Attributes:
        base: (..., in, out), in floating point or quantized.
        lora_a: (..., in, rank).
        lora_b: (..., rank, out).
    """

    def __init__(self, base: nnx.Param[Array] | QuantizedKernel, shape: tuple[int, ...], lora: Lora):
        self.base = base
        shapes = list(lora.shapes("", shape).values())
        self.lora_a, self.lora_b = (nnx.Param(jnp.zeros(shape, jnp.float32)) for shape in shapes)
        self.factor = lora.factor

    def product(
        self, x: Float[Array, "*n rows inputs"], index: int | Int[Array, "..."] | Int[np.ndarray, "..."] | None = None
    ) -> Float[Array, "*n rows outputs"]:
        """The product with the weights and the adapter, in the dtype of `x`.

        Args:
            x: one or more matrices.
            index: along the leading axis of the kernel, the expert to use: one, or one for each matrix of `x`.
        """
        a, b = (part[...] if index is None else part[...][index] for part in (self.lora_a, self.lora_b))
        low = products.matmul(products.matmul(x, a.astype(x.dtype)), b.astype(x.dtype))
        if isinstance(self.base, QuantizedKernel):
            wide = self.base.product(x, index)
        else:
            kernel = self.base[...] if index is None else self.base[...][index]
            wide = products.matmul(x, kernel.astype(x.dtype))
        return checkpoint_name(wide, products.LINEAR) + self.factor * low


def is_adaptable(name: str) -> bool:
    """Whether a parameter with this flat name can have an adapter: the kernels of the blocks can."""
    return _KERNELS.fullmatch(name) is not None


def with_adapted_kernels(blocks: Any, lora: Lora) -> None:
    """Give kernels of stacked blocks adapters of zeros, in place. Used on abstract models.

    Args:
        blocks: a stacked `Block`, perhaps with quantized kernels.
        lora: which.
    """
    for name in lora.kernels:
        path = name.removeprefix("backbone.blocks.").split(".")
        *parents, linear = path[:-1] if path[-1] == "kernel" else path
        parent = blocks
        for step in parents:
            parent = getattr(parent, step)
        if path[-1] != "kernel":  # experts have no linear layer of their own
            experts = getattr(parent, linear)
            setattr(parent, linear, _adapted(experts, lora))
            continue
        layer = getattr(parent, linear)
        setattr(parent, linear, KernelLinear(layer, _adapted(layer.kernel, lora)))


def _adapted(kernel: nnx.Param[Array] | QuantizedKernel, lora: Lora) -> AdaptedKernel:
    return AdaptedKernel(kernel, kernel.shape if isinstance(kernel, QuantizedKernel) else kernel[...].shape, lora)


def adapted_names(tensors: Mapping[str, Any], lora: Lora) -> dict[str, Any]:
    """The tensors of a model without adapters under the names that they have in one with adapters."""
    kernels = set(lora.kernels)
    return {_with_base(name, kernels): tensor for name, tensor in tensors.items()}


def _with_base(name: str, kernels: set[str]) -> str:
    for ending in ("", VALUES, int8.SCALE):
        kernel = name.removesuffix(ending)
        if kernel in kernels and name == kernel + ending:
            return kernel + BASE + ending
    return name


def split_adapters(tensors: Mapping[str, Any], lora: Lora) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a model with adapters in two parts: those of the model without, by its names; and the adapters."""
    adapters = {name + part for name in lora.kernels for part in (LORA_A, LORA_B)}
    bases = {name + BASE for name in lora.kernels}
    model = {}
    for name, tensor in tensors.items():
        kernel, base, ending = name.rpartition(BASE)
        if name not in adapters:
            model[kernel + ending if base and kernel + base in bases else name] = tensor
    return model, {name: tensor for name, tensor in tensors.items() if name in adapters}


def merge_kernel(
    base: Float[np.ndarray, "*n inputs outputs"],
    a: Float[np.ndarray, "*n inputs rank"],
    b: Float[np.ndarray, "*n rank outputs"],
    factor: float,
) -> Float[np.ndarray, "*n inputs outputs"]:
    """The kernel that a base and its adapter stand for, in float32."""
    base, a, b = (np.asarray(part, np.float32) for part in (base, a, b))
    return base + np.float32(factor) * np.matmul(a, b)


def check_no_adapters(model: Any, purpose: str) -> None:
    """Check that a model has no adapters.

    Args:
        model: of any kind.
        purpose: what cannot do with them, for the error message: "specialize".

    Raises:
        ValueError: if it has.
    """
    if getattr(model, "lora", None) is not None:
        raise ValueError(
            f"{purpose}: expected a model without adapters, got one with; vitpose_jax.training.merge_adapters makes one"
        )
