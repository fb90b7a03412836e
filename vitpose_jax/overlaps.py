"""How much boxes x y w h overlap, on the host. finder/postprocess.py has what a compiled program needs of it."""

import numpy as np
from jaxtyping import Float, Num


def box_overlaps(one: Num[np.ndarray, "m 4"], other: Num[np.ndarray, "n 4"]) -> Float[np.ndarray, "m n"]:
    """The intersection over union of all pairs of boxes x y w h; 0 for boxes without area."""
    shared, areas, other_areas = box_intersections(one, other)
    return ratio(shared, areas[:, None] + other_areas - shared)


def box_intersections(
    one: Num[np.ndarray, "m 4"], other: Num[np.ndarray, "n 4"]
) -> tuple[Float[np.ndarray, "m n"], Float[np.ndarray, " m"], Float[np.ndarray, " n"]]:
    """The area that each pair of boxes x y w h has in common, and the areas of the boxes; float64."""
    one, other = np.asarray(one, np.float64).reshape(-1, 4), np.asarray(other, np.float64).reshape(-1, 4)
    starts = np.maximum(one[:, None, :2], other[:, :2])
    ends = np.minimum(one[:, None, :2] + one[:, None, 2:], other[:, :2] + other[:, 2:])
    shared = np.clip(ends - starts, 0, None).prod(axis=-1)
    return shared, one[:, 2:].prod(axis=-1), other[:, 2:].prod(axis=-1)


def ratio(part: Float[np.ndarray, "*shape"], whole: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """A part of a whole that is not negative; 0 where there is none."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
