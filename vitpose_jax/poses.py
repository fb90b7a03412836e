"""Poses: the keypoints found in one image, and the formats of other tools that they are converted to."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from vitpose_jax.skeletons import COCO, COCO25, Skeleton

if TYPE_CHECKING:
    import supervision

Row: TypeAlias = tuple[Skeleton, Float[np.ndarray, "k 2"], Float[np.ndarray, " k"], Float[np.ndarray, "4"]]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["keypoints", "scores", "boxes", "skeleton_index", "box_scores"],
    meta_fields=["skeletons"],
)
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Poses:
    """The keypoints of n people or animals in one image; a JAX pytree. Make one with `Poses.create`.

    Attributes:
        keypoints: float32 (x, y) in pixels of the image, pixel centres at integers. K is the largest number of
            keypoints of the skeletons; slots that a row's skeleton does not have hold NaN.
        scores: peak values of the heatmaps. They are not probabilities and can exceed 1. 0 in unused slots.
        boxes: x, y, width, height in pixels of the image, unchanged, from the caller or the detector.
        skeleton_index: for each row, the index of its skeleton in `skeletons`.
        skeletons: static; one, unless datasets were mixed in one call.
        box_scores: of the detector that found the boxes; None if the caller gave them, or if the box is the whole
            image.
    """

    keypoints: Float[Array, "n K 2"] | Float[np.ndarray, "n K 2"]
    scores: Float[Array, "n K"] | Float[np.ndarray, "n K"]
    boxes: Float[Array, "n 4"] | Float[np.ndarray, "n 4"]
    skeleton_index: Int[Array, " n"] | Int[np.ndarray, " n"]
    skeletons: tuple[Skeleton, ...]
    box_scores: Float[Array, " n"] | Float[np.ndarray, " n"] | None = None

    @classmethod
    def create(
        cls,
        keypoints: ArrayLike,
        scores: ArrayLike,
        boxes: ArrayLike,
        skeletons: Skeleton | Sequence[Skeleton],
        skeleton_index: ArrayLike | None = None,
        box_scores: ArrayLike | None = None,
    ) -> "Poses":
        """Poses on the host, checked; slots that a row's skeleton does not have get NaN and score 0.

        Args:
            keypoints: (n, K, 2), as in the attributes; K is the largest number of keypoints of the skeletons.
            scores: (n, K).
            boxes: (n, 4).
            skeletons: one for all rows, or several with a `skeleton_index`.
            skeleton_index: (n,) integers; None for 0 everywhere.
            box_scores: (n,) of a detector, or None.

        Raises:
            ValueError: if shapes disagree with each other or with the skeletons, or an index is out of range.
        """
        skeletons = (skeletons,) if isinstance(skeletons, Skeleton) else tuple(skeletons)
        if not skeletons:
            raise ValueError("skeletons: expected one or more, got none")
        keypoints, scores, boxes = (np.array(values, np.float32) for values in (keypoints, scores, boxes))
        box_scores = None if box_scores is None else np.array(box_scores, np.float32)
        n, largest = len(np.atleast_1d(boxes)), max(skeleton.num_keypoints for skeleton in skeletons)
        index = np.zeros(n, np.int32) if skeleton_index is None else np.asarray(skeleton_index).astype(np.int32)
        for name, array, shape in (
            ("boxes", boxes, (n, 4)),
            ("keypoints", keypoints, (n, largest, 2)),
            ("scores", scores, (n, largest)),
            ("skeleton_index", index, (n,)),
            ("box_scores", box_scores, (n,)),
        ):
            if array is not None and array.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
        if np.any((index < 0) | (index >= len(skeletons))):
            raise ValueError(f"skeleton_index: expected 0 to {len(skeletons) - 1}, got {index.tolist()}")
        counts = np.array([skeleton.num_keypoints for skeleton in skeletons])
        unused = np.arange(largest) >= counts[index][:, None]
        keypoints[unused], scores[unused] = np.nan, 0
        return cls(
            keypoints=keypoints,
            scores=scores,
            boxes=boxes,
            skeleton_index=index,
            skeletons=skeletons,
            box_scores=box_scores,
        )

    @property
    def skeleton(self) -> Skeleton:
        """The skeleton of all rows.

        Raises:
            ValueError: if rows have several; select the rows of one, as in `poses[poses.skeleton_index == 0]`.
        """
        if len(self.skeletons) == 1:
            return self.skeletons[0]
        indices = sorted(set(np.asarray(self.skeleton_index).tolist()))
        if len(indices) != 1:
            names = ", ".join(skeleton.name for skeleton in self.skeletons)
            raise ValueError(f"skeleton: expected rows of one skeleton, got {len(indices)} of {names}")
        return self.skeletons[indices[0]]

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    def __repr__(self) -> str:
        # Inside JAX the fields can be anything.
        shape = getattr(self.keypoints, "shape", "?")
        return f"Poses(keypoints {shape}, {', '.join(skeleton.name for skeleton in self.skeletons)})"

    def __getitem__(self, rows: Any) -> "Poses":
        """Some of the poses, by an index, a slice, a mask or a list of indices.

        Skeletons that none of these rows has are dropped, and K shrinks to the largest of the others.

        Raises:
            IndexError: for an index out of range.
        """
        rows = np.atleast_1d(np.arange(len(self))[rows])
        if rows.ndim != 1:
            raise IndexError(f"rows: expected an index, a slice, a mask or a list, got shape {rows.shape}")
        index, skeletons = self.skeleton_index[rows], self.skeletons
        if len(skeletons) > 1 and len(rows):
            used, index = np.unique(np.asarray(index), return_inverse=True)
            index, skeletons = index.astype(np.int32), tuple(skeletons[number] for number in used)
        largest = max(skeleton.num_keypoints for skeleton in skeletons)
        return Poses(
            keypoints=self.keypoints[rows, :largest],
            scores=self.scores[rows, :largest],
            boxes=self.boxes[rows],
            skeleton_index=index,
            skeletons=skeletons,
            box_scores=None if self.box_scores is None else self.box_scores[rows],
        )

    def __iter__(self) -> Iterator["Poses"]:
        """Poses of length 1, one for each row."""
        return (self[row] for row in range(len(self)))

    def rows(self) -> Iterator[Row]:
        """Each row's skeleton, and its keypoints (k, 2), scores (k,) and box (4,) on the host, without unused slots."""
        arrays = (np.asarray(array) for array in (self.skeleton_index, self.keypoints, self.scores, self.boxes))
        for index, keypoints, scores, box in zip(*arrays, strict=True):
            skeleton = self.skeletons[index]
            yield skeleton, keypoints[: skeleton.num_keypoints], scores[: skeleton.num_keypoints], box

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, ready for JSON; this project's own format.

            {"poses": [{"skeleton": "coco", "box": [x, y, width, height],
                        "keypoints": [{"name": "nose", "x": 398.18, "y": 181.81, "score": 0.87}, ...]}, ...]}

        Coordinates are in pixels of the image, rounded to five decimals; null if they are not finite. With boxes of
        a detector, each pose also has a "box_score".
        """
        if self.box_scores is None:
            box_scores = [{}] * len(self)
        else:
            box_scores = [{"box_score": _or_null(score)} for score in self.box_scores]
        return {
            "poses": [
                {
                    "skeleton": skeleton.name,
                    "box": [_or_null(number) for number in box],
                    **box_score,
                    "keypoints": [
                        {"name": name, "x": _or_null(x), "y": _or_null(y), "score": _or_null(score)}
                        for name, (x, y), score in zip(skeleton.keypoints, keypoints, scores, strict=True)
                    ],
                }
                for (skeleton, keypoints, scores, box), box_score in zip(self.rows(), box_scores, strict=True)
            ]
        }

    def to_coco(
        self, image_id: int | str, box_scores: ArrayLike | None = None, category_id: int | Sequence[int] = 1
    ) -> list[dict[str, Any]]:
        """Results in the format of COCO's keypoint evaluation, one dict for each row.

        The score of a row is its box score times the mean of its keypoint scores. Keypoints are a flat list
        [x, y, score, ...], rounded to five decimals; a keypoint that is not finite is 0, 0, 0.

        Args:
            image_id: of the image in the annotation file.
            box_scores: the detector's scores, (n,); None for the `box_scores` of the poses, or 1 if they have none.
            category_id: of all rows, or one for each; 1 is COCO's person.

        Raises:
            ValueError: if box_scores is not n finite numbers, or there are not n categories.
        """
        box_scores = self.box_scores if box_scores is None else box_scores
        weights = np.ones(len(self)) if box_scores is None else np.asarray(box_scores, np.float64)
        if weights.shape != (len(self),) or not np.isfinite(weights).all():
            raise ValueError(f"box_scores: expected {len(self)} finite numbers, got {box_scores!r}")
        categories = [category_id] * len(self) if isinstance(category_id, int) else list(category_id)
        if len(categories) != len(self):
            raise ValueError(f"category_id: expected one for each of {len(self)} rows, got {len(categories)}")
        results = []
        for (_, keypoints, scores, box), weight, category in zip(self.rows(), weights, categories, strict=True):
            points = _points(keypoints, scores)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "keypoints": _numbers(points),
                    "score": float(weight * points[:, 2].mean()),
                    "bbox": _numbers(np.where(np.isfinite(box), box, 0)),
                }
            )
        return results

    def to_openpose(self, image_size: tuple[int, int] | None = None) -> dict[str, Any]:
        """The JSON that OpenPose 1.3 writes for one image.

        COCO keypoints become OpenPose's 18 body points; skeletons with feet become BODY_25. The neck and the mid-hip
        are the midpoints of shoulders and hips, with the lower of the two scores. COCO-WholeBody also fills the hands
        (21 points each) and the face: its 68 points and, for OpenPose's two pupils, the body's eyes. Scores are
        clipped to 0..1; a point that is not finite or has no positive score is 0, 0, 0: not found.

        Args:
            image_size: height and width of the image, which some readers need: written as "canvas_height" and
                "canvas_width".

        Raises:
            ValueError: for a skeleton without the 17 keypoints of COCO.
        """
        result = {"version": 1.3, "people": [_openpose_person(*row) for row in self.rows()]}
        if image_size is not None:
            result["canvas_height"], result["canvas_width"] = map(int, image_size)
        return result

    def to_supervision(self) -> "supervision.KeyPoints":
        """The poses as `supervision.KeyPoints`, for its annotators and trackers.

        Keypoints that are not finite become 0, 0 with score 0, and are not visible. All others are visible; hide weak
        ones with `key_points.visible = key_points.keypoint_confidence > threshold`.

        Raises:
            ImportError: if supervision is not installed.
        """
        try:
            from supervision import KeyPoints
        except ImportError:
            raise ImportError(
                'to_supervision needs the package supervision: pip install "vitpose-jax[supervision]"'
            ) from None
        points = _points(np.asarray(self.keypoints), np.asarray(self.scores)).astype(np.float32)
        visible = np.asarray(np.isfinite(np.asarray(self.keypoints)).all(axis=-1))
        return KeyPoints(xy=points[..., :2], keypoint_confidence=points[..., 2], visible=visible)


def _points(
    keypoints: Float[np.ndarray, "*rows 2"], scores: Float[np.ndarray, "*rows"]
) -> Float[np.ndarray, "*rows 3"]:
    """x, y, score in float64; zeros if one of them is not finite."""
    points = np.concatenate([keypoints, scores[..., None]], axis=-1).astype(np.float64)
    return np.where(np.isfinite(points).all(axis=-1, keepdims=True), points, 0)


def _numbers(values: np.ndarray) -> list[float]:
    # Adding 0 turns -0 into 0.
    return (np.round(values.astype(np.float64).ravel(), 5) + 0).tolist()


def _or_null(number: np.floating) -> float | None:
    return round(float(number), 5) if math.isfinite(number) else None


_ARMS = ("right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist")
_LEGS = ("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle")
_HEAD = ("right_eye", "left_eye", "right_ear", "left_ear")
_FEET = tuple(name for name in COCO25.keypoints if name.endswith(("toe", "heel")))
_OPENPOSE_18 = ("nose", "neck", *_ARMS, *_LEGS, *_HEAD)
_OPENPOSE_25 = ("nose", "neck", *_ARMS, "mid_hip", *_LEGS, *_HEAD, *_FEET)
# The pupils come last: the right one, then the left one.
_OPENPOSE_FACE = (*(f"face-{index}" for index in range(68)), "right_eye", "left_eye")


def _openpose_person(
    skeleton: Skeleton,
    keypoints: Float[np.ndarray, "k 2"],
    scores: Float[np.ndarray, " k"],
    box: Float[np.ndarray, "4"],
) -> dict[str, Any]:
    if not set(COCO.keypoints) <= set(skeleton.keypoints):
        raise ValueError(
            f"OpenPose JSON: the skeleton {skeleton.name!r} lacks keypoints of COCO; supported are coco, coco25, "
            "wholebody and others that have COCO's 17 names"
        )
    points = _points(keypoints, scores)
    points[:, 2] = points[:, 2].clip(max=1)
    points[points[:, 2] <= 0] = 0
    named = dict(zip(skeleton.keypoints, points, strict=True))
    for name, joint in (("neck", "shoulder"), ("mid_hip", "hip")):
        left, right = named[f"left_{joint}"], named[f"right_{joint}"]
        score = min(left[2], right[2])
        named[name] = np.array([*(left[:2] + right[:2]) / 2, score]) if score > 0 else np.zeros(3)

    def part(names: Iterable[str]) -> list[float]:
        return _numbers(np.stack([named[name] for name in names]))

    has_feet, has_face = set(_FEET) <= set(named), set(_OPENPOSE_FACE) <= set(named)
    person: dict[str, Any] = {
        "person_id": [-1],
        "pose_keypoints_2d": part(_OPENPOSE_25 if has_feet else _OPENPOSE_18),
        "face_keypoints_2d": part(_OPENPOSE_FACE) if has_face else [],
    }
    for side in ("left", "right"):
        start = skeleton.keypoints.index(f"{side}_hand_root") if f"{side}_hand_root" in named else None
        hand = [] if start is None else _numbers(points[start : start + 21])
        person[f"hand_{side}_keypoints_2d"] = hand
    person.update({f"{part}_keypoints_3d": [] for part in ("pose", "face", "hand_left", "hand_right")})
    return person
