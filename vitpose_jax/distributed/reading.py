"""The images of a partition: from files, from rows of Parquet, or from an archive, in their order."""

import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, cast

from vitpose_jax.distributed.extras import ARROW_EXTRA
from vitpose_jax.distributed.files import absolute, locate, open_image
from vitpose_jax.distributed.inputs import Columns, Partition, Piece, check_columns
from vitpose_jax.images import image_endings
from vitpose_jax.pixels.urls import RemoteImage, is_remote
from vitpose_jax.storage.text import printable

try:
    from pyarrow import parquet
except ImportError as error:
    raise ImportError(ARROW_EXTRA) from error

# Rows of a Parquet file that are decoded at a time: images of a few MB.
_ROWS = 32
# Bytes of an image in an archive.
LARGEST_MEMBER = 256 * 2**20


class Entry(NamedTuple):
    """An image of a partition.

    Attributes:
        id: what names it in the results.
        image: reading it may fail.
        boxes: rows of x y w h in pixels; None if they are not known.
    """

    id: str
    image: RemoteImage
    boxes: list[list[float]] | None = None


def read_partition(partition: Partition, columns: Columns) -> Iterator[Entry]:
    """The images of a partition. What cannot be read is an entry whose image raises a ValueError that says why.

    Raises:
        OSError: if a file of Parquet or an archive cannot be opened.
        ValueError: if a Parquet file has not these columns.
    """
    readers: dict[str, Callable[[Piece, Columns], Iterator[Entry]]] = {
        "files": _read_file,
        "parquet": _read_rows,
        "tar": _read_archive,
    }
    for piece in partition.pieces:
        yield from readers[partition.kind](piece, columns)


def _read_file(piece: Piece, _: Columns) -> Iterator[Entry]:
    yield Entry(piece.name, open_image(piece.name))


def _held(name: str, content: bytes) -> RemoteImage:
    return RemoteImage(name, lambda _: content)


def _broken(name: str, reason: str) -> RemoteImage:
    def fail(_: str) -> bytes:
        raise ValueError(f"{name}: {reason}")

    return RemoteImage(name, fail)


def _read_rows(piece: Piece, columns: Columns) -> Iterator[Entry]:
    location = locate(piece.name)
    group, start, stop = cast(tuple[int, int, int], piece[1:])
    wanted = [column for column in columns if column is not None]
    with location.filesystem.open_input_file(location.path) as opened:
        file = parquet.ParquetFile(opened)
        check_columns(file.schema_arrow, columns, piece.name)
        first = sum(file.metadata.row_group(index).num_rows for index in range(group))
        row = 0
        for batch in file.iter_batches(_ROWS, row_groups=[group], columns=wanted):
            if row + len(batch) > start:
                table = batch.slice(max(0, start - row), stop - max(start, row))
                for offset, values in enumerate(table.to_pylist(), max(start, row)):
                    yield _row_entry(values, columns, f"{piece.name}#{first + offset}")
            row += len(batch)
            if row >= stop:
                return


def _row_entry(values: dict[str, Any], columns: Columns, name: str) -> Entry:
    image, boxes = values[columns.image], None
    path = None
    if isinstance(image, dict):
        path, image = image.get("path"), image.get("bytes")
        image = path if image is None else image
    if columns.id is not None:
        name = str(values[columns.id])
    elif isinstance(image, str):
        name = image
    if columns.boxes is not None:
        boxes = values[columns.boxes]
        if boxes is None:
            return Entry(name, _broken(name, f"expected boxes in {columns.boxes!r}, got null"))
    if isinstance(image, bytes):
        return Entry(name, _held(name, image), boxes)
    if isinstance(image, str):
        return Entry(name, open_image(image if is_remote(image) else absolute(image)), boxes)
    got = "null" if image is None else type(image).__name__
    return Entry(name, _broken(name, f"expected the bytes or the name of an image, got {got}"))


def _read_archive(piece: Piece, _: Columns) -> Iterator[Entry]:
    """The images of an archive, read from its beginning to its end. A damaged one ends with an entry that says so."""
    location = locate(piece.name)
    endings = image_endings()
    count = 0
    size = location.filesystem.get_file_info(location.path).size
    with location.filesystem.open_input_stream(location.path, compression=None) as stream:
        try:
            with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|*") as archive:
                for member in archive:
                    if not member.isfile() or not _is_image(member.name, endings):
                        continue
                    count += 1
                    name = f"{piece.name}/{printable(member.name)}"
                    if member.size > LARGEST_MEMBER:
                        reason = f"expected at most {LARGEST_MEMBER} bytes, got {member.size}"
                        yield Entry(name, _broken(name, reason))
                        continue
                    yield Entry(name, _held(name, cast(IO[bytes], archive.extractfile(member)).read()))
        except (tarfile.TarError, EOFError, zlib.error) as error:
            reason = f"damaged archive after {count} images: {printable(error)}"
            yield Entry(piece.name, _broken(piece.name, reason))
            return
    # Two empty blocks end an archive; tarfile does not miss them.
    if not piece.name.lower().endswith("gz") and size is not None and archive.offset >= size:
        reason = f"incomplete archive: it ends without its last blocks, after {count} images"
        yield Entry(piece.name, _broken(piece.name, reason))


def _is_image(name: str, endings: frozenset[str]) -> bool:
    base = name.rpartition("/")[2].lower()
    return not base.startswith(".") and f".{base.rpartition('.')[2]}" in endings
