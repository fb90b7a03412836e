"""Which images and boxes go to the device together: images in groups, boxes in batches of a few fixed sizes.

Programs are compiled for fixed shapes. The images of a group share one flat pixel buffer of a fixed length; boxes go
in batches of powers of two. So a few programs serve any number of images of any size.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int, UInt8

# Several images share a buffer only up to this number of pixels.
SHARED_PIXELS = 4**12
# At most this fraction of a batch is padding.
MAX_PADDING = 0.25


@dataclasses.dataclass(eq=False)
class Item:
    """An image on its way to the device and back.

    Attributes:
        image: RGB.
    """

    image: UInt8[np.ndarray, "height width 3"]

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.image.shape[0] * self.image.shape[1]

    def release_pixels(self) -> None:
        """Forget the pixels: they are on the device, or not needed."""
        self.image = np.zeros((0, 0, 3), np.uint8)

    @property
    def num_boxes(self) -> int:
        """How many boxes it brings into its group."""
        return 0

    @property
    def finished(self) -> bool:
        """Whether its results have come back."""
        raise NotImplementedError


AnyItem = TypeVar("AnyItem", bound=Item)


class Batch(NamedTuple):
    """Boxes of one dataset that are computed together.

    Attributes:
        dataset_index: of all of them.
        rows: for each box: the index of its image in the group, its own index in the image.
        size: of the batch: `len(rows)`, or a little more; the rest is padding.
    """

    dataset_index: int
    rows: Int[np.ndarray, "n 2"]
    size: int

    @property
    def padded(self) -> Int[np.ndarray, "size 2"]:
        """The rows; the last one is repeated to fill the batch."""
        return np.concatenate([self.rows, np.repeat(self.rows[-1:], self.size - len(self.rows), axis=0)])


def check_power_of_two(max_batch: int) -> None:
    """Check the largest size of a batch.

    Raises:
        ValueError: if it is not a power of two.
    """
    if max_batch < 1 or max_batch & (max_batch - 1):
        raise ValueError(f"max_batch: expected a power of two, got {max_batch}")


def batch_sizes(count: int, max_batch: int, min_batch: int = 1) -> list[int]:
    """Powers of two, in falling order, that together hold `count` boxes with little padding.

    At most a quarter of the last one is padding, unless its size is `min_batch`. `min_batch` and `max_batch` are
    powers of two.
    """
    sizes = []
    while count > 0:
        size = min(max_batch, max(min_batch, 1 << (count - 1).bit_length()))
        if size - count > MAX_PADDING * size and size > min_batch:
            size //= 2
        sizes.append(size)
        count -= size
    return sizes


def split_rows(count: int, max_batch: int, min_batch: int = 1) -> Iterator[tuple[slice, int]]:
    """The rows 0 to `count` in batches, each with the batch's size, which may be a little larger."""
    begin = 0
    for size in batch_sizes(count, max_batch, min_batch):
        yield slice(begin, min(begin + size, count)), size
        begin += size


def groups(
    items: Iterable[AnyItem | Exception], *, max_boxes: int, max_images: int
) -> Iterator[list[AnyItem | Exception]]:
    """Consecutive items, until their boxes or pixels fill a group.

    An exception takes the place of an item that failed, and keeps that place.
    """
    group: list[AnyItem | Exception] = []
    pixels = boxes = 0
    for item in items:
        item_pixels = item.pixels if isinstance(item, Item) else 0
        if group and pixels + item_pixels > SHARED_PIXELS:
            yield group
            group, pixels, boxes = [], 0, 0
        group.append(item)
        pixels += item_pixels
        boxes += item.num_boxes if isinstance(item, Item) else 0
        if boxes >= max_boxes or len(group) >= max_images:
            yield group
            group, pixels, boxes = [], 0, 0
    if group:
        yield group


def batches(
    dataset_indices: Sequence[Int[np.ndarray, " _n"]], *, max_batch: int, min_batch: int = 1
) -> Iterator[Batch]:
    """The boxes of a group in batches, one dataset after another.

    Args:
        dataset_indices: for each image of the group, the dataset of each of its boxes.
        max_batch, min_batch: sizes of batches, powers of two.
    """
    rows = np.concatenate(
        [np.stack(np.broadcast_arrays(i, np.arange(len(index))), -1) for i, index in enumerate(dataset_indices)]
    )
    all_indices = np.concatenate(list(dataset_indices))
    for index in np.unique(all_indices):
        same_dataset = rows[all_indices == index]
        for batch_rows, size in split_rows(len(same_dataset), max_batch, min_batch):
            yield Batch(int(index), same_dataset[batch_rows], size)
