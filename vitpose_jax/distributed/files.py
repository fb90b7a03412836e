"""Files by name: paths of this machine, and URIs of what PyArrow or fsspec reads: s3://, gs://, abfs://, hdfs://, ...

A name is an absolute path or a URI. Every machine opens files by their names, so only names travel.
"""

import functools
import os
import pathlib
import re
import uuid
from typing import NamedTuple

from vitpose_jax.distributed.extras import ARROW_EXTRA
from vitpose_jax.pixels.urls import RemoteImage, file_path, is_remote, scheme_of

try:
    import pyarrow.fs as arrow_fs
except ImportError as error:
    raise ImportError(ARROW_EXTRA) from error

# File systems whose rename is atomic. Others are stores of objects, where one put is.
_RENAMES = ("local", "hdfs")
_MAGIC = re.compile(r"[*?\[]")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Location(NamedTuple):
    """Where a name leads.

    Attributes:
        filesystem: of PyArrow.
        path: of the file in it.
        prefix: what stands before the path in a name: "s3://bucket"; empty for this machine.
        root: the path that the prefix alone leads to.
    """

    filesystem: arrow_fs.FileSystem
    path: str
    prefix: str
    root: str

    def name(self, path: str) -> str:
        """The name of another file in this file system."""
        return f"{self.prefix}/{path.removeprefix(self.root).lstrip('/')}"


def absolute(name: str | os.PathLike[str]) -> str:
    """A name that leads to the same file from everywhere: a URI, or the absolute path on this machine.

    Raises:
        ValueError: for a file:// URL of another machine.
    """
    text = os.fspath(name)
    scheme = scheme_of(text) if isinstance(name, str) else None
    if scheme == "file":
        return os.path.abspath(file_path(text))
    return os.path.abspath(text) if scheme is None else text


def join(folder: str, name: str) -> str:
    """The name of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def locate(name: str) -> Location:
    """The file system and the path of a name.

    Raises:
        ValueError: for a scheme that neither PyArrow nor fsspec knows.
    """
    name = absolute(name)
    scheme = scheme_of(name)
    if scheme is None:
        return Location(_local(), name, "", "")
    host = name.removeprefix(f"{scheme}://").partition("/")[0]
    prefix = f"{scheme}://{host}"
    filesystem, root = _open_filesystem(prefix)
    rest = name.removeprefix(prefix).lstrip("/")
    return Location(filesystem, f"{root}/{rest}" if rest else root, prefix, root)


@functools.cache
def _local() -> arrow_fs.FileSystem:
    return arrow_fs.LocalFileSystem()


@functools.cache
def _open_filesystem(prefix: str) -> tuple[arrow_fs.FileSystem, str]:
    """A file system, and the path of its prefix; opened once, because a store may be asked for its region."""
    try:
        filesystem, root = arrow_fs.FileSystem.from_uri(prefix)
    except ValueError as reason:
        try:
            import fsspec  # pyright: ignore[reportMissingImports]

            remote, root = fsspec.core.url_to_fs(prefix)
        except (ImportError, ValueError):
            raise ValueError(
                f"{prefix}: expected files of this machine or of a cloud that PyArrow reads: {reason}"
            ) from None
        filesystem = arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(remote))
    return filesystem, root.rstrip("/")


def read_file(name: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError, OSError, ValueError: naming it.
    """
    location = locate(name)
    if not location.prefix:
        try:
            return pathlib.Path(location.path).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: no such file") from None
    with location.filesystem.open_input_file(location.path) as file:
        return file.read()


def open_image(name: str) -> RemoteImage:
    """An image that is read once, by the thread that needs it first."""
    return RemoteImage(name) if is_remote(name) else RemoteImage(name, read_file)


def exists(name: str) -> bool:
    """Whether there is a file of this name."""
    location = locate(name)
    return location.filesystem.get_file_info(location.path).type == arrow_fs.FileType.File


def is_folder(name: str) -> bool:
    """Whether there is a folder of this name."""
    location = locate(name)
    return location.filesystem.get_file_info(location.path).type == arrow_fs.FileType.Directory


def list_files(folder: str, *, recursive: bool = True) -> list[str]:
    """The names of all files in a folder and its sub-folders, sorted; hidden ones begin with a dot, and are left out.

    Empty if there is no such folder.
    """
    location = locate(folder)
    selector = arrow_fs.FileSelector(location.path, allow_not_found=True, recursive=recursive)
    depth = len(location.path.rstrip("/"))
    paths = (info.path for info in location.filesystem.get_file_info(selector) if info.type == arrow_fs.FileType.File)
    return sorted(location.name(path) for path in paths if "/." not in path[depth:])


def expand(pattern: str) -> list[str]:
    """The files that a name or a pattern leads to, sorted; a folder stands for all its files.

    Args:
        pattern: `*`, `?` and `[...]` stay inside a folder, `**` crosses folders, and {000..123} are numbers.

    Raises:
        ValueError: if there are none.
    """
    numbers = _RANGE.search(pattern)
    if numbers is not None:
        first, last = numbers.groups()
        names = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
        return [file for name in names for file in expand(pattern.replace(numbers[0], name, 1))]
    pattern = absolute(pattern)
    if exists(pattern):
        return [pattern]
    if is_folder(pattern):
        files = list_files(pattern)
    else:
        magic = _MAGIC.search(pattern)
        if magic is None:
            raise ValueError(f"{pattern}: no such file or folder")
        match = re.compile(_translate(pattern)).fullmatch
        files = [name for name in list_files(pattern[: magic.start()].rpartition("/")[0] or "/") if match(name)]
    if not files:
        raise ValueError(f"{pattern}: no files there")
    return files


def _translate(pattern: str) -> str:
    """A pattern as a regular expression."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    rules = {"**/": r"(?:.+/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        rules.get(part) or (part if part.startswith("[") and part.endswith("]") else re.escape(part)) for part in parts
    )


def make_folder(folder: str) -> None:
    """Create a folder where there are folders."""
    location = locate(folder)
    location.filesystem.create_dir(location.path, recursive=True)


def delete_files(names: list[str]) -> None:
    """Delete files; it is no error if one is gone."""
    for name in names:
        location = locate(name)
        try:
            location.filesystem.delete_file(location.path)
        except FileNotFoundError:
            continue


def write_file(name: str, content: bytes, *, temporary: str) -> None:
    """Write a file, whole or not at all; two machines may write the same one.

    Where a rename is atomic, it is written under a temporary name first, and forced to the disk. A store of objects
    shows an object once it is complete.

    Args:
        name: of the file; its folder exists.
        content: all of it.
        temporary: a folder of the same file system that exists.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    location = locate(name)
    filesystem = location.filesystem
    try:
        if filesystem.type_name not in _RENAMES:
            _put(location, content)
            return
        partial = f"{locate(temporary).path}/{name.rpartition('/')[2]}.{uuid.uuid4().hex}.tmp"
        if location.prefix:
            with filesystem.open_output_stream(partial) as stream:
                stream.write(content)
        else:
            with open(partial, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        filesystem.move(partial, location.path)
    except OSError as error:
        raise OSError(error.errno, f"{name} cannot be written: {error.strerror or error}") from error


def _put(location: Location, content: bytes) -> None:
    try:
        with location.filesystem.open_output_stream(location.path) as stream:
            stream.write(content)
    except OSError:
        # Closing the stream may have finished an incomplete object.
        delete_files([location.name(location.path)])
        raise
