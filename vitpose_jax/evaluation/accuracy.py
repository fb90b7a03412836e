"""Accuracy of keypoints when each pose's person is known: PCK, AUC, EPE, NME, and PCKh of MPII.

Plain NumPy. Keypoints are (x, y); predicted and labelled ones have the same frame and unit. `visible` says which
labelled keypoints count. Sizes have the unit of the keypoints.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Num

from vitpose_jax.skeletons import MPII

PCKH_GROUPS = {
    "head": ("head_top",),
    "shoulder": ("left_shoulder", "right_shoulder"),
    "elbow": ("left_elbow", "right_elbow"),
    "wrist": ("left_wrist", "right_wrist"),
    "hip": ("left_hip", "right_hip"),
    "knee": ("left_knee", "right_knee"),
    "ankle": ("left_ankle", "right_ankle"),
}
"""MPII: the rows of its table. Its mean includes the upper neck, too."""

PCKH_LEFT_OUT = ("pelvis", "thorax")


def pck(
    predicted: Num[np.ndarray, "n K 2"],
    target: Num[np.ndarray, "n K 2"],
    visible: Bool[np.ndarray, "n K"],
    sizes: Num[np.ndarray, "n 2"],
    *,
    threshold: float = 0.5,
) -> tuple[Float[np.ndarray, " K"], float, int]:
    """Percentage of correct keypoints (PCK), as fractions from 0 to 1. `keypoint_pck_accuracy` of mmpose.

    Args:
        predicted: (x, y).
        target: the labelled (x, y).
        visible: which keypoints count.
        sizes: distances in x and in y are divided by them; for example, the sides of the box. A row with a size of
            0 or below does not count.
        threshold: a keypoint is correct if its divided distance is below it.

    Returns:
        the fraction of correct predictions for each keypoint, -1 if no row counts; the mean over keypoints that have
        a fraction, 0 if none has; the number of these keypoints.
    """
    distances, counted = _distances(predicted, target, visible, sizes)
    totals = counted.sum(axis=0)
    fractions = np.where(totals > 0, (counted & (distances < threshold)).sum(axis=0) / np.maximum(totals, 1), -1.0)
    known = fractions[totals > 0]
    return fractions, float(known.mean()) if len(known) else 0.0, len(known)


def auc(
    predicted: Num[np.ndarray, "n K 2"],
    target: Num[np.ndarray, "n K 2"],
    visible: Bool[np.ndarray, "n K"],
    size: float,
    *,
    steps: int = 20,
) -> float:
    """Area under the curve (AUC): the mean PCK over the thresholds 0, 1 / steps, ... below 1. `keypoint_auc` of mmpose.

    The result is from 0 to 1.

    Args:
        predicted, target, visible: as in `pck`.
        size: distances are divided by it, in x and in y.
        steps: the number of thresholds.
    """
    sizes = np.full((len(predicted), 2), size, np.float64)
    return float(np.mean([pck(predicted, target, visible, sizes, threshold=step / steps)[1] for step in range(steps)]))


def epe(
    predicted: Num[np.ndarray, "n K 2"], target: Num[np.ndarray, "n K 2"], visible: Bool[np.ndarray, "n K"]
) -> float:
    """End-point error (EPE): the mean distance over all visible keypoints, 0 without any. `keypoint_epe` of mmpose.

    The result has the unit of the keypoints.

    Args:
        predicted, target, visible: as in `pck`.
    """
    return nme(predicted, target, visible, np.ones((len(predicted), 2)))


def nme(
    predicted: Num[np.ndarray, "n K 2"],
    target: Num[np.ndarray, "n K 2"],
    visible: Bool[np.ndarray, "n K"],
    sizes: Num[np.ndarray, "n 2"],
) -> float:
    """Normalised mean error (NME): the mean of distances divided by `sizes`, as in `pck`. `keypoint_nme` of mmpose.

    Args:
        predicted, target, visible, sizes: as in `pck`.

    Returns:
        the mean over all visible keypoints of rows with positive sizes; 0 if there are none.
    """
    distances, counted = _distances(predicted, target, visible, sizes)
    return float(distances[counted].mean()) if counted.any() else 0.0


def _distances(
    predicted: Num[np.ndarray, "n K 2"],
    target: Num[np.ndarray, "n K 2"],
    visible: Bool[np.ndarray, "n K"],
    sizes: Num[np.ndarray, "n 2"],
) -> tuple[Float[np.ndarray, "n K"], Bool[np.ndarray, "n K"]]:
    """Distances divided by the sizes; and which of them count."""
    usable = (sizes > 0).all(axis=-1, keepdims=True)
    offset = (np.asarray(predicted, np.float64) - target) / np.where(usable, sizes, 1)[:, None]
    return np.linalg.norm(offset, axis=-1), visible & usable


def pckh(
    predicted: Num[np.ndarray, "n 16 2"],
    target: Num[np.ndarray, "n 16 2"],
    visible: Bool[np.ndarray, "n 16"],
    head_sizes: Num[np.ndarray, " n"],
    thresholds: Sequence[float] = (0.5, 0.1),
) -> dict[str, float]:
    """PCKh of MPII, in percent, as in its official evaluation.

    The original ViTPose repository prints the value for the threshold 0.11 as PCKh@0.1: it takes the twelfth of the
    thresholds 0, 0.01, 0.02, ...

    Args:
        predicted: (x, y) in pixels of the image, keypoints in the order of `skeletons.MPII`.
        target: the labelled keypoints in the same frame. MPII's own files count pixels from 1.
        visible: which keypoints are labelled.
        head_sizes: in pixels, from `mpii_head_sizes`.
        thresholds: a keypoint is correct if its distance is at most this times the size of the head.

    Returns:
        "head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle" at the first threshold, each the mean of its
        left and right keypoint; "PCKh@0.5" and so on for each threshold, over all labelled keypoints except pelvis
        and thorax. NaN if no keypoint is labelled.
    """
    distances = np.linalg.norm(np.asarray(predicted, np.float64) - target, axis=-1)
    in_mean = np.array([name not in PCKH_LEFT_OUT for name in MPII.keypoints])
    result: dict[str, float] = {}
    for threshold in thresholds:
        correct = distances <= threshold * head_sizes[:, None]
        if not result:
            percentages = [_percent(correct[visible[:, k], k]) for k in range(MPII.num_keypoints)]
            for group, names in PCKH_GROUPS.items():
                result[group] = float(np.mean([percentages[MPII.keypoints.index(name)] for name in names]))
        result[f"PCKh@{threshold:g}"] = _percent(correct[visible & in_mean])
    return result


def _percent(correct: Bool[np.ndarray, " n"]) -> float:
    return 100 * float(correct.mean()) if len(correct) else float("nan")
