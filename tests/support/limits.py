"""Files that are read in a process with little memory and little time (tests/programs/read_within_limits.py)."""

import contextlib
import json
import pathlib
import subprocess
from collections.abc import Iterable, Iterator

import pytest

from tests.support import programs

MEGABYTES, SECONDS = 256, 30


def errors_within_limits(paths: Iterable[pathlib.Path]) -> list[str | None]:
    """The error of each file or folder; None if it was read.

    Unlike in these tests, types of arguments are not checked there: as for a user.
    """
    command = programs.command("read_within_limits", MEGABYTES, SECONDS, *paths)
    result = subprocess.run(command, env=programs.environment(), capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files of this process cannot become larger, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
