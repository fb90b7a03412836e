"""From the tensors of a checkpoint to those of a Flax model and back, by the rules of a `Format`.

    plan       for each target tensor: its source tensors, where they go, how they are transformed
    arrange    checks names and shapes against the plan, once, and puts the source tensors together
    scatter    the way back

A plan follows from the configuration, before anything is read. So a conversion knows every name and shape to expect,
and lists all differences at once. Tensors are read when they are put in place: besides the model, no more than one
target tensor and one source tensor are in memory.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import LazyTensor

from .formats.format import Format, Rule, Shapes, Tensors
from .transforms import to_flax, to_torch

# (source name, index into the target, transform)
Piece = tuple[str, tuple, str]
Plan = dict[str, list[Piece]]

_THIRDS = ("query", "key", "value")


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
        name, _, fields = target.rstrip("]").partition("[")
        if name not in shapes:
            continue
        fields = fields.split(", ") if fields else []
        stacked = [field for field in fields if field not in _THIRDS]  # layer and expert
        for numbers in itertools.product(*map(range, shapes[name][: len(stacked)])):
            index: tuple = numbers
            if fields and fields[-1] in _THIRDS:
                width = shapes[name][-1] // 3
                start = _THIRDS.index(fields[-1]) * width
                index = (*numbers, ..., slice(start, start + width))
            pieces[name].append((source.format(**dict(zip(stacked, numbers, strict=True))), index, transform))
    unfilled = [name for name, parts in pieces.items() if not parts]
    if unfilled:
        raise ValueError(f"a {format.name} checkpoint has no place for {', '.join(unfilled)}")
    return pieces


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
    format: Format, config: Any, tensors: Tensors, *, source: str
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Check the tensors of a checkpoint, and give them the names and array layouts of the model.

    Only names, shapes and dtypes are compared. The numbers are read later, each time a result is read.

    Args:
        format: of the checkpoint.
        config: of the model.
        tensors: of the checkpoint.
        source: where they come from, for the error message.

    Returns:
        The tensors of the model by flat name, all of them; and the source tensors it does not need, each with the
        reason.

    Raises:
        ValueError: listing at once every tensor that is missing, unexpected, of another shape or not of
            floating-point numbers.
    """
    tensors = format.prepare(tensors, source=source)
    pieces, shapes = plan(format, config), format.shapes(config)
    expected = source_shapes(pieces, shapes)
    ignored = _ignored(format, config, set(tensors) - set(expected))
    used = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    problems = list(parameters.differences(expected, used))
    problems += [
        f"{name}: expected floating-point numbers, got {tensor.dtype}"
        for name, tensor in used.items()
        if name in expected and not jnp.issubdtype(tensor.dtype, jnp.floating)
    ]
    parameters.raise_problems(problems, source=source)
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
    return LazyTensor(shape, dtype, functools.partial(_assemble, shape, dtype, pieces, tensors))


def _assemble(shape: tuple[int, ...], dtype: np.dtype, pieces: list[Piece], tensors: Tensors) -> np.ndarray:
    result = np.empty(shape, dtype)
    for source, index, transform in pieces:
        result[index] = to_flax(transform, np.asarray(tensors[source]))
    return result
