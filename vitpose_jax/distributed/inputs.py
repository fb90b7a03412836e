"""What a source holds, cut into partitions before anything runs: the manifest.

A partition is computed by one worker at a time and becomes one file, so it is what is lost with a machine. Its images
are known from the start: the same ones whoever computes it, and whenever.

    files     consecutive image files, `images_per_partition` of them
    parquet   consecutive rows of a row group, at most `images_per_partition`
    tar       one archive, as WebDataset writes them: its images are not counted before
"""

import collections
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

from vitpose_jax.distributed.extras import ARROW_EXTRA
from vitpose_jax.distributed.files import absolute, expand, locate, read_file
from vitpose_jax.images import image_endings
from vitpose_jax.pixels.urls import is_remote
from vitpose_jax.storage.text import join

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as error:
    raise ImportError(ARROW_EXTRA) from error

Kind: TypeAlias = Literal["files", "parquet", "tar"]
Source: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
LIST_ENDING = ".txt"
# Rows of the manifest that are in memory at a time.
_ROWS = 65536
_SCHEMA = pa.schema(
    [
        ("partition", pa.int64()),
        ("name", pa.string()),
        ("row_group", pa.int64()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
    ]
)


class Columns(NamedTuple):
    """The columns of a Parquet source.

    Attributes:
        image: the bytes of an image file, its name, or a struct of "bytes" and "path", as in the datasets of the Hub.
        id: what names the image in the results; None for the name of the file and the number of the row.
        boxes: rows of x y w h in pixels; None if a detector finds them.
    """

    image: str = "image"
    id: str | None = None
    boxes: str | None = None


class Piece(NamedTuple):
    """An image file, an archive, or some rows of a Parquet file.

    Attributes:
        name: of the file.
        row_group: of a Parquet file.
        start, stop: the rows of this row group.
    """

    name: str
    row_group: int | None = None
    start: int | None = None
    stop: int | None = None


class Partition(NamedTuple):
    """What one worker computes, and one file holds.

    Attributes:
        number: from 0.
        kind: of its pieces.
        pieces: in their order.
    """

    number: int
    kind: Kind
    pieces: list[Piece]

    @property
    def images(self) -> int | None:
        """The number of its images; None if it is not known."""
        if self.kind == "tar":
            return None
        return sum((piece.stop or 0) - (piece.start or 0) if self.kind == "parquet" else 1 for piece in self.pieces)


def find_pieces(source: Source, *, images_per_partition: int, columns: Columns) -> tuple[Kind, Iterator[list[Piece]]]:
    """The kind of a source, and the pieces of each of its partitions.

    Args:
        source: folders, files and patterns of images, of Parquet files or of archives; or lists of image files, one
            in each line, whose names end in .txt.
        images_per_partition: at most; an archive is one partition, whatever it holds.
        columns: of Parquet files.

    Raises:
        ValueError: if there are no images, files of several kinds, or a Parquet file without the columns.
    """
    if images_per_partition < 1:
        raise ValueError(f"images_per_partition: expected at least 1, got {images_per_partition}")
    names = [os.fspath(name) for name in ([source] if isinstance(source, str | os.PathLike) else source)]
    if not names:
        raise ValueError("source: expected a folder, a pattern or a file, got none")
    by_kind: dict[Kind, list[str]] = collections.defaultdict(list)
    endings = image_endings()
    for name in names:
        listed = name.endswith(LIST_ENDING)
        for file in _read_list(name) if listed else [name] if is_remote(name) else expand(name):
            kind = "files" if listed or is_remote(file) else _kind_of(file, endings)
            if kind is not None:
                by_kind[kind].append(file)
    if len(by_kind) != 1:
        counts = ", ".join(f"{len(files)} {kind}" for kind, files in by_kind.items())
        got = f"got {counts}; give a pattern" if counts else "got none"
        raise ValueError(f"{join(names, most=3)}: expected images, Parquet files or .tar archives, {got}")
    ((kind, files),) = by_kind.items()
    files = list(dict.fromkeys(files))
    if kind == "tar":
        return kind, ([Piece(file)] for file in files)
    if kind == "parquet":
        return kind, _cut(_row_ranges(files, images_per_partition, columns), images_per_partition)
    return kind, _cut(map(Piece, files), images_per_partition)


def _kind_of(name: str, endings: frozenset[str]) -> Kind | None:
    name = name.lower()
    if name.endswith(TAR_ENDINGS):
        return "tar"
    if name.endswith(".parquet"):
        return "parquet"
    return "files" if pathlib.PurePosixPath(name).suffix in endings else None


def _read_list(name: str) -> list[str]:
    """The files that a list names; relative ones are relative to the current folder."""
    try:
        lines = read_file(absolute(name)).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: expected the names of images, one in each line: {error}") from None
    return [line if is_remote(line) else absolute(line) for line in lines if line.strip()]


def _row_ranges(files: list[str], most: int, columns: Columns) -> Iterator[Piece]:
    """The rows of all files, at most `most` in each piece."""
    for file in files:
        location = locate(file)
        try:
            with location.filesystem.open_input_file(location.path) as opened:
                metadata = parquet.read_metadata(opened)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file}: expected a Parquet file: {error}") from None
        check_columns(metadata.schema.to_arrow_schema(), columns, file)
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            for start in range(0, rows, most):
                yield Piece(file, group, start, min(start + most, rows))


def check_columns(schema: pa.Schema, columns: Columns, name: str) -> None:
    """Check that a Parquet file has the columns.

    Raises:
        ValueError: naming the missing one and those that there are.
    """
    for column in columns:
        if column is not None and column not in schema.names:
            raise ValueError(f"{name}: expected a column {column!r}, got {', '.join(schema.names)}")


def _cut(pieces: Iterable[Piece], most: int) -> Iterator[list[Piece]]:
    """Consecutive pieces together, as long as they hold at most `most` images."""
    partition: list[Piece] = []
    total = 0
    for piece in pieces:
        count = 1 if piece.stop is None or piece.start is None else piece.stop - piece.start
        if partition and total + count > most:
            yield partition
            partition, total = [], 0
        partition.append(piece)
        total += count
    if partition:
        yield partition


class Manifest(NamedTuple):
    """All partitions of a run, in a file.

    Attributes:
        name: of the file.
        kind: of the pieces.
        partitions: how many there are.
        images: in all of them; None if it is not known.
    """

    name: str
    kind: Kind
    partitions: int
    images: int | None

    def read(self) -> Iterator[Partition]:
        """The partitions, in bounded memory."""
        location = locate(self.name)
        number, pieces = 0, []
        with location.filesystem.open_input_file(location.path) as file:
            for batch in parquet.ParquetFile(file).iter_batches(_ROWS):
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    if row[0] != number:
                        yield Partition(number, self.kind, pieces)
                        number, pieces = row[0], []
                    pieces.append(Piece(*row[1:]))
        yield Partition(number, self.kind, pieces)


def encode_manifest(kind: Kind, partitions: Iterable[list[Piece]]) -> bytes:
    """The content of a manifest."""
    sink = pa.BufferOutputStream()
    count = images = 0
    rows: list[tuple] = []

    def flush() -> None:
        columns = zip(*rows, strict=True) if rows else [()] * len(_SCHEMA)
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
        rows.clear()

    with parquet.ParquetWriter(sink, _SCHEMA, compression="zstd") as writer:
        for number, pieces in enumerate(partitions):
            count, images = number + 1, images + (Partition(number, kind, pieces).images or 0)
            rows += [(number, *piece) for piece in pieces]
            if len(rows) >= _ROWS:
                flush()
        flush()
        writer.add_key_value_metadata({"kind": kind, "partitions": str(count), "images": str(images)})
    return sink.getvalue().to_pybytes()


def open_manifest(name: str) -> Manifest:
    """The manifest in a file.

    Raises:
        ValueError: if it is none.
    """
    location = locate(name)
    try:
        with location.filesystem.open_input_file(location.path) as file:
            metadata = parquet.read_metadata(file).metadata or {}
        kind, partitions, images = (metadata[key].decode() for key in (b"kind", b"partitions", b"images"))
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{name}: expected a list of partitions, {error}") from None
    return Manifest(name, kind, int(partitions), None if kind == "tar" else int(images))  # pyright: ignore[reportArgumentType]
