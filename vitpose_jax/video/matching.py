"""Boxes of two frames: how much they overlap, and which belong together."""

import numpy as np
from jaxtyping import Bool, Float, Int


def box_overlaps(one: Float[np.ndarray, "m 4"], other: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "m n"]:
    """The intersection over union of all pairs of boxes, x y w h."""
    one, other = np.asarray(one, np.float64).reshape(-1, 4), np.asarray(other, np.float64).reshape(-1, 4)
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, :2] + one[:, None, 2:], other[None, :, :2] + other[None, :, 2:])
    intersection = (high - low).clip(min=0).prod(axis=-1)
    union = one[:, 2:].prod(axis=-1)[:, None] + other[:, 2:].prod(axis=-1)[None] - intersection
    return intersection / np.maximum(union, np.finfo(np.float64).tiny)


def assign(
    similarity: Float[np.ndarray, "m n"], least: float | int
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Pairs of rows and columns with the largest sum of similarities, each at least `least`."""
    from scipy.optimize import linear_sum_assignment

    # A pair below the limit counts as none, and must not take a better pair's place.
    counted = np.where(similarity >= least, similarity, 0.0)
    rows, columns = linear_sum_assignment(counted, maximize=True)
    chosen: Bool[np.ndarray, " pairs"] = counted[rows, columns] > 0
    return rows[chosen], columns[chosen]
