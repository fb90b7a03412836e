"""The journal of an evaluation: an append-only file of poses. A crash loses at most the current block.

    {"settings": {...}}                                              what the poses depend on
    {"image": 0, "poses": [[x, y, score, x, y, score, ...], ...]}    one line per image, one list per box
    {"image": 1, "error": "..."}                                     an image that failed

"image" is the index in the dataset; x and y are in pixels of the image. The lines of a block are written together and
forced to the disk. The first process writes `poses.jsonl`, the others `poses.1.jsonl` and so on; on resuming, all are
read. An incomplete last line is ignored.
"""

import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from vitpose_jax.storage.atomic import write_whole

Outcome: TypeAlias = Float[np.ndarray, "n K 3"] | str
"""Of one image: x, y and score of all keypoints for each box; or the reason why there are none."""

JOURNAL = "poses.jsonl"
# Decimals of pixels and scores. All results are computed from the rounded numbers: a resumed run ends with the same
# numbers as any other.
DECIMALS = 5


class Journal:
    """Writes poses to a journal, and reads those of an earlier run.

    Args:
        folder: of the journals.
        settings: what the poses depend on, ready for JSON.
        num_keypoints: K.
        resume: keep the outcomes in the folder; False: overwrite them.
        process, processes: the index of this process, and the number of all.

    Raises:
        ValueError: if a journal to resume is damaged or has other settings, naming them.

    Attributes:
        outcomes: of the earlier run, by the image's index in the dataset.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        settings: Mapping[str, Any],
        num_keypoints: int,
        *,
        resume: bool,
        process: int = 0,
        processes: int = 1,
    ):
        self._settings, self._num_keypoints = dict(settings), num_keypoints
        names = [JOURNAL, *(f"poses.{number}.jsonl" for number in range(1, processes))]
        self._path = folder / names[process]
        self.outcomes: dict[int, Outcome] = {}
        for path in journals(folder):
            if resume:
                self.outcomes |= self._read(path)
            elif process == 0 and path.name not in names:
                path.unlink()  # from an earlier run with more processes
        self.rewrite(self.outcomes)

    def append(self, outcomes: Mapping[int, Outcome]) -> None:
        """Append the outcomes of a block; they are on the disk when this returns."""
        with self._path.open("ab") as file:
            file.writelines(to_lines(outcomes))
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, outcomes: Mapping[int, Outcome]) -> None:
        """Rewrite this process's journal, with images in the order of the dataset."""
        lines = itertools.chain([_line({"settings": self._settings})], to_lines(outcomes))
        write_whole(self._path, lines, sync=True)

    def remove_others(self) -> None:
        """Delete the journals of all other processes. Call it when this one holds every outcome."""
        for path in journals(self._path.parent):
            if path != self._path:
                path.unlink(missing_ok=True)

    def _read(self, path: pathlib.Path) -> dict[int, Outcome]:
        outcomes = {}
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # incomplete
                where = f"{path}:{number}"
                if number == 1:
                    self._check_settings(_parse(line, where), path)
                else:
                    image, outcome = parse_outcome(line, self._num_keypoints, where)
                    outcomes[image] = outcome
        return outcomes

    def _check_settings(self, entry: dict[str, Any], path: pathlib.Path) -> None:
        earlier = entry.get("settings")
        if not isinstance(earlier, dict):
            raise ValueError(f"{path}: expected the settings of the evaluation in the first line")
        # The hash says the least: what it depends on may be among the others.
        for key in sorted({*self._settings, *earlier}, key=lambda key: (key == "model_sha256", key)):
            if earlier.get(key) != self._settings.get(key):
                raise ValueError(
                    f"{path}: cannot resume with other settings; "
                    f"{key} was {earlier.get(key)!r}, now {self._settings.get(key)!r}"
                )


def journals(folder: pathlib.Path) -> list[pathlib.Path]:
    """The journals of all processes in a folder."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in paths if re.fullmatch(r"poses(\.\d+)?\.jsonl", path.name))


def to_lines(outcomes: Mapping[int, Outcome]) -> Iterator[bytes]:
    """One line of JSON for each image, in the order of the dataset."""
    for image in sorted(outcomes):
        outcome = outcomes[image]
        if isinstance(outcome, str):
            yield _line({"image": image, "error": outcome})
        else:
            yield _line({"image": image, "poses": outcome.reshape(len(outcome), -1).tolist()})


def from_lines(lines: Iterable[bytes], num_keypoints: int) -> dict[int, Outcome]:
    """The inverse of `to_lines`."""
    return dict(parse_outcome(line, num_keypoints, "poses") for line in lines)


def parse_outcome(line: bytes, num_keypoints: int, where: str) -> tuple[int, Outcome]:
    """The image of a line, by its index in the dataset, and its outcome.

    Raises:
        ValueError: naming `where`, if the line is not an outcome.
    """
    entry = _parse(line, where)
    try:
        if "error" in entry:
            return int(entry["image"]), str(entry["error"])
        return int(entry["image"]), np.asarray(entry["poses"], np.float64).reshape(-1, num_keypoints, 3)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected poses of an evaluation; {type(error).__name__}: {error}") from error


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: damaged line: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: damaged line: expected an object")
    return entry
