"""From the tensors of a PyTorch checkpoint to a Flax model and back, by the rules of `rules.py`.

A plan is worked out from the configuration before anything is read: for each target tensor the source tensors
it is made of, where they go, and how they are turned. So a conversion knows every name and shape it expects,
and compares them with what is there, all at once. Tensors are read when they are put in place; no more than
one target tensor is held besides the model.
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
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose

from .rules import BACKBONES, IGNORED, LAYER_SCALES, LEFT_OVERS, RULES, THIRDS
from .transforms import to_flax, to_torch

# (source name, index into the target, transform)
Piece = tuple[str, tuple, str]
Plan = dict[str, list[Piece]]
Shapes = Mapping[str, tuple[int, ...]]


def plan(layout: str, config: VitPoseConfig) -> Plan:
    """For each target tensor of a model, the source tensors it is made of.

    Args:
        layout: a key of `RULES`.
        config: of the model.

    Raises:
        ValueError: for a model that the layout has no place for, such as a second head in "huggingface".
    """
    rules = ((source, _with_head_name(target, config), transform) for source, target, transform in RULES[layout])
    return follow(rules, held_shapes(layout, config), layout=layout)


def follow(rules: Iterable[tuple[str, str | None, str]], shapes: Shapes, *, layout: str) -> Plan:
    """For each target tensor the source tensors it is made of, by rules as in `rules.py`.

    Args:
        rules: those whose target is not among the shapes do not apply.
        shapes: of the target tensors.
        layout: for the error.

    Raises:
        ValueError: where no rule leads to a tensor.
    """
    pieces: Plan = {name: [] for name in shapes}
    for source, target, transform in rules:
        name, _, fields = (target or "").rstrip("]").partition("[")
        if name not in shapes:
            continue
        fields = fields.split(", ") if fields else []
        counted = [field for field in fields if field not in THIRDS]  # layer and expert
        for numbers in itertools.product(*map(range, shapes[name][: len(counted)])):
            index: tuple = numbers
            if fields and fields[-1] in THIRDS:
                width = shapes[name][-1] // 3
                start = THIRDS.index(fields[-1]) * width
                index = (*numbers, ..., slice(start, start + width))
            pieces[name].append((source.format(**dict(zip(counted, numbers, strict=True))), index, transform))
    homeless = [name for name, parts in pieces.items() if not parts]
    if homeless:
        raise ValueError(f"a {layout} checkpoint has no place for {', '.join(homeless)}")
    return pieces


@functools.lru_cache(maxsize=8)
def target_shapes(config: VitPoseConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model, by flat name."""
    return {name: tuple(leaf.shape) for name, leaf in parameters.flatten(abstract_vitpose(config)).items()}


def held_shapes(layout: str, config: VitPoseConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by flat name, that a checkpoint of a layout holds of a model, or besides it."""
    shapes = target_shapes(config)
    if layout in BACKBONES:
        shapes = {name: shape for name, shape in shapes.items() if name.startswith("backbone.")}
    if layout == "dinov2":
        shapes |= dict.fromkeys(LAYER_SCALES, (config.num_layers, config.hidden_size))
    return shapes


def source_shapes(layout: str, config: VitPoseConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a checkpoint must hold, by its name there."""
    return shapes_at_source(plan(layout, config), held_shapes(layout, config))


def shapes_at_source(pieces: Plan, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shape of every source tensor of a plan, by its name, given those of the targets."""
    result = {}
    for name, parts in pieces.items():
        # All elements are one and the same: an array of any shape that needs no memory.
        stand_in = np.broadcast_to(np.float32(0), shapes[name])
        result |= {source: to_torch(transform, stand_in[index]).shape for source, index, transform in parts}
    return result


def ignored(layout: str, config: VitPoseConfig, names: Mapping[str, object]) -> dict[str, str]:
    """Those names that the model does not need, each with the reason."""
    patterns = IGNORED[layout] + (() if config.experts else LEFT_OVERS.get(layout, ()))
    found = {}
    for name in set(names) - set(source_shapes(layout, config)):
        for pattern, reason in patterns:
            if re.fullmatch(pattern, name):
                found[name] = reason
    return found


def check(layout: str, config: VitPoseConfig, tensors: Mapping[str, LazyTensor], *, source: str) -> None:
    """Compare names, shapes and dtypes of a checkpoint with what a model needs, without reading the numbers.

    Raises:
        ValueError: listing at once every tensor that is missing, unexpected, of another shape or not of
            floating-point numbers.
    """
    unused = ignored(layout, config, tensors)
    used = {name: tensor for name, tensor in tensors.items() if name not in unused}
    compare(source_shapes(layout, config), used, source=source)


def compare(expected: Shapes, tensors: Mapping[str, LazyTensor], *, source: str) -> None:
    """Refuse tensors that are not just those expected, all problems at once.

    Raises:
        ValueError: listing every tensor that is missing, unexpected, of another shape or not of floating-point
            numbers.
    """
    problems = list(parameters.differences(expected, tensors))
    problems += [
        f"{name}: expected floating-point numbers, got {tensor.dtype}"
        for name, tensor in tensors.items()
        if name in expected and not jnp.issubdtype(tensor.dtype, jnp.floating)
    ]
    parameters.raise_problems(problems, source=source)


def from_torch(
    layout: str,
    config: VitPoseConfig,
    tensors: Mapping[str, LazyTensor],
    *,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    source: str,
) -> VitPose:
    """A model filled from a PyTorch checkpoint; strict.

    Args:
        layout: "huggingface" or "original".
        config: of the model.
        tensors: of the checkpoint; each is read once.
        dtype, param_dtype: in which the model computes, and in which it stores its parameters.
        source: where the tensors come from, for the error.

    Raises:
        ValueError: as `check`.
    """
    targets = assemble(layout, config, tensors, source=source)
    return parameters.fill(abstract_vitpose(config, dtype=dtype, param_dtype=param_dtype), targets, source=source)


def assemble(
    layout: str, config: VitPoseConfig, tensors: Mapping[str, LazyTensor], *, source: str
) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint under the names and in the layout of Flax; strict. Read when they are asked for.

    Raises:
        ValueError: as `check`.
    """
    check(layout, config, tensors, source=source)
    return gather(plan(layout, config), held_shapes(layout, config), tensors)


def gather(pieces: Plan, shapes: Shapes, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The target tensors of a plan. Read when they are asked for."""
    targets = {}
    for name, parts in pieces.items():
        stored = functools.reduce(np.promote_types, (tensors[piece[0]].dtype for piece in parts))
        read = functools.partial(_assemble, shapes[name], stored, parts, tensors)
        targets[name] = LazyTensor(shapes[name], stored, read)
    return targets


def to_torch_tensors(layout: str, model: VitPose) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch checkpoint for a model: the inverse of `from_torch`.

    All are of the model's `param_dtype`, norms too, as PyTorch stores a model of that dtype. The ignored step
    counters of BatchNorm are written as 0, because `transformers` misses them otherwise.

    Raises:
        ValueError: as `plan`.
    """
    return scatter(plan(layout, model.config), parameters.flatten(model), dtype=model.backbone.param_dtype)


def scatter(pieces: Plan, leaves: Mapping[str, Any], *, dtype: DTypeLike) -> dict[str, np.ndarray]:
    """The source tensors of a plan, given the targets: the inverse of `gather`, with BatchNorm's counters as 0."""
    result = {}
    for name, parts in pieces.items():
        target = np.asarray(leaves[name]).astype(dtype, copy=False)
        for source, index, transform in parts:
            result[source] = np.asarray(to_torch(transform, target[index]), order="C")
    counters = [name.removesuffix("running_var") for name in result if name.endswith("running_var")]
    return result | {f"{prefix}num_batches_tracked": np.zeros((), np.int64) for prefix in counters}


def _assemble(
    shape: tuple[int, ...], dtype: np.dtype, pieces: list[Piece], tensors: Mapping[str, LazyTensor]
) -> np.ndarray:
    result = np.empty(shape, dtype)
    for source, index, transform in pieces:
        result[index] = to_flax(transform, np.asarray(tensors[source]))
    return result


def _with_head_name(target: str, config: VitPoseConfig) -> str | None:
    # "heads.1.conv.kernel" -> "heads.aic.conv.kernel"; None where the model has no head 1
    numbered = re.fullmatch(r"heads\.(\d+)\.(.+)", target)
    if numbered is None:
        return target
    number = int(numbered[1])
    return f"heads.{config.skeletons[number].name}.{numbered[2]}" if number < len(config.skeletons) else None
