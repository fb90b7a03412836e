"""Atomic writes: a file is written whole or not at all."""

import contextlib
import io
import os
import pathlib
import re
from collections.abc import Iterable, Iterator

from PIL import Image

# The name of a file that is being written: .NAME.PROCESS.tmp
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")
# File systems allow names of 255 bytes: of a longer name, the temporary one holds the beginning.
_NAME_BYTES = 200


def write_whole(path: pathlib.Path, content: bytes | Iterable[bytes], *, sync: bool = False) -> None:
    """Write a file under a temporary name in the same folder, then rename it: no reader sees an incomplete file.

    The temporary file is always a new one: a link of that name is replaced, not followed.

    Args:
        path: of the file; its folder is created if it does not exist.
        content: all of it, or in pieces.
        sync: flush the content to the disk before the rename, so that a power failure cannot lose both the old file
            and the new one.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    with whole_file(path) as temporary, temporary.open("xb") as file:
        file.writelines([content] if isinstance(content, bytes) else content)
        if sync:
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary name in the same folder, for a file that is written there and renamed if the block ends well.

    Args:
        path: of the file; its folder is created if it does not exist.

    Yields:
        The path to create the file at; nothing is there.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.encode()[:_NAME_BYTES].decode(errors="ignore")
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        # From an earlier process of this number, or planted.
        temporary.unlink(missing_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_png(path: pathlib.Path, image: Image.Image) -> None:
    """Write an image as PNG, whole or not at all."""
    content = io.BytesIO()
    image.save(content, "PNG")
    write_whole(path, content.getvalue())


def remove_leftovers(folder: pathlib.Path) -> list[str]:
    """Delete temporary files that killed processes left in a folder, and return their names.

    Files of processes that still run stay.
    """
    removed = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and not path.is_dir() and not _runs(int(match[1])):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return sorted(removed)


def _runs(process: int) -> bool:
    """Whether there is a process of this number, on this machine."""
    if process == os.getpid():
        return False  # this process writes nothing yet
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    return True
