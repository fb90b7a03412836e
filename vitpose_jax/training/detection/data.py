"""Batches to train the person finder on: images with boxes, shuffled, augmented and read ahead.

As for poses, a batch depends only on the seed and its index: the image and all random numbers of its augmentation.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float32, UInt8

from vitpose_jax.datasets.archives import ImageStore, Paths, folder_and_archives
from vitpose_jax.datasets.coco import CocoObject, Source, annotated_size, read_annotations, require
from vitpose_jax.datasets.sizes import check_size
from vitpose_jax.training.data import MAX_EPOCHS, Loader, ProcessPart, import_grain
from vitpose_jax.training.detection.augment import ImageAugmentation, LabelledImage, augment_image

# The number of boxes in a batch is a multiple of this.
BOX_STEP = 8


class BoxBatch(NamedTuple):
    """A batch of augmented images; a pytree of NumPy arrays, or of JAX arrays on the device.

    All batches of a run have the same shapes. Images with fewer boxes have zeros behind them, which are neither
    people nor ignored.

    Attributes:
        images: RGB squares.
        boxes: x1, y1, x2, y2 in pixels of the square.
        is_person: which boxes are people.
        is_ignored: which boxes are regions without classification loss.
    """

    images: UInt8[Array | np.ndarray, "n size size 3"]
    boxes: Float32[Array | np.ndarray, "n boxes 4"]
    is_person: Bool[Array | np.ndarray, "n boxes"]
    is_ignored: Bool[Array | np.ndarray, "n boxes"]


class BoxSource:
    """The images of a dataset with their boxes, by index. It can be pickled, and read by several threads.

    Args:
        annotations: COCO's JSON, or its content as a dict.
        images: the folder of the images, or .zip archives in that folder: one, a glob pattern or several.
        category_id: of people. Boxes without a category count as people, and boxes without area are left out.

    Attributes:
        max_boxes: the largest number of boxes in an image.

    Raises:
        ValueError: for annotations without an image, without a box or without people; for an image that no archive
            holds; as in `read_annotations` and `folder_and_archives`.
    """

    def __init__(self, annotations: Source, images: Paths, *, category_id: int = 1) -> None:
        content = read_annotations(annotations)
        folder, archives = folder_and_archives(images)
        self._store = ImageStore(archives)
        objects: dict[int | str, list[CocoObject]] = {key: [] for key in content.images}
        for item in content.objects:
            if item.image_id not in objects:
                raise ValueError(f"{item.where}: expected an image of the file, got image_id {item.image_id!r}")
            if item.category_id in (None, category_id):
                objects[item.image_id].append(item)
        self._images = [
            (
                os.fspath(folder / require(image, "file_name")),
                _corners(objects[key]),
                image.stretched,
                annotated_size(image),
            )
            for key, image in content.images.items()
        ]
        if not any(len(people) for _, (people, _), *_ in self._images):
            raise ValueError(f"{content.name}: expected people of category_id {category_id}, got none")
        for path, *_ in self._images if archives else ():
            self._store.find(path)
        self.max_boxes = max(len(people) + len(ignored) for _, (people, ignored), *_ in self._images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> LabelledImage:
        """An image, not augmented.

        Raises:
            IndexError: for an index out of range.
            ValueError, OSError: if the image cannot be read, or has another size than annotated, naming it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected 0 to {len(self) - 1}, got {index}")
        path, (people, ignored), stretched, annotated = self._images[index]
        image = self._store.load(path)
        check_size(path, annotated, (image.shape[1], image.shape[0]))
        return LabelledImage(image, people, ignored, stretched)


def _corners(objects: list[CocoObject]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of people and of crowds, x1, y1, x2, y2."""
    boxes = np.asarray([require(item, "bbox") for item in objects], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    crowd = np.asarray([item.iscrowd for item in objects], bool)
    with_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[with_area & ~crowd], boxes[with_area & crowd]


def make_box_loader(
    sources: Sequence[BoxSource],
    *,
    batch_size: int,
    seed: int,
    size: int,
    augmentation: ImageAugmentation,
    num_threads: int = 4,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Loader[BoxBatch]:
    """Endless batches of augmented images; each epoch has a new order.

    Args:
        sources: the datasets.
        batch_size: images in a batch of this process.
        seed: seed of the order and of the augmentation.
        size: height and width of the squares in pixels.
        augmentation: how images are varied.
        num_threads, num_workers, process_index, process_count: as in `make_loader`.

    Raises:
        ImportError: if grain is not installed.
    """
    grain = import_grain()
    images = grain.MapDataset.concatenate([grain.MapDataset.source(source) for source in sources])
    order_seed, augmentation_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    squares = _Squares(images.shuffle(order_seed).repeat(MAX_EPOCHS), size, augmentation, augmentation_seed)
    part = ProcessPart(squares, batch_size, process_index, process_count)
    count = max(1, *(source.max_boxes for source in sources))
    pack = functools.partial(pack_boxes, count=-(-count // BOX_STEP) * BOX_STEP)
    lengths = [len(source) for source in sources]
    return Loader(
        grain.MapDataset.source(part).batch(batch_size, batch_fn=pack),
        identity={"batch_size": batch_size * process_count, "seed": seed, "images": lengths},
        micro_steps_per_epoch=max(1, sum(lengths) // (batch_size * process_count)),
        threads=num_threads,
        workers=num_workers,
    )


class _Squares:
    """Augmented images. The index decides the random numbers, so an image varies from epoch to epoch."""

    def __init__(self, images: Any, size: int, augmentation: ImageAugmentation, seed: int):
        self._images, self._size, self._augmentation, self._seed = images, size, augmentation, seed

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> LabelledImage:
        rng = np.random.default_rng([self._seed, index])
        return augment_image(self._images[index], self._size, self._augmentation, rng)


def pack_boxes(squares: Sequence[LabelledImage], count: int) -> BoxBatch:
    """A batch of squares of one size, each with at most `count` boxes."""
    boxes = np.zeros((len(squares), count, 4), np.float32)
    is_person, is_ignored = np.zeros((2, len(squares), count), bool)
    for row, square in enumerate(squares):
        people, total = len(square.people), len(square.people) + len(square.ignored)
        boxes[row, :total] = np.concatenate([square.people, square.ignored])
        is_person[row, :people] = True
        is_ignored[row, people:total] = True
    return BoxBatch(np.stack([square.image for square in squares]), boxes, is_person, is_ignored)
