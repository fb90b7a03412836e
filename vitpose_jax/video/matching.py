"""Which people of two frames belong together."""

import numpy as np
from jaxtyping import Bool, Float, Int


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
