"""People who walk through a picture: boxes and keypoints of COCO's skeleton."""

from typing import NamedTuple

import numpy as np

# (x, y) of COCO's keypoints in a box of a unit's height, its middle at 0.
_BODY = np.asarray(
    [
        (0.00, 0.08), (0.02, 0.06), (-0.02, 0.06), (0.05, 0.07), (-0.05, 0.07), (0.11, 0.20), (-0.11, 0.20),
        (0.14, 0.36), (-0.14, 0.36), (0.15, 0.50), (-0.15, 0.50), (0.08, 0.52), (-0.08, 0.52), (0.09, 0.74),
        (-0.09, 0.74), (0.09, 0.95), (-0.09, 0.95),
    ]
)  # fmt: skip


class People(NamedTuple):
    """Boxes x y w h, keypoints and scores in pixels."""

    boxes: np.ndarray
    keypoints: np.ndarray
    scores: np.ndarray


def people(places: list[tuple[float, float, float]], noise: float = 0.0, seed: int = 0) -> People:
    """People by the middle of their head's top, x and y, and their height."""
    rng = np.random.default_rng(seed)
    heights = np.asarray([height for _, _, height in places]).reshape(-1, 1, 1)
    corner = np.asarray([(x, y) for x, y, _ in places]).reshape(-1, 1, 2)
    keypoints = corner + heights * _BODY
    keypoints = keypoints + noise * heights * rng.normal(size=keypoints.shape)
    boxes = np.asarray([(x - 0.2 * height, y, 0.4 * height, height) for x, y, height in places]).reshape(-1, 4)
    boxes[:, :2] += noise * heights[:, 0] * rng.normal(size=(len(boxes), 2))
    return People(boxes.astype(np.float32), keypoints.astype(np.float32), np.full(keypoints.shape[:2], 0.8, np.float32))
