"""What a second stage learns: which boxes are people's, how they should move, and how much its word counts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from vitpose_jax.finder.config import SecondStageConfig
from vitpose_jax.finder.second_stage import SecondStageHead
from vitpose_jax.storage import parameters
from vitpose_jax.training.optim import arrays_by_name
from vitpose_jax.training.second_stage.config import SecondStageTrainConfig
from vitpose_jax.training.second_stage.examples import Examples
from vitpose_jax.vitpose.modeling import Backbone, Block

# A box is a person's if it overlaps an annotated one as much as this; the target rises from 0 to 1 around it.
PERSON_IOU, STEEPNESS = 0.5, 12.0
# Boxes that overlap less do not learn to move.
MOVE_IOU = 0.35
WARMUP_STEPS = 100
REPORT_STEPS = 100


class Judge(nnx.Module):
    """What is trained: the last blocks of a backbone, if any, its norm, and the head."""

    def __init__(self, blocks: Block | None, norm: nnx.LayerNorm, head: SecondStageHead):
        self.blocks, self.norm, self.head = blocks, norm, head

    def __call__(
        self,
        tokens: Float[Array, "n tokens dim"],
        shapes: Float[Array, "n 3"],
        *,
        dropout: float = 0.0,
        key: Array | None = None,
    ) -> tuple[Float[Array, " n"], Float[Array, "n 4"]]:
        """As `SecondStageHead`, for tokens behind the blocks that are not trained."""
        tokens = tokens.astype(self.norm.dtype or jnp.float32)
        if self.blocks is not None:
            tokens, _ = jax.lax.scan(lambda tokens, block: (block(tokens)[0], None), tokens, self.blocks)
        return self.head(self.norm(tokens), shapes, dropout=dropout, key=key)


def split(backbone: Backbone, stage: SecondStageConfig, settings: SecondStageTrainConfig) -> tuple[Backbone, Judge]:
    """The first blocks of a backbone, as a backbone, and the rest with a new head.

    Raises:
        ValueError: if no block would be left.
    """
    first = stage.num_layers - settings.trained_blocks
    if first < 1:
        raise ValueError(
            f"trained_blocks: expected fewer than the backbone's {stage.num_layers}, got {settings.trained_blocks}"
        )
    config = backbone.config.replace(num_layers=first, out_indices=(first,))
    tensors = {
        name: leaf[:first] if name.startswith("blocks.") else leaf for name, leaf in arrays_by_name(backbone).items()
    }
    dtypes: Any = {"dtype": backbone.dtype, "param_dtype": jnp.float32}
    shorter = parameters.abstract(lambda: Backbone(config, **dtypes, rngs=nnx.Rngs(0)))
    shorter = parameters.fill(shorter, tensors, source=settings.backbone)
    head = SecondStageHead(stage, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(settings.seed))
    last = jax.tree.map(lambda leaf: leaf[first:], backbone.blocks) if settings.trained_blocks else None
    return shorter, Judge(last, backbone.norm, head)


def fit_judge(
    judge: Judge, examples: Examples, settings: SecondStageTrainConfig, report: Callable[[str], None]
) -> Judge:
    """The last blocks and the head, trained on the examples that are not held out.

    The loss is the cross-entropy with a target that rises around an overlap of a half, and the absolute error of the
    offsets, smooth near 0, of boxes that overlap a person.
    """
    graphdef, trained = nnx.split(judge)
    trained = jax.tree.map(jnp.copy, trained)  # each step overwrites it
    index = np.flatnonzero(~examples.held_out)
    steps = settings.epochs * (len(index) // settings.batch_size)
    warmup = min(WARMUP_STEPS, steps // 10)

    def adamw(rate: float) -> optax.GradientTransformation:
        schedule = optax.warmup_cosine_decay_schedule(0, rate, warmup, max(steps, warmup + 1))
        return optax.adamw(schedule, weight_decay=settings.weight_decay)

    def labels(trained: Any) -> Any:
        names = jax.tree_util.tree_map_with_path(lambda path, _: str(path[0]), trained)
        return jax.tree.map(lambda name: "head" if "head" in name else "backbone", names)

    optimizer = optax.multi_transform(
        {"head": adamw(settings.learning_rate), "backbone": adamw(settings.backbone_learning_rate)}, labels
    )

    def objective(trained: Any, tokens: Array, known: Any, key: Array) -> Array:
        shapes, overlaps, offsets, weights = known
        logits, moves = nnx.merge(graphdef, trained)(tokens, shapes, dropout=settings.dropout, key=key)
        targets = jax.nn.sigmoid(STEEPNESS * (overlaps - PERSON_IOU))
        wrong = optax.sigmoid_binary_cross_entropy(logits, targets) * weights
        errors = optax.huber_loss(moves, offsets, delta=0.1).sum(axis=1) / 0.1
        return jnp.mean(wrong + errors * (overlaps > MOVE_IOU))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(trained: Any, state: Any, tokens: Array, known: Any, key: Array) -> tuple[Any, Any, Array]:
        loss, gradients = jax.value_and_grad(objective)(trained, tokens, known, key)
        updates, state = optimizer.update(gradients, state, trained)
        return optax.apply_updates(trained, updates), state, loss

    state, rng, key = optimizer.init(trained), np.random.default_rng(settings.seed), jax.random.key(settings.seed)
    weights = np.where(np.isfinite(examples.logits), 1, settings.near_weight).astype(np.float32)
    known = (examples.shapes, examples.overlaps, examples.offsets, weights)
    number = 0
    for epoch in range(settings.epochs):
        losses, order = [], rng.permutation(index)
        for start in range(0, len(order) - settings.batch_size + 1, settings.batch_size):
            rows = order[start : start + settings.batch_size]
            batch = tuple(array[rows] for array in known)
            trained, state, loss = step(trained, state, examples.tokens[rows], batch, jax.random.fold_in(key, number))
            losses.append(loss)
            number += 1
            if number % REPORT_STEPS == 0:
                report(f"step {number} of {steps}: loss {float(np.mean(losses[-REPORT_STEPS:])):.4f}")
        loss = float(np.mean(losses))
        report(f"epoch {epoch + 1} of {settings.epochs}: loss {loss:.4f}")
        if not np.isfinite(loss):
            raise ValueError(f"learning_rate: the loss is not finite after epoch {epoch + 1}; expected a lower one")
    return nnx.merge(graphdef, trained)


def calibrate(stage: SecondStageConfig, judge: Judge, examples: Examples) -> SecondStageConfig:
    """How much each stage counts, so that the sum is the logit of a box being a person's: on held-out images.

    Two logistic regressions, by Newton's method: on both stages, and on the first alone.

    Raises:
        ValueError: if a stage does not tell people from the rest in these images.
    """
    held = examples.held_out & np.isfinite(examples.logits)
    run = nnx.jit(lambda judge, tokens, shapes: judge(tokens, shapes)[0])
    judged = [
        np.asarray(run(judge, tokens, shapes))
        for tokens, shapes in zip(_pieces(examples.tokens[held]), _pieces(examples.shapes[held]), strict=True)
    ]
    first, second = examples.logits[held], np.concatenate(judged)
    is_person = examples.overlaps[held] > PERSON_IOU
    both, alone = (logistic_regression(np.stack(columns, axis=1), is_person) for columns in ([first, second], [first]))
    if both[1] <= 0 or alone[0] <= 0:
        raise ValueError(
            f"data: expected boxes of people to score higher in the held-out images, got weights {both[1]:.2f} of the "
            f"second stage and {alone[0]:.2f} of the first, from {len(first)} boxes; {is_person.sum()} are of people"
        )
    return dataclasses.replace(
        stage,
        first_weight=float(both[0]),
        second_weight=float(both[1]),
        bias=float(both[2]),
        rest_weight=float(alone[0]),
        rest_bias=float(alone[1]),
    )


def _pieces(array: np.ndarray) -> list[np.ndarray]:
    return [array[start : start + 1024] for start in range(0, len(array), 1024)]


def logistic_regression(
    features: Float[np.ndarray, "n features"],
    labels: Bool[np.ndarray, " n"],
    *,
    penalty: float = 1e-3,
    rounds: int = 50,
) -> Float[np.ndarray, " weights"]:
    """The weights of the features, and last the constant, by Newton's method; `penalty` keeps them finite."""
    features = np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], axis=1)
    weights = np.zeros(features.shape[1])
    for _ in range(rounds):
        chances = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
        gradient = features.T @ (chances - labels) + penalty * weights
        curvature = (features * (chances * (1 - chances))[:, None]).T @ features + penalty * np.eye(len(weights))
        change = np.linalg.solve(curvature, gradient)
        weights -= change
        if np.abs(change).max() < 1e-8:
            break
    return weights
