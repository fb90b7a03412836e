"""Atomic writes: a file is written whole or not at all."""

import io
import os
import pathlib
from collections.abc import Iterable

from PIL import Image


def write_whole(path: pathlib.Path, content: bytes | Iterable[bytes], *, sync: bool = False) -> None:
    """Write a file under a temporary name in the same folder, then rename it: no reader sees an incomplete file.

    Args:
        path: of the file; its folder is created if it does not exist.
        content: all of it, or in pieces.
        sync: flush the content to the disk before the rename, so that a power failure cannot lose both the old file
            and the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_png(path: pathlib.Path, image: Image.Image) -> None:
    """Write an image as PNG, whole or not at all."""
    content = io.BytesIO()
    image.save(content, "PNG")
    write_whole(path, content.getvalue())
