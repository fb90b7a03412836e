"""PoseEstimator: images and boxes in, poses out, through one compiled program.

`predict` is the whole path, from pixels and boxes to keypoints, as a pure function. `PoseEstimator` feeds it:
it packs images and boxes into arrays of a few fixed sizes, so that the number of compiled programs is bounded,
and keeps the device busy while the host packs.
"""

import collections
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from vitpose_jax.images import load_image
from vitpose_jax.modeling import VitPose
from vitpose_jax.poses import Poses
from vitpose_jax.postprocess import Decode, decode_regions, flip_back, get_decoding
from vitpose_jax.preprocess import (
    BOX_PADDING,
    Border,
    boxes_to_center_scale,
    check_border,
    check_boxes,
    crop_regions,
    normalize,
    pack_images,
)
from vitpose_jax.pretrained import from_pretrained
from vitpose_jax.skeletons import Skeleton

ImageLike: TypeAlias = str | os.PathLike | Image.Image | Array | np.ndarray
Dataset: TypeAlias = str | int | None
Boxes: TypeAlias = Any  # anything `check_boxes` takes: an (n, 4) array or n rows of four numbers

# Images share a row of pixels whose length is one of these: from 512 x 512 pixels on, in steps of four.
PIXEL_BUCKETS = tuple(4**power for power in range(9, 16))
# Several images share a row only up to this length.
SHARED_PIXELS = 4**12
# A batch is padded to the next power of two only where at most this share of it is padding.
MAX_PADDING = 0.25
# Batches started and not yet collected.
MAX_UNDER_WAY = 2


def predict(
    model: VitPose,
    pixels: UInt8[Array, "p 3"],
    shapes: Int[Array, "n 3"],
    boxes: Float[Array, "n 4"],
    *,
    dataset_index: int = 0,
    flip_test: bool = False,
    decode: Decode = "udp",
    border: Border = "scipy",
    padding: float = BOX_PADDING,
) -> tuple[Float[Array, "n K 2"], Float[Array, "n K"]]:
    """The whole path from images and boxes to keypoints, for one data set; a pure function, jit-able.

    Args:
        model: any `VitPose`.
        pixels: RGB of all images, one behind another, from `pack_images`.
        shapes: for each box: where its image begins in `pixels`, its height, its width.
        boxes: x y w h in pixels of each box's image.
        dataset_index: which expert and head.
        flip_test: also run the mirrored crops and average the heatmaps.
        decode: see postprocess.py; it also decides between the UDP crop and the older one.
        border: see preprocess.py.
        padding: of the boxes.

    Returns:
        keypoints (n, K, 2), (x, y) in pixels of each box's image, and scores (n, K), both float32.
    """
    config, decoding = model.config, get_decoding(decode)
    center, scale = boxes_to_center_scale(boxes, config.image_size, padding=padding)
    grey = crop_regions(pixels, shapes, center, scale, config.image_size, udp=decoding.udp, border=border)
    crops = normalize(grey, config.image_mean, config.image_std)
    if flip_test:
        heatmaps = model(jnp.concatenate([crops, crops[:, :, ::-1]]), dataset_index).astype(jnp.float32)
        upright, mirrored = jnp.split(heatmaps, 2)
        flip_indices = config.skeleton(dataset_index).flip_indices
        heatmaps = (upright + flip_back(mirrored, flip_indices, shift=not decoding.udp)) / 2
    else:
        heatmaps = model(crops, dataset_index)
    return decode_regions(heatmaps, center, scale, decode=decode)


class _Job(NamedTuple):
    """A batch under way: which rows of which images it computes, and its results on the device."""

    rows: Int[np.ndarray, "n 2"]
    keypoints: Float[Array, "padded K 2"]
    scores: Float[Array, "padded K"]


class PoseEstimator:
    """Finds the keypoints of the people (or animals) in boxes.

    Programs are compiled for batches of 1, 2, 4, ... `max_batch` boxes and for rows of 512 x 512, 1024 x 1024,
    2048 x 2048, ... pixels. So the number of programs is at most (1 + log2(max_batch)) for each size of row
    that occurs, times the combinations of `dataset`, `flip_test` and `decode` in use.

    Args:
        model: a `VitPose`; later changes to it are not seen.
        max_batch: most boxes in one batch, a power of two; longer lists are split, so that memory is bounded.
        border: what lies outside the image, "scipy" as transformers or "opencv" as the original.
        padding: factor on the sides of the boxes.

    Raises:
        ValueError: for a max_batch that is no power of two, or an unknown border.
    """

    def __init__(self, model: VitPose, *, max_batch: int = 64, border: Border = "scipy", padding: float = BOX_PADDING):
        if max_batch < 1 or max_batch & (max_batch - 1):
            raise ValueError(f"max_batch: expected a power of two, got {max_batch}")
        check_border(border)
        self.model = model
        self.config = model.config
        self.max_batch = max_batch
        # The module is taken apart once: a call with bare arrays takes 0.12 ms, with the module 0.19 ms, and
        # through nnx.jit 0.97 ms (benchmarks/blocks.py).
        graphdef, state = nnx.split(model)
        self._leaves, structure = jax.tree.flatten(state)

        @functools.partial(jax.jit, static_argnames=("dataset_index", "flip_test", "decode"))
        def run(leaves, pixels, shapes, boxes, *, dataset_index, flip_test, decode):
            return predict(
                nnx.merge(graphdef, jax.tree.unflatten(structure, leaves)),
                pixels,
                shapes,
                boxes,
                dataset_index=dataset_index,
                flip_test=flip_test,
                decode=decode,
                border=border,
                padding=padding,
            )

        self._run = run

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        max_batch: int = 64,
        border: Border = "scipy",
        padding: float = BOX_PADDING,
        **kwargs: Any,
    ) -> "PoseEstimator":
        """An estimator with a pretrained model.

        Args:
            source: a Hub id, a folder or a file; see `vitpose_jax.from_pretrained`.
            max_batch, border, padding: as for the class.
            kwargs: for `vitpose_jax.from_pretrained`: dtype, revision, image_size, skeleton, ...
        """
        return cls(from_pretrained(source, **kwargs), max_batch=max_batch, border=border, padding=padding)

    @overload
    def __call__(self, images: ImageLike, boxes: Boxes = ..., **kwargs: Any) -> Poses: ...
    @overload
    def __call__(
        self, images: Sequence[ImageLike], boxes: Sequence[Boxes] | None = ..., **kwargs: Any
    ) -> list[Poses]: ...

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        boxes: Any = None,
        *,
        dataset: Dataset | Sequence[Dataset | Sequence[Dataset]] = None,
        flip_test: bool = False,
        decode: Decode = "udp",
    ) -> Poses | list[Poses]:
        """Estimate poses.

        Args:
            images: a path, a PIL image or a uint8 array (height, width, 3) in RGB; or a list of them.
            boxes: (n, 4) x y w h in pixels of the image; no boxes are fine; None for the whole image. For a
                list of images a list with one such entry for each.
            dataset: which expert and head: a name or number, or a sequence with one for each box; for a list
                of images, one for all or a sequence with one such entry for each image. None: the first head.
            flip_test: also run the mirrored crops and average.
            decode: "udp", "transformers", "quarter" or "argmax"; see postprocess.py.

        Returns:
            `Poses`, or a list of them for a list of images, with NumPy arrays.

        Raises:
            ValueError: for bad boxes, naming them; an image that cannot be read; an unknown data set, or one
                without a head; an unknown decoding.
        """
        if not isinstance(images, list | tuple):
            poses = self([images], [boxes], dataset=[dataset], flip_test=flip_test, decode=decode)
            return poses[0]
        get_decoding(decode)
        boxes = [None] * len(images) if boxes is None else boxes
        datasets = list(dataset) if isinstance(dataset, list | tuple) else [dataset] * len(images)
        for name, given in (("boxes", boxes), ("dataset", datasets)):
            if len(given) != len(images):
                raise ValueError(f"{name}: expected one entry for each of {len(images)} images, got {len(given)}")
        checked = [None if b is None else check_boxes(b, name=f"boxes[{i}]") for i, b in enumerate(boxes)]
        loaded = [load_image(image) for image in images]
        checked = [
            np.asarray([[0, 0, image.shape[1], image.shape[0]]], np.float32) if b is None else b
            for b, image in zip(checked, loaded, strict=True)
        ]
        indices = [self._dataset_indices(d, len(b)) for d, b in zip(datasets, checked, strict=True)]
        for index in {int(index) for row in indices for index in row}:
            _check_flip(self.config.skeleton(index), flip_test)
        return self._estimate(loaded, checked, indices, flip_test=flip_test, decode=decode)

    def warmup(
        self,
        image_size: tuple[int, int] = (512, 512),
        num_boxes: int | None = None,
        *,
        dataset: Dataset = None,
        flip_test: bool = False,
        decode: Decode = "udp",
    ) -> None:
        """Compile every program that images of this size (height, width) with up to `num_boxes` boxes need.

        `num_boxes` is `max_batch` where not given.
        """
        image = np.zeros((*image_size, 3), np.uint8)
        most = self.max_batch if num_boxes is None else min(num_boxes, self.max_batch)
        for size in sorted({size for n in range(1, most + 1) for size in batch_sizes(n, self.max_batch)}):
            self(
                image, np.tile(np.asarray([0, 0, 1, 1]), (size, 1)), dataset=dataset, flip_test=flip_test, decode=decode
            )

    @property
    def num_compiled(self) -> int:
        """How many programs have been compiled so far."""
        return self._run._cache_size()

    def _dataset_indices(self, dataset: Dataset | Sequence[Dataset], count: int) -> Int[np.ndarray, " n"]:
        if dataset is None or isinstance(dataset, str | int):
            dataset = [dataset] * count
        if len(dataset) != count:
            raise ValueError(f"dataset: expected one for each of {count} boxes, got {len(dataset)}")
        values = [item.item() if isinstance(item, np.generic) else item for item in dataset]
        return np.asarray([self.config.dataset_index(value) for value in values], np.int32)

    def _estimate(self, images, boxes, indices, *, flip_test: bool, decode: Decode) -> list[Poses]:
        results = [self._empty_poses(*row) for row in zip(boxes, indices, strict=True)]

        def collect(job: _Job) -> None:
            points, values = np.asarray(job.keypoints), np.asarray(job.scores)
            for (image, box), point, value in zip(job.rows, points, values, strict=False):
                results[image].keypoints[box, : len(value)] = point
                results[image].scores[box, : len(value)] = value

        # The host packs and sends the next batch while the device computes; no more than that, to bound memory.
        under_way: collections.deque[_Job] = collections.deque()
        for group in _groups(images, boxes, self.max_batch):
            for job in self._dispatch(group, images, boxes, indices, flip_test=flip_test, decode=decode):
                under_way.append(job)
                if len(under_way) > MAX_UNDER_WAY:
                    collect(under_way.popleft())
        for job in under_way:
            collect(job)
        return results

    def _empty_poses(self, boxes: Float[np.ndarray, "n 4"], indices: Int[np.ndarray, " n"]) -> Poses:
        """Poses to be filled in: no coordinates, score 0."""
        held, skeleton_index = np.unique(indices, return_inverse=True)
        skeletons = tuple(self.config.skeleton(int(index)) for index in held) or (self.config.skeleton(),)
        shape = (len(boxes), max(skeleton.num_keypoints for skeleton in skeletons))
        return Poses(
            keypoints=np.full((*shape, 2), np.nan, np.float32),
            scores=np.zeros(shape, np.float32),
            boxes=boxes,
            skeleton_index=skeleton_index.astype(np.int32),
            skeletons=skeletons,
        )

    def _dispatch(self, group: list[int], images, boxes, indices, *, flip_test: bool, decode: Decode) -> Iterator[_Job]:
        """Start the batches of some images; those of one data set follow one another."""
        total = sum(images[i].shape[0] * images[i].shape[1] for i in group)
        pixels, image_shapes = pack_images([images[i] for i in group], _next_bucket(total))
        pixels = jax.device_put(pixels)
        rows = np.concatenate([[(place, i, box) for box in range(len(boxes[i]))] for place, i in enumerate(group)])
        row_indices = np.concatenate([indices[i] for i in group])
        for index in sorted(set(row_indices)):
            mine = rows[row_indices == index]
            begin = 0
            for size in batch_sizes(len(mine), self.max_batch):
                batch = mine[begin : begin + size]
                begin += size
                # Padding repeats the last box.
                padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
                keypoints, scores = self._run(
                    self._leaves,
                    pixels,
                    image_shapes[padded[:, 0]],
                    np.stack([boxes[i][box] for _, i, box in padded]),
                    dataset_index=int(index),
                    flip_test=flip_test,
                    decode=decode,
                )
                yield _Job(batch[:, 1:], keypoints, scores)


def batch_sizes(count: int, max_batch: int) -> list[int]:
    """Powers of two, in falling order, that together hold `count` boxes with little padding.

    The last may have empty places, at most a quarter of it; `max_batch` is a power of two.
    """
    sizes = []
    while count > 0:
        size = min(max_batch, 1 << (count - 1).bit_length())
        if size - count > MAX_PADDING * size:
            size //= 2
        sizes.append(size)
        count -= size
    return sizes


def _next_bucket(pixels: int) -> int:
    for bucket in PIXEL_BUCKETS:
        if pixels <= bucket:
            return bucket
    raise ValueError(f"image: expected at most {PIXEL_BUCKETS[-1]} pixels, got {pixels}")


def _groups(images, boxes, max_batch: int) -> Iterator[list[int]]:
    """Numbers of the images that share a row of pixels and their batches; images without boxes are left out."""
    group: list[int] = []
    pixels = count = 0
    for i, (image, row) in enumerate(zip(images, boxes, strict=True)):
        if len(row) == 0:
            continue
        size = image.shape[0] * image.shape[1]
        if group and (pixels + size > SHARED_PIXELS or count >= max_batch):
            yield group
            group, pixels, count = [], 0, 0
        group.append(i)
        pixels += size
        count += len(row)
    if group:
        yield group


def _check_flip(skeleton: Skeleton, flip_test: bool) -> None:
    if flip_test and skeleton.num_keypoints > 1 and not skeleton.flip_pairs:
        raise ValueError(
            f"flip_test: the skeleton {skeleton.name!r} has no flip pairs; "
            "give from_pretrained(..., skeleton=...) one that has"
        )
