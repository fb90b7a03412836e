"""The optimiser of the original: AdamW with a learning rate that gets smaller from block to block towards the input.

Trained parameters are a dict from flat name to array. So are the gradients and the optimiser's moments. Rules on the
names decide what is frozen, decayed, scaled and sharded (`name_rules.match_rules`). A step is

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

`rest` holds the arrays without a gradient: frozen parameters, and BatchNorm's running mean and variance.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vitpose_jax.finder.config import FinderConfig
from vitpose_jax.finder.modeling import PersonFinder, abstract_finder
from vitpose_jax.storage import parameters
from vitpose_jax.training.name_rules import compile_pattern, match_rules
from vitpose_jax.vitpose.adapters import Lora
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose
from vitpose_jax.vitpose.quantized import check_not_quantized

try:
    import optax
except ImportError as error:
    raise ImportError('training needs optax: pip install "vitpose-jax[train]"') from error

Tensors = dict[str, Array]
ModelConfig: TypeAlias = VitPoseConfig | FinderConfig
Model = TypeVar("Model", VitPose, PersonFinder)

SCHEDULES = ("step", "cosine")

# Names for what the papers freeze. The last two are for distillation: a student keeps the token of its teacher; a
# teacher learns a token and nothing else.
FROZEN = {
    "attention": r"backbone\.blocks\.(attention|norm1)\..+",
    "ffn": r"backbone\.(patch_embed|blocks\.(mlp|norm2))\..+",
    "backbone": r"backbone\..+",
    "knowledge_token": r"backbone\.knowledge_token\.token",
    "all_but_knowledge_token": r"(?!backbone\.knowledge_token\.token$).+",
}

# The original does not decay one-dimensional parameters. In blocks these have two axes here: blocks are stacked.
WEIGHT_DECAY = ((r".+[._]bias|.+\.scale|.+\.pos_embed|.+\.token", False), (r".+[._]kernel(\.base|\.lora_[ab])?", True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The settings of the optimiser; the defaults train ViTPose-B on COCO.

    Attributes:
        total_steps: number of updates in the whole run; None until the length of the run is known.
        learning_rate: learning rate of the heads after warm-up.
        betas, eps: Adam's.
        weight_decay: decoupled weight decay, multiplied by the learning rate as in AdamW. Biases, norms and position
            embeddings are not decayed.
        layer_decay: learning rate of a block divided by that of the next; the patch embedding has the lowest.
        clip_norm: maximum norm of all gradients together; None for no clipping.
        warmup_steps, warmup_ratio: the rate rises linearly from warmup_ratio x learning_rate.
        schedule: "step" (times 0.1 at each of `milestones`) or "cosine" (down to 0).
        milestones: when "step" lowers the rate: whole numbers are steps, fractions are of `total_steps`.
        accumulate: number of micro-steps (batches) whose gradients are averaged for one step.
        frozen: what is not trained: "attention" (with its norm), "ffn" (with its norm and the patch embedding, as in
            the original), "backbone", "knowledge_token", "all_but_knowledge_token", or regular expressions that match
            whole flat names. A BatchNorm with a frozen scale uses its running statistics and does not change them.
        trained: regular expressions that match whole flat names: only these are trained, without those of `frozen`; ()
            for all.
        drop_path: stochastic depth rate of the last block.
        ema_decay: decay of the exponential moving average of the parameters (`update_ema`); None for no average.
        ema_warmup: the decay of step k, from 1, is at most (1 + k) / (10 + k): in a short run the average forgets the
            initial parameters.

    Raises:
        ValueError: listing all fields that are out of range, with what was expected and what came.
    """

    total_steps: int | None = None
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
    trained: tuple[str, ...] = ()
    drop_path: float = 0.3
    ema_decay: float | None = None
    ema_warmup: bool = False

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("OptimConfig: " + "; ".join(problems))

    def _problems(self):
        for name in ("total_steps", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}: expected 1 or more, got {value}"
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
        frozen = [("frozen", FROZEN.get(pattern, pattern)) for pattern in self.frozen]
        for name, pattern in [*frozen, *(("trained", pattern) for pattern in self.trained)]:
            try:
                compile_pattern(pattern)
            except ValueError as error:
                yield f"{name}: {error}"

    @classmethod
    def preset(cls, name: str, *, total_steps: int | None = None, **changes: Any) -> "OptimConfig":
        """The settings of the original for a model: "base" on COCO, "plus-base" on six datasets, ...

        Args:
            name: name of a preset of `VitPoseConfig`.
            total_steps: number of updates. The original trains for 210 epochs, with 512 crops a step on COCO.
            **changes: fields that differ from the preset.

        Raises:
            ValueError: for an unknown name, listing the known ones.
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


def make_optimizer(
    config: OptimConfig, model_config: ModelConfig, lora: Lora | None = None
) -> optax.GradientTransformation:
    """The optimiser of the trained parameters (`split`).

    One update: clip all gradients by their common norm; Adam; add the weight decay; multiply by the scale of the
    parameter's layer and the learning rate of the step. Equal to torch's `clip_grad_norm_` and `AdamW` with one
    parameter group for each layer.

    Args:
        config: settings, with `total_steps`.
        model_config: configuration of the model.
        lora: its adapters, if it has any.

    Returns:
        A transformation of dicts by flat name. With `accumulate` above 1, `update` returns zeros until it has seen
        that many gradients. Its `init` raises ValueError if the parameters are not the trained ones, listing all
        differences.

    Raises:
        ValueError: if `frozen` matches nothing or everything, `trained` nothing, or if `total_steps` is None.
    """
    all_shapes = parameter_shapes(model_config, lora)
    trains = trainable(config.frozen, all_shapes, config.trained)
    shapes = {name: all_shapes[name] for name in all_shapes if trains[name]}
    all_scales = layer_scales(model_config, config.layer_decay, lora)
    scales = {name: np.reshape(all_scales[name], (-1,) + (1,) * (len(shapes[name]) - 1)) for name in shapes}
    decays = {name: config.weight_decay * decayed for name, decayed in match_rules(WEIGHT_DECAY, all_shapes).items()}

    def decay_and_scale(updates: Tensors, trained: Tensors) -> Tensors:
        return {name: (updates[name] + decays[name] * trained[name]) * scales[name] for name in updates}

    optimizer = optax.chain(
        optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(*config.betas, eps=config.eps),
        optax.stateless(decay_and_scale),  # pyright: ignore[reportArgumentType]: the trees are dicts
        optax.scale_by_learning_rate(learning_rate(config)),
    )
    if config.accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, config.accumulate).gradient_transformation()

    def init(trained: Tensors) -> optax.OptState:
        parameters.raise_problems(parameters.differences(shapes, trained), source="the trained parameters")
        return optimizer.init(trained)

    return optax.GradientTransformation(init, optimizer.update)  # pyright: ignore[reportArgumentType]: the trees are dicts


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """The schedule: from the index of a step, from 0, to its learning rate.

    Same as mmcv's linear warm-up over its step or cosine policy, in steps instead of epochs.

    Raises:
        ValueError: if `total_steps` is None.
    """
    total_steps = config.total_steps
    if total_steps is None:
        raise ValueError("OptimConfig: total_steps: expected the number of updates in the run, got None")
    steps = [round(at * total_steps) if isinstance(at, float) else at for at in config.milestones]

    def rate(step: ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(step)
        warm = jnp.minimum(1, step / config.warmup_steps) if config.warmup_steps else 1
        if config.schedule == "step":
            factor = 0.1 ** jnp.sum(step >= jnp.asarray(steps, jnp.int32))
        else:
            factor = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(1, step / total_steps)))
        return config.learning_rate * factor * (config.warmup_ratio + (1 - config.warmup_ratio) * warm)

    return rate


def layer_scales(config: ModelConfig, decay: float, lora: Lora | None = None) -> dict[str, Float[np.ndarray, " _"]]:
    """The factor on the learning rate of each parameter.

    Args:
        config: configuration of the model.
        decay: factor from one layer to the layer before it.
        lora: the adapters of the model, if it has any.

    Returns:
        By flat name: decay^(depth + 1) for the patch embedding, decay^(depth - i) for block i, from 0, and 1 for the
        last norm, the heads and a knowledge token. Parameters of the blocks have `depth` factors, one for each index
        of their leading axis; other parameters have one factor. All factors of a finder are 1.
    """
    if isinstance(config, FinderConfig):
        return dict.fromkeys(parameter_shapes(config), np.ones(1, np.float32))
    depth = config.num_layers
    rules = (
        (r"backbone\.patch_embed\..+", decay ** np.array([depth + 1.0])),
        (r"backbone\.blocks\..+", decay ** np.arange(depth, 0.0, -1.0)),
        (r"backbone\.(norm|knowledge_token)\..+|heads\..+", np.ones(1)),
    )
    return match_rules(
        [(pattern, scale.astype(np.float32)) for pattern, scale in rules], parameter_shapes(config, lora)
    )


def trainable(
    frozen: Sequence[str], names: Sequence[str] | dict[str, Any], trained: Sequence[str] = ()
) -> dict[str, bool]:
    """Whether each parameter is trained.

    Args:
        frozen: as in `OptimConfig`.
        names: flat names of parameters.
        trained: as in `OptimConfig`.

    Raises:
        ValueError: if an entry of `frozen` or `trained` matches no name, or if no parameter is left to train.
    """
    rules = [*((FROZEN.get(pattern, pattern), False) for pattern in frozen), *((pattern, True) for pattern in trained)]
    trains = match_rules([*rules, (r".+", not trained)], names)
    if not any(trains.values()):
        raise ValueError(f"frozen: expected at least one parameter left to train, got {tuple(frozen)}")
    return trains


@functools.lru_cache(maxsize=8)
def parameter_shapes(config: ModelConfig, lora: Lora | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a model by flat name, without BatchNorm's running statistics.

    Args:
        config: of the model.
        lora: its adapters, if it has any.
    """
    model = abstract_finder(config) if isinstance(config, FinderConfig) else abstract_vitpose(config, lora=lora)
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return dict(sorted((".".join(map(str, path)), tuple(variable.get_value().shape)) for path, variable in flat))


def training_view(model: Model, frozen: Sequence[str] = (), trained: Sequence[str] = ()) -> Model:
    """The model in training mode: a BatchNorm normalises with the batch and updates its statistics, unless frozen.

    Args:
        model: its arrays are shared.
        frozen, trained: as in `OptimConfig`. A BatchNorm is frozen if its scale is.

    Raises:
        ValueError: as in `trainable`; for a quantized model without adapters, which does not train.
    """
    lora = _adapters_of(model)
    trains = trainable(frozen, parameter_shapes(model.config, lora), trained)
    return nnx.view(
        model,
        only=lambda path, _: trains.get(".".join(map(str, (*path, "scale"))), False),
        use_running_average=False,
        raise_if_not_found=False,
    )


def split(
    model: Model, frozen: Sequence[str] = (), trained: Sequence[str] = ()
) -> tuple[nnx.GraphDef[Model], Tensors, Tensors]:
    """A model as its static graph, its trained parameters and all its other arrays, by flat name.

    Args:
        model: its arrays are shared with the result.
        frozen, trained: as in `OptimConfig`.

    Raises:
        ValueError: as in `trainable`; for a quantized model without adapters, which does not train.
    """
    _adapters_of(model)
    tensors = arrays_by_name(model)
    trains = trainable(frozen, [".".join(map(str, path)) for path, _ in _parameters_of(model)], trained)
    learnt = {name: leaf for name, leaf in tensors.items() if trains.get(name)}
    return nnx.graphdef(model), learnt, {name: leaf for name, leaf in tensors.items() if name not in learnt}


def _parameters_of(model: nnx.Module) -> list[tuple[tuple[Any, ...], Any]]:
    return list(nnx.to_flat_state(nnx.state(model, nnx.Param)))


def _adapters_of(model: Any) -> Lora | None:
    """The adapters of a model; a quantized model without is not for training."""
    lora = getattr(model, "lora", None)
    if lora is None:
        check_not_quantized(model, "training")
    return lora


def arrays_by_name(model: nnx.Module) -> Tensors:
    """All arrays of a model by flat name; the model is not abstract."""
    return cast(Tensors, parameters.flatten(model))


def merge(graphdef: nnx.GraphDef[Model], *tensors: Tensors) -> Model:
    """A new model, with variables of its own, from a graph and arrays by flat name; the inverse of `split`."""
    flat = [(tuple(name.split(".")), leaf) for part in tensors for name, leaf in part.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat), copy=True)


def batch_stats(model: nnx.Module) -> Tensors:
    """BatchNorm's running means and variances by flat name; empty for a model without BatchNorm."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
    return {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def update_ema(average: Tensors, tensors: Tensors, decay: ArrayLike) -> Tensors:
    """The moving average after one more step: decay x average + (1 - decay) x tensors, by flat name."""
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, tensors)
