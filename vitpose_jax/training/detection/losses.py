"""The loss of the person finder: of the scores, of the boxes, and of the distributions behind them.

Generalised focal loss (Li et al. 2020, arXiv:2006.04388) on cells assigned by `assignment.py`. The loss of a cell's box
counts as much as the score that the cell should have, and all losses are divided by the sum of these scores.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vitpose_jax.finder.modeling import FinderOutput
from vitpose_jax.training.detection.assignment import assign_cells, contains

BOX_WEIGHT = 2.0
DISTANCES_WEIGHT = 0.25
FOCUS = 2
EPSILON = 1e-6
# The largest distance is a little below that of the last bin, so that it lies between two bins.
DISTANCE_MARGIN = 0.01


class DetectionLosses(NamedTuple):
    """The parts of the loss, which add up to it.

    Attributes:
        score: quality focal loss of all cells, except those without a person in an ignored region.
        box: generalised IoU loss of the cells with a person.
        distances: distribution focal loss of the same cells.
    """

    score: Float[Array, ""]
    box: Float[Array, ""]
    distances: Float[Array, ""]


def detection_losses(
    output: FinderOutput,
    boxes: Float[Array, "n count 4"],
    is_person: Bool[Array, "n count"],
    is_ignored: Bool[Array, "n count"],
    centres: Float[np.ndarray, "cells 2"],
    strides: Float[np.ndarray, " cells"],
) -> DetectionLosses:
    """The losses of a batch.

    Args:
        output: of a network with one class.
        boxes: x1, y1, x2, y2 in pixels of the input.
        is_person, is_ignored: which boxes are people, and which are ignored regions; any other box does not count.
        centres, strides: of the cells, from `make_cells`.
    """
    logits = output.logits[..., 0]
    scores, predicted = jax.lax.stop_gradient((jax.nn.sigmoid(logits), output.boxes))
    owner, quality = jax.vmap(assign_cells, in_axes=(0, 0, None, 0, 0))(scores, predicted, centres, boxes, is_person)
    in_ignored = jax.vmap(contains, in_axes=(0, None))(boxes, centres) & is_ignored[..., None]
    counted = (quality > 0) | ~jnp.any(in_ignored, axis=1)
    # Cells without a person get the box of any: their losses are multiplied by 0.
    targets = jnp.take_along_axis(boxes, owner[..., None], axis=1)
    total = jnp.maximum(jnp.sum(quality), 1)
    box_losses = 1 - generalized_iou(output.boxes, targets)
    distance_losses = distribution_focal_loss(output.distances, box_distances(targets, centres, strides))
    return DetectionLosses(
        score=jnp.sum(jnp.where(counted, quality_focal_loss(logits, quality), 0)) / total,
        box=BOX_WEIGHT * jnp.sum(box_losses * quality) / total,
        distances=DISTANCES_WEIGHT * jnp.sum(distance_losses * quality) / total,
    )


def quality_focal_loss(logits: Float[Array, "*shape"], quality: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Cross-entropy with a soft target, times the squared distance of the score from it."""
    cross_entropy = jax.nn.softplus(logits) - logits * quality
    return cross_entropy * jnp.abs(jax.nn.sigmoid(logits) - quality) ** FOCUS


def generalized_iou(first: Float[Array, "*shape 4"], second: Float[Array, "*shape 4"]) -> Float[Array, "*shape"]:
    """Intersection over union, minus the fraction of the enclosing box that neither covers (arXiv:1902.09630)."""
    start, end = jnp.maximum(first[..., :2], second[..., :2]), jnp.minimum(first[..., 2:], second[..., 2:])
    low, high = jnp.minimum(first[..., :2], second[..., :2]), jnp.maximum(first[..., 2:], second[..., 2:])
    intersection, enclosing = _area(jnp.clip(end - start, 0)), _area(high - low)
    union = _area(first[..., 2:] - first[..., :2]) + _area(second[..., 2:] - second[..., :2]) - intersection
    return intersection / (union + EPSILON) - (enclosing - union) / (enclosing + EPSILON)


def _area(sides: Float[Array, "*shape 2"]) -> Float[Array, "*shape"]:
    return sides[..., 0] * sides[..., 1]


def box_distances(
    boxes: Float[Array, "n cells 4"],
    centres: Float[np.ndarray, "cells 2"],
    strides: Float[np.ndarray, " cells"],
) -> Float[Array, "n cells 4"]:
    """Distances from the cells' centres to the left, top, right and bottom side of their boxes, in strides."""
    sides = jnp.concatenate([centres - boxes[..., :2], boxes[..., 2:] - centres], axis=-1)
    return sides / strides[:, None]


def distribution_focal_loss(
    logits: Float[Array, "*shape 4 bins"], distances: Float[Array, "*shape 4"]
) -> Float[Array, "*shape"]:
    """Cross-entropy with the two bins beside each distance, in proportion to their nearness; the mean of the four.

    Distances outside the bins count as the first, or almost the last.
    """
    bins = logits.shape[-1]
    distances = jnp.clip(distances, 0, bins - 1 - DISTANCE_MARGIN)
    nearness = jnp.clip(1 - jnp.abs(distances[..., None] - jnp.arange(bins)), 0)
    return -jnp.mean(jnp.sum(nearness * jax.nn.log_softmax(logits), axis=-1), axis=-1)
