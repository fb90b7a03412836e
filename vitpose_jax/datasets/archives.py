"""Images in .zip archives, or as files."""

import glob
import io
import lzma
import os
import pathlib
import struct
import threading
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitpose_jax.images import load_image
from vitpose_jax.storage.text import join, printable

Paths: TypeAlias = str | os.PathLike | Sequence[str | os.PathLike]

# Bytes of an image in an archive, after it is decompressed.
LARGEST_MEMBER = 256 * 2**20

# What zipfile raises for archives that are damaged, encrypted or compressed by a method that this Python cannot do.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    struct.error,
    ValueError,
)


class ImageStore:
    """Images by their path: files, or members of .zip archives.

    An image's name in an archive is its path relative to the archive's folder, or ends with it: `data/val/1.jpg` is
    `val/1.jpg` or `images/val/1.jpg` in `data/some.zip`. Archives are opened when they are first read. A store can
    be pickled, and several threads can read from it.

    Args:
        archives: one, several or a glob pattern; () for files.

    Raises:
        ValueError: if a pattern matches nothing, or a file is not a .zip archive.
        FileNotFoundError: if an archive does not exist.
    """

    def __init__(self, archives: Paths = ()) -> None:
        self.archives = expand_archives(archives)
        self._members: dict[str, list[tuple[pathlib.Path, str]]] = {}
        for archive in self.archives:
            with _open_archive(archive) as file:
                for member in file.namelist():
                    self._members.setdefault(member.rpartition("/")[2], []).append((archive, member))
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._opened: dict[tuple[int, pathlib.Path], zipfile.ZipFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def find(self, path: str | os.PathLike) -> tuple[pathlib.Path, str]:
        """The archive that holds an image, and the image's name in it.

        Raises:
            ValueError: if the image is in no archive, or in more than one place.
        """
        path = pathlib.Path(path)
        places = [
            (archive, member)
            for archive, member in self._members.get(path.name, ())
            if path.is_relative_to(archive.parent)
            and f"/{member}".endswith(f"/{path.relative_to(archive.parent).as_posix()}")
        ]
        if len(places) != 1:
            names = join((f"{archive}: {member}" for archive, member in places), most=5) or "none"
            raise ValueError(f"{path}: expected one place in {len(self.archives)} archives, got {names}")
        return places[0]

    def load(self, path: str | os.PathLike) -> UInt8[np.ndarray, "height width 3"]:
        """An image, as `load_image` reads it.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: naming the file, if it is not an image or is damaged; as `find`.
        """
        if not self.archives:
            return load_image(path)
        archive, member = self.find(path)
        name = f"{archive}: {printable(member)}"
        content = self._read(archive, member, name)
        try:
            image = Image.open(io.BytesIO(content))
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise ValueError(f"{name}: expected an image: {error}") from error
        image.filename = name
        return load_image(image)

    def _read(self, archive: pathlib.Path, member: str, name: str) -> bytes:
        file = self._archive(archive)
        info = file.getinfo(member)
        # zipfile reads no more than the size that the archive states.
        if info.file_size > LARGEST_MEMBER:
            raise ValueError(f"{name}: expected an image of at most {LARGEST_MEMBER} bytes, got {info.file_size}")
        if info.flag_bits & 1:
            raise ValueError(f"{name}: expected a member that is not encrypted")
        try:
            return file.read(member)
        except NotImplementedError as error:
            raise ValueError(f"{name}: the compression method {info.compress_type} is not supported") from error
        except _UNREADABLE as error:
            raise ValueError(f"{name}: damaged archive ({printable(error)})") from error

    def _archive(self, archive: pathlib.Path) -> zipfile.ZipFile:
        # A forked process must not share the position in a file with its parent.
        key = os.getpid(), archive
        with self._lock:
            if key not in self._opened:
                self._opened[key] = _open_archive(archive)
            return self._opened[key]


def expand_archives(archives: Paths) -> tuple[pathlib.Path, ...]:
    """The archives that the paths and patterns name, in order.

    Raises:
        ValueError: if a pattern matches nothing.
    """
    if isinstance(archives, str | os.PathLike):
        archives = [archives]
    paths: list[pathlib.Path] = []
    for name in archives:
        matches = [name] if not glob.has_magic(os.fspath(name)) else sorted(glob.glob(os.fspath(name)))
        if not matches:
            raise ValueError(f"{name}: no archives there")
        paths += map(pathlib.Path, matches)
    return tuple(paths)


def folder_and_archives(images: Paths) -> tuple[pathlib.Path, tuple[pathlib.Path, ...]]:
    """Where the images of a dataset are.

    Args:
        images: their folder, or .zip archives in that folder: one, a glob pattern or several.

    Returns:
        The folder that file names in the annotations are relative to, and the archives; none for images in files.

    Raises:
        ValueError: for archives in several folders; as `expand_archives`.
    """
    if isinstance(images, str | os.PathLike) and pathlib.Path(images).is_dir():
        return pathlib.Path(images), ()
    archives = expand_archives(images)
    folders = {archive.parent for archive in archives}
    if len(folders) != 1:
        raise ValueError(f"images: expected a folder, or .zip archives in one folder, got {images}")
    return folders.pop(), archives


def _open_archive(path: pathlib.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        if error.filename is not None:
            raise  # no such file, or it may not be read
        raise ValueError(f"{path}: expected a .zip archive: {printable(error)}") from error
    except _UNREADABLE as error:
        raise ValueError(f"{path}: expected a .zip archive: {printable(error)}") from error
