"""`track_file`: a video in, a drawn video and JSON lines out; `vitpose-jax video` in Python.

thread     read and decode
here       detect, estimate, track, write JSON lines
thread     draw and encode
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from vitpose_jax.bulk.report import log
from vitpose_jax.bulk.settings import detector_settings, estimator_settings, hash_file
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.pipeline.postprocess import Decode
from vitpose_jax.serving.requests import DatasetKey, plain
from vitpose_jax.video.drawing import draw_tracks
from vitpose_jax.video.flow import EVERY, PoseTracker, TrackedFrame, check_every, read_in_thread
from vitpose_jax.video.reader import Frame, StreamEndedError, VideoLimitError, VideoReader
from vitpose_jax.video.record import RecordedLines, check_replaced, has_lines
from vitpose_jax.video.results import Format, convert_tracks, converted_path, read_tracks
from vitpose_jax.video.threads import Behind
from vitpose_jax.video.writer import VideoWriter, check_video_name


@dataclasses.dataclass
class VideoSummary:
    """What a run over a video did.

    Attributes:
        frames: the number of frames whose poses this run estimated.
        resumed: the number of frames whose poses were in the JSON lines already.
        broken: the number of frames that could not be decoded.
        ids: the number of tracks, in the frames of an earlier run too.
        seconds: from the first frame's results on, when all is loaded.
        written: the files and folders.
        broke_off: why a live source ended, if it ended with an error; what came before is written.
    """

    frames: int = 0
    resumed: int = 0
    broken: int = 0
    ids: int = 0
    seconds: float = 0.0
    written: list[pathlib.Path] = dataclasses.field(default_factory=list)
    broke_off: str | None = None


def track_file(
    estimator: PoseEstimator | Callable[[], PoseEstimator],
    source: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    json: str | os.PathLike[str] | None = None,
    formats: Sequence[Format] = (),
    every: int = EVERY,
    smooth: bool = False,
    drawing: Mapping[str, Any] | None = None,
    rate: float | int | None = None,
    dataset: DatasetKey = None,
    flip_test: bool = False,
    decode: Decode = "udp",
    overwrite: bool = False,
    max_frames: int | None = None,
    max_pixels: int | None = None,
    progress: bool = False,
    report: Callable[[str], None] = log,
    settings: Mapping[str, Any] | None = None,
    before_frame: Callable[[], None] | None = None,
) -> VideoSummary:
    """Track the people of a video, and write a drawn video, JSON lines, or both.

    Frames whose results are in the file of JSON lines already are not estimated again; a drawn video takes their poses
    from there. Beside NAME.jsonl, NAME.settings.jsonl says what the results depend on: a run with other settings is
    refused, unless it overwrites. It also names the files that were made beside the lines: other existing files are not
    replaced. An interruption leaves a video that plays and complete lines, and so does a live source that breaks off:
    it is not opened again.

    Args:
        estimator: or a function that loads one: it is called only if there is something to do.
        source: whatever `VideoReader` opens.
        output: the drawn video, with the audio of the source.
        json: the JSON lines.
        formats: more files made of the JSON lines at the end; see `convert_tracks`.
        every, smooth, dataset, flip_test, decode: see `track`.
        drawing: keyword arguments of `draw_tracks`.
        rate: see `VideoReader`.
        overwrite: replace existing results, from the first new frame on.
        max_frames, max_pixels: refuse a longer source, or larger frames. If a source has more than it says, the run
            ends when they come, without a drawn video and without lines that it began.
        progress: show frames per second and the number of people on standard error.
        report: gets each message, one line.
        settings: more values for the settings, ready for JSON: with a function that loads the estimator, what names
            its model.
        before_frame: called before the poses of each frame are estimated; what it raises ends the run as Ctrl-C does.

    Raises:
        ImportError: without PyAV.
        FileNotFoundError, ValueError: for a source that cannot be read, results that exist, or have other settings, or
            would replace the source, formats without `json`, and options that `track` refuses.
        VideoLimitError: a ValueError, for a source beyond `max_frames` or `max_pixels`.
    """
    output = None if output is None else pathlib.Path(output)
    lines_path = None if json is None else pathlib.Path(json)
    check_every(every)
    _check_names(pathlib.Path(source), output, lines_path, formats)
    if not overwrite:
        converted = [] if lines_path is None else [converted_path(lines_path, format) for format in formats]
        check_replaced([*([] if output is None else [output]), *converted], lines_path)
    summary = VideoSummary()
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(
            VideoReader(source, rate=rate, max_frames=max_frames, max_pixels=max_pixels, report=report)
        )
        record: dict[str, Any] = {
            "every": every,
            "smooth": smooth,
            "dataset": plain(dataset),
            "flip_test": flip_test,
            "decode": str(decode),
            **(settings or {}),
        }
        if isinstance(estimator, PoseEstimator):
            record |= estimator_settings(estimator) | detector_settings(estimator.detector)
        kept = None
        if lines_path is not None:
            kept = _open_lines(lines_path, reader, record, overwrite=overwrite)
            stack.callback(kept.lines.close)
        people = _Tracked(
            estimator,
            lines_path if kept is not None and kept.resumes else None,
            {"every": every, "smooth": smooth, "dataset": dataset, "flip_test": flip_test, "decode": decode},
        )
        draw = writer = None
        if output is not None:
            audio = source if pathlib.Path(source).is_file() else None
            writer = stack.enter_context(VideoWriter(output, reader.size, reader.rate, audio=audio, report=report))
            add = writer.add
            drawer = Behind[TrackedFrame](
                lambda frame: add(draw_tracks(frame.image, frame.poses, frame.track_ids, **(drawing or {})), frame.time)
            )
            draw = drawer.put
            stack.callback(drawer.close)
        start = None
        last = -1 if kept is None else kept.lines.last
        bar = stack.enter_context(
            tqdm(total=reader.num_frames, unit="frame", disable=not progress, file=sys.stderr, dynamic_ncols=True)
        )
        try:
            frames = stack.enter_context(contextlib.closing(_checked(read_in_thread(reader), before_frame)))
            results = people.run(frames, last=last, live=reader.live, draw=draw is not None)
            for frame in stack.enter_context(contextlib.closing(results)):
                if kept is not None:
                    kept.begin(output)
                if frame is None or frame.index <= last:
                    summary.resumed += 1
                else:
                    summary.frames += 1
                    if kept is not None:
                        kept.lines.add(
                            frame.index,
                            frame.time,
                            frame.poses,
                            frame.track_ids,
                            detected=frame.detected,
                            unsmoothed=frame.unsmoothed,
                        )
                if frame is not None and draw is not None:
                    draw(frame)
                start = start or time.monotonic()
                bar.update()
                if frame is not None:
                    bar.set_postfix(people=len(frame.poses), refresh=False)
        except StreamEndedError as error:
            summary.broke_off = str(error)
            report(summary.broke_off)
        except VideoLimitError:
            if writer is not None:
                writer.discard()
            if kept is not None:
                kept.remove()
            raise
        finally:
            summary.seconds = 0.0 if start is None else time.monotonic() - start
            summary.broken, summary.ids = reader.broken, people.num_ids
    if output is not None and output.exists():
        summary.written.append(output)
    if lines_path is not None and kept is not None:
        kept.begin(output)
        kept.lines.close()
        summary.written.append(lines_path)
        for format in formats:
            kept.announce(converted_path(lines_path, format))
            summary.written.append(convert_tracks(lines_path, format, reader.size))
    return summary


class _Tracked:
    """The frames of a run: those of an earlier run from its lines, then those of the estimator."""

    def __init__(
        self,
        estimator: PoseEstimator | Callable[[], PoseEstimator],
        earlier: pathlib.Path | None,
        options: Mapping[str, Any],
    ):
        self._estimator, self._earlier, self._options = estimator, earlier, options
        self._people: PoseTracker | None = None
        self._earlier_ids = 0

    @property
    def num_ids(self) -> int:
        return self._earlier_ids if self._people is None else self._people.tracker.num_ids

    def run(
        self, frames: Iterator[Frame], *, last: int, live: bool, draw: bool
    ) -> Generator[TrackedFrame | None, None, None]:
        """Frames up to `last` come from the lines; None in the place of one that need not be drawn."""
        first = previous = None
        if self._earlier is not None:
            records = read_tracks(self._earlier)
            pending = next(records, None)
            for frame in frames:
                if frame.index > last:
                    first = frame
                    break
                previous = frame
                while pending is not None and pending.index < frame.index:
                    pending = next(records, None)
                if pending is None or pending.index != frame.index:
                    continue  # it was broken in the earlier run
                self._earlier_ids = max([self._earlier_ids, *pending.track_ids.tolist()])
                if draw:
                    yield TrackedFrame(
                        index=frame.index,
                        time=frame.time,
                        image=frame.image,
                        poses=pending.poses,
                        track_ids=pending.track_ids,
                        detected=pending.detected,
                    )
                else:
                    yield None
            if first is None:
                return
        elif live:
            # From here on a thread takes what the source sends, also while the model is loaded.
            first = next(frames, None)
            if first is None:
                return
        people = self._people = self._load()
        if self._earlier is not None:
            for record in read_tracks(self._earlier):
                poses = record.poses
                if record.unsmoothed is not None:
                    poses = dataclasses.replace(poses, keypoints=record.unsmoothed)
                people.restore(record.time, record.index, poses, record.track_ids, detected=record.detected)
        if previous is not None:
            people.look(previous.image)
        yield from people.run(_with(first, frames), live=live)

    def _load(self) -> PoseTracker:
        estimator = self._estimator if isinstance(self._estimator, PoseEstimator) else self._estimator()
        return PoseTracker(estimator, **self._options)


def _checked(frames: Generator[Frame, None, None], check: Callable[[], None] | None) -> Generator[Frame, None, None]:
    with contextlib.closing(frames):
        for frame in frames:
            if check is not None:
                check()
            yield frame


def _with(first: Frame | None, frames: Iterator[Frame]) -> Iterable[Frame]:
    if first is not None:
        yield first
    yield from frames


def _open_lines(path: pathlib.Path, reader: VideoReader, settings: dict[str, Any], *, overwrite: bool) -> RecordedLines:
    """The JSON lines of an earlier run with the same settings, or new ones."""
    if reader.live and has_lines(path) and not overwrite:
        raise ValueError(f"{path}: exists already, and a live source cannot be resumed; overwrite it")
    source = pathlib.Path(reader.name)
    settings = {**settings, "source": hash_file(source) if source.is_file() else reader.name, "rate": reader.rate}
    return RecordedLines(path, settings, overwrite=overwrite)


def _check_names(
    source: pathlib.Path,
    output: pathlib.Path | None,
    lines: pathlib.Path | None,
    formats: Sequence[Format],
) -> None:
    if output is None and lines is None:
        raise ValueError("expected a drawn video to write, JSON lines, or both; got neither")
    if formats and lines is None:
        raise ValueError(f"formats: {', '.join(formats)} are made of the JSON lines, and no file for these is named")
    if output is not None:
        check_video_name(output)
    if lines is not None and lines.suffix.lower() not in (".jsonl", ".ndjson"):
        raise ValueError(f"{lines}: expected a name that ends in .jsonl: there is one line of JSON for each frame")
    for path in (output, lines):
        if path is not None and path.exists() and source.exists() and path.samefile(source):
            raise ValueError(f"{path}: would replace the source; choose another name")
