"""OpenPose's JSON of one person, from the keypoints of COCO and of skeletons that hold them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from vitpose_jax.skeletons import COCO, COCO25, Skeleton

_ARMS = ("right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist")
_LEGS = ("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle")
_HEAD = ("right_eye", "left_eye", "right_ear", "left_ear")
_FEET = tuple(name for name in COCO25.keypoints if name.endswith(("toe", "heel")))
_OPENPOSE_18 = ("nose", "neck", *_ARMS, *_LEGS, *_HEAD)
_OPENPOSE_25 = ("nose", "neck", *_ARMS, "mid_hip", *_LEGS, *_HEAD, *_FEET)
# The pupils come last: the right one, then the left one.
_OPENPOSE_FACE = (*(f"face-{index}" for index in range(68)), "right_eye", "left_eye")


def openpose_person(
    skeleton: Skeleton,
    keypoints: Float[np.ndarray, "k 2"],
    scores: Float[np.ndarray, " k"],
    box: Float[np.ndarray, "4"],
) -> dict[str, Any]:
    """A person in OpenPose's JSON; `Poses.to_openpose` says how.

    Raises:
        ValueError: for a skeleton without the 17 keypoints of COCO.
    """
    if not set(COCO.keypoints) <= set(skeleton.keypoints):
        raise ValueError(
            f"OpenPose JSON: the skeleton {skeleton.name!r} lacks keypoints of COCO; supported are coco, coco25, "
            "wholebody and others that have COCO's 17 names"
        )
    points = point_rows(keypoints, scores)
    points[:, 2] = points[:, 2].clip(max=1)
    points[points[:, 2] <= 0] = 0
    named = dict(zip(skeleton.keypoints, points, strict=True))
    for name, joint in (("neck", "shoulder"), ("mid_hip", "hip")):
        left, right = named[f"left_{joint}"], named[f"right_{joint}"]
        score = min(left[2], right[2])
        named[name] = np.array([*(left[:2] + right[:2]) / 2, score]) if score > 0 else np.zeros(3)

    def part(names: Iterable[str]) -> list[float]:
        return flat_numbers(np.stack([named[name] for name in names]))

    has_feet, has_face = set(_FEET) <= set(named), set(_OPENPOSE_FACE) <= set(named)
    person: dict[str, Any] = {
        "person_id": [-1],
        "pose_keypoints_2d": part(_OPENPOSE_25 if has_feet else _OPENPOSE_18),
        "face_keypoints_2d": part(_OPENPOSE_FACE) if has_face else [],
    }
    for side in ("left", "right"):
        start = skeleton.keypoints.index(f"{side}_hand_root") if f"{side}_hand_root" in named else None
        hand = [] if start is None else flat_numbers(points[start : start + 21])
        person[f"hand_{side}_keypoints_2d"] = hand
    person.update({f"{part}_keypoints_3d": [] for part in ("pose", "face", "hand_left", "hand_right")})
    return person


def point_rows(
    keypoints: Float[np.ndarray, "*rows 2"], scores: Float[np.ndarray, "*rows"]
) -> Float[np.ndarray, "*rows 3"]:
    """x, y, score in float64; zeros if one of them is not finite."""
    points = np.concatenate([keypoints, scores[..., None]], axis=-1).astype(np.float64)
    return np.where(np.isfinite(points).all(axis=-1, keepdims=True), points, 0)


def flat_numbers(values: np.ndarray) -> list[float]:
    """A flat list, rounded to five decimals."""
    # Adding 0 turns -0 into 0.
    return (np.round(values.astype(np.float64).ravel(), 5) + 0).tolist()
