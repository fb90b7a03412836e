"""Result files of the page: each result has a folder, which is deleted an hour after it was last written to.

gradio makes a copy of each result at once, and deletes that by its age too.
"""

import atexit
import functools
import pathlib
import shutil
import tempfile
import threading
import time

# Seconds that a result is kept, and between looks for old ones.
MAX_AGE = 3600.0
LOOK_EVERY = 600.0


def result_folder() -> pathlib.Path:
    """A new folder for the files of one result."""
    return pathlib.Path(tempfile.mkdtemp(dir=_root()))


def delete_old(max_age: float = MAX_AGE) -> None:
    """Delete the results that were last written to so many seconds ago."""
    for folder in _root().iterdir():
        times = [path.stat().st_mtime for path in (folder, *folder.iterdir()) if path.exists()]
        if time.time() - max(times, default=0) > max_age:
            shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _root() -> pathlib.Path:
    folder = tempfile.mkdtemp(prefix="vitpose-jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    threading.Thread(target=_delete_for_ever, name="old results", daemon=True).start()
    return pathlib.Path(folder)


def _delete_for_ever() -> None:
    while True:
        time.sleep(LOOK_EVERY)
        delete_old()
