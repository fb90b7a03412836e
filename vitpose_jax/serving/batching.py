"""What goes to the device together: images in groups, their boxes in batches, both of a few fixed sizes.

Compiled programs are for fixed shapes. Images share one row of pixels, padded to a length of `PIXEL_BUCKETS`; boxes
go in batches of powers of two. So however many images of however many sizes come, few programs serve them all.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from vitpose_jax.poses import Poses

# From 512 x 512 pixels on, in steps of four.
PIXEL_BUCKETS = tuple(4**power for power in range(9, 16))
# Several images share a row only up to this length.
SHARED_PIXELS = 4**12
# At most this share of a batch is padding.
MAX_PADDING = 0.25


@dataclasses.dataclass(eq=False)
class Item:
    """An image on its way through the estimator.

    Attributes:
        image: RGB.
        boxes: x y w h in its pixels.
        indices: the data set of each box.
        poses: filled in as batches come back.
        missing: how many boxes have not come back.
    """

    image: UInt8[np.ndarray, "height width 3"]
    boxes: Float[np.ndarray, "n 4"]
    indices: Int[np.ndarray, " n"]
    poses: Poses
    missing: int

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.image.shape[0] * self.image.shape[1]


class Batch(NamedTuple):
    """Boxes of one data set that are computed together, as indices into a group.

    Attributes:
        dataset_index: of all of them.
        rows: (image in the group, box in the image).
        size: the batch's, `len(rows)` or a little more: the rest is padding.
    """

    dataset_index: int
    rows: Int[np.ndarray, "n 2"]
    size: int

    @property
    def padded(self) -> Int[np.ndarray, "size 2"]:
        """The rows, the last one repeated to fill the batch."""
        return np.concatenate([self.rows, np.repeat(self.rows[-1:], self.size - len(self.rows), axis=0)])


def batch_sizes(count: int, max_batch: int, min_batch: int = 1) -> list[int]:
    """Powers of two, in falling order, that together hold `count` boxes with little padding.

    The last may have empty places, at most a quarter of it, or more where it is `min_batch`. `min_batch` and
    `max_batch` are powers of two.
    """
    sizes = []
    while count > 0:
        size = min(max_batch, max(min_batch, 1 << (count - 1).bit_length()))
        if size - count > MAX_PADDING * size and size > min_batch:
            size //= 2
        sizes.append(size)
        count -= size
    return sizes


def pixel_bucket(pixels: int) -> int:
    """The length of the row that so many pixels are laid in.

    Raises:
        ValueError: for more pixels than any row holds.
    """
    for bucket in PIXEL_BUCKETS:
        if pixels <= bucket:
            return bucket
    raise ValueError(f"image: expected at most {PIXEL_BUCKETS[-1]} pixels, got {pixels}")


def groups(items: Iterable[Item | Exception], *, max_boxes: int, max_images: int) -> Iterator[list[Item | Exception]]:
    """Put items that follow one another together, until their boxes or pixels fill a group.

    Exceptions stand in the place of items that failed, and keep it.
    """
    group: list[Item | Exception] = []
    pixels = boxes = 0
    for item in items:
        more = item.pixels if isinstance(item, Item) else 0
        if group and pixels + more > SHARED_PIXELS:
            yield group
            group, pixels, boxes = [], 0, 0
        group.append(item)
        pixels += more
        boxes += len(item.boxes) if isinstance(item, Item) else 0
        if boxes >= max_boxes or len(group) >= max_images:
            yield group
            group, pixels, boxes = [], 0, 0
    if group:
        yield group


def batches(items: list[Item], *, max_batch: int, min_batch: int = 1) -> Iterator[Batch]:
    """The boxes of a group in batches, those of one data set after those of another."""
    rows = np.concatenate([np.stack(np.broadcast_arrays(i, np.arange(len(x.boxes))), -1) for i, x in enumerate(items)])
    indices = np.concatenate([item.indices for item in items])
    for index in np.unique(indices):
        mine = rows[indices == index]
        begin = 0
        for size in batch_sizes(len(mine), max_batch, min_batch):
            yield Batch(int(index), mine[begin : begin + size], size)
            begin += size
