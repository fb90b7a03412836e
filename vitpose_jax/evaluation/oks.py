"""Object keypoint similarity (OKS), and the scores and the suppression that come before COCO's metric.

Detectors find some people twice. The paper's protocol gives every pose a score (`instance_scores`) and drops poses
that overlap a better one (`oks_nms`). All functions are plain NumPy on the host, in float64; keypoints are (x, y) in
pixels of the image, areas in square pixels.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Num

KEYPOINT_THRESHOLD = 0.2


def object_keypoint_similarity(
    predicted: Num[np.ndarray, "*#rows K 2"],
    target: Num[np.ndarray, "*#rows K 2"],
    visible: Bool[np.ndarray, "*#rows K"],
    area: Num[np.ndarray, "*#rows"],
    sigmas: Sequence[float],
    *,
    boxes: Num[np.ndarray, "*#rows 4"] | None = None,
) -> Float[np.ndarray, "*rows"]:
    """The similarity of poses and labelled poses, from 0 to 1; leading axes broadcast. `computeOks` of COCO.

    It is the mean over the visible keypoints of exp(-d^2 / (2 area (2 sigma)^2)), where d is the distance.

    Args:
        predicted: (x, y) in pixels.
        target: the labelled keypoints, in the same frame.
        visible: which keypoints are labelled.
        area: of the labelled objects, in square pixels.
        sigmas: K standard deviations, `Skeleton.sigmas`.
        boxes: x y w h of the labelled objects. If no keypoint is visible, COCO uses how far the predicted keypoints
            are outside a box of three times the size with the same centre. Without boxes such objects get 0.

    Raises:
        ValueError: if the number of sigmas is not K.
    """
    _check_sigmas(sigmas, predicted.shape[-2])
    offset = np.asarray(predicted, np.float64) - target
    counted = visible
    if boxes is not None:
        labelled = np.any(visible, axis=-1, keepdims=True)
        low = boxes[..., None, :2] - boxes[..., None, 2:]
        high = boxes[..., None, :2] + 2 * boxes[..., None, 2:]
        outside = np.maximum(low - predicted, 0) + np.maximum(predicted - high, 0)
        offset = np.where(labelled[..., None], offset, outside)
        counted = visible | ~labelled
    closeness = _closeness(offset, area, sigmas)
    return (closeness * counted).sum(axis=-1) / np.maximum(counted.sum(axis=-1), 1)


def _closeness(
    offset: Float[np.ndarray, "*#rows K 2"], area: Num[np.ndarray, "*#rows"], sigmas: Sequence[float]
) -> Float[np.ndarray, "*rows K"]:
    """exp(-d^2 / (2 area (2 sigma)^2)) of each keypoint."""
    # Written out, because a sum over an axis of two is slow. The spacing avoids a division by 0, as in COCO.
    squared_distance = np.square(offset[..., 0]) + np.square(offset[..., 1])
    variances = np.square(2 * np.asarray(sigmas, np.float64))
    return np.exp(-squared_distance / (2 * (area[..., None] + np.spacing(1)) * variances))


def _check_sigmas(sigmas: Sequence[float], count: int) -> None:
    if len(sigmas) != count:
        raise ValueError(f"sigmas: expected one for each of {count} keypoints, got {len(sigmas)}")


def instance_scores(
    box_scores: Num[np.ndarray, " n"], keypoint_scores: Num[np.ndarray, "n K"], threshold: float = KEYPOINT_THRESHOLD
) -> Float[np.ndarray, " n"]:
    """Scores of whole poses: the box's score times the mean of the keypoint scores above the threshold.

    0 if no keypoint's score is above it. The original's `evaluate` rescores poses in this way.
    """
    counted = keypoint_scores > threshold
    total = np.where(counted, keypoint_scores, 0).sum(axis=-1, dtype=np.float64)
    # The mean comes first, as in the original: equal means must stay equal for any number of keypoints.
    return np.asarray(box_scores, np.float64) * (total / np.maximum(counted.sum(axis=-1), 1))


def oks_nms(
    keypoints: Num[np.ndarray, "n K 2"],
    scores: Num[np.ndarray, " n"],
    areas: Num[np.ndarray, " n"],
    sigmas: Sequence[float],
    *,
    threshold: float = 0.9,
    soft: bool = False,
    max_detections: int = 20,
) -> Int[np.ndarray, " selected"]:
    """Indices of the poses of one image to keep, the best first. `oks_nms` and `soft_oks_nms` of the original.

    Two poses are compared over all keypoints, whatever their scores, with the mean of their areas. Of equal scores
    the last comes first.

    Args:
        keypoints: (x, y) in pixels; finite.
        scores: of whole poses, as from `instance_scores`.
        areas: in square pixels; the paper uses the area of the padded box.
        sigmas: K standard deviations, `Skeleton.sigmas`.
        threshold: hard: drop poses whose OKS with a better pose is above it. soft: each time a pose is kept,
            multiply the scores of the remaining ones by exp(-OKS^2 / threshold).
        soft: lower scores instead of dropping poses. The lowered scores decide which poses are kept and their order;
            the results keep their own scores, as in the original.
        max_detections: the most poses that soft keeps. Hard has no limit.

    Raises:
        ValueError: if keypoints, scores or areas are not finite, or the number of sigmas is not K.
    """
    _check_sigmas(sigmas, keypoints.shape[1])
    for name, values in (("keypoints", keypoints), ("scores", scores), ("areas", areas)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite numbers, got {np.asarray(values)[~np.isfinite(values)][0]}")
    keypoints = np.asarray(keypoints, np.float64)
    if soft:
        return _soft_nms(keypoints, scores, areas, sigmas, threshold, max_detections)
    order = _descending(scores)
    keypoints, areas, free = keypoints[order], areas[order], np.ones(len(order), bool)
    for rank in range(len(order)):
        if free[rank]:
            worse = slice(rank + 1, None)
            free[worse] &= _overlap(keypoints[worse], areas[worse], keypoints[rank], areas[rank], sigmas) <= threshold
    return order[free]


def _soft_nms(
    keypoints: Float[np.ndarray, "n K 2"],
    scores: Num[np.ndarray, " n"],
    areas: Num[np.ndarray, " n"],
    sigmas: Sequence[float],
    threshold: float,
    max_detections: int,
) -> Int[np.ndarray, " selected"]:
    scores = np.array(scores, np.float64)
    order = _descending(scores)
    selected: list[int] = []
    while len(order) and len(selected) < max_detections:
        best, order = order[0], order[1:]
        selected.append(best)
        overlap = _overlap(keypoints[order], areas[order], keypoints[best], areas[best], sigmas)
        scores[order] *= np.exp(-np.square(overlap) / threshold)
        order = order[_descending(scores[order])]
    return np.array(selected, np.int64)


def _overlap(
    keypoints: Float[np.ndarray, "n K 2"],
    areas: Num[np.ndarray, " n"],
    best: Float[np.ndarray, "K 2"],
    area: Num[np.ndarray, ""] | np.number,
    sigmas: Sequence[float],
) -> Float[np.ndarray, " n"]:
    """The OKS of poses with the best pose, over all keypoints and with the mean of their areas."""
    return _closeness(keypoints - best, (areas + area) / 2, sigmas).mean(axis=-1)


def box_nms(
    boxes: Num[np.ndarray, "n 4"], scores: Num[np.ndarray, " n"], *, threshold: float
) -> Int[np.ndarray, " selected"]:
    """Indices of the boxes of one image to keep, the best first.

    Args:
        boxes: x y w h in pixels.
        scores: of the detector. Of equal scores the last comes first.
        threshold: a box is dropped if its intersection over union with a better one is above it.
    """
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    areas = boxes[:, 2] * boxes[:, 3]
    order = _descending(scores)
    selected: list[int] = []
    while len(order):
        best, order = order[0], order[1:]
        selected.append(best)
        sides = np.minimum(high[order], high[best]) - np.maximum(low[order], low[best])
        intersection = sides.clip(min=0).prod(axis=-1)
        # Written as a product, to avoid a division by 0 for two boxes without area.
        order = order[intersection <= threshold * (areas[order] + areas[best] - intersection)]
    return np.array(selected, np.int64)


def _descending(scores: Num[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    return np.argsort(scores, kind="stable")[::-1]
