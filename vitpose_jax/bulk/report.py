"""What a run over many files tells its caller: messages on the way, a summary at the end."""

import dataclasses
import logging
import pathlib
import sys
from collections.abc import Iterable

from tqdm import tqdm

_log = logging.getLogger("vitpose_jax")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run over image files did.

    Attributes:
        images: all files of the run.
        written: files whose results this run wrote.
        skipped: files whose results were there already.
        failed: files without results, and why.
    """

    images: list[pathlib.Path]
    written: list[pathlib.Path] = dataclasses.field(default_factory=list)
    skipped: list[pathlib.Path] = dataclasses.field(default_factory=list)
    failed: dict[pathlib.Path, str] = dataclasses.field(default_factory=dict)


def log(message: str) -> None:
    """Where messages go by default: the logger "vitpose_jax"."""
    _log.warning(message)


def failure(path: pathlib.Path, error: BaseException | None) -> str:
    """The line on an image that failed; errors of reading name the file already."""
    message = str(error)
    return f"error: {message}" if str(path) in message else f"error: {path}: {message}"


def progress_bar(results: Iterable, total: int, *, shown: bool) -> Iterable:
    """The results, with a progress bar on standard error if `shown`."""
    return tqdm(results, total=total, unit="image", disable=not shown, file=sys.stderr)
