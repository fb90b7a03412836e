"""Training of low-rank adapters: which kernels have one, and the model that is trained.

    initial model -> with_adapters -> training: adapters and a chosen rest -> merge_adapters, or a folder of adapters

The network's part is in vitpose/adapters.py, the folder in convert/adapters.py.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitpose_jax.convert.adapters import AdapterFile, fingerprint, is_adapter, write_adapter
from vitpose_jax.convert.hub import resolve_source
from vitpose_jax.convert.sources import Source, open_source
from vitpose_jax.storage import int4, parameters
from vitpose_jax.training.name_rules import compile_pattern
from vitpose_jax.vitpose.adapters import (
    LORA_A,
    LORA_B,
    Lora,
    adapted_names,
    is_adaptable,
    merge_kernel,
    split_adapters,
)
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose
from vitpose_jax.vitpose.quantized import Kind, Quantization, check_group_size, dequantize_tensors, quantize_tensors

# Adapters are trained whatever else is.
ADAPTERS = r".+\.lora_[ab]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Training of low-rank adapters instead of all parameters.

    Attributes:
        rank: columns of an adapter's first matrix, rows of its second.
        alpha: their product is multiplied with alpha / rank.
        targets: regular expressions that match whole flat names of kernels of the blocks; these have adapters.
        trained: regular expressions that match whole flat names of what is trained besides: the heads. () for nothing.
        quantize: keep the kernels of the blocks as "int8" or "int4" in memory while adapters are trained on them.
        group_size: of int4; None for 128.

    Raises:
        ValueError: listing all fields that are out of range.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = (r"backbone\.blocks\..+[._]kernel",)
    trained: tuple[str, ...] = (r"heads\..+",)
    quantize: Literal["int8", "int4"] | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if self.rank < 1:
            yield f"rank: expected 1 or more, got {self.rank}"
        if not self.alpha > 0:
            yield f"alpha: expected a positive number, got {self.alpha}"
        if not self.targets:
            yield "targets: expected one pattern or more, got none"
        for name in ("targets", "trained"):
            for pattern in getattr(self, name):
                try:
                    compile_pattern(pattern)
                except ValueError as error:
                    yield f"{name}: {error}"
        try:
            check_group_size(self.quantize, self.group_size)
        except ValueError as error:
            yield str(error)

    @property
    def quantization(self) -> Quantization | None:
        """How the kernels of the blocks are stored."""
        if self.quantize is None:
            return None
        kind: Kind = self.quantize
        return Quantization(kind=kind, group_size=self.group_size or int4.GROUP_SIZE)

    def choose(self, shapes: Mapping[str, tuple[int, ...]]) -> Lora:
        """The kernels that have adapters.

        Args:
            shapes: of the parameters of the model, by flat name.

        Raises:
            ValueError: for a pattern that matches no kernel of the blocks, for a rank that is not below the sides of a
                kernel, and for a group size that does not divide its inputs.
        """
        kernels: set[str] = set()
        for pattern in self.targets:
            compiled = compile_pattern(pattern)
            matched = [name for name in shapes if is_adaptable(name) and compiled.fullmatch(name)]
            if not matched:
                names = ", ".join(name for name in shapes if is_adaptable(name))
                raise ValueError(f"lora.targets: expected patterns of kernels of the blocks ({names}), got {pattern!r}")
            kernels.update(matched)
        for name in sorted(kernels):
            if self.rank >= min(shapes[name][-2:]):
                raise ValueError(f"lora.rank: expected less than {min(shapes[name][-2:])} for {name}, got {self.rank}")
        if self.quantization is not None:
            for name in filter(is_adaptable, shapes):
                self.quantization.scale_shape(shapes[name])
        return Lora(rank=self.rank, alpha=self.alpha, kernels=tuple(sorted(kernels)))


def with_adapters(model: VitPose, config: LoraConfig, *, rngs: nnx.Rngs) -> VitPose:
    """A model with adapters, which computes what the model does: `lora_b` is zero.

    Args:
        model: in floating point, without adapters.
        config: which kernels have adapters; with `quantize`, all kernels of the blocks are rounded, and the result
            computes what the rounded model does.
        rngs: for `lora_a`, drawn from a normal distribution with the variance 1 / inputs.

    Raises:
        ValueError: as `LoraConfig.choose`; for a model that is quantized or has adapters.
    """
    if model.lora is not None or model.quantization is not None:
        raise ValueError("with_adapters: expected a model in floating point without adapters, got another")
    shapes = parameters.shapes(model)
    lora, quantization = config.choose(shapes), config.quantization
    tensors: dict[str, Any] = dict(parameters.flatten(model))
    if quantization is not None:
        tensors = quantize_tensors(tensors, quantization)
    tensors = adapted_names(tensors, lora)
    for name in lora.kernels:
        for part, shape in lora.shapes(name, shapes[name]).items():
            random = jax.random.normal(rngs.params(), shape) * shape[-2] ** -0.5
            tensors[part] = random if part.endswith(LORA_A) else jnp.zeros(shape)
    abstract = abstract_vitpose(
        model.config,
        dtype=model.backbone.dtype,
        param_dtype=model.backbone.param_dtype,
        quantization=quantization,
        lora=lora,
    )
    return parameters.fill(abstract, tensors)


def merge_adapters(model: VitPose) -> VitPose:
    """The plain model that a model with adapters stands for, in floating point; others as they are.

    A kernel and its adapter become one kernel, so the results differ by rounding alone. Of a quantized model the kernel
    is the rounded one.
    """
    if model.lora is None:
        return model
    tensors, adapters = split_adapters(parameters.flatten(model), model.lora)
    tensors = dequantize_tensors(tensors)
    for name in model.lora.kernels:
        a, b = (adapters[name + part] for part in (LORA_A, LORA_B))
        tensors[name] = merge_kernel(np.asarray(tensors[name]), np.asarray(a), np.asarray(b), model.lora.factor)
    backbone = model.backbone
    return parameters.fill(
        abstract_vitpose(model.config, dtype=backbone.dtype, param_dtype=backbone.param_dtype), tensors
    )


def open_base(source: str) -> Source:
    """The model that adapters belong to, opened and not read.

    Raises:
        ValueError: if it is not a ViTPose, or has adapters itself.
    """
    path = resolve_source(source)
    if is_adapter(path):
        raise ValueError(f"init: {source}: has adapters itself; `vitpose-jax convert` writes a model without")
    try:
        return open_source(path)
    except ValueError as error:
        raise ValueError(f"init: expected the ViTPose that the adapters belong to: {error}") from error


def save_adapters(model: VitPose, base: str, folder: str | pathlib.Path, *, overwrite: bool = False) -> None:
    """Write the adapters of a model, and all else that differs from its base, as a folder for `from_pretrained`.

    Args:
        model: with adapters.
        base: the source of the model that the adapters belong to: the folder names it. A path is written whole.
        folder: created if it does not exist.
        overwrite: replace what is already there.

    Raises:
        ValueError: for a model without adapters; if the folder holds a checkpoint and `overwrite` is not set; if the
            base is not found, or has other kernels.
    """
    if model.lora is None:
        raise ValueError("save_adapters: expected a model with adapters, got one without")
    opened = open_base(base)
    tensors, adapters = split_adapters(parameters.flatten(model), model.lora)
    adapter = AdapterFile(
        base=str(pathlib.Path(base).resolve()) if pathlib.Path(base).exists() else base,
        base_sha256=fingerprint(opened.tensors),
        lora=model.lora,
        quantization=model.quantization,
        model=model.config,
    )
    write_adapter(folder, adapter, dequantize_tensors(tensors), adapters, opened.tensors, overwrite=overwrite)
