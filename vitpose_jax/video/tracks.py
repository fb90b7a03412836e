"""One person of a video: where it was last, and where to look for it next."""

import dataclasses

import numpy as np
from jaxtyping import Float

# Keypoints of a lower score say nothing about where a person is.
VISIBLE = 0.3
# Boxes from keypoints: they end this fraction of the person's size beyond the keypoints; their sides shrink at most to
# this fraction from one frame to the next.
MARGIN, SHRINK = 0.1, 0.9
# A pose is a person's if the better half of its keypoints has this mean score. A pose with fewer visible keypoints than
# FEW says nothing about a movement, and begins no track.
PERSON_SCORE, FEW = 0.3, 3


@dataclasses.dataclass(eq=False)
class Track:
    """One person.

    Attributes:
        id: counted from 1.
        time: of the last pose, in seconds; `detected`: of the last one in a box of the detector.
        box: x y w h in pixels: of the detector, or from keypoints.
        keypoints, scores: of the last pose.
        speed: of the middle of the box, in pixels per second.
        lost: no pose in the last frame.
    """

    id: int
    time: float
    detected: float
    box: Float[np.ndarray, "4"]
    keypoints: Float[np.ndarray, "K 2"]
    scores: Float[np.ndarray, " K"]
    box_score: float
    speed: Float[np.ndarray, "2"] = dataclasses.field(default_factory=lambda: np.zeros(2))
    lost: bool = False


def next_box(track: Track) -> Float[np.ndarray, "4"]:
    """x y w h around a track's visible keypoints, with a margin; with too few of them, its last box."""
    visible = (track.scores >= VISIBLE) & np.isfinite(track.keypoints).all(axis=-1)
    if visible.sum() < FEW:
        return np.asarray(track.box, np.float64)
    points = track.keypoints[visible].astype(np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = MARGIN * max(float((high - low).max()), 1.0)
    low, high = low - margin, high + margin
    # A hidden leg must not make the box lose the leg for good.
    missing = np.maximum(SHRINK * track.box[2:] - (high - low), 0)
    last = track.box[:2] + track.box[2:] / 2 - (low + high) / 2
    low = low - np.where(last < 0, missing, 0) - np.where(last == 0, missing / 2, 0)
    high = high + np.where(last > 0, missing, 0) + np.where(last == 0, missing / 2, 0)
    return np.concatenate([low, high - low])


def is_person(scores: Float[np.ndarray, " K"]) -> bool:
    """Whether the scores of a pose's keypoints are those of a person, and not of a box beside everyone."""
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return False
    # The better half: a person whose legs are hidden is one too.
    best = np.sort(finite)[-max(1, (len(finite) + 1) // 2) :]
    return bool(best.mean() >= PERSON_SCORE)
