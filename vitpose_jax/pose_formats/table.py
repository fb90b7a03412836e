"""Poses as a table of pandas, which is imported when first used."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float

from vitpose_jax.skeletons import Skeleton

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports]

_LONG = ("pose", "skeleton", "keypoint", "x", "y", "score")
_BOX = ("box_x", "box_y", "box_width", "box_height", "box_score")


def pose_table(
    rows: Sequence[tuple[Skeleton, np.ndarray, np.ndarray, np.ndarray]],
    box_scores: Float[Array, " n"] | Float[np.ndarray, " n"] | None,
    layout: str,
) -> "pandas.DataFrame":
    """The table that `Poses.to_pandas` describes.

    Args:
        rows: of each pose its skeleton, keypoints (k, 2), scores (k,) and box (4,).
        box_scores: (n,), or None.
        layout: "long" or "wide".

    Raises:
        ImportError: if pandas is not installed.
        ValueError: for another layout.
    """
    if layout not in ("long", "wide"):
        raise ValueError(f"layout: expected 'long' or 'wide', got {layout!r}")
    try:
        import pandas  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError('to_pandas needs the package pandas: pip install "vitpose-jax[pandas]"') from None
    if layout == "long":
        keypoints = [
            (number, skeleton.name, name, float(x), float(y), float(score))
            for number, (skeleton, points, scores, _) in enumerate(rows)
            for name, (x, y), score in zip(skeleton.keypoints, points, scores, strict=True)
        ]
        return pandas.DataFrame(keypoints, columns=list(_LONG))
    records: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for number, (skeleton, points, scores, box) in enumerate(rows):
        box_score = math.nan if box_scores is None else float(box_scores[number])
        record = {"skeleton": skeleton.name, **dict(zip(_BOX, (*map(float, box), box_score), strict=True))}
        for name, (x, y), score in zip(skeleton.keypoints, points, scores, strict=True):
            record |= {f"{name}_x": float(x), f"{name}_y": float(y), f"{name}_score": float(score)}
            names[name] = None
        records.append(record)
    columns = [f"{name}_{part}" for name in names for part in ("x", "y", "score")]
    return pandas.DataFrame(records, columns=["skeleton", *_BOX, *columns])
