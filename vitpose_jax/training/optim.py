"""The original's optimiser: AdamW whose learning rate falls from block to block towards the input.

Parameters to be trained are a dict from flat name to array, and so are gradients and the optimiser's moments:
names decide what is frozen, decayed, scaled and sharded (`rules.match_rules`). A training step is

    model = training_view(model, optim_config.frozen)
    graphdef, trained, rest = split(model, optim_config.frozen)
    optimizer = make_optimizer(optim_config, model.config)
    state = optimizer.init(trained)

    def loss(trained, rest):                              # under jax.jit
        model = merge(graphdef, trained, rest)
        ...                                               # heatmaps = model(crops, ...)
        return value, rest | batch_stats(model)
    (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(trained, rest)
    updates, state = optimizer.update(gradients, state, trained)
    trained = optax.apply_updates(trained, updates)

`rest` holds what no gradient reaches: frozen parameters, and BatchNorm's running mean and variance.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vitpose_jax.storage import parameters
from vitpose_jax.training.name_rules import match_rules
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose

try:
    import optax
except ImportError as error:
    raise ImportError('training needs optax: pip install "vitpose-jax[train]"') from error

Tensors = dict[str, Array]

SCHEDULES = ("step", "cosine")

# What the paper freezes, besides patterns of one's own. The last two are for distillation: a student keeps the token
# it was given; a teacher learns one and nothing else.
FROZEN = {
    "attention": r"backbone\.blocks\.(attention|norm1)\..+",
    "ffn": r"backbone\.(patch_embed|blocks\.(mlp|norm2))\..+",
    "backbone": r"backbone\..+",
    "knowledge_token": r"backbone\.knowledge_token\.token",
    "all_but_knowledge_token": r"(?!backbone\.knowledge_token\.token$).+",
}

# No decay for what is one-dimensional in the original; the blocks' are stacked here and have one axis more.
WEIGHT_DECAY = ((r".+[._]bias|.+\.scale|.+\.pos_embed|.+\.token", False), (r".+[._]kernel", True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How to train; the defaults are those of ViTPose-B on COCO.

    Attributes:
        total_steps: updates of the parameters in the whole training.
        learning_rate: of the head, after warm-up.
        betas, eps: of Adam.
        weight_decay: decoupled, as AdamW's: the learning rate multiplies it. None for biases, norms, positions.
        layer_decay: a block's learning rate over that of the next; the embedding has the lowest.
        clip_norm: largest norm of all gradients together; None does not clip.
        warmup_steps, warmup_ratio: the rate rises linearly from warmup_ratio x learning_rate.
        schedule: "step" (times 0.1 at each of `milestones`) or "cosine" (down to 0).
        milestones: where "step" goes down: whole numbers are steps, fractions are of `total_steps`.
        accumulate: gradients averaged for one update.
        frozen: what is not trained: "attention" (with its norm), "ffn" (with its norm and the embedding, as
            the original freezes it), "backbone", "knowledge_token", "all_but_knowledge_token", or regular
            expressions that match whole flat names. BatchNorm whose scale is frozen predicts, and is not changed.
        drop_path: stochastic depth, for the call of the model.
        ema_decay: of the exponential moving average of the parameters (`update_ema`); None for no average.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """

    total_steps: int
    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    layer_decay: float = 0.75
    clip_norm: float | None = 1.0
    warmup_steps: int = 500
    warmup_ratio: float = 1e-3
    schedule: str = "step"
    milestones: tuple[int | float, ...] = (170 / 210, 200 / 210)
    accumulate: int = 1
    frozen: tuple[str, ...] = ()
    drop_path: float = 0.3
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("OptimConfig: " + "; ".join(problems))

    def _problems(self):
        for name in ("total_steps", "accumulate"):
            if getattr(self, name) < 1:
                yield f"{name}: expected 1 or more, got {getattr(self, name)}"
        for name in ("learning_rate", "eps", "layer_decay"):
            if not getattr(self, name) > 0:
                yield f"{name}: expected a positive number, got {getattr(self, name)}"
        for name in ("weight_decay", "warmup_steps"):
            if not getattr(self, name) >= 0:
                yield f"{name}: expected 0 or more, got {getattr(self, name)}"
        if self.clip_norm is not None and not self.clip_norm > 0:
            yield f"clip_norm: expected a positive number or None, got {self.clip_norm}"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas: expected numbers from 0 to less than 1, got {self.betas}"
        if self.schedule not in SCHEDULES:
            yield f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}"
        for name in ("drop_path", "ema_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                yield f"{name}: expected a number from 0 to less than 1, got {value}"
        if not all(0 < milestone < (1 if isinstance(milestone, float) else np.inf) for milestone in self.milestones):
            yield f"milestones: expected positive steps, or fractions of total_steps below 1, got {self.milestones}"

    @classmethod
    def preset(cls, name: str, *, total_steps: int, **changes: Any) -> "OptimConfig":
        """What the original trained a model with: "base" on COCO, "plus-base" on six data sets, ...

        Args:
            name: of a preset of `VitPoseConfig`.
            total_steps: 210 epochs in the original, with 512 crops a step on COCO.
            **changes: other fields.

        Raises:
            ValueError: for a name that is not known, listing those that are.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset named {name!r}; expected one of {', '.join(PRESETS)}")
        return cls(total_steps=total_steps, **{**PRESETS[name], **changes})


_COCO: dict[str, dict[str, Any]] = {
    "small": {"drop_path": 0.1, "layer_decay": 0.8},
    "base": {"drop_path": 0.3, "layer_decay": 0.75},
    "large": {"drop_path": 0.5, "layer_decay": 0.8},
    "huge": {"drop_path": 0.55, "layer_decay": 0.85},
}
PRESETS: dict[str, dict[str, Any]] = {
    **_COCO,
    **{f"{size}-simple": fields for size, fields in _COCO.items()},
    **{f"plus-{size}": {**fields, "learning_rate": 1e-3} for size, fields in _COCO.items()},
}
PRESETS["plus-huge"]["layer_decay"] = 0.8


def make_optimizer(config: OptimConfig, vitpose: VitPoseConfig) -> optax.GradientTransformation:
    """The optimiser of the parameters that `split` gives for training.

    One update: clip all gradients by their common norm; Adam; add the decay; multiply by the scale of the
    parameter's layer and the learning rate of the step. Equal to torch's `clip_grad_norm_` and `AdamW` with a
    group of parameters for each layer.

    Args:
        config: of the training.
        vitpose: of the model.

    Returns:
        A transformation of dicts by flat name. With `accumulate` above 1, `update` returns zeros until it has
        met that many gradients.

    Raises:
        ValueError: where `frozen` matches nothing or everything; and its `init`, for parameters other than
            those to be trained, all of them listed.
    """
    all_shapes = parameter_shapes(vitpose)
    shapes = {name: all_shapes[name] for name, kept in trainable(config.frozen, all_shapes).items() if kept}
    all_scales = layer_scales(vitpose, config.layer_decay)
    scales = {name: np.reshape(all_scales[name], (-1,) + (1,) * (len(shapes[name]) - 1)) for name in shapes}
    decays = {name: config.weight_decay * decayed for name, decayed in match_rules(WEIGHT_DECAY, all_shapes).items()}

    def decay_and_scale(updates: Tensors, trained: Tensors) -> Tensors:
        return {name: (updates[name] + decays[name] * trained[name]) * scales[name] for name in updates}

    optimizer = optax.chain(
        optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(*config.betas, eps=config.eps),
        optax.stateless(decay_and_scale),
        optax.scale_by_learning_rate(learning_rate(config)),
    )
    if config.accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, config.accumulate).gradient_transformation()

    def init(trained: Tensors) -> optax.OptState:
        parameters.raise_problems(parameters.differences(shapes, trained), source="the parameters to be trained")
        return optimizer.init(trained)

    return optax.GradientTransformation(init, optimizer.update)


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """From the number of a step, from 0, to its learning rate.

    As mmcv's linear warm-up over its step or cosine policy, with steps in the place of epochs.
    """
    steps = [round(at * config.total_steps) if isinstance(at, float) else at for at in config.milestones]

    def rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        step = jnp.asarray(step)
        warm = jnp.minimum(1, step / config.warmup_steps) if config.warmup_steps else 1
        if config.schedule == "step":
            course = 0.1 ** jnp.sum(step >= jnp.asarray(steps, jnp.int32))
        else:
            course = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(1, step / config.total_steps)))
        return config.learning_rate * course * (config.warmup_ratio + (1 - config.warmup_ratio) * warm)

    return rate


def layer_scales(config: VitPoseConfig, decay: float) -> dict[str, Float[np.ndarray, " _"]]:
    """What the learning rate of every parameter is multiplied by.

    Args:
        config: of the model.
        decay: from one layer to the one before it.

    Returns:
        By flat name: decay^(depth + 1) for the embedding, decay^(depth - i) for block i, from 0, and 1 for the
        last norm, the heads and a knowledge token. Parameters of the blocks have depth numbers, for their leading
        axis; others one.
    """
    depth = config.num_layers
    rules = (
        (r"backbone\.patch_embed\..+", decay ** np.array([depth + 1.0])),
        (r"backbone\.blocks\..+", decay ** np.arange(depth, 0.0, -1.0)),
        (r"backbone\.(norm|knowledge_token)\..+|heads\..+", np.ones(1)),
    )
    return match_rules([(pattern, scale.astype(np.float32)) for pattern, scale in rules], parameter_shapes(config))


def trainable(frozen: Sequence[str], names: Sequence[str] | dict[str, Any]) -> dict[str, bool]:
    """Whether each parameter is trained.

    Args:
        frozen: as of `OptimConfig`.
        names: flat names of parameters.

    Raises:
        ValueError: where something frozen matches no name, or where nothing is left to train.
    """
    kept = match_rules([*((FROZEN.get(pattern, pattern), False) for pattern in frozen), (r".+", True)], names)
    if not any(kept.values()):
        raise ValueError(f"frozen: expected something left to train, got {tuple(frozen)}")
    return kept


@functools.lru_cache(maxsize=8)
def parameter_shapes(config: VitPoseConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters by flat name, without BatchNorm's running statistics."""
    flat = nnx.to_flat_state(nnx.state(abstract_vitpose(config), nnx.Param))
    return dict(sorted((".".join(map(str, path)), tuple(variable.get_value().shape)) for path, variable in flat))


def training_view(model: VitPose, frozen: Sequence[str] = ()) -> VitPose:
    """The model set to train: BatchNorm uses the batch and counts it, but where its scale is frozen.

    Args:
        model: its arrays are shared.
        frozen: as of `OptimConfig`.

    Raises:
        ValueError: as `trainable`.
    """
    kept = trainable(frozen, parameter_shapes(model.config))
    return nnx.view(
        model,
        only=lambda path, _: kept.get(".".join(map(str, (*path, "scale"))), False),
        use_running_average=False,
        raise_if_not_found=False,
    )


def split(model: VitPose, frozen: Sequence[str] = ()) -> tuple[nnx.GraphDef, Tensors, Tensors]:
    """The parts of a model: what is static, the parameters to be trained, and all other arrays, by flat name.

    Args:
        model: its arrays are shared with the parts.
        frozen: as of `OptimConfig`.

    Raises:
        ValueError: as `trainable`.
    """
    tensors, statistics = parameters.flatten(model), batch_stats(model)
    kept = trainable(frozen, [name for name in tensors if name not in statistics])
    trained = {name: leaf for name, leaf in tensors.items() if kept.get(name)}
    return nnx.graphdef(model), trained, {name: leaf for name, leaf in tensors.items() if name not in trained}


def merge(graphdef: nnx.GraphDef, *tensors: Tensors) -> VitPose:
    """The model again, a new one that shares no variable: the inverse of `split`, with any arrays by those names."""
    flat = [(tuple(name.split(".")), leaf) for part in tensors for name, leaf in part.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat), copy=True)


def batch_stats(model: VitPose) -> Tensors:
    """BatchNorm's running means and variances by flat name; nothing for the simple decoder."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
    return {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def update_ema(average: Tensors, tensors: Tensors, decay: float) -> Tensors:
    """The exponential moving average after one more step: decay x average + (1 - decay) x tensors, by name."""
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, tensors)
