"""How tests start the programs of tests/programs, each in a process of its own."""

import os
import pathlib
import sys

from tests import programs

_ROOT = pathlib.Path(__file__).parents[2]
# As in these tests: exact matrix products.
_EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}


def command(name: str, *arguments: object) -> list[str]:
    """The command that runs tests/programs/<name>.py. Run it with `environment()`."""
    return [sys.executable, "-m", f"{programs.__name__}.{name}", *map(str, arguments)]


def path(name: str) -> pathlib.Path:
    """The file of a program, to be run where the project's folder is not on Python's path."""
    return pathlib.Path(programs.__file__).parent / f"{name}.py"


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which a program finds the tests, with `changes`."""
    return {**os.environ, "PYTHONPATH": str(_ROOT), **_EXACT, **changes}
