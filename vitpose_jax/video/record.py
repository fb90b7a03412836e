"""The record beside the JSON lines of a run: what they depend on, and which files were made beside them.

    NAME.jsonl             the lines                                               results.py
    NAME.settings.jsonl    {"every": 5, ..., "files": ["out.mp4", "NAME.csv"]}

Without overwriting, a run replaces no file but those that its own earlier part wrote.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from vitpose_jax.bulk.settings import check_settings, write_settings
from vitpose_jax.datasets.fields import read_json
from vitpose_jax.video.results import TrackLines


class RecordedLines:
    """JSON lines and their record. Nothing is written before `begin`.

    Args:
        path: of the lines, NAME.jsonl.
        settings: what the results depend on, ready for JSON.
        overwrite: begin again, whatever is there.

    Attributes:
        lines: the `TrackLines`.
        resumes: the lines held frames already.

    Raises:
        ValueError: for lines that hold something else, or results with other settings.
    """

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any], *, overwrite: bool):
        self._path, self._record, self._settings = path, record_path(path), dict(settings)
        self._files: list[str] = []
        if not overwrite and has_lines(path):
            files = _recorded_files(self._record)
            check_settings(self._record, {**settings, "files": files}, has_results=True)
            self._files = list(files or ())
        self.lines = TrackLines(path, overwrite=overwrite)
        self.resumes = self.lines.last >= 0
        self._begun = False

    def begin(self, output: pathlib.Path | None) -> None:
        """Open the lines and write the record, with the drawn video that will be made; once."""
        if self._begun:
            return
        self._begun = True
        # In this order: lines of other settings never lie beside these settings.
        self.lines.open()
        self._write([] if output is None else [output])

    def announce(self, path: pathlib.Path) -> None:
        """Record a file before it is made."""
        self._write([path])

    def remove(self) -> None:
        """Remove what this run wrote, unless the lines held frames before it."""
        self.lines.close()
        if self._begun and not self.resumes:
            self._path.unlink(missing_ok=True)
            self._record.unlink(missing_ok=True)

    def _write(self, paths: Iterable[pathlib.Path]) -> None:
        self._files = sorted({*self._files, *(_relative(path, self._path) for path in paths)})
        write_settings(self._record, {**self._settings, "files": self._files})


def check_replaced(paths: Iterable[pathlib.Path], lines: pathlib.Path | None) -> None:
    """Check that a run replaces no files but its own earlier ones.

    Args:
        paths: what it will write, besides the lines.
        lines: of the run; None without any: then nothing says whose a file is.

    Raises:
        ValueError: naming the file.
    """
    own = set(_recorded_files(record_path(lines)) or ()) if lines is not None and has_lines(lines) else set()
    for path in paths:
        taken = any(path.iterdir()) if path.is_dir() else path.exists()
        if taken and (lines is None or _relative(path, lines) not in own):
            raise ValueError(f"{path}: exists already; overwrite it or choose another name")


def record_path(lines: pathlib.Path) -> pathlib.Path:
    """The record of a file of JSON lines."""
    return lines.with_suffix(".settings.jsonl")


def has_lines(path: pathlib.Path) -> bool:
    """Whether a file holds anything."""
    return path.is_file() and path.stat().st_size > 0


def _recorded_files(record: pathlib.Path) -> list[str] | None:
    content = read_json(record) if record.is_file() else None
    files = content.get("files") if isinstance(content, dict) else None
    return files if isinstance(files, list) else None


def _relative(path: pathlib.Path, lines: pathlib.Path) -> str:
    """As seen from the lines, so that a folder can be moved as a whole."""
    path, folder = path.resolve(), lines.parent.resolve()
    try:
        return pathlib.Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive
        return path.as_posix()
