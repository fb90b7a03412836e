"""`track`: frames in, poses with ids out.

    frames      a thread reads and decodes ahead                                            reader.py
      a new scene   all tracks end                                                          cuts.py
      every n-th    detector and poses, and poses where it missed a track    associate      tracking.py
      between       poses in boxes around the last keypoints                 follow
    TrackedFrame    smoothed, if wanted                                                     smoothing.py

With every=1 no detection needs the poses of the last frame, so several frames share a batch (`PoseEstimator.stream`).
Only tracks that the detector missed need a call of their own.
"""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int, UInt8

from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.pipeline.postprocess import Decode, get_decoding
from vitpose_jax.poses import Poses
from vitpose_jax.serving.requests import DatasetKey, plain
from vitpose_jax.video.cuts import CutFinder
from vitpose_jax.video.reader import Frame, VideoReader
from vitpose_jax.video.smoothing import KeypointSmoother
from vitpose_jax.video.threads import frames_ahead, newest_frames
from vitpose_jax.video.tracking import Tracker

# The detector runs on each frame of this many.
EVERY = 5


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrackedFrame:
    """A frame and its people.

    Attributes:
        index: the frame's number in the source, counted from 0.
        time: in seconds from the start of the source.
        image: RGB.
        poses: in pixels of the image. `box_scores` are those of each person's last detection.
        track_ids: of each row of the poses: the same number for the same person, counted from 1.
        detected: the detector ran on this frame.
        unsmoothed: the keypoints before they were smoothed, which the tracker goes on with; None without smoothing.
    """

    index: int
    time: float
    image: UInt8[np.ndarray, "height width 3"]
    poses: Poses
    track_ids: Int[np.ndarray, " n"]
    detected: bool
    unsmoothed: Float[np.ndarray, "n K 2"] | None = None


class PoseTracker:
    """The state of a video on its way through an estimator. Arguments: see `track`."""

    def __init__(
        self,
        estimator: PoseEstimator,
        *,
        every: int = EVERY,
        smooth: bool | KeypointSmoother = False,
        dataset: DatasetKey = None,
        flip_test: bool = False,
        decode: Decode = "udp",
        tracker: Tracker | None = None,
    ):
        check_every(every)
        get_decoding(decode)
        skeleton = estimator.config.skeleton(plain(dataset))
        self._estimator, self._every = estimator, int(every)
        self._options: dict[str, Any] = {"dataset": dataset, "flip_test": flip_test, "decode": decode}
        self.tracker = Tracker(skeleton.sigmas) if tracker is None else tracker
        self._smoother = KeypointSmoother() if smooth is True else smooth or None
        self._last_detected, self._is_cut = -1, CutFinder()

    def restore(self, time: float, index: int, poses: Poses, ids: Int[np.ndarray, " n"], *, detected: bool) -> None:
        """Take over a frame of an earlier run, with its keypoints before they were smoothed."""
        boxes, keypoints, scores = map(np.asarray, (poses.boxes, poses.keypoints, poses.scores))
        self.tracker.restore(time, ids.tolist(), boxes, keypoints, scores, _box_scores(poses), detected=detected)
        if self._smoother is not None:
            self._smoother(time, ids.tolist(), keypoints, boxes)
        self._last_detected = index // self._every if detected else self._last_detected

    def look(self, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Look at the last frame of an earlier run, so that a cut after it is seen."""
        self._is_cut(image)

    def run(self, frames: Iterable[Frame], *, live: bool = False) -> Generator[TrackedFrame, None, None]:
        """The people of each frame. A live source is not read ahead of its results."""
        if self._every == 1 and not live:
            yield from self._stream(frames)
            return
        for frame in frames:
            yield self._step(frame)

    def _stream(self, frames: Iterable[Frame]) -> Iterator[TrackedFrame]:
        waiting: collections.deque[Frame] = collections.deque()

        def items() -> Iterator[tuple]:
            for frame in frames:
                waiting.append(frame)
                yield frame.image, None

        stream = cast(Iterator[Poses], self._estimator.stream(items(), **self._options))
        with contextlib.closing(cast(Any, stream)):
            for poses in stream:
                frame = waiting.popleft()
                if self._is_cut(frame.image):
                    self.tracker.end_all()
                yield self._continue(frame, poses)

    def _step(self, frame: Frame) -> TrackedFrame:
        # Also when the n-th frame itself is broken, the detector runs once among n.
        detected = self._last_detected != frame.index // self._every
        if self._is_cut(frame.image):
            self.tracker.end_all()
            detected = True
        if not detected:
            boxes = self.tracker.next_boxes()
            scores = [track.box_score for track in self.tracker.active]
            poses = cast(Poses, self._estimator(frame.image, boxes, **self._options))
            poses = dataclasses.replace(poses, box_scores=np.asarray(scores, np.float32))
            ids = self.tracker.follow(
                frame.time, np.asarray(poses.boxes), np.asarray(poses.keypoints), np.asarray(poses.scores)
            )
            return self._finish(frame, poses, ids, detected=False)
        self._last_detected = frame.index // self._every
        return self._continue(frame, cast(Poses, self._estimator(frame.image, None, **self._options)))

    def _continue(self, frame: Frame, poses: Poses) -> TrackedFrame:
        """Continue the tracks with detections, and with poses where the detector missed one."""
        active = self.tracker.active
        missed = self.tracker.unmatched(frame.time, np.asarray(poses.boxes)) if active else []
        if missed:
            boxes = self.tracker.next_boxes()[missed]
            more = cast(Poses, self._estimator(frame.image, boxes, **self._options))
            scores = np.asarray([active[place].box_score for place in missed], np.float32)
            poses = _join(poses, dataclasses.replace(more, box_scores=scores))
        ids = self._associate(frame, poses, [active[place] for place in missed])
        return self._finish(frame, poses, ids, detected=True)

    def _associate(self, frame: Frame, poses: Poses, own: list[Any] | None = None) -> Int[np.ndarray, " n"]:
        boxes, keypoints, scores = map(np.asarray, (poses.boxes, poses.keypoints, poses.scores))
        return self.tracker.associate(frame.time, boxes, keypoints, scores, _box_scores(poses), own or ())

    def _finish(self, frame: Frame, poses: Poses, ids: Int[np.ndarray, " n"], *, detected: bool) -> TrackedFrame:
        rows = np.flatnonzero(ids)
        rows = rows[np.argsort(ids[rows], kind="stable")]
        poses, ids = poses[rows], ids[rows]
        unsmoothed = None
        if self._smoother is not None:
            unsmoothed = np.asarray(poses.keypoints)
            keypoints = self._smoother(frame.time, ids.tolist(), unsmoothed, np.asarray(poses.boxes))
            poses = dataclasses.replace(poses, keypoints=keypoints)
        return TrackedFrame(
            index=frame.index,
            time=frame.time,
            image=frame.image,
            poses=poses,
            track_ids=ids,
            detected=detected,
            unsmoothed=unsmoothed,
        )


def read_in_thread(reader: VideoReader) -> Generator[Frame, None, None]:
    """The frames of a reader, which a thread decodes ahead; of a live source always the newest."""
    return newest_frames(reader) if reader.live else frames_ahead(reader)


def check_every(every: int) -> None:
    """Check how often the detector runs.

    Raises:
        ValueError: if it is not once in a positive number of frames.
    """
    if isinstance(every, bool) or int(every) != every or every < 1:
        raise ValueError(f"every: expected a number of frames, 1 or more, got {every}")


def track(
    estimator: PoseEstimator,
    source: str | os.PathLike[str] | VideoReader | Iterable[Frame],
    *,
    every: int = EVERY,
    smooth: bool | KeypointSmoother = False,
    dataset: DatasetKey = None,
    flip_test: bool = False,
    decode: Decode = "udp",
    tracker: Tracker | None = None,
    report: Callable[[str], None] | None = None,
) -> Iterator[TrackedFrame]:
    """The people of each frame of a video, each with the same number as long as it is seen.

    Args:
        estimator: its detector finds the people; the bundled finder by default.
        source: whatever `VideoReader` opens, a `VideoReader`, or frames, such as those of another reader: a list, or an
            iterable, which is not read ahead of its results.
        every: the detector runs once in so many frames; in between, a person is looked for around the last keypoints.
            With 1 on every frame, and several frames share a batch.
        smooth: filter the keypoints over time (see `KeypointSmoother`), or a smoother with other values. Smoothed
            keypoints lag a little: leave it off to measure.
        dataset, flip_test, decode: as for a call of the estimator.
        tracker: with other limits than the default's.
        report: gets one line for each broken frame; by default the logger "vitpose_jax".

    Yields:
        one `TrackedFrame` for each frame that is not broken, in order.

    Raises:
        ImportError: without PyAV, for a source that it has to open.
        FileNotFoundError, ValueError: for a source that cannot be read (see `VideoReader`), an `every` below 1, or
            animals without a detector of animals.
    """
    people = PoseTracker(
        estimator,
        every=every,
        smooth=smooth,
        dataset=dataset,
        flip_test=flip_test,
        decode=decode,
        tracker=tracker,
    )
    if isinstance(source, str | os.PathLike):
        source = VideoReader(source, report=report)
        return _closing(people.run(read_in_thread(source), live=source.live), source)
    if isinstance(source, VideoReader):
        return people.run(read_in_thread(source), live=source.live)
    return people.run(source, live=not isinstance(source, Sequence))


def _closing(frames: Generator[TrackedFrame, None, None], reader: VideoReader) -> Iterator[TrackedFrame]:
    with reader, contextlib.closing(frames):
        yield from frames


def _box_scores(poses: Poses) -> Float[np.ndarray, " n"]:
    return np.ones(len(poses)) if poses.box_scores is None else np.asarray(poses.box_scores, np.float64)


def _join(one: Poses, other: Poses) -> Poses:
    """The rows of both; of the same skeletons."""

    def rows(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(one, name)), np.asarray(getattr(other, name))])

    return Poses.create(
        rows("keypoints"),
        rows("scores"),
        rows("boxes"),
        one.skeletons,
        rows("skeleton_index"),
        None if one.box_scores is None or other.box_scores is None else rows("box_scores"),
        None if one.covariances is None or other.covariances is None else rows("covariances"),
    )
