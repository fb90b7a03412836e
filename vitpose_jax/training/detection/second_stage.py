"""`fit_second_stage`: gives a finder its second stage, with the backbone of a pose model. `task = "second_stage"`.

    collect     each image: the finder's boxes, and boxes near the annotated ones; the tokens of their crops behind the
                first blocks of the backbone, which are not trained, in float16 in memory
    fit         the last blocks and the head, on these tokens: is it a person's box, and how should it move
    calibrate   on images that were held out: how much each stage counts
    write       the finder with its second stage, as a native folder

It is not resumed: it begins anew.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Float16, Float32
from PIL import Image

from vitpose_jax.convert.detectors import load_detector, write_finder
from vitpose_jax.convert.hub import resolve_source
from vitpose_jax.finder.config import FinderConfig, SecondStageConfig
from vitpose_jax.finder.detect import first_stage, keep_first_stage
from vitpose_jax.finder.modeling import PersonFinder, abstract_finder
from vitpose_jax.finder.preprocess import input_size, resized_size
from vitpose_jax.finder.second_stage import SecondStageHead, backbone_config, box_offsets, box_shapes, cut_crops
from vitpose_jax.pretrained import from_pretrained
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, WEIGHTS_FILE
from vitpose_jax.training.detection.augment import ImageAugmentation, LabelledImage
from vitpose_jax.training.detection.config import BoxDataConfig
from vitpose_jax.training.detection.data import BoxSource
from vitpose_jax.training.optim import arrays_by_name
from vitpose_jax.vitpose.modeling import Backbone, Block

# Crops are made for a multiple of this many boxes of an image, so that there are few programs.
BOX_STEP = 16
# A box is a person's if it overlaps an annotated one as much as this; the target rises from 0 to 1 around it.
PERSON_IOU, STEEPNESS = 0.5, 12.0
# Boxes that overlap less do not learn to move.
MOVE_IOU = 0.35
# Boxes that lie in a crowd by this fraction are neither right nor wrong.
IN_CROWD = 0.5
WARMUP_STEPS = 100
REPORT_STEPS = 100
# Fields of the configuration that are not settings.
_GIVEN = (
    *("hidden_size", "num_layers", "num_heads", "layer_norm_eps", "image_mean", "image_std"),
    *("first_weight", "second_weight", "bias", "rest_weight", "rest_bias"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondStageTrainConfig:
    """The settings.

    Attributes:
        task: what is trained.
        output: folder for the finder; it must not hold one yet.
        init: the finder, which may have a second stage already.
        backbone: the pose model, a source as for `from_pretrained`; its image is resized to `model.crop_size`.
        data: images with boxes.
        model: sizes of the crops and of the head, how many boxes are looked at again, and how far they move. Sizes of
            the backbone come from the pose model, and weights from the calibration.
        boxes: how many of the finder's boxes are examples, in an image.
        least_score: boxes that the finder gives a lower score are no examples.
        near_boxes: how many boxes near each annotated one are examples.
        near_weight: how much such a box counts in the loss of the scores; one of the finder counts 1.
        most_boxes: examples in all. Each takes 4 bytes for each number of its tokens: all tokens are copied once.
        trained_blocks: how many of the backbone's last blocks are trained; 0 for none. Its last norm is always trained.
        epochs, batch_size, weight_decay: of the training.
        learning_rate: of the head.
        backbone_learning_rate: of the backbone's blocks and norm.
        dropout: of the head's features.
        held_out: one image of so many is kept for the calibration.
        precision: dtype of the backbone's computation.
        int8: write kernels as int8.
        seed: seed of all random numbers.

    Raises:
        ValueError: for settings out of range, listing all of them with what was expected and what came.
    """

    task: Literal["second_stage"] = "second_stage"
    output: str
    init: str = "person-finder"
    backbone: str = "vitpose-small-open"
    data: tuple[BoxDataConfig, ...]
    model: SecondStageConfig = dataclasses.field(default_factory=SecondStageConfig)
    boxes: int = 30
    least_score: float = 0.05
    near_boxes: int = 2
    near_weight: float = 0.5
    most_boxes: int = 100_000
    trained_blocks: int = 0
    epochs: int = 14
    batch_size: int = 256
    learning_rate: float = 1e-3
    backbone_learning_rate: float = 1e-4
    weight_decay: float = 0.05
    dropout: float = 0.3
    held_out: int = 10
    precision: Literal["float32", "bfloat16"] = "float32"
    int8: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if not self.data:
            yield "data: expected one dataset or more, got none"
        if self.seed < 0:
            yield f"seed: expected 0 or more, got {self.seed}"
        if not self.output:
            yield "output: expected a folder, got nothing"
        own = dataclasses.asdict(SecondStageConfig())
        for name in _GIVEN:
            if getattr(self.model, name) != own[name]:
                yield f"model.{name}: expected none: it comes from the backbone or the calibration"
        for name in ("boxes", "most_boxes", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                yield f"{name}: expected at least 1, got {getattr(self, name)}"
        for name in ("near_boxes", "trained_blocks"):
            if getattr(self, name) < 0:
                yield f"{name}: expected at least 0, got {getattr(self, name)}"
        if self.held_out < 2:
            yield f"held_out: expected at least 2, got {self.held_out}"
        for name in ("learning_rate", "backbone_learning_rate"):
            if not 0 < getattr(self, name) < 1:
                yield f"{name}: expected a number between 0 and 1, got {getattr(self, name)}"
        for name in ("least_score", "near_weight", "weight_decay", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}: expected a number from 0 to less than 1, got {getattr(self, name)}"


class Examples(NamedTuple):
    """Boxes and what is known about them.

    Attributes:
        tokens: behind the first blocks of the backbone.
        shapes: from `box_shapes`.
        logits: of the first stage; NaN for boxes near annotated ones.
        overlaps: the intersection over union with the annotated box that they overlap most.
        offsets: to this box.
        held_out: whether their image is kept for the calibration.
    """

    tokens: Float16[np.ndarray, "n tokens dim"]
    shapes: Float32[np.ndarray, "n 3"]
    logits: Float32[np.ndarray, " n"]
    overlaps: Float32[np.ndarray, " n"]
    offsets: Float32[np.ndarray, "n 4"]
    held_out: Bool[np.ndarray, " n"]


def fit_second_stage(settings: SecondStageTrainConfig, report: Callable[[str], None] = print) -> Path:
    """Train a second stage and write the finder with it.

    Args:
        settings: all of them.
        report: gets a line now and then.

    Returns:
        The folder.

    Raises:
        ValueError: for an `init` that is not a person finder, a `backbone` or data that cannot be read, too few
            examples, or an `output` that holds a model already.
    """
    output = Path(settings.output)
    if output.exists() and (
        not output.is_dir() or any((output / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE))
    ):
        raise ValueError(f"output: expected a folder without a model, got {settings.output}")
    finder = _without_second_stage(settings.init)
    backbone, stage = _load_backbone(settings)
    sources = [BoxSource(data.annotations, data.images, category_id=data.category_id) for data in settings.data]
    first, judge = split(backbone, stage, settings)
    examples = collect(finder, first, stage, sources, settings, report)
    judge = fit_judge(judge, examples, settings, report)
    stage = calibrate(stage, judge, examples)
    report(
        f"with a second stage {stage.first_weight:.3f} x first {stage.second_weight:+.3f} x second {stage.bias:+.3f}"
    )
    report(f"without {stage.rest_weight:.3f} x first {stage.rest_bias:+.3f}")
    config = finder.config.replace(second_stage=stage)
    tensors: dict[str, Any] = dict(arrays_by_name(finder))
    trained = arrays_by_name(judge)
    for name, leaf in arrays_by_name(backbone).items():
        last = trained.get(name, leaf[:0])  # of the blocks, the last ones are trained; the norm is trained as a whole
        whole = np.concatenate([leaf[: len(leaf) - len(last)], last])
        tensors[f"second_stage.backbone.{name}"] = whole
    tensors |= {f"second_stage.{name}": leaf for name, leaf in trained.items() if name.startswith("head.")}
    model = parameters.fill(abstract_finder(config), tensors, source="the finder and its second stage")
    return write_finder(model, settings.output, int8=settings.int8)


def _without_second_stage(source: str) -> PersonFinder:
    model = load_detector(resolve_source(source))
    if not isinstance(model, PersonFinder):
        raise ValueError(f"init: expected a person finder, got {source}, which is a {type(model).__name__}")
    if model.config.second_stage is None:
        return model
    config = model.config.replace(second_stage=None)
    tensors = {name: leaf for name, leaf in parameters.flatten(model).items() if not name.startswith("second_stage.")}
    return parameters.fill(abstract_finder(config), tensors, source=source)


def _load_backbone(settings: SecondStageTrainConfig) -> tuple[Backbone, SecondStageConfig]:
    """The backbone of the pose model for crops of our size, and the configuration with its sizes."""
    dtype = jnp.dtype(settings.precision)
    model = from_pretrained(
        settings.backbone, image_size=settings.model.crop_size, dtype=dtype, param_dtype=jnp.float32
    )
    config = model.config
    stage = dataclasses.replace(
        settings.model,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        layer_norm_eps=config.layer_norm_eps,
        image_mean=config.image_mean,
        image_std=config.image_std,
    )
    backbone = model.specialize().backbone if config.experts else model.backbone
    expected, actual = backbone_config(stage), backbone.config
    for name in ("patch_size", "mlp_ratio", "hidden_act", "qkv_bias", "window_size", "out_indices", "knowledge_token"):
        if getattr(expected, name) != getattr(actual, name):
            raise ValueError(
                f"backbone: expected {name} {getattr(expected, name)}, got {getattr(actual, name)} "
                f"in {settings.backbone}"
            )
    return backbone, stage


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


def collect(
    finder: PersonFinder,
    backbone: Backbone,
    stage: SecondStageConfig,
    sources: Sequence[BoxSource],
    settings: SecondStageTrainConfig,
    report: Callable[[str], None],
) -> Examples:
    """The examples of all images.

    Args:
        finder: without a second stage.
        backbone: the first blocks of the second stage's.
        stage, settings: sizes and numbers.
        sources: the datasets.
        report: gets a line now and then.

    Raises:
        ValueError: for an image that cannot be read; if there are no examples for the head or for the calibration.
    """
    config, rng = finder.config, np.random.default_rng(settings.seed)
    least_logit = -np.inf if settings.least_score == 0 else np.log(settings.least_score / (1 - settings.least_score))

    @functools.partial(nnx.jit, static_argnums=3)
    def first_boxes(model: PersonFinder, images: Any, resized: Any, count: int) -> tuple[Array, Array]:
        logits, boxes = keep_first_stage(*first_stage(model, images, resized), model.config)
        return logits[:, :count], boxes[:, :count]

    @nnx.jit
    def compute_tokens(model: Backbone, images: Any, boxes: Any, resized: Any) -> tuple[Array, Array]:
        crops = jax.lax.collapse(cut_crops(images, boxes, stage), 0, 2)
        tokens = cast(Array, model(crops, output_hidden_states=True).hidden_states)[-1]
        return tokens.astype(jnp.float16), box_shapes(boxes, resized[:, None])[0]

    # In a random order: if there are more images than `most_boxes` needs, some of all are used.
    order = [(source, index) for source in sources for index in range(len(source))]
    order = [order[position] for position in rng.permutation(len(order))]
    parts: list[Examples] = []
    total, number = 0, 0
    for source, index in order:
        image, resized, people, crowds = place_image(source[index], config, rng)
        first = first_boxes(finder, image[None], resized, settings.boxes)
        logits, boxes = (np.asarray(part)[0] for part in first)
        good = np.isfinite(logits) & (logits >= least_logit)
        boxes, logits = boxes[good], logits[good]
        near = near_boxes(people, settings.near_boxes, rng)
        boxes = np.concatenate([boxes, near])
        logits = np.concatenate([logits, np.full(len(near), np.nan, np.float32)])
        keep = _fractions(boxes, crowds).max(axis=1, initial=0) < IN_CROWD
        boxes, logits = boxes[keep], logits[keep]
        overlaps = _overlaps(boxes, people)
        number += 1
        if len(boxes):
            count = -(-len(boxes) // BOX_STEP) * BOX_STEP
            padded = np.resize(boxes, (1, count, 4))
            computed = compute_tokens(backbone, image[None], padded, resized)
            tokens, shapes = (np.asarray(part)[: len(boxes)] for part in computed)
            targets = people[overlaps.argmax(axis=1)] if len(people) else boxes
            offsets = np.asarray(box_offsets(jnp.asarray(boxes), jnp.asarray(targets)))
            held_out = np.full(len(boxes), number % settings.held_out == 0)
            parts.append(Examples(tokens, shapes, logits, overlaps.max(axis=1, initial=0), offsets, held_out))
            total += len(boxes)
        if number % 100 == 0:
            report(f"{number} of {len(order)} images, {total} boxes")
        if total >= settings.most_boxes:
            break
    report(f"{number} of {len(order)} images, {total} boxes")
    examples = Examples(*map(np.concatenate, zip(*parts, strict=True))) if parts else None
    calibrated = 0 if examples is None else int((examples.held_out & np.isfinite(examples.logits)).sum())
    if examples is None or not calibrated or (~examples.held_out).sum() < settings.batch_size:
        raise ValueError(
            f"data: expected {settings.batch_size} boxes, and some in one image of {settings.held_out}, "
            f"got {total} boxes, {calibrated} of them in such images"
        )
    return examples


def place_image(
    labelled: LabelledImage, config: FinderConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """An image in the finder's input, its height and width there (1, 2), and the boxes of people and crowds."""
    height, width = labelled.image.shape[:2]
    rows, columns = height, width
    if labelled.stretched:
        aspect = rng.choice(ImageAugmentation.stretched_aspects)
        rows, columns = (height, round(height * aspect)) if aspect > 1 else (round(width / aspect), width)
    rows, columns = resized_size(rows, columns, config)
    resized = Image.fromarray(labelled.image).resize((columns, rows), Image.Resampling.BILINEAR)
    square = np.zeros((*input_size([(rows, columns)], config), 3), np.uint8)
    square[:rows, :columns] = np.asarray(resized)
    scale = np.tile([columns / width, rows / height], 2).astype(np.float32)
    return square, np.array([[rows, columns]], np.float32), labelled.people * scale, labelled.ignored * scale


def near_boxes(people: Float32[np.ndarray, "people 4"], count: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes near those of people: moved and grown at random, some of them too far."""
    people = np.repeat(people, count, axis=0)
    centre, sides = (people[:, :2] + people[:, 2:]) / 2, people[:, 2:] - people[:, :2]
    centre = centre + sides * rng.normal(0, 0.15, centre.shape)
    sides = sides * np.exp(rng.normal(0, 0.2, sides.shape))
    return np.concatenate([centre - sides / 2, centre + sides / 2], axis=1).astype(np.float32)


def _intersections(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start, end = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    areas = [np.prod(rows[:, 2:] - rows[:, :2], axis=1) for rows in (boxes, others)]
    return np.prod(np.clip(end - start, 0, None), axis=2), areas[0][:, None], areas[1]


def _overlaps(boxes: np.ndarray, people: np.ndarray) -> np.ndarray:
    both, first, second = _intersections(boxes, people)
    return (both / np.maximum(first + second - both, 1e-6)).astype(np.float32)


def _fractions(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    both, first, _ = _intersections(boxes, crowds)
    return both / np.maximum(first, 1e-6)


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
