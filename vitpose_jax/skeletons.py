"""Skeletons: which keypoint each channel of a head is.

One object holds everything that depends on the order of the keypoints: their names, which of them are mirror images
(`flip_pairs`), which are joined by a line (`edges`), how much annotators disagree (`sigmas`, for OKS) and which belong
to the upper body (`upper_body`, for training). All indices are 0-based. The six skeletons of ViTPose++ come first, in
the order of its experts; two more occur in evaluation and in converted checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skeleton:
    """The keypoints of one dataset.

    Attributes:
        name: the dataset, in lower case: "coco", "aic", ...
        keypoints: names of the K keypoints, in the order of the head's channels.
        flip_pairs: pairs of keypoints, left and right, that swap in a mirrored image.
        edges: pairs of keypoints joined by a line when drawn.
        sigmas: K per-keypoint standard deviations for OKS, as fractions of the person's size (the square root of its
            area); () if unknown.
        upper_body: keypoints of the upper body, for half-body augmentation; all others count as the lower body. ()
            turns that augmentation off.

    Raises:
        ValueError: if an index is out of range, a name occurs twice, a keypoint is in two flip pairs or twice in the
            upper body, the number of sigmas is not K, or a sigma is not above 0 and finite.
    """

    name: str
    keypoints: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    edges: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()
    upper_body: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ValueError(f"skeleton: expected a name of lower-case letters, digits, - and _, got {self.name!r}")
        count = len(self.keypoints)
        if count == 0:
            raise ValueError(f"skeleton {self.name!r}: expected at least one keypoint, got none")
        for keypoint in self.keypoints:
            if self.keypoints.count(keypoint) > 1:
                raise ValueError(f"skeleton {self.name!r}: expected each keypoint once, got {keypoint!r} twice")
        for field in ("flip_pairs", "edges"):
            for pair in getattr(self, field):
                if len(pair) != 2 or not all(0 <= index < count for index in pair):
                    raise ValueError(
                        f"skeleton {self.name!r}: {field} holds {pair}; expected two indices from 0 to {count - 1}"
                    )
        paired = [index for pair in self.flip_pairs for index in pair]
        if len(paired) != len(set(paired)):
            raise ValueError(f"skeleton {self.name!r}: a keypoint is in more than one flip pair")
        if self.sigmas and len(self.sigmas) != count:
            raise ValueError(f"skeleton {self.name!r}: expected {count} sigmas, got {len(self.sigmas)}")
        for keypoint, sigma in zip(self.keypoints, self.sigmas, strict=False):
            if not 0 < sigma < math.inf:
                raise ValueError(
                    f"skeleton {self.name!r}: expected sigmas above 0 and finite, got {sigma} for {keypoint!r}"
                )
        upper = self.upper_body
        if len(upper) != len(set(upper)) or not all(0 <= index < count for index in upper):
            raise ValueError(
                f"skeleton {self.name!r}: upper_body: expected distinct indices from 0 to {count - 1}, got {upper}"
            )

    @property
    def num_keypoints(self) -> int:
        """K, the number of keypoints."""
        return len(self.keypoints)

    @functools.cached_property
    def flip_indices(self) -> tuple[int, ...]:
        """For each of the K channels of a mirrored image, the index of its channel without mirroring."""
        indices = list(range(self.num_keypoints))
        for left, right in self.flip_pairs:
            indices[left], indices[right] = right, left
        return tuple(indices)

    @property
    def edges_from_one(self) -> list[tuple[int, int]]:
        """The edges with keypoints numbered from 1, as COCO's files and supervision's annotators count them."""
        return [(start + 1, end + 1) for start, end in self.edges]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, ready for JSON."""
        return {
            "name": self.name,
            "keypoints": list(self.keypoints),
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "edges": [list(pair) for pair in self.edges],
            "sigmas": list(self.sigmas),
            "upper_body": list(self.upper_body),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Skeleton:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if a field is missing, unknown or inconsistent.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        if not {"name", "keypoints"} <= set(values) <= expected:
            raise ValueError(f"skeleton: expected the fields {sorted(expected)}, got {sorted(values)}")
        return cls(
            name=values["name"],
            keypoints=tuple(values["keypoints"]),
            flip_pairs=tuple((a, b) for a, b in values.get("flip_pairs", ())),
            edges=tuple((a, b) for a, b in values.get("edges", ())),
            sigmas=tuple(values.get("sigmas", ())),
            upper_body=tuple(values.get("upper_body", ())),
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    return tuple((int(a), int(b)) for a, b in (pair.split("-") for pair in text.split()))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split())


COCO = Skeleton(
    name="coco",
    keypoints=_names(
        "nose, left_eye, right_eye, left_ear, right_ear, left_shoulder, right_shoulder, left_elbow, right_elbow, "
        "left_wrist, right_wrist, left_hip, right_hip, left_knee, right_knee, left_ankle, right_ankle"
    ),
    flip_pairs=_pairs("1-2 3-4 5-6 7-8 9-10 11-12 13-14 15-16"),
    edges=_pairs("15-13 13-11 16-14 14-12 11-12 5-11 6-12 5-6 5-7 6-8 7-9 8-10 1-2 0-1 0-2 1-3 2-4 3-5 4-6"),
    sigmas=_floats(
        "0.026 0.025 0.025 0.035 0.035 0.079 0.079 0.072 0.072 0.062 0.062 0.107 0.107 0.087 0.087 0.089 0.089"
    ),
    upper_body=tuple(range(11)),
)

AIC = Skeleton(
    name="aic",
    keypoints=_names(
        "right_shoulder, right_elbow, right_wrist, left_shoulder, left_elbow, left_wrist, right_hip, right_knee, "
        "right_ankle, left_hip, left_knee, left_ankle, head_top, neck"
    ),
    flip_pairs=_pairs("0-3 1-4 2-5 6-9 7-10 8-11"),
    edges=_pairs("2-1 1-0 0-13 13-3 3-4 4-5 8-7 7-6 6-9 9-10 10-11 12-13 0-6 3-9"),
    sigmas=_floats(
        "0.01388152 0.01515228 0.01057665 0.01417709 0.01497891 0.01402144 0.03909642 0.03686941 0.01981803 "
        "0.03843971 0.03412318 0.02415081 0.01291456 0.01236173"
    ),
    upper_body=(*range(6), 12, 13),
)

MPII = Skeleton(
    name="mpii",
    keypoints=_names(
        "right_ankle, right_knee, right_hip, left_hip, left_knee, left_ankle, pelvis, thorax, upper_neck, head_top, "
        "right_wrist, right_elbow, right_shoulder, left_shoulder, left_elbow, left_wrist"
    ),
    flip_pairs=_pairs("0-5 1-4 2-3 10-15 11-14 12-13"),
    edges=_pairs("0-1 1-2 2-6 6-3 3-4 4-5 6-7 7-8 8-9 8-12 12-11 11-10 8-13 13-14 14-15"),
    sigmas=_floats("0.089 0.083 0.107 0.107 0.083 0.089 0.026 0.026 0.026 0.026 0.062 0.072 0.179 0.179 0.072 0.062"),
    upper_body=tuple(range(7, 16)),
)

AP10K = Skeleton(
    name="ap10k",
    keypoints=_names(
        "L_Eye, R_Eye, Nose, Neck, Root of tail, L_Shoulder, L_Elbow, L_F_Paw, R_Shoulder, R_Elbow, R_F_Paw, L_Hip, "
        "L_Knee, L_B_Paw, R_Hip, R_Knee, R_B_Paw"
    ),
    flip_pairs=_pairs("0-1 5-8 6-9 7-10 11-14 12-15 13-16"),
    edges=_pairs("0-1 0-2 1-2 2-3 3-4 3-5 5-6 6-7 3-8 8-9 9-10 4-11 11-12 12-13 4-14 14-15 15-16"),
    sigmas=_floats(
        "0.025 0.025 0.026 0.035 0.035 0.079 0.072 0.062 0.079 0.072 0.062 0.107 0.087 0.089 0.107 0.087 0.089"
    ),
    # As in the original ViTPose repository, which counts the right front paw as lower body.
    upper_body=(*range(4), *range(5, 10)),
)

# APT-36K is labelled with the keypoints of AP-10K.
APT36K = dataclasses.replace(AP10K, name="apt36k")

_FEET = tuple(f"{side}_{part}" for side in ("left", "right") for part in ("big_toe", "small_toe", "heel"))
_FACE = tuple(f"face-{index}" for index in range(68))
_FINGERS = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
_HANDS = tuple(
    f"{side}_{part}"
    for side in ("left", "right")
    for part in ("hand_root", *(f"{finger}{joint}" for finger in _FINGERS for joint in (1, 2, 3, 4)))
)
_FEET_SIGMAS = _floats("0.068 0.066 0.066 0.092 0.094 0.094")
_FACE_SIGMAS = _floats(
    "0.042 0.043 0.044 0.043 0.04 0.035 0.031 0.025 0.02 0.023 0.029 0.032 0.037 0.038 0.043 0.041 0.045 0.013 "
    "0.012 0.011 0.011 0.012 0.012 0.011 0.011 0.013 0.015 0.009 0.007 0.007 0.007 0.012 0.009 0.008 0.016 0.01 "
    "0.017 0.011 0.009 0.011 0.009 0.007 0.013 0.008 0.011 0.012 0.01 0.034 0.008 0.008 0.009 0.008 0.008 0.007 "
    "0.01 0.008 0.009 0.009 0.009 0.007 0.007 0.008 0.011 0.008 0.008 0.008 0.01 0.008"
)
_HAND_SIGMAS = _floats(
    "0.029 0.022 0.035 0.037 0.047 0.026 0.025 0.024 0.035 0.018 0.024 0.022 0.026 0.017 0.021 0.021 0.032 0.02 "
    "0.019 0.022 0.031"
)
# The 68 face points are mirrored along the jaw, the brows, the nose, the eyes and the mouth.
_FACE_PAIRS = _pairs(
    "23-39 24-38 25-37 26-36 27-35 28-34 29-33 30-32 40-49 41-48 42-47 43-46 44-45 54-58 55-57 59-68 60-67 61-66 "
    "62-65 63-70 64-69 71-77 72-76 73-75 78-82 79-81 83-87 84-86 88-90"
)
# Every finger is a chain that starts at the root of its hand: keypoint 91 on the left, 112 on the right.
_HAND_EDGES = tuple(
    (root if joint == 0 else root + 4 * finger + joint, root + 4 * finger + joint + 1)
    for root in (91, 112)
    for finger in range(5)
    for joint in range(4)
)

WHOLEBODY = Skeleton(
    name="wholebody",
    keypoints=(*COCO.keypoints, *_FEET, *_FACE, *_HANDS),
    flip_pairs=(*COCO.flip_pairs, *_pairs("17-20 18-21 19-22"), *_FACE_PAIRS, *((i, i + 21) for i in range(91, 112))),
    edges=(*COCO.edges, *_pairs("15-17 15-18 15-19 16-20 16-21 16-22"), *_HAND_EDGES),
    sigmas=(*COCO.sigmas, *_FEET_SIGMAS, *_FACE_SIGMAS, *_HAND_SIGMAS, *_HAND_SIGMAS),
    # As in the original ViTPose repository, face and hands do not count as upper body.
    upper_body=COCO.upper_body,
)

CROWDPOSE = Skeleton(
    name="crowdpose",
    keypoints=_names(
        "left_shoulder, right_shoulder, left_elbow, right_elbow, left_wrist, right_wrist, left_hip, right_hip, "
        "left_knee, right_knee, left_ankle, right_ankle, top_head, neck"
    ),
    flip_pairs=_pairs("0-1 2-3 4-5 6-7 8-9 10-11"),
    edges=_pairs("10-8 8-6 11-9 9-7 6-7 0-6 1-7 0-1 0-2 1-3 2-4 3-5 12-13 1-13 0-13"),
    sigmas=_floats("0.079 0.079 0.072 0.072 0.062 0.062 0.107 0.107 0.087 0.087 0.089 0.089 0.079 0.079"),
    upper_body=(*range(6), 12, 13),
)

# The 25 keypoints of easy_ViTPose: COCO with neck, hip centre and feet.
COCO25 = Skeleton(
    name="coco25",
    keypoints=_names(
        "nose, left_eye, right_eye, left_ear, right_ear, neck, left_shoulder, right_shoulder, left_elbow, "
        "right_elbow, left_wrist, right_wrist, left_hip, right_hip, hip, left_knee, right_knee, left_ankle, "
        "right_ankle, left_big_toe, left_small_toe, left_heel, right_big_toe, right_small_toe, right_heel"
    ),
    flip_pairs=_pairs("1-2 3-4 6-7 8-9 10-11 12-13 15-16 17-18 19-22 20-23 21-24"),
    edges=_pairs(
        "17-15 15-12 18-16 16-13 12-14 13-14 5-14 6-5 7-5 6-8 7-9 8-10 9-11 1-2 0-1 0-2 1-3 2-4 17-21 18-24 19-20 "
        "22-23 19-21 22-24 5-0"
    ),
    upper_body=tuple(range(12)),
)

DATASETS = (COCO, AIC, MPII, AP10K, APT36K, WHOLEBODY)
"""The datasets of ViTPose++ in the order of its experts: the position is the `dataset_index`."""

# Skeletons of animals, by name.
ANIMAL_SKELETONS = frozenset({AP10K.name, APT36K.name})

SKELETONS = {skeleton.name: skeleton for skeleton in (*DATASETS, CROWDPOSE, COCO25)}
_ALIASES = {"cocowholebody": "wholebody"}


def canonical_name(name: str) -> str:
    """The form in which names of datasets are compared: lower case, without "-", "_" and spaces."""
    key = re.sub(r"[-_ ]", "", name.lower())
    return _ALIASES.get(key, key)


def get_skeleton(name: str) -> Skeleton:
    """The skeleton of a dataset by name; case, "-" and "_" do not matter ("AP-10K" is "ap10k").

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    key = canonical_name(name)
    if key not in SKELETONS:
        raise ValueError(f"no skeleton named {name!r}; expected one of {', '.join(SKELETONS)}")
    return SKELETONS[key]
