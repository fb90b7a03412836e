"""SLEAP's analysis files: HDF5 with the tracks of individuals over the frames of a video.

    tracks           Float64[individuals 2 keypoints frames]    (x, y) in pixels; NaN for those not in a frame
    point_scores     Float64[individuals keypoints frames]
    instance_scores  Float64[individuals frames]                the mean of the keypoints' scores
    track_occupancy  UInt8[frames individuals]                  who is in a frame
    track_names, node_names, edge_names, edge_inds

SLEAP exports such files as "Analysis HDF5", and reads them; so do movement (`movement.io.load_poses.from_sleap_file`),
sleap-io and others. A frame's row is its number, so frames that are missing have empty rows.
"""

import os
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from vitpose_jax.interop.deeplabcut import Tracks, to_tracks
from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage.atomic import write_whole

# A file of more frames than this for each one that is given is a mistake of numbering.
_MAX_GAPS = 1000


def write_sleap(
    path: str | os.PathLike, poses: Iterable[Poses] | Tracks, *, skeleton: Skeleton | None = None, **options: Any
) -> None:
    """Write an analysis file of SLEAP.

    Args:
        path: of the file, which ends in .h5; it is written whole or not at all.
        poses: one `Poses` for each frame, or `Tracks`, whose frames are numbers.
        skeleton: whose edges are written; None for none.
        options: for `to_tracks`: frames, individuals.

    Raises:
        ValueError: as `to_tracks`; for frames that are not distinct numbers from 0 up; for a skeleton of other
            keypoints; for another ending.
        ImportError: without the package tables.
        OSError: if the file cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".h5":
        raise ValueError(f"{path}: expected a name that ends in .h5")
    arrays = to_arrays(poses if isinstance(poses, Tracks) else to_tracks(poses, **options), skeleton)
    try:
        import tables  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(f'{path}: HDF5 needs the package tables: pip install "vitpose-jax[pandas]"') from None
    with tempfile.TemporaryDirectory() as folder:
        partial = pathlib.Path(folder, "analysis.h5")
        with tables.open_file(str(partial), mode="w") as file:
            for name, array in arrays.items():
                file.create_array("/", name, array)
        write_whole(path, partial.read_bytes())


def to_arrays(tracks: Tracks, skeleton: Skeleton | None = None) -> dict[str, np.ndarray]:
    """The arrays of an analysis file, by name.

    Args:
        tracks: whose frames are numbers.
        skeleton: whose edges are written; None for none.

    Raises:
        ValueError: for frames that are not distinct numbers from 0 up, and for a skeleton of other keypoints.
    """
    edges = () if skeleton is None else skeleton.edges
    if skeleton is not None and skeleton.keypoints != tracks.bodyparts:
        raise ValueError(f"skeleton: expected one with the keypoints of the tracks, got {skeleton.name!r}")
    frames = _frame_numbers(tracks)
    rows = max(frames, default=-1) + 1
    keypoints = np.full((rows, *tracks.keypoints.shape[1:]), np.nan)
    scores = np.full((rows, *tracks.likelihoods.shape[1:]), np.nan)
    keypoints[frames], scores[frames] = tracks.keypoints, tracks.likelihoods
    present = np.asarray(np.isfinite(keypoints).any(axis=(2, 3)))
    means = np.where(present, np.nanmean(np.where(present[:, :, None], scores, 0), axis=2), np.nan)
    names = tracks.bodyparts
    arrays: dict[str, Any] = {
        "tracks": np.ascontiguousarray(keypoints.transpose(1, 3, 2, 0)),
        "track_occupancy": present.astype(np.uint8),
        "point_scores": np.ascontiguousarray(scores.transpose(1, 2, 0)),
        "instance_scores": np.ascontiguousarray(means.T),
        "tracking_scores": np.zeros(means.T.shape),
        "track_names": _bytes(name or "person1" for name in tracks.individuals),
        "node_names": _bytes(names),
        "edge_names": _bytes(names[index] for edge in edges for index in edge).reshape(-1, 2),
        "edge_inds": np.asarray(edges, np.int64).reshape(-1, 2),
    }
    return arrays


def _frame_numbers(tracks: Tracks) -> list[int]:
    numbers = [frame for frame in tracks.frames if isinstance(frame, int) and frame >= 0]
    if len(set(numbers)) != len(tracks.frames):
        raise ValueError("frames: expected distinct numbers from 0 up, as of a video")
    if max(numbers, default=0) > _MAX_GAPS * max(len(numbers), 1):
        raise ValueError(f"frames: expected numbers without large gaps, got {max(numbers)} for {len(numbers)} frames")
    return numbers


def _bytes(names: Iterable[str]) -> np.ndarray:
    encoded = [name.encode() for name in names]
    return np.asarray(encoded, f"S{max(map(len, encoded), default=1)}")
