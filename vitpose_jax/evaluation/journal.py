"""The poses of an evaluation, on disk while it runs, so that nothing but the block under way is lost with it.

`poses.jsonl` holds a first line with the settings, then one line an image: {"image": its place in the data set, and
"poses": for each box [x, y, score, x, y, score, ...] in pixels of the image, or "error": why there are none}. Lines
of a block are written at once and forced to the disk. A process of several that is not the first writes to
`poses.1.jsonl` and so on; all of these are read again. A last line that was torn off is passed over.
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
"""Of an image: for each box x, y and score of all keypoints; or what went wrong."""

JOURNAL = "poses.jsonl"
# Of pixels and of scores. Everything is computed from the rounded numbers, so that a run that is taken up again ends
# as one that was not interrupted.
DECIMALS = 5


class Journal:
    """Poses written as they come.

    Args:
        folder: where the journals lie.
        settings: what the poses depend on, ready for JSON.
        num_keypoints: K.
        resume: take up what is there; otherwise it is overwritten.
        process, processes: the number of this process, and how many there are.

    Raises:
        ValueError: where a journal to be resumed was made with other settings, naming them, or is damaged.

    Attributes:
        outcomes: of the images that were found in the folder, by their place in the data set.
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
                path.unlink()  # of an earlier run with more processes
        self.rewrite(self.outcomes)

    def append(self, outcomes: Mapping[int, Outcome]) -> None:
        """Write the outcomes of a block; they are on the disk when this returns."""
        with self._path.open("ab") as file:
            file.writelines(to_lines(outcomes))
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, outcomes: Mapping[int, Outcome]) -> None:
        """Write this process's journal anew, the images in the order of the data set."""
        lines = itertools.chain([_line({"settings": self._settings})], to_lines(outcomes))
        write_whole(self._path, lines, sync=True)

    def remove_others(self) -> None:
        """Delete all other processes' journals, once this one holds everything."""
        for path in journals(self._path.parent):
            if path != self._path:
                path.unlink(missing_ok=True)

    def _read(self, path: pathlib.Path) -> dict[int, Outcome]:
        outcomes = {}
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # torn off
                where = f"{path}:{number}"
                if number == 1:
                    self._check_settings(_parse(line, where), path)
                else:
                    image, outcome = parse_outcome(line, self._num_keypoints, where)
                    outcomes[image] = outcome
        return outcomes

    def _check_settings(self, entry: dict[str, Any], path: pathlib.Path) -> None:
        found = entry.get("settings")
        if not isinstance(found, dict):
            raise ValueError(f"{path}: expected the settings of the evaluation in the first line")
        for key in sorted({*self._settings, *found}):
            if found.get(key) != self._settings.get(key):
                raise ValueError(
                    f"{path}: made with other settings; {key} was {found.get(key)!r}, now {self._settings.get(key)!r}"
                )


def journals(folder: pathlib.Path) -> list[pathlib.Path]:
    """The journals in a folder, those of all processes."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if re.fullmatch(r"poses(\.\d+)?\.jsonl", path.name))


def to_lines(outcomes: Mapping[int, Outcome]) -> Iterator[bytes]:
    """One line of JSON for each image, in the order of the data set."""
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
    """The image of a line, and its outcome.

    Raises:
        ValueError: for what is no such line.
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
