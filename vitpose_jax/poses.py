"""Poses: the keypoints found in one image, and the formats of other tools that they are converted to."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from vitpose_jax.pose_formats.openpose import flat_numbers, openpose_person, point_rows
from vitpose_jax.pose_formats.table import pose_table
from vitpose_jax.skeletons import Skeleton

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports]
    import supervision

Row: TypeAlias = tuple[Skeleton, Float[np.ndarray, "k 2"], Float[np.ndarray, " k"], Float[np.ndarray, "4"]]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["keypoints", "scores", "boxes", "skeleton_index", "box_scores", "covariances"],
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
        covariances: how wide the peak of each keypoint is: the covariance matrix of a Gaussian, x first, in square
            pixels of the image; see `peak_covariances`. NaN without a peak and in unused slots. None if unknown.
    """

    keypoints: Float[Array, "n K 2"] | Float[np.ndarray, "n K 2"]
    scores: Float[Array, "n K"] | Float[np.ndarray, "n K"]
    boxes: Float[Array, "n 4"] | Float[np.ndarray, "n 4"]
    skeleton_index: Int[Array, " n"] | Int[np.ndarray, " n"]
    skeletons: tuple[Skeleton, ...]
    box_scores: Float[Array, " n"] | Float[np.ndarray, " n"] | None = None
    covariances: Float[Array, "n K 2 2"] | Float[np.ndarray, "n K 2 2"] | None = None

    @classmethod
    def create(
        cls,
        keypoints: ArrayLike,
        scores: ArrayLike,
        boxes: ArrayLike,
        skeletons: Skeleton | Sequence[Skeleton],
        skeleton_index: ArrayLike | None = None,
        box_scores: ArrayLike | None = None,
        covariances: ArrayLike | None = None,
    ) -> "Poses":
        """Poses on the host, checked; slots that a row's skeleton does not have get NaN and score 0.

        Args:
            keypoints: (n, K, 2), as in the attributes; K is the largest number of keypoints of the skeletons.
            scores: (n, K).
            boxes: (n, 4).
            skeletons: one for all rows, or several with a `skeleton_index`.
            skeleton_index: (n,) integers; None for 0 everywhere.
            box_scores: (n,) of a detector, or None.
            covariances: (n, K, 2, 2), or None.

        Raises:
            ValueError: if shapes disagree with each other or with the skeletons, or an index is out of range.
        """
        skeletons = (skeletons,) if isinstance(skeletons, Skeleton) else tuple(skeletons)
        if not skeletons:
            raise ValueError("skeletons: expected one or more, got none")
        keypoints, scores, boxes = (np.array(values, np.float32) for values in (keypoints, scores, boxes))
        box_scores = None if box_scores is None else np.array(box_scores, np.float32)
        covariances = None if covariances is None else np.array(covariances, np.float32)
        n, largest = len(np.atleast_1d(boxes)), max(skeleton.num_keypoints for skeleton in skeletons)
        index = np.zeros(n, np.int32) if skeleton_index is None else np.asarray(skeleton_index).astype(np.int32)
        for name, array, shape in (
            ("boxes", boxes, (n, 4)),
            ("keypoints", keypoints, (n, largest, 2)),
            ("scores", scores, (n, largest)),
            ("skeleton_index", index, (n,)),
            ("box_scores", box_scores, (n,)),
            ("covariances", covariances, (n, largest, 2, 2)),
        ):
            if array is not None and array.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
        if np.any((index < 0) | (index >= len(skeletons))):
            raise ValueError(f"skeleton_index: expected 0 to {len(skeletons) - 1}, got {index.tolist()}")
        counts = np.array([skeleton.num_keypoints for skeleton in skeletons])
        unused = np.arange(largest) >= counts[index][:, None]
        keypoints[unused], scores[unused] = np.nan, 0
        if covariances is not None:
            covariances[unused] = np.nan
        return cls(
            keypoints=keypoints,
            scores=scores,
            boxes=boxes,
            skeleton_index=index,
            skeletons=skeletons,
            box_scores=box_scores,
            covariances=covariances,
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

    @overload
    def __getitem__(self, rows: str) -> Float[np.ndarray, "n 2"]: ...
    @overload
    def __getitem__(self, rows: Any) -> "Poses": ...
    def __getitem__(self, rows: Any) -> "Poses | Float[np.ndarray, 'n 2']":
        """Some of the rows, by an index, a slice, a mask or a list of indices; or one keypoint of all, by its name.

        Skeletons that none of these rows has are dropped, and K shrinks to the largest of the others.
        `poses["nose"]` is (n, 2), x and y in pixels of the image; NaN in rows whose skeleton has no nose.

        Raises:
            IndexError: for an index out of range.
            KeyError: for a name that no skeleton has, listing the known ones.
        """
        if isinstance(rows, str):
            return self._keypoint(rows)
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
            covariances=None if self.covariances is None else self.covariances[rows, :largest],
        )

    def _keypoint(self, name: str) -> Float[np.ndarray, "n 2"]:
        names = [skeleton.keypoints for skeleton in self.skeletons]
        if not any(name in row for row in names):
            known = dict.fromkeys(keypoint for row in names for keypoint in row)
            raise KeyError(f"no keypoint {name!r}; expected one of {', '.join(known)}")
        keypoints = np.asarray(self.keypoints)
        points = np.full((len(self), 2), np.nan, np.float32)
        for row, index in enumerate(np.asarray(self.skeleton_index)):
            if name in names[index]:
                points[row] = keypoints[row, names[index].index(name)]
        return points

    def visible(self, threshold: float | int = 0.3) -> Bool[np.ndarray, "n K"]:
        """Which keypoints have at least this score; not those that are not finite.

        docs/explain/scores.md shows how far keypoints of a score are off.
        """
        finite = np.isfinite(np.asarray(self.keypoints)).all(axis=-1)
        return finite & (np.asarray(self.scores) >= threshold)

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
            points = point_rows(keypoints, scores)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "keypoints": flat_numbers(points),
                    "score": float(weight * points[:, 2].mean()),
                    "bbox": flat_numbers(np.where(np.isfinite(box), box, 0)),
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
        result = {"version": 1.3, "people": [openpose_person(*row) for row in self.rows()]}
        if image_size is not None:
            result["canvas_height"], result["canvas_width"] = map(int, image_size)
        return result

    @property
    def edges_from_one(self) -> dict[int, list[tuple[int, int]]]:
        """For each index of a skeleton, its edges with keypoints numbered from 1, as supervision counts them:

        `supervision.EdgeAnnotator(edges=poses.edges_from_one)`. Without edges supervision takes 17 keypoints for a
        person's, also if they are an animal's.
        """
        return {index: skeleton.edges_from_one for index, skeleton in enumerate(self.skeletons)}

    def to_supervision(self, track_ids: ArrayLike | None = None) -> "supervision.KeyPoints":
        """The poses as `supervision.KeyPoints`, for its annotators and trackers.

        Keypoints that are not finite become 0, 0 with score 0, and are not visible. All others are visible; hide weak
        ones with `key_points.visible = key_points.keypoint_confidence > threshold`.

        Args:
            track_ids: (n,) whole numbers, the `track_ids` of a frame of a video. They are "tracker_id" in the data:
                `KeyPoints` has no field for them. Selections of rows keep them, and `as_detections` takes them along:
                its annotators look for `detections.tracker_id = detections.data["tracker_id"]`.

        Returns:
            xy (n, K, 2) in pixels and keypoint_confidence (n, K); detection_confidence (n,), the box scores, or the
            means of the keypoint scores if there are none; class_id (n,), the `skeleton_index`. Its data holds
            "class_name" (n,), the names of the skeletons; "xyxy" (n, 4), the boxes; and "covariance" (n, K, 2, 2) in
            square pixels for the annotators of ellipses: the `covariances`. Poses without them have the disagreement of
            annotators instead, (sigma * side)^2, where side is the square root of the box's area; it is NaN for
            skeletons without sigmas.

        Raises:
            ImportError: if supervision is not installed.
            ValueError: if track_ids are not n whole numbers.
        """
        try:
            from supervision import KeyPoints
        except ImportError:
            raise ImportError(
                'to_supervision needs the package supervision: pip install "vitpose-jax[supervision]"'
            ) from None
        points = point_rows(np.asarray(self.keypoints), np.asarray(self.scores)).astype(np.float32)
        visible = np.asarray(np.isfinite(np.asarray(self.keypoints)).all(axis=-1))
        index = np.asarray(self.skeleton_index).astype(int)
        names = np.asarray([self.skeletons[number].name for number in index], dtype=np.str_)
        boxes = np.asarray(self.boxes)
        tracks = {} if track_ids is None else {"tracker_id": self._check_ids(track_ids)}
        return KeyPoints(
            xy=points[..., :2],
            class_id=index,
            keypoint_confidence=points[..., 2],
            detection_confidence=self._row_scores(),
            visible=visible,
            data={
                "class_name": names,
                "xyxy": np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
                "covariance": self._disagreement() if self.covariances is None else np.asarray(self.covariances),
                **tracks,
            },
        )

    def to_pandas(self, layout: Literal["long", "wide"] = "long") -> "pandas.DataFrame":
        """The keypoints as a table of pandas.

        Args:
            layout: "long": a row for each keypoint, with the columns pose, skeleton, keypoint, x, y and score.
                "wide": a row for each pose, with the columns skeleton, box_x, box_y, box_width, box_height, box_score,
                and x, y and score of each keypoint: nose_x, nose_y, nose_score, ... Coordinates are in pixels of the
                image; what a row does not have is NaN.

        Raises:
            ImportError: if pandas is not installed.
            ValueError: for another layout.
        """
        return pose_table(list(self.rows()), self.box_scores, layout)

    def _check_ids(self, track_ids: ArrayLike) -> Int[np.ndarray, " n"]:
        ids = np.asarray(track_ids)
        if ids.shape != (len(self),) or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
            raise ValueError(f"track_ids: expected {len(self)} whole numbers, got {str(track_ids)[:80]}")
        return ids.astype(int)

    def _row_scores(self) -> Float[np.ndarray, " n"]:
        """The box score of each row, or the mean score of its keypoints."""
        if self.box_scores is not None:
            return np.asarray(self.box_scores, np.float32)
        means = [np.where(np.isfinite(scores), scores, 0).mean() for _, _, scores, _ in self.rows()]
        return np.asarray(means, np.float32)

    def _disagreement(self) -> Float[np.ndarray, "n K 2 2"]:
        deviations = np.full(np.shape(self.scores), np.nan, np.float32)
        for row, (skeleton, _, _, box) in enumerate(self.rows()):
            if skeleton.sigmas:
                side = math.sqrt(max(float(box[2] * box[3]), 0.0))
                deviations[row, : skeleton.num_keypoints] = np.asarray(skeleton.sigmas) * side
        return np.square(deviations)[..., None, None] * np.eye(2, dtype=np.float32)


def _or_null(number: np.floating) -> float | None:
    return round(float(number), 5) if math.isfinite(number) else None
