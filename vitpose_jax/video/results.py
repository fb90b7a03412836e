"""The results of a video as JSON lines, one line for each frame, and the other formats that are made of them.

    {"frame": 12, "time": 0.48, "detected": false, "poses": [{"track_id": 3, "skeleton": "coco", "box": [...], ...}]}

A pose is that of `Poses.to_dict` with its "track_id", and with "unsmoothed", [[x, y], ...], if its keypoints are
smoothed: a run that resumes goes on from these. Lines are written as they come. An incomplete last line,
of a run that was killed, is ignored, and removed by the next run. The other formats are made from the lines at the end,
one frame at a time, so that a long video needs no more memory than a short one.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from vitpose_jax.interop.deeplabcut import Tracks, write_deeplabcut
from vitpose_jax.interop.sleap import write_sleap
from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import SKELETONS, Skeleton
from vitpose_jax.storage.atomic import write_whole

Format: TypeAlias = Literal["coco", "openpose", "deeplabcut", "sleap"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FrameRecord:
    """A line: a `TrackedFrame` without its image."""

    index: int
    time: float
    detected: bool
    poses: Poses
    track_ids: Int[np.ndarray, " n"]
    unsmoothed: Float[np.ndarray, "n K 2"] | None = None


class TrackLines:
    """A file of JSON lines that grows frame by frame; a context manager. Nothing is written before `open` or `add`.

    Args:
        path: of the file.
        overwrite: begin again; False: append to the complete lines that are there.

    Attributes:
        last: the number of the last frame in the file; -1 for none.

    Raises:
        ValueError: for a file that holds something else, naming the line.
        OSError: if it cannot be written.
    """

    def __init__(self, path: pathlib.Path, *, overwrite: bool = False):
        self._path, self._end, self.last = path, 0, -1
        self._file: BinaryIO | None = None
        if not overwrite and path.exists():
            for after, entry in _complete_lines(path):
                self._end, self.last = after, entry["frame"]

    def __enter__(self) -> "TrackLines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> BinaryIO:
        """The file: it and its folder are created, and what is not to be kept is removed from it."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("r+b" if self._path.exists() else "w+b")
            self._file.truncate(self._end)
            self._file.seek(self._end)
        return self._file

    def add(
        self,
        index: int,
        time: float,
        poses: Poses,
        track_ids: Int[np.ndarray, " n"],
        *,
        detected: bool,
        unsmoothed: Float[np.ndarray, "n K 2"] | None = None,
    ) -> None:
        """Append a frame; its line is with the system when this returns. Arguments: see `TrackedFrame`."""
        document = poses.to_dict()["poses"]
        if unsmoothed is not None:
            before = dataclasses.replace(poses, keypoints=unsmoothed).to_dict()["poses"]
            for pose, other in zip(document, before, strict=True):
                pose["unsmoothed"] = [[point["x"], point["y"]] for point in other["keypoints"]]
        entry = {
            "frame": index,
            "time": round(time, 6),
            "detected": detected,
            "poses": [{"track_id": int(number), **pose} for number, pose in zip(track_ids, document, strict=True)],
        }
        file = self.open()
        file.write((json.dumps(entry, allow_nan=False) + "\n").encode())
        file.flush()
        self.last = index

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_tracks(path: str | os.PathLike[str], skeleton: Skeleton | None = None) -> Iterator[FrameRecord]:
    """The frames of a file of JSON lines, in order.

    Args:
        path: of the file.
        skeleton: of the poses; None for the known one of that name, or one with only the names of the keypoints.

    Raises:
        ValueError: for a line that is no result, naming it.
        OSError: if the file cannot be read.
    """
    path = pathlib.Path(path)
    for number, (_, entry) in enumerate(_complete_lines(path), 1):
        try:
            yield _to_record(entry, skeleton)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number}: expected a frame with its poses: {error}") from error


def _complete_lines(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The end of each complete line, in bytes, and what it holds."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: expected a line of JSON: {error}") from error
            if not isinstance(entry, dict) or not isinstance(entry.get("frame"), int) or "poses" not in entry:
                raise ValueError(f"{path}:{number}: expected a frame with its poses; choose another file")
            yield end, entry


def _to_record(entry: dict[str, Any], skeleton: Skeleton | None) -> FrameRecord:
    rows = entry["poses"]
    if rows and skeleton is None:
        names = tuple(point["name"] for point in rows[0]["keypoints"])
        skeleton = SKELETONS.get(rows[0]["skeleton"])
        if skeleton is None or skeleton.keypoints != names:
            skeleton = Skeleton(name=rows[0]["skeleton"], keypoints=names)
    skeleton = skeleton or SKELETONS["coco"]
    points = np.asarray(
        [[[point[key] for key in ("x", "y", "score")] for point in row["keypoints"]] for row in rows], np.float32
    ).reshape(-1, skeleton.num_keypoints, 3)
    box_scores = [row.get("box_score") for row in rows]
    poses = Poses.create(
        points[..., :2],
        np.nan_to_num(points[..., 2]),
        np.asarray([row["box"] for row in rows], np.float32).reshape(-1, 4),
        skeleton,
        box_scores=None if any(score is None for score in box_scores) else np.asarray(box_scores, np.float32),
    )
    ids = np.asarray([row["track_id"] for row in rows], np.int64)
    unsmoothed = None
    if rows and all("unsmoothed" in row for row in rows):
        unsmoothed = np.asarray([row["unsmoothed"] for row in rows], np.float32).reshape(points[..., :2].shape)
    return FrameRecord(
        index=entry["frame"],
        time=float(entry["time"]),
        detected=bool(entry["detected"]),
        poses=poses,
        track_ids=ids,
        unsmoothed=unsmoothed,
    )


def converted_path(path: pathlib.Path, format: Format) -> pathlib.Path:
    """The file or the folder that `convert_tracks` writes."""
    if format == "openpose":
        return path.with_name(f"{path.stem}_openpose")
    return path.with_suffix({"coco": ".coco.json", "deeplabcut": ".csv", "sleap": ".analysis.h5"}[format])


def convert_tracks(path: pathlib.Path, format: Format, image_size: tuple[int, int]) -> pathlib.Path:
    """Write the results of a file of JSON lines in another format, beside it.

        coco         NAME.coco.json: COCO results; "image_id" is the frame, "track_id" the track
        openpose     NAME_openpose/NAME_000000000012_keypoints.json: a file for each frame, "person_id" the track
        deeplabcut   NAME.csv: one individual for each track
        sleap        NAME.analysis.h5: one individual for each track

    Args:
        path: of the JSON lines, NAME.jsonl.
        format: of the result.
        image_size: height and width of the frames.

    Returns:
        the file or the folder.

    Raises:
        ValueError: for a file that holds something else, or a skeleton that the format cannot hold.
        ImportError: for SLEAP's format without the package tables.
    """
    target = converted_path(path, format)
    if format == "coco":
        write_whole(target, _coco_pieces(path))
    elif format == "openpose":
        for record in read_tracks(path):
            document = record.poses.to_openpose(image_size)
            for person, number in zip(document["people"], record.track_ids, strict=True):
                person["person_id"] = [int(number)]
            content = (json.dumps(document, allow_nan=False) + "\n").encode()
            write_whole(target / f"{path.stem}_{record.index:012}_keypoints.json", content)
    elif format == "sleap":
        write_sleap(target, to_individuals(path), skeleton=_find_skeleton(path))
    else:
        write_deeplabcut(target, to_individuals(path))
    return target


def _find_skeleton(path: pathlib.Path) -> Skeleton | None:
    return next((record.poses.skeleton for record in read_tracks(path) if len(record.poses)), None)


def to_individuals(path: str | os.PathLike[str]) -> Tracks:
    """The tracks of a file of JSON lines as individuals, for the files of DeepLabCut and SLEAP.

    The arrays hold all frames: an hour of video with twenty tracks needs about 400 MB.

    Raises:
        ValueError: for a file that holds something else.
    """
    frames, ids, skeleton = [], set(), None
    for record in read_tracks(path):
        frames.append(record.index)
        ids |= set(record.track_ids.tolist())
        skeleton = record.poses.skeleton if len(record.poses) else skeleton
    places = {number: place for place, number in enumerate(sorted(ids))}
    names = () if skeleton is None else skeleton.keypoints
    keypoints = np.full((len(frames), len(places), len(names), 2), np.nan, np.float32)
    likelihoods = np.full(keypoints.shape[:3], np.nan, np.float32)
    for row, record in enumerate(read_tracks(path)):
        for number, (_, points, scores, _) in zip(record.track_ids.tolist(), record.poses.rows(), strict=True):
            keypoints[row, places[number]], likelihoods[row, places[number]] = points, scores.clip(0, 1)
    return Tracks(tuple(frames), tuple(f"person{number}" for number in places), names, keypoints, likelihoods)


def _coco_pieces(path: pathlib.Path) -> Iterator[bytes]:
    comma = b""
    yield b"["
    for record in read_tracks(path):
        for entry, number in zip(record.poses.to_coco(record.index), record.track_ids.tolist(), strict=True):
            yield comma + b"\n" + json.dumps({**entry, "track_id": number}, allow_nan=False).encode()
            comma = b","
    yield b"\n]\n"
