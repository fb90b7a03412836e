"""Result files of the page: the last few, in a folder that is removed with the process.

gradio copies each at once, and deletes its copy by age.
"""

import atexit
import functools
import itertools
import pathlib
import shutil
import tempfile

# Results that are kept.
KEPT = 64

_numbers = itertools.count()


def result_folder() -> pathlib.Path:
    """An empty folder for the files of one result; it replaces the oldest one."""
    folder = _root() / str(next(_numbers) % KEPT)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@functools.cache
def _root() -> pathlib.Path:
    folder = tempfile.mkdtemp(prefix="vitpose-jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)
