"""Which cells learn which person: task-aligned assignment (Feng et al. 2021, arXiv:2108.07755).

A cell that already scores high and already gives a box close to a person's learns this person. So score and box agree:
the highest-scoring cells are those with the best boxes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitpose_jax.finder.postprocess import box_iou

CELLS_PER_PERSON = 10
IOU_POWER = 6


class Assignment(NamedTuple):
    """What the cells of an image learn.

    Attributes:
        owner: index of the cell's person among the boxes; any value for a cell without one.
        quality: the score that the cell should have, from 0 to 1; 0 for a cell without a person.
    """

    owner: Int[Array, " cells"]
    quality: Float[Array, " cells"]


def assign_cells(
    scores: Float[Array, " cells"],
    boxes: Float[Array, "cells 4"],
    centres: Float[Array | np.ndarray, "cells 2"],
    people: Float[Array, "count 4"],
    is_person: Bool[Array, " count"],
) -> Assignment:
    """The cells of an image that learn each person.

    Of the cells with their centre inside a person's box, the `CELLS_PER_PERSON` with the highest alignment, score x
    IoU^6, learn this person. A cell of several people learns the one with the highest IoU. Its quality is its
    alignment, scaled so that the best cell of a person gets the highest IoU among the person's cells.

    Args:
        scores, boxes: of the network; boxes are x1, y1, x2, y2.
        centres: of the cells, in pixels.
        people: boxes; the other boxes beside them may have any value.
        is_person: which boxes are people.
    """
    row = jnp.arange(len(people))[:, None]
    inside = contains(people, centres) & is_person[:, None]
    overlaps = jnp.where(inside, box_iou(people, boxes), 0)
    alignment = scores * overlaps**IOU_POWER
    best, cells = jax.lax.top_k(alignment, min(CELLS_PER_PERSON, alignment.shape[1]))
    chosen = jnp.zeros_like(inside).at[row, cells].set(best > 0)
    owner = jnp.argmax(jnp.where(chosen, overlaps, -1), axis=0)
    assigned = chosen & (owner == row)
    alignment, overlaps = jnp.where(assigned, alignment, 0), jnp.where(assigned, overlaps, 0)
    largest = jnp.max(alignment, axis=1, keepdims=True)
    quality = alignment / jnp.where(largest > 0, largest, 1) * jnp.max(overlaps, axis=1, keepdims=True)
    return Assignment(owner, jnp.max(quality, axis=0))


def contains(
    boxes: Float[Array, "count 4"], points: Float[Array | np.ndarray, "cells 2"]
) -> Bool[Array, "count cells"]:
    """Which points lie inside which boxes x1, y1, x2, y2."""
    return jnp.all((points > boxes[:, None, :2]) & (points < boxes[:, None, 2:]), axis=-1)
