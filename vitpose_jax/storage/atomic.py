"""Files that are written whole or not at all."""

import io
import os
import pathlib
from collections.abc import Iterable

from PIL import Image


def write_whole(path: pathlib.Path, content: bytes | Iterable[bytes], *, sync: bool = False) -> None:
    """Write a file so that nobody ever sees half of it: under another name in the same folder, then renamed.

    Its content may come in pieces. With `sync` it is on the disk, whatever happens to the machine, before it takes the
    place of another.
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
    """Write an image as `write_whole` does."""
    content = io.BytesIO()
    image.save(content, "PNG")
    write_whole(path, content.getvalue())
