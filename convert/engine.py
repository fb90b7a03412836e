"""From the tensors of a checkpoint to those of a Flax model and back, by the rules of a `Format`.

    plan       for each target tensor: its source tensors, where they go, how they are transformed
    arrange    checks names and shapes against the plan, once, and puts the source tensors together
    scatter    the way back

A plan follows from the configuration, before anything is read. So a conversion knows every name and shape to expect,
and lists all differences at once. Tensors are read when they are put in place: besides the model, no more than one
target tensor and one source tensor are in memory.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vitpose_jax.storage import int8, parameters
from vitpose_jax.storage.finite import all_finite
from vitpose_jax.storage.tensors import LazyTensor
from vitpose_jax.storage.text import join, printable

from .formats.format import Format, Rule, Shapes, Tensors
from .transforms import to_flax, to_torch

# (source name, index into the target, transform)
Piece = tuple[str, tuple, str]
Plan = dict[str, list[Piece]]

_THIRDS = ("query", "key", "value")

# How the names of running variances end.
_VARIANCES = (".running_var", ".var")

# A plan of more source tensors than this, and than a few times the tensors of the file, is not made.
_LARGE_PLAN = 10_000


def plan(format: Format, config: Any) -> Plan:
    """For each target tensor of a model, the source tensors that fill it.

    Args:
        format: of the checkpoint.
        config: of the model.

    Raises:
        ValueError: if the format has no place for a part of the model, such as a second head in "huggingface".
    """
    shapes = format.shapes(config)
    pieces: Plan = {name: [] for name in shapes}
    for source, target, transform in _rules_for(format, config):
        name, fields, stacked = _parse_target(target)
        if name not in shapes:
            continue
        for numbers in itertools.product(*map(range, shapes[name][: len(stacked)])):
            index: tuple = numbers
            if fields and fields[-1] in _THIRDS:
                width = shapes[name][-1] // 3
                start = _THIRDS.index(fields[-1]) * width
                index = (*numbers, ..., slice(start, start + width))
            pieces[name].append((source.format(**dict(zip(stacked, numbers, strict=True))), index, transform))
    unfilled = [name for name, parts in pieces.items() if not parts]
    if unfilled:
        raise ValueError(f"a {format.name} checkpoint has no place for {join(unfilled)}")
    return pieces


def plan_size(format: Format, config: Any) -> int:
    """The number of source tensors of a plan, without making it."""
    shapes, total = format.shapes(config), 0
    for _, target, _ in _rules_for(format, config):
        name, _, stacked = _parse_target(target)
        if name in shapes:
            total += math.prod(shapes[name][: len(stacked)])
    return total


def source_shapes(pieces: Plan, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shape of every source tensor of a plan, by its name in the checkpoint.

    Args:
        pieces: the plan.
        shapes: of the target tensors.
    """
    result = {}
    for name, parts in pieces.items():
        # One element, broadcast: an array of any shape that takes no memory.
        placeholder = np.broadcast_to(np.float32(0), shapes[name])
        result |= {source: to_torch(transform, placeholder[index]).shape for source, index, transform in parts}
    return result


def arrange(
    format: Format, config: Any, tensors: Tensors, *, source: str, check_finite: bool = True
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Check the tensors of a checkpoint, and give them the names and array layouts of the model.

    Only names, shapes and dtypes are compared. The numbers are read later, each time a result is read.

    Args:
        format: of the checkpoint.
        config: of the model.
        tensors: of the checkpoint.
        source: where they come from, for the error message.
        check_finite: a tensor that has NaN, an infinity or a negative variance raises ValueError when it is read.

    Returns:
        The tensors of the model by flat name, all of them; and the source tensors it does not need, each with the
        reason.

    Raises:
        ValueError: listing at once every tensor that is missing, unexpected, of another shape or not of
            floating-point numbers.
    """
    tensors = format.prepare(tensors, source=source)
    size = plan_size(format, config)
    if size > max(_LARGE_PLAN, 4 * len(tensors)):
        raise ValueError(f"{source}: expected {size} tensors, as its configuration says, got {len(tensors)}")
    pieces, shapes = plan(format, config), format.shapes(config)
    expected = source_shapes(pieces, shapes)
    ignored = _ignored(format, config, set(tensors) - set(expected))
    used = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    problems = list(parameters.differences(expected, used))
    problems += [
        f"{printable(name)}: expected floating-point numbers, got {tensor.dtype}"
        for name, tensor in used.items()
        if name in expected and not jnp.issubdtype(tensor.dtype, jnp.floating)
    ]
    parameters.raise_problems(problems, source=source)
    if check_finite:
        used = {name: _checked(name, tensor, source) for name, tensor in used.items()}
    if not format.pytorch:
        return used, ignored  # names and arrays are the model's already
    return {name: _target(shapes[name], parts, used) for name, parts in pieces.items()}, ignored


def scatter(format: Format, config: Any, leaves: Mapping[str, Any], *, param_dtype: DTypeLike) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, from those of a model: the inverse of `arrange`.

    For PyTorch all are of one dtype, also norms, as PyTorch stores a model; and BatchNorm's step counters, which are
    ignored when read, are written as 0, because `transformers` expects them.

    Args:
        format: to write.
        config: of the model.
        leaves: the tensors of the model by flat name.
        param_dtype: the dtype for PyTorch.

    Raises:
        ValueError: as `plan`.
    """
    result = {}
    for name, parts in plan(format, config).items():
        target = np.asarray(leaves[name])
        if format.pytorch:
            target = target.astype(param_dtype, copy=False)
        for source, index, transform in parts:
            result[source] = np.asarray(to_torch(transform, target[index]), order="C")
    counters = [name.removesuffix("running_var") for name in result if name.endswith("running_var")]
    return result | {f"{prefix}num_batches_tracked": np.zeros((), np.int64) for prefix in counters}


def _parse_target(target: str) -> tuple[str, list[str], list[str]]:
    # The name, what its brackets say, and those of it that are leading axes: layer and expert.
    name, _, brackets = target.rstrip("]").partition("[")
    fields = brackets.split(", ") if brackets else []
    return name, fields, [field for field in fields if field not in _THIRDS]


def _checked(name: str, tensor: LazyTensor, source: str) -> LazyTensor:
    check = functools.partial(_check_finite, name, tensor, source)
    quantized = tensor.quantized
    if quantized is not None:
        # Integers are finite: the scale is what matters, and what it makes of the largest of them.
        read_scale, largest = quantized.scale.read, np.float32(8 if quantized.values.dtype == np.uint8 else 128)

        def read_checked() -> np.ndarray:
            scale = read_scale()
            with np.errstate(all="ignore"):
                check(scale.astype(np.float32) * largest)
            return scale

        scale = dataclasses.replace(quantized.scale, read=read_checked)
        quantized = quantized._replace(scale=scale)
    return dataclasses.replace(
        tensor,
        read=lambda: check(tensor.read()),
        read_layer=None if tensor.read_layer is None else lambda index: check(tensor.layer(index)),
        quantized=quantized,
    )


def _check_finite(name: str, tensor: LazyTensor, source: str, array: np.ndarray) -> np.ndarray:
    if not all_finite(array):
        kind = {np.dtype(np.int8): "int8", np.dtype(np.uint8): "int4"}.get(tensor.stored) if tensor.stored else None
        scale = f" from {kind} and {name}{int8.SCALE}" if kind else ""
        raise ValueError(f"{source}: {name}: expected finite numbers, got NaN or infinity{scale}")
    if name.endswith(_VARIANCES) and array.size and array.min() < 0:
        raise ValueError(f"{source}: {name}: expected variances of 0 or more, got {array.min()}")
    return array


def _rules_for(format: Format, config: Any) -> Iterable[Rule]:
    if callable(format.rules):
        yield from format.rules(config)
        return
    names = [skeleton.name for skeleton in config.skeletons]
    for source, target, transform in format.rules:
        # "heads.1.conv.kernel" -> "heads.aic.conv.kernel"; the rule does not apply if the model has no head 1.
        head = re.fullmatch(r"heads\.(\d+)\.(.+)", target)
        if head is None:
            yield source, target, transform
        elif int(head[1]) < len(names):
            yield source, f"heads.{names[int(head[1])]}.{head[2]}", transform


def _ignored(format: Format, config: Any, names: Iterable[str]) -> dict[str, str]:
    patterns = format.ignored(config) if callable(format.ignored) else format.ignored
    return {name: reason for name in names for pattern, reason in patterns if re.fullmatch(pattern, name)}


def _target(shape: tuple[int, ...], pieces: list[Piece], tensors: Tensors) -> LazyTensor:
    dtype = functools.reduce(np.promote_types, (tensors[source].dtype for source, _, _ in pieces))

    def read_layer(layer: int) -> np.ndarray:
        parts = [(source, index[1:], transform) for source, index, transform in pieces if index[0] == layer]
        return _assemble(shape[1:], dtype, parts, tensors)

    # In stacked blocks, the first index of every piece is the layer.
    stacked = all(index and isinstance(index[0], int) for _, index, _ in pieces)
    read = functools.partial(_assemble, shape, dtype, pieces, tensors)
    return LazyTensor(shape, dtype, read, read_layer=read_layer if stacked else None)


def _assemble(shape: tuple[int, ...], dtype: np.dtype, pieces: list[Piece], tensors: Tensors) -> np.ndarray:
    result = np.empty(shape, dtype)
    for source, index, transform in pieces:
        result[index] = to_flax(transform, np.asarray(tensors[source]))
    return result
