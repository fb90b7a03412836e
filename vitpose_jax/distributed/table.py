"""Poses as rows of Parquet: one row for each person, and one for each image without people or with an error.

    image       string         path, URI, ARCHIVE/MEMBER, FILE.parquet#ROW, or the column that `id_column` names
    partition   int64          and
    index       int32          the place of the image in its partition: together unique for each image
    width       int32          of the image in pixels, as EXIF turns it; null with an error
    height      int32
    person      int32          from 0 in each image; null in the row of an image without people, or with an error
    skeleton    string         its keypoints are named in the metadata of the file, under "skeletons"
    box         list<float>    x, y, width, height in pixels of the image
    box_score   float          of the detector; null for given boxes
    keypoints   list<list<float>[2]>   (x, y) in pixels of the image, pixel centres at integers
    scores      list<float>    of the keypoints: peak values of the heatmaps, no probabilities
    error       string         why the image has no result; null otherwise

A query for people needs no more than `WHERE person IS NOT NULL`; `WHERE error IS NOT NULL` lists what failed; and
`COUNT(DISTINCT (partition, index))` counts images.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitpose_jax.distributed.extras import ARROW_EXTRA
from vitpose_jax.poses import Poses

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as error:
    raise ImportError(ARROW_EXTRA) from error

_POINTS = pa.list_(pa.list_(pa.float32(), 2))
SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("partition", pa.int64(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("person", pa.int32()),
        ("skeleton", pa.string()),
        ("box", pa.list_(pa.float32())),
        ("box_score", pa.float32()),
        ("keypoints", _POINTS),
        ("scores", pa.list_(pa.float32())),
        ("error", pa.string()),
    ]
)


class Rows:
    """The rows of a partition.

    Args:
        partition: its number.

    Attributes:
        images, people, errors: how many there are.
    """

    def __init__(self, partition: int):
        self.images = self.people = self.errors = 0
        self._partition = partition
        self._columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self._skeletons: dict[str, list[str]] = {}

    def add(self, image: str, size: tuple[int, int], poses: Poses) -> None:
        """An image and the people in it; `size` is its width and height."""
        common = {"image": image, "index": self.images, "width": size[0], "height": size[1]}
        self.images += 1
        self.people += len(poses)
        if len(poses) == 0:
            self._append(common)
        box_scores = poses.box_scores
        for person, (skeleton, keypoints, scores, box) in enumerate(poses.rows()):
            self._skeletons.setdefault(skeleton.name, list(skeleton.keypoints))
            values = {"person": person, "skeleton": skeleton.name, "box": box, "keypoints": keypoints, "scores": scores}
            score = None if box_scores is None else float(box_scores[person])
            self._append({**common, **values, "box_score": score})

    def add_error(self, image: str, reason: str) -> None:
        """An image that failed."""
        self._append({"image": image, "index": self.images, "error": reason})
        self.images += 1
        self.errors += 1

    def _append(self, values: Mapping[str, Any]) -> None:
        for name, column in self._columns.items():
            column.append(self._partition if name == "partition" else values.get(name))

    def encode(self) -> bytes:
        """The content of a Parquet file."""
        arrays = [
            _points(column) if name == "keypoints" else pa.array(column, SCHEMA.field(name).type)
            for name, column in self._columns.items()
        ]
        metadata = {"skeletons": json.dumps(self._skeletons), "images": str(self.images), "errors": str(self.errors)}
        table = pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(metadata))
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink, compression="zstd")
        return sink.getvalue().to_pybytes()


def _points(column: list[np.ndarray | None]) -> pa.Array:
    """Keypoints of all rows, without a Python object for each number."""
    present = [points for points in column if points is not None]
    numbers = np.concatenate(present, dtype=np.float32).reshape(-1) if present else np.zeros(0, np.float32)
    points = pa.FixedSizeListArray.from_arrays(pa.array(numbers), 2)
    # A null offset is a null list.
    offsets, end = [], 0
    for row in column:
        offsets.append(None if row is None else end)
        end += 0 if row is None else len(row)
    return pa.ListArray.from_arrays(pa.array([*offsets, end], pa.int32()), points)
