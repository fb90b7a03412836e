"""The same number for the same person from frame to frame.

    detection   rows: the detector's boxes, and the boxes of tracks that it missed
      predict      each track's box and keypoints move on at its speed
      similarity   the mean of the boxes' IoU and of the poses' OKS
      assignment   the sum of similarities is largest: first tracks that were in the last frame, then lost ones
    between     rows: one for each track, whose pose was looked for where it was last

The assignment follows ByteTrack's two ideas, motion and a buffer for lost tracks (Zhang et al., ECCV 2022,
https://arxiv.org/abs/2110.06864), with OKS beside IoU as in PoseFlow (Xiu et al., BMVC 2018,
https://arxiv.org/abs/1802.00977). Trackers of boxes know neither keypoints nor the frames between two detections.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from vitpose_jax.evaluation.oks import instance_scores, object_keypoint_similarity
from vitpose_jax.overlaps import box_overlaps
from vitpose_jax.video.matching import assign
from vitpose_jax.video.tracks import FEW, VISIBLE, Track, is_person, next_box

# The time, in seconds, over which a track's speed is averaged, and after which a lost person may be anywhere near.
SPEED_SECONDS = 0.3


class Tracker:
    """Gives the poses of each frame the numbers of their tracks. All coordinates are in pixels of the image.

    Args:
        sigmas: of the skeleton, for OKS; () compares boxes only.
        new_score: a track begins with this score of a pose: its box score times the mean score of its visible
            keypoints (`instance_scores`). A weaker pose can only continue a track.
        max_gap: seconds without a detection after which a track ends. A lost person who comes back in time gets the
            old number.
        min_similarity: of a pose and a track, from 0 to 1.
        pose_weight: of OKS beside IoU in the similarity, 0 to 1.
        duplicate: two poses of one frame with a higher OKS are of one person.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(
        self,
        sigmas: Sequence[float] = (),
        *,
        new_score: float | int = 0.3,
        max_gap: float | int = 1.5,
        min_similarity: float | int = 0.15,
        pose_weight: float | int = 0.5,
        duplicate: float | int = 0.7,
    ):
        if not max_gap > 0:
            raise ValueError(f"max_gap: expected a positive number of seconds, got {max_gap}")
        limits = {
            "new_score": new_score,
            "min_similarity": min_similarity,
            "pose_weight": pose_weight,
            "duplicate": duplicate,
        }
        for name, value in limits.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
        self._sigmas, self._max_gap, self._duplicate = tuple(sigmas), max_gap, duplicate
        self._new_score = new_score
        self._min_similarity, self._pose_weight = min_similarity, pose_weight if sigmas else 0.0
        self._tracks: list[Track] = []
        self._next = 1

    @property
    def active(self) -> list[Track]:
        """The tracks that had a pose in the last frame."""
        return [track for track in self._tracks if not track.lost]

    @property
    def num_ids(self) -> int:
        """How many numbers were given so far."""
        return self._next - 1

    def end_all(self) -> None:
        """End all tracks: a new scene begins, and its people get new numbers."""
        self._tracks = []

    def next_boxes(self) -> Float[np.ndarray, "active 4"]:
        """Where to look for the active tracks in the next frame, x y w h: around their last keypoints."""
        return np.asarray([next_box(track) for track in self.active], np.float32).reshape(-1, 4)

    def unmatched(self, time: float, boxes: Float[np.ndarray, "n 4"]) -> list[int]:
        """The places in `active` of the tracks that no box fits: the detector missed them, or they are gone.

        Args:
            time: of the frame, in seconds.
            boxes: of the detector.
        """
        active = self.active
        overlaps = box_overlaps(self._predict(active, time)[0], boxes)
        rows, _ = assign(overlaps, self._min_similarity)
        return sorted(set(range(len(active))) - set(rows.tolist()))

    def follow(
        self,
        time: float,
        boxes: Float[np.ndarray, "n 4"],
        keypoints: Float[np.ndarray, "n K 2"],
        scores: Float[np.ndarray, "n K"],
    ) -> Int[np.ndarray, " n"]:
        """A frame between two detections: poses in the boxes of `next_boxes`, in their order.

        Returns:
            the tracks' ids; 0 for a row that is not a person any more, or that is on another track's person.
        """
        active = self.active
        ids = np.zeros(len(active), np.int64)
        for row, track in enumerate(active):
            if is_person(scores[row]):
                ids[row] = track.id
        for row in self._duplicates(
            boxes, keypoints, scores, [(bool(ids[r]), t.detected) for r, t in enumerate(active)]
        ):
            ids[row] = 0
        for row, track in enumerate(active):
            track.lost = ids[row] == 0
            if not track.lost:
                self._move(track, time, boxes[row], keypoints[row], scores[row])
        return ids

    def associate(
        self,
        time: float,
        boxes: Float[np.ndarray, "n 4"],
        keypoints: Float[np.ndarray, "n K 2"],
        scores: Float[np.ndarray, "n K"],
        box_scores: ArrayLike,
        own: Sequence[Track] = (),
    ) -> Int[np.ndarray, " n"]:
        """A frame with detections.

        Args:
            time: of the frame, in seconds, later than the last.
            boxes: x y w h in pixels: first the detector's, then those of `own`.
            keypoints, scores: of the poses in them.
            box_scores: of the detector's boxes.
            own: the tracks that the last rows belong to: their pose was looked for where it was last.

        Returns:
            the tracks' ids; 0 for a row that is no person.
        """
        self._tracks = [track for track in self._tracks if time - track.detected <= self._max_gap]
        count = len(boxes) - len(own)
        persons = np.asarray([is_person(row) for row in scores], bool).reshape(-1)
        ids = np.zeros(len(boxes), np.int64)
        box_scores = np.asarray(box_scores, np.float64).reshape(-1)
        pose_scores = instance_scores(box_scores[:count], scores[:count], VISIBLE)
        # First the tracks that were there in the last frame, then the lost ones.
        rows = np.flatnonzero(persons[:count])
        matched: dict[int, Track] = {}
        for lost in (False, True):
            tracks = [track for track in self._tracks if track.lost == lost]
            similarity = self._similarity(tracks, time, boxes[rows], keypoints[rows], scores[rows])
            places, columns = assign(similarity, self._min_similarity)
            matched |= {int(rows[column]): tracks[place] for place, column in zip(places, columns, strict=True)}
            rows = np.asarray([row for row in rows if row not in matched], np.int64)
        taken = {track.id for track in matched.values()}
        for row, track in enumerate(own, count):
            if persons[row] and track.id not in taken and track in self._tracks:
                matched[row] = track
        known = [
            (bool(persons[row]), time if row < count else matched[row].detected if row in matched else -np.inf)
            for row in range(len(boxes))
        ]
        # Of a matched and a new row on one person, the matched one stays.
        dropped = self._duplicates(boxes, keypoints, scores, known, [row in matched for row in range(len(boxes))])
        for track in self._tracks:
            track.lost = True
        for row in range(len(boxes)):
            if row in dropped or not persons[row] or (row >= count and row not in matched):
                continue
            detected = row < count
            if row in matched:
                track = matched[row]
                self._move(track, time, boxes[row], keypoints[row], scores[row])
            else:
                if pose_scores[row] < self._new_score or (scores[row] >= VISIBLE).sum() < FEW:
                    continue
                track = Track(
                    self._next, time, time, np.asarray(boxes[row], np.float64), keypoints[row], scores[row], 0.0
                )
                self._tracks.append(track)
                self._next += 1
            track.lost, ids[row] = False, track.id
            if detected:
                track.detected, track.box_score = time, float(box_scores[row])
        return ids

    def restore(
        self,
        time: float,
        ids: Sequence[int],
        boxes: Float[np.ndarray, "n 4"],
        keypoints: Float[np.ndarray, "n K 2"],
        scores: Float[np.ndarray, "n K"],
        box_scores: ArrayLike,
        *,
        detected: bool,
    ) -> None:
        """Take over a frame of an earlier run: its tracks go on with their numbers. Arguments: see `associate`."""
        tracks = {track.id: track for track in self._tracks}
        for track in self._tracks:
            track.lost = True
        for row, number in enumerate(ids):
            if number in tracks:
                track = tracks[number]
                self._move(track, time, boxes[row], keypoints[row], scores[row])
            else:
                box = np.asarray(boxes[row], np.float64)
                track = Track(number, time, time, box, keypoints[row], scores[row], 0.0)
                self._tracks.append(track)
            track.lost, track.box_score = False, float(np.asarray(box_scores)[row])
            track.detected = time if detected else track.detected
            self._next = max(self._next, number + 1)
        self._tracks = [track for track in self._tracks if time - track.detected <= self._max_gap]

    def _move(
        self,
        track: Track,
        time: float,
        box: Float[np.ndarray, "4"],
        keypoints: Float[np.ndarray, "K 2"],
        scores: Float[np.ndarray, " K"],
    ) -> None:
        """Set a track's last pose, and average its speed: by its visible keypoints, else by its box."""
        gap = time - track.time
        if gap > 0:
            both = (scores >= VISIBLE) & (track.scores >= VISIBLE)
            if both.sum() >= FEW:
                moved = np.median(keypoints[both] - track.keypoints[both], axis=0)
            else:
                moved = (box[:2] + box[2:] / 2) - (track.box[:2] + track.box[2:] / 2)
            weight = 1 - np.exp(-gap / SPEED_SECONDS)
            track.speed = track.speed + weight * (moved / gap - track.speed)
        track.time, track.box = time, np.asarray(box, np.float64)
        track.keypoints, track.scores = keypoints, scores

    def _predict(
        self, tracks: Sequence[Track], time: float
    ) -> tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, "n 2"]]:
        """The boxes of tracks at a time, and by how much they moved on."""
        gaps = np.asarray([time - track.time for track in tracks])
        speeds = np.asarray([track.speed for track in tracks]).reshape(-1, 2)
        shift = speeds * gaps[:, None]
        boxes = np.asarray([track.box for track in tracks], np.float64).reshape(-1, 4)
        return np.concatenate([boxes[:, :2] + shift, boxes[:, 2:]], axis=1), shift

    def _similarity(
        self,
        tracks: Sequence[Track],
        time: float,
        boxes: Float[np.ndarray, "n 4"],
        keypoints: Float[np.ndarray, "n K 2"],
        scores: Float[np.ndarray, "n K"],
    ) -> Float[np.ndarray, "tracks n"]:
        predicted, shift = self._predict(tracks, time)
        overlap = box_overlaps(predicted, boxes)
        if not self._pose_weight or not overlap.size:
            return overlap
        points = np.stack([track.keypoints for track in tracks]) + shift[:, None]
        visible = np.stack([track.scores for track in tracks]) >= VISIBLE
        both = visible[:, None] & (scores >= VISIBLE)[None]
        # How far a person moves beside the prediction grows with the time since the last pose.
        gaps = np.asarray([time - track.time for track in tracks])
        areas = (boxes[:, 2] * boxes[:, 3])[None] * (1 + gaps / SPEED_SECONDS)[:, None] ** 2
        oks = object_keypoint_similarity(points[:, None], keypoints[None], both, areas, self._sigmas)
        return np.where(both.sum(axis=-1) >= FEW, (1 - self._pose_weight) * overlap + self._pose_weight * oks, overlap)

    def _duplicates(
        self,
        boxes: Float[np.ndarray, "n 4"],
        keypoints: Float[np.ndarray, "n K 2"],
        scores: Float[np.ndarray, "n K"],
        known: Sequence[tuple[bool, float]],
        matched: Sequence[bool] | None = None,
    ) -> set[int]:
        """Rows on a person that another row is on too: the one that a detector saw last stays, then the older track."""
        order = sorted(
            (row for row, (person, _) in enumerate(known) if person),
            key=lambda row: (matched is None or matched[row], known[row][1], float(scores[row].mean())),
            reverse=True,
        )
        kept: list[int] = []
        dropped: set[int] = set()
        for row in order:
            if kept and self._same_person(row, kept, boxes, keypoints, scores):
                dropped.add(row)
            else:
                kept.append(row)
        return dropped

    def _same_person(
        self,
        row: int,
        others: list[int],
        boxes: Float[np.ndarray, "n 4"],
        keypoints: Float[np.ndarray, "n K 2"],
        scores: Float[np.ndarray, "n K"],
    ) -> bool:
        if not self._sigmas:
            return bool((box_overlaps(boxes[[row]], boxes[others]) > self._duplicate).any())
        both = (scores[row] >= VISIBLE) & (scores[others] >= VISIBLE)
        areas = np.minimum(boxes[row, 2] * boxes[row, 3], boxes[others, 2] * boxes[others, 3])
        oks = object_keypoint_similarity(keypoints[others], keypoints[row][None], both, areas, self._sigmas)
        return bool((oks > self._duplicate).any())
