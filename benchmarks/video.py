"""Measures where the time of a video goes: reading, detection, poses, drawing, encoding; each alone and all together.

    python benchmarks/video.py in.mp4
    python benchmarks/video.py in.mp4 --every 1 --frames 100
    python benchmarks/video.py in.mp4 --picture docs/video.jpg --show 30 41 81 108 120 189
    python benchmarks/video.py in.mp4 --minutes 60 --height 128

All stages see the first --frames frames; those of a longer video are first written to a clip of H.264.
A stage has the seconds of the clock and those of the processor, of all threads; a busy machine changes the former only.
The network alone is detection and poses. With --picture it draws some frames side by side instead.
With --minutes it repeats the video until it is so long, and shows the memory of a whole run, with a drawn video and
JSON lines. The poses are those of two people who stand still: the network's memory does not depend on the number of
frames.
"""

import argparse
import fractions
import itertools
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import av
import numpy as np
from PIL import Image
from reports import markdown

from vitpose_jax import PoseEstimator, Poses, VitPoseConfig
from vitpose_jax.skeletons import COCO
from vitpose_jax.video import VideoReader, VideoWriter, track, track_file
from vitpose_jax.video.drawing import draw_tracks


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", help="a video file")
    parser.add_argument("--every", type=int, default=5, help="the detector runs once in so many frames")
    parser.add_argument("--frames", type=int, default=250, help="the first frames of the video")
    parser.add_argument("--picture", type=pathlib.Path, help="draw frames into this file instead")
    parser.add_argument("--show", nargs="+", type=int, default=[0], help="the frames of the picture, three in a row")
    parser.add_argument("--minutes", type=float, help="measure the memory over a video of this length instead")
    parser.add_argument("--height", type=int, help="make the long video smaller: rows of pixels")
    return parser


def main() -> None:
    """Measure, or draw."""
    options = parser().parse_args()
    if options.minutes is not None:
        with tempfile.TemporaryDirectory() as folder:
            measure_memory(repeat(options.video, options.minutes, options.height, folder), folder)
        return
    estimator = PoseEstimator.from_pretrained()
    if options.picture is not None:
        draw_picture(estimator, options.video, options.every, options.show, options.picture)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure_stages(estimator, first_frames(options.video, options.frames, folder), options.every, folder)


def first_frames(video: str, count: int, folder: str) -> str:
    """The video, or a clip of its first frames in the folder if it has more."""
    with VideoReader(video) as reader:
        frames = list(itertools.islice(reader, count + 1))
        if len(frames) <= count:
            return video
        with VideoWriter(f"{folder}/clip.mp4", reader.size, reader.rate) as writer:
            for frame in frames[:count]:
                writer.add(frame.image, frame.time)
    return f"{folder}/clip.mp4"


def measure_stages(estimator: PoseEstimator, video: str, every: int, folder: str) -> None:
    """Measure all stages on a whole video, and print the table."""
    with VideoReader(video) as reader:
        frames, size, rate = list(reader), reader.size, reader.rate

    def read() -> None:
        with VideoReader(video) as reader:
            for _ in reader:
                pass

    def detect() -> None:
        for frame in frames[::every]:
            estimator.detector(frame.image)

    tracked = list(track(estimator, frames, every=every))  # compiles

    def network() -> None:
        for _ in track(estimator, frames, every=every):
            pass

    drawings: list[np.ndarray] = []

    def draw() -> None:
        drawings.extend(draw_tracks(frame.image, frame.poses, frame.track_ids) for frame in tracked)

    def encode() -> None:
        with VideoWriter(f"{folder}/stage.mp4", size, rate) as writer:
            for frame, drawing in zip(frames, drawings, strict=True):
                writer.add(drawing, frame.time)

    def everything() -> None:
        track_file(estimator, video, output=f"{folder}/all.mp4", every=every, overwrite=True)

    rows = [measure(stage) for stage in (read, detect, network, draw, encode, everything)]
    names = ["read", "detect", "network: detect, poses, tracks", "draw", "encode", "everything, overlapping"]
    alone = sum(rows[place][1] for place in (0, 2, 3, 4))
    print(
        markdown(
            ["stage", "seconds", "of the processor", "fraction", "frames per second"],
            [
                [name, f"{wall:.2f}", f"{cpu:.2f}", f"{cpu / alone:.0%}", f"{len(frames) / wall:.1f}"]
                for name, (wall, cpu) in zip(names, rows, strict=True)
            ],
            numbers=4,
        )
    )
    people = sum(len(frame.poses) for frame in tracked)
    print(f"{len(frames)} frames of {size[1]} x {size[0]}, {people / len(frames):.2f} people in each")
    print(f"everything / network alone: {rows[5][0] / rows[2][0]:.2f} of the clock, {rows[5][1] / rows[2][1]:.2f}")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def repeat(video: str, minutes: float, height: int | None, folder: str) -> str:
    """A video that shows another one over and over: its packets are copied."""
    clip, path = f"{folder}/clip.mp4", f"{folder}/long.mp4"
    with VideoReader(video) as reader:
        frames, rate = list(reader), reader.rate
        rows, columns = reader.size if height is None else (height, round(height * reader.size[1] / reader.size[0]))
    with VideoWriter(clip, (rows, columns), rate) as writer:
        for frame in frames:
            writer.add(np.asarray(Image.fromarray(frame.image).resize((columns, rows))), frame.time)
    count, shift = max(round(60 * minutes * rate / len(frames)), 1), fractions.Fraction(len(frames)) / round(rate)
    with av.open(path, "w") as target:
        stream: Any = None
        for number in range(count):
            with av.open(clip) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(source.streams.video[0]):
                    if packet.dts is None:
                        continue
                    packet.pts += round(number * shift / packet.time_base)
                    packet.dts += round(number * shift / packet.time_base)
                    packet.stream = stream
                    target.mux(packet)
    return path


class StillPeople(PoseEstimator):
    """Two people who do not move, whatever the image shows."""

    def __init__(self) -> None:
        self.config, self.frames, self.memory = VitPoseConfig(), 0, []
        random = np.random.default_rng(0)
        # One in each half of the image.
        self._points = (random.random((2, 17, 2)) + [[[0, 0]], [[1, 0]]]) / [2, 1]

    def __call__(self, images: Any, boxes: Any = None, **_: Any) -> Any:
        """The two."""
        self.frames += 1
        self.memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        points = self._points * [images.shape[1], images.shape[0]]
        low, high = points.min(axis=1), points.max(axis=1)
        found = np.concatenate([low, high - low], axis=1)
        given = found if boxes is None else boxes
        scores = np.ones(len(found)) if boxes is None else None
        return Poses.create(points, np.full((2, 17), 0.9), given, COCO, box_scores=scores)

    @property
    def detector(self) -> Any:
        """None is needed."""
        return None


def measure_memory(video: str, folder: str) -> None:
    """Run over a long video, and print the largest memory so far at parts of it."""
    people, output, lines = StillPeople(), f"{folder}/all.mp4", f"{folder}/all.jsonl"
    start = time.perf_counter()
    summary = track_file(lambda: people, video, output=output, json=lines)
    seconds = time.perf_counter() - start
    with VideoReader(video) as reader:
        rows, columns = reader.size
    parts = [0.01, 0.1, 0.5, 1.0]
    places = [max(round(part * summary.frames), 1) - 1 for part in parts]
    largest = [
        [f"{part:.0%}", str(place + 1), f"{people.memory[place] / 1024:.0f}"]
        for part, place in zip(parts, places, strict=True)
    ]
    print(markdown(["of the video", "frames", "peak memory, MB"], largest, numbers=2))
    megabytes = [pathlib.Path(path).stat().st_size / 1e6 for path in (output, lines)]
    print(f"{summary.frames} frames of {columns} x {rows}, {summary.ids} people, {seconds:.0f} s")
    print(f"drawn video {megabytes[0]:.0f} MB, JSON lines {megabytes[1]:.0f} MB")


def measure(stage: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    stage()
    return time.perf_counter() - wall, time.process_time() - cpu


def draw_picture(estimator: PoseEstimator, video: str, every: int, show: list[int], path: pathlib.Path) -> None:
    """Draw some frames, three in a row."""
    drawings = [
        Image.fromarray(draw_tracks(frame.image, frame.poses, frame.track_ids))
        for frame in track(estimator, video, every=every)
        if frame.index in show
    ]
    width, height = drawings[0].size
    sheet = Image.new("RGB", (3 * width, -(-len(drawings) // 3) * height))
    for place, drawing in enumerate(drawings):
        sheet.paste(drawing, (place % 3 * width, place // 3 * height))
    sheet.save(path, quality=85)


if __name__ == "__main__":
    main()
