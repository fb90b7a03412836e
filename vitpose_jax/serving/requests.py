"""The request for one image: its boxes and their datasets, checked before the image is read."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
from jaxtyping import Float, Int

from vitpose_jax.serving.boxes import BoxFormat, check_box_format, read_boxes, unwrap
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.vitpose.config import VitPoseConfig

# The expert and head of a model: a name, an index, or None for the first head.
DatasetKey: TypeAlias = str | int | np.integer | np.str_ | None
# In the place of boxes: the whole image is one box.
WHOLE_IMAGE = "image"
# One for all boxes of an image, or one for each: a `DatasetKey`, or a sequence or array (NumPy, JAX, PyTorch) of them.
DatasetKeys: TypeAlias = Any


class Request(NamedTuple):
    """Boxes of one image and their datasets, checked.

    Attributes:
        boxes: x y w h in pixels of the image, or in fractions of it; None if they are not known before the image is
            read.
        whole_image: the whole image is one box, instead of those that a detector finds.
        dataset_index: of each box; one for all boxes while they are not known.
        skeletons: of the boxes; without boxes, the one that they would have.
        skeleton_index: for each box, the index of its skeleton in `skeletons`.
        box_scores: of the detector that found the boxes; None if there are none.
        relative: the boxes are in fractions of the image.
    """

    boxes: Float[np.ndarray, "n 4"] | None
    whole_image: bool
    dataset_index: Int[np.ndarray, " m"]
    skeletons: tuple[Skeleton, ...]
    skeleton_index: Int[np.ndarray, " m"]
    box_scores: Float[np.ndarray, " n"] | None = None
    relative: bool = False

    @property
    def num_keypoints(self) -> int:
        """The largest number of keypoints of the skeletons."""
        return max(skeleton.num_keypoints for skeleton in self.skeletons)

    def with_boxes(self, boxes: Float[np.ndarray, "n 4"]) -> "Request":
        """The same for boxes that were found in the image."""
        dataset_index, skeleton_index = (
            np.repeat(index[:1], len(boxes)) for index in (self.dataset_index, self.skeleton_index)
        )
        return self._replace(boxes=boxes, dataset_index=dataset_index, skeleton_index=skeleton_index)

    def for_image(self, height: int, width: int) -> "Request":
        """The same with boxes in pixels, once the size of the image is known."""
        if self.whole_image:
            return self.with_boxes(np.asarray([[0, 0, width, height]], np.float32))
        if self.boxes is None or not self.relative:
            return self
        return self._replace(boxes=self.boxes * np.asarray([width, height] * 2, np.float32), relative=False)


def check_request(
    config: VitPoseConfig,
    boxes: Any,
    dataset: DatasetKeys,
    *,
    flip_test: bool,
    box_format: BoxFormat = "xywh",
    name: str = "boxes",
) -> Request:
    """Check the boxes of an image and their datasets.

    Args:
        config: of the model.
        boxes: anything that `read_boxes` takes, "image" for the whole image, or None.
        dataset: one for all boxes, or a sequence with one for each.
        flip_test: whether the skeletons need flip pairs.
        box_format: of rows of numbers; see boxes.py.
        name: of the boxes, for the error.

    Raises:
        ValueError: for bad boxes, an unknown format of boxes, an unknown dataset, another number of datasets than
            boxes, or a skeleton without flip pairs.
        TypeError: for boxes that are not numbers.
    """
    check_box_format(box_format)
    boxes = unwrap(boxes)
    whole_image = isinstance(boxes, str) and boxes == WHOLE_IMAGE
    box_scores, relative = None, False
    if whole_image or boxes is None:
        boxes = None
    else:
        boxes, box_scores, relative = read_boxes(boxes, box_format, name=name)
    dataset_index = _dataset_indices(config, dataset, 1 if boxes is None else len(boxes))
    unique, skeleton_index = np.unique(dataset_index, return_inverse=True)
    if len(unique) == 0:
        unique = _dataset_indices(config, None if is_sequence(dataset) else dataset, 1)
    skeletons = tuple(config.skeleton(int(index)) for index in unique)
    if flip_test:
        for skeleton in skeletons:
            check_flip_pairs(skeleton)
    skeleton_index = skeleton_index.astype(np.int32)
    return Request(boxes, whole_image, dataset_index, skeletons, skeleton_index, box_scores, relative)


def check_flip_pairs(skeleton: Skeleton) -> None:
    """Check that a skeleton can be mirrored, for a flip test.

    Raises:
        ValueError: where it has several keypoints and no flip pairs.
    """
    if skeleton.num_keypoints > 1 and not skeleton.flip_pairs:
        raise ValueError(
            f"flip_test: the skeleton {skeleton.name!r} has no flip pairs; "
            "pass one that has them: from_pretrained(..., skeleton=...)"
        )


def is_sequence(dataset: object) -> TypeGuard[Sequence]:
    """Whether this is one dataset for each box, and not one for all."""
    return isinstance(dataset, list | tuple) or getattr(dataset, "ndim", 0) > 0


def _dataset_indices(config: VitPoseConfig, dataset: DatasetKeys, count: int) -> Int[np.ndarray, " n"]:
    if not is_sequence(dataset):
        return np.full(count, config.dataset_index(plain(dataset)), np.int32)
    if len(dataset) != count:
        raise ValueError(f"dataset: expected one for each of {count} boxes, got {len(dataset)}")
    values = plain(dataset)
    if any(isinstance(value, list) for value in values):
        raise ValueError(f"dataset: expected one dimension, one for each box, got {str(values)[:80]}")
    return np.asarray([config.dataset_index(plain(value)) for value in values], np.int32)


def plain(value: Any) -> Any:
    """A scalar or array of NumPy, JAX or PyTorch as Python values; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value
