"""DeepLabCut's tables of keypoints: a csv file, or an HDF5 file with the same table.

    scorer        vitpose-jax  vitpose-jax  vitpose-jax  ...
    individuals   person1      person1      person1      ...      left out for one animal or person
    bodyparts     nose         nose         nose         ...
    coords        x            y            likelihood   ...
    0             398.18       181.81       0.87         ...      one row for each frame

DeepLabCut's tools read these files, and so do movement (`movement.io.load_poses.from_dlc_file`) and others that take
DeepLabCut's output. Coordinates are in pixels of the image. An individual that is not in a frame has empty cells.
"""

import csv
import io
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage.atomic import write_whole

SCORER = "vitpose-jax"
# The key of the table in DeepLabCut's HDF5 files.
HDF_KEY = "df_with_missing"

_COORDS = ("x", "y", "likelihood")


class Tracks(NamedTuple):
    """The keypoints of individuals in the frames of a video, or in a series of images.

    Attributes:
        frames: the number of each frame, or the name of each image.
        individuals: their names; one empty name in a file of one animal or person.
        bodyparts: the names of the keypoints.
        keypoints: (x, y) in pixels of the image; NaN if an individual is not in a frame.
        likelihoods: of the keypoints, 0 to 1; NaN likewise.
        scorer: what wrote the file.
    """

    frames: tuple[int | str, ...]
    individuals: tuple[str, ...]
    bodyparts: tuple[str, ...]
    keypoints: Float[np.ndarray, "frames individuals K 2"]
    likelihoods: Float[np.ndarray, "frames individuals K"]
    scorer: str = SCORER


def to_tracks(
    poses: Iterable[Poses],
    *,
    frames: Sequence[int | str] | None = None,
    individuals: Sequence[str] | None = None,
    scorer: str = SCORER,
) -> Tracks:
    """The poses of a series of images, one `Poses` for each image, as tracks.

    The first row of every `Poses` is the first individual, and so on: rows that a tracker ordered keep their identity;
    the rows of single images have none.

    Args:
        poses: of each image; all of one skeleton.
        frames: the number or name of each image; None to count from 0.
        individuals: their names; None for one empty name if no image has more than one pose, else person1, person2, ...
        scorer: what made the poses.

    Raises:
        ValueError: for another number of frames than images, more poses in an image than individuals, or poses of
            several skeletons.
    """
    poses = list(poses)
    frames = range(len(poses)) if frames is None else frames
    if len(frames) != len(poses):
        raise ValueError(f"frames: expected one for each of {len(poses)} images, got {len(frames)}")
    most = max((len(row) for row in poses), default=0)
    if individuals is None:
        individuals = ("",) if most <= 1 else tuple(f"person{number}" for number in range(1, most + 1))
    skeleton = _one_skeleton(poses)
    names = () if skeleton is None else skeleton.keypoints
    keypoints = np.full((len(poses), len(individuals), len(names), 2), np.nan, np.float32)
    likelihoods = np.full(keypoints.shape[:3], np.nan, np.float32)
    for number, row in enumerate(poses):
        if len(row) > len(individuals):
            raise ValueError(f"individuals: expected {len(row)} names for image {number}, got {len(individuals)}")
        for place, (_, points, scores, _) in enumerate(row.rows()):
            keypoints[number, place], likelihoods[number, place] = points, scores.clip(0, 1)
    return Tracks(tuple(frames), tuple(individuals), names, keypoints, likelihoods, scorer)


def write_deeplabcut(path: str | os.PathLike, poses: Iterable[Poses] | Tracks, **options: Any) -> None:
    """Write a csv file, or an HDF5 file for the endings .h5 and .hdf5, in DeepLabCut's layout.

    Args:
        path: of the file; it is written whole or not at all.
        poses: one `Poses` for each frame, or `Tracks`.
        options: for `to_tracks`: frames, individuals, scorer.

    Raises:
        ValueError: as `to_tracks`; for names that are not distinct; for another ending.
        ImportError: for HDF5 without the packages pandas and tables.
        OSError: if the file cannot be written.
    """
    path = pathlib.Path(path)
    tracks = poses if isinstance(poses, Tracks) else to_tracks(poses, **options)
    for kind, names in (("individuals", tracks.individuals), ("bodyparts", tracks.bodyparts)):
        if len(set(names)) != len(names):
            raise ValueError(f"{kind}: expected distinct names, got {', '.join(names)}")
    if path.suffix.lower() in (".h5", ".hdf5"):
        _write_hdf(path, tracks)
    elif path.suffix.lower() == ".csv":
        write_whole(path, to_csv(tracks).encode())
    else:
        raise ValueError(f"{path}: expected a name that ends in .csv or .h5")


def to_csv(tracks: Tracks) -> str:
    """The text of DeepLabCut's csv file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = _columns(tracks)
    for level, name in enumerate(_levels(tracks)):
        writer.writerow([name, *(column[level] for column in columns)])
    for frame, values in zip(tracks.frames, _values(tracks), strict=True):
        writer.writerow([frame, *("" if math.isnan(value) else repr(float(value)) for value in values)])
    return text.getvalue()


def read_deeplabcut(path: str | os.PathLike) -> Tracks:
    """Read DeepLabCut's csv file, of one or of several animals.

    Raises:
        ValueError: naming the file and the row, for another layout.
        OSError: if the file cannot be read.
    """
    path = pathlib.Path(path)
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a csv file: {error}") from None
    header = [row[0] if row else "" for row in rows[:4]]
    levels = 4 if header[1:2] == ["individuals"] else 3
    expected = ["scorer", "individuals", "bodyparts", "coords"] if levels == 4 else ["scorer", "bodyparts", "coords"]
    if header[:levels] != expected:
        raise ValueError(f"{path}: expected DeepLabCut's rows {', '.join(expected)}, got {', '.join(header)[:80]}")
    names = [row[1:] for row in rows[:levels]]
    if len({len(row) for row in names}) != 1 or names[-1] != list(_COORDS) * (len(names[-1]) // 3):
        raise ValueError(f"{path}: expected the columns x, y, likelihood for each keypoint")
    individuals = list(dict.fromkeys(names[1])) if levels == 4 else [""]
    bodyparts = list(dict.fromkeys(names[-2]))
    if len(individuals) * len(bodyparts) * 3 != len(names[-1]):
        raise ValueError(f"{path}: expected every individual with every keypoint, in one order")
    frames, values = [], []
    for number, row in enumerate(rows[levels:], levels + 1):
        if len(row) != len(names[-1]) + 1:
            raise ValueError(f"{path}:{number}: expected {len(names[-1]) + 1} cells, got {len(row)}")
        frames.append(int(row[0]) if row[0].isdecimal() and str(int(row[0])) == row[0] else row[0])
        try:
            values.append([float(cell) if cell else math.nan for cell in row[1:]])
        except ValueError as error:
            raise ValueError(f"{path}:{number}: expected numbers: {error}") from None
    array = np.asarray(values, np.float32).reshape(len(frames), len(individuals), len(bodyparts), 3)
    scorer = names[0][0] if names[0] else SCORER
    return Tracks(tuple(frames), tuple(individuals), tuple(bodyparts), array[..., :2], array[..., 2], scorer)


def _one_skeleton(poses: Sequence[Poses]) -> Skeleton | None:
    """The skeleton of all images; None without images."""
    skeletons = list(dict.fromkeys(row.skeleton for row in poses if len(row) or len(row.skeletons) == 1))
    if len(skeletons) > 1:
        names = ", ".join(skeleton.name for skeleton in skeletons)
        raise ValueError(f"poses: expected one skeleton in a file of DeepLabCut, got {names}")
    return skeletons[0] if skeletons else None


def _levels(tracks: Tracks) -> list[str]:
    middle = ["individuals"] if tracks.individuals != ("",) else []
    return ["scorer", *middle, "bodyparts", "coords"]


def _columns(tracks: Tracks) -> list[tuple[str, ...]]:
    """The names of each column, one for each level."""
    return [
        (tracks.scorer, *([individual] if tracks.individuals != ("",) else []), bodypart, coord)
        for individual in tracks.individuals
        for bodypart in tracks.bodyparts
        for coord in _COORDS
    ]


def _values(tracks: Tracks) -> Float[np.ndarray, "frames columns"]:
    values = np.concatenate([tracks.keypoints, tracks.likelihoods[..., None]], axis=-1)
    return values.reshape(len(tracks.frames), -1)


def _write_hdf(path: pathlib.Path, tracks: Tracks) -> None:
    try:
        import pandas  # pyright: ignore[reportMissingImports]
        import tables  # noqa: F401
    except ImportError:
        raise ImportError(
            f'{path}: HDF5 needs the packages pandas and tables: pip install "vitpose-jax[pandas]"'
        ) from None
    columns = pandas.MultiIndex.from_tuples(_columns(tracks), names=_levels(tracks))
    table = pandas.DataFrame(_values(tracks).astype(np.float64), index=list(tracks.frames), columns=columns)
    with tempfile.TemporaryDirectory() as folder:
        partial = pathlib.Path(folder, "table.h5")
        table.to_hdf(partial, key=HDF_KEY, mode="w")
        write_whole(path, partial.read_bytes())
