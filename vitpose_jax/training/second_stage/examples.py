"""Boxes of photographs, and what is known about them: what a second stage learns from."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float16, Float32
from PIL import Image

from vitpose_jax.finder.config import FinderConfig, SecondStageConfig
from vitpose_jax.finder.detect import first_stage, keep_first_stage
from vitpose_jax.finder.modeling import PersonFinder
from vitpose_jax.finder.preprocess import input_size, resized_size
from vitpose_jax.finder.second_stage import box_offsets, box_shapes, cut_crops
from vitpose_jax.overlaps import box_intersections, box_overlaps, ratio
from vitpose_jax.training.detection.augment import ImageAugmentation, LabelledImage, mirror
from vitpose_jax.training.detection.data import BoxSource
from vitpose_jax.training.second_stage.config import SecondStageTrainConfig
from vitpose_jax.vitpose.modeling import Backbone

# Crops are made for a multiple of this many boxes of an image, so that there are few programs.
BOX_STEP = 16
# Boxes that lie in a crowd by this fraction are neither right nor wrong.
IN_CROWD = 0.5


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

    def look(labelled: LabelledImage, held_out: bool) -> Examples | None:
        """The boxes of an image, if there are any."""
        image, resized, people, crowds = place_image(labelled, config, rng)
        first = first_boxes(finder, image[None], resized, settings.boxes)
        logits, boxes = (np.asarray(part)[0] for part in first)
        good = np.isfinite(logits) & (logits >= least_logit)
        boxes, logits = boxes[good], logits[good]
        near = near_boxes(people, settings.near_boxes, rng)
        boxes = np.concatenate([boxes, near])
        logits = np.concatenate([logits, np.full(len(near), np.nan, np.float32)])
        keep = _fractions(boxes, crowds).max(axis=1, initial=0) < IN_CROWD
        boxes, logits = boxes[keep], logits[keep]
        if not len(boxes):
            return None
        overlaps = _overlaps(boxes, people)
        count = -(-len(boxes) // BOX_STEP) * BOX_STEP
        padded = np.resize(boxes, (1, count, 4))
        computed = compute_tokens(backbone, image[None], padded, resized)
        tokens, shapes = (np.asarray(part)[: len(boxes)] for part in computed)
        targets = people[overlaps.argmax(axis=1)] if len(people) else boxes
        offsets = np.asarray(box_offsets(jnp.asarray(boxes), jnp.asarray(targets)))
        best, held = overlaps.max(axis=1, initial=0), np.full(len(boxes), held_out)
        return Examples(tokens, shapes, logits, best, offsets, held)

    # In a random order: if there are more images than `most_boxes` needs, some of all are used.
    order = [(source, index) for source in sources for index in range(len(source))]
    order = [order[position] for position in rng.permutation(len(order))]
    parts: list[Examples] = []
    total, number = 0, 0
    while number < len(order) and total < settings.most_boxes:
        source, index = order[number]
        number += 1
        labelled = source[index]
        for view in [labelled, mirror(labelled)] if settings.mirrored else [labelled]:
            part = look(view, held_out=number % settings.held_out == 0)
            if part is not None:
                parts.append(part)
                total += len(part.logits)
        if number % 100 == 0:
            report(f"{number} of {len(order)} images, {total} boxes")
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


def _sides(corners: np.ndarray) -> np.ndarray:
    """Boxes x1, y1, x2, y2 as x y w h."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _overlaps(boxes: np.ndarray, people: np.ndarray) -> np.ndarray:
    return box_overlaps(_sides(boxes), _sides(people)).astype(np.float32)


def _fractions(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """How much of each box lies in each crowd."""
    shared, areas, _ = box_intersections(_sides(boxes), _sides(crowds))
    return ratio(shared, np.broadcast_to(areas[:, None], shared.shape))
