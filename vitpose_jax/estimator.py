"""PoseEstimator: images and boxes in, poses out, through one compiled program.

The program is pipeline.py; this file feeds it. Host threads read images, batching.py lays them out in a few fixed
sizes, and the device computes one batch while the next is packed and sent.
"""

import collections
import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from PIL import Image

from vitpose_jax.bundled import DEFAULT_MODEL
from vitpose_jax.detector import Detector
from vitpose_jax.images import load_image
from vitpose_jax.pipeline.packing import pack_images
from vitpose_jax.pipeline.postprocess import Decode, get_decoding
from vitpose_jax.pipeline.predict import predict
from vitpose_jax.pipeline.preprocess import BOX_PADDING, Border, check_border, check_boxes
from vitpose_jax.poses import Poses
from vitpose_jax.pretrained import from_pretrained
from vitpose_jax.serving.batching import Batch, Item, batch_sizes, batches, groups, pixel_bucket
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.vitpose.modeling import VitPose

ImageLike: TypeAlias = str | os.PathLike | Image.Image | Array | np.ndarray
Dataset: TypeAlias = str | int | np.integer | np.str_ | None
Boxes: TypeAlias = Any  # anything `check_boxes` takes: an (n, 4) array or n rows of four numbers

# Most boxes in a batch, where nobody says: CPUs are fastest while a batch fits their caches.
MAX_BATCH = 64
MAX_BATCH_CPU = 16
# Batches started and not yet collected.
MAX_UNDER_WAY = 2
# Images read ahead.
PREFETCH = 16

_PIL_LOCK = threading.Lock()


class ItemError(ValueError):
    """An item of a stream that could not be done.

    Attributes:
        number: which item, counted from 0. The error itself is the `__cause__`.
    """

    def __init__(self, number: int, message: str):
        super().__init__(f"item {number}: {message}")
        self.number = number


class _Request(NamedTuple):
    """What is asked of an image.

    Attributes:
        boxes: checked; None for those of the detector, or the whole image.
        indices: the data set of each box; of all boxes, where they are None.
        skeletons: those of the boxes; without boxes, the one they would have.
        skeleton_index: which of them each box has.
    """

    boxes: Float[np.ndarray, "n 4"] | None
    indices: Int[np.ndarray, " m"]
    skeletons: tuple[Skeleton, ...]
    skeleton_index: Int[np.ndarray, " m"]


class _Job(NamedTuple):
    """A batch under way: where its results go, and the results on the device."""

    items: list[Item]
    batch: Batch
    keypoints: Float[Array, "size K 2"]
    scores: Float[Array, "size K"]

    def collect(self) -> None:
        """Wait for the results and put them into the items' poses."""
        points, values = np.asarray(self.keypoints), np.asarray(self.scores)
        for (place, box), point, value in zip(self.batch.rows, points, values, strict=False):
            item = self.items[place]
            item.poses.keypoints[box, : len(value)] = point
            item.poses.scores[box, : len(value)] = value
            item.missing -= 1


class PoseEstimator:
    """Finds the keypoints of the people (or animals) in boxes.

    Programs are compiled for batches of 1, 2, 4, ... `max_batch` boxes and for rows of 512 x 512, 1024 x 1024,
    2048 x 2048, ... pixels. So the number of programs is at most (1 + log2(max_batch)) for each size of row
    that occurs, times the combinations of `dataset`, `flip_test` and `decode` in use.

    Args:
        model: a `VitPose`; later changes to it are not seen.
        max_batch: most boxes in one batch, a power of two; longer lists are split, so that memory is bounded. None
            for what suits the device: 16 on CPUs, which larger batches slow down, 64 elsewhere.
        border: what lies outside the image, "scipy" as transformers or "opencv" as the original.
        padding: factor on the sides of the boxes.
        stretch: crop each box with its own aspect, stretched to the crop, as the original does for MPII.
        devices: share every batch out among these; a power of two of them, at most `max_batch`. None for JAX's
            default device.
        detector: finds the boxes of images that come without.

    Raises:
        ValueError: for a max_batch or a number of devices that is no power of two, or an unknown border.
    """

    def __init__(
        self,
        model: VitPose,
        *,
        max_batch: int | None = None,
        border: Border = "scipy",
        padding: float = BOX_PADDING,
        stretch: bool = False,
        devices: Sequence[jax.Device] | None = None,
        detector: Detector | None = None,
    ):
        count = 1 if devices is None else len(devices)
        if max_batch is None:
            platform = devices[0].platform if devices else jax.default_backend()
            max_batch = max(MAX_BATCH_CPU if platform == "cpu" else MAX_BATCH, count)
        if max_batch < 1 or max_batch & (max_batch - 1):
            raise ValueError(f"max_batch: expected a power of two, got {max_batch}")
        if not 1 <= count <= max_batch or count & (count - 1):
            raise ValueError(f"devices: expected a power of two up to max_batch {max_batch}, got {count} of them")
        check_border(border)
        self.model = model
        self.config = model.config
        self.detector = detector
        self.max_batch, self.border, self.padding, self.stretch = max_batch, border, padding, stretch
        # The module is taken apart once: bare arrays are handed over faster than a module, and a module by jax.jit
        # faster than by nnx.jit (benchmarks/variants.py).
        graphdef, state = nnx.split(model)
        leaves, structure = jax.tree.flatten(state)
        # Parameters and pixels are on every device, boxes and results are shared out.
        self._min_batch, self._everywhere, self._shared = count, None, None
        if devices is not None:
            mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
            self._everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            self._shared = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        self._leaves = jax.device_put(leaves, self._everywhere)

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
                stretch=stretch,
            )

        self._run = run

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike = DEFAULT_MODEL,
        *,
        max_batch: int | None = None,
        border: Border = "scipy",
        padding: float = BOX_PADDING,
        stretch: bool = False,
        devices: Sequence[jax.Device] | None = None,
        detector: Detector | str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> "PoseEstimator":
        """An estimator with a pretrained model.

        Args:
            source: a Hub id, a folder or a file; see `vitpose_jax.from_pretrained`. By default the model that comes
                with the package.
            max_batch, border, padding, stretch, devices: as for the class.
            detector: a `Detector`, or where to find one: a Hub id or a folder.
            kwargs: for `vitpose_jax.from_pretrained`: dtype, revision, image_size, skeleton, ...
        """
        model = from_pretrained(source, **kwargs)
        if detector is not None and not isinstance(detector, Detector):
            shared = ("dtype", "param_dtype", "cache_dir", "token", "local_files_only")
            options = {name: kwargs[name] for name in shared if name in kwargs}
            detector = Detector.from_pretrained(detector, **options)
        return cls(
            model,
            max_batch=max_batch,
            border=border,
            padding=padding,
            stretch=stretch,
            devices=devices,
            detector=detector,
        )

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
        dataset: Dataset | np.ndarray | Sequence[Dataset | np.ndarray | Sequence[Dataset]] = None,
        flip_test: bool = False,
        decode: Decode = "udp",
    ) -> Poses | list[Poses]:
        """Estimate poses.

        Args:
            images: a path, a PIL image or a uint8 array (height, width, 3) in RGB; or a list of them.
            boxes: (n, 4) x y w h in pixels of the image; no boxes are fine; None for those of the detector, or for
                the whole image where there is none. For a list of images a list with one such entry for each.
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
        datasets = list(dataset) if _is_sequence(dataset) else [dataset] * len(images)
        for name, given in (("boxes", boxes), ("dataset", datasets)):
            if len(given) != len(images):
                raise ValueError(f"{name}: expected one entry for each of {len(images)} images, got {len(given)}")
        # Whatever can be wrong is looked for before the first image is read.
        requests = [
            self._request(row, choice, flip_test, name=f"boxes[{i}]")
            for i, (row, choice) in enumerate(zip(boxes, datasets, strict=True))
        ]
        with concurrent.futures.ThreadPoolExecutor(_threads(len(images))) as pool:
            items = _ahead(pool, lambda pair: self._item(*pair), zip(images, requests, strict=True), PREFETCH)
            return list(self._flow(items, flip_test=flip_test, decode=decode, max_images=len(images)))

    def stream(
        self,
        items: Iterable[tuple],
        *,
        dataset: Dataset = None,
        flip_test: bool = False,
        decode: Decode = "udp",
        prefetch: int = PREFETCH,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[Poses | ItemError]:
        """Poses of any number of images, one after another, in their order.

        Threads read images while the device computes and results are handed out. Memory is bounded: at most
        `prefetch` images are read ahead, as many are gathered for the next batches, and those of the last few batches
        wait for their results. So a result comes only when some more items have been asked for: a live source that
        waits for each result calls the estimator itself.

        Args:
            items: (image, boxes) or (image, boxes, dataset), each as for a call.
            dataset: of items that do not name one.
            flip_test, decode: as for a call.
            prefetch: images read ahead. They share batches; with 1, each goes to the device by itself.
            errors: "raise" an item's error when its turn comes, after all results before it; or "return" it in
                the place of its poses and go on. An error of the iterable itself is raised at once.

        Yields:
            `Poses`, or `ItemError` with errors="return".

        Raises:
            ItemError: naming the item, with errors="raise".
            ValueError: for an unknown decoding or way with errors, or a prefetch below 1.
        """
        get_decoding(decode)
        if prefetch < 1:
            raise ValueError(f"prefetch: expected at least 1, got {prefetch}")
        if errors not in ("raise", "return"):
            raise ValueError(f"errors: expected 'raise' or 'return', got {errors!r}")

        def prepare(numbered: tuple[int, tuple]) -> Item | ItemError:
            number, entry = numbered
            try:
                image, boxes, *choice = entry
                return self._item(image, self._request(boxes, choice[0] if choice else dataset, flip_test))
            except (ValueError, TypeError, OSError) as error:
                failure = ItemError(number, str(error))
                failure.__cause__ = error
                return failure

        pool = concurrent.futures.ThreadPoolExecutor(_threads(prefetch))
        try:
            ready = _ahead(pool, prepare, enumerate(items), prefetch)
            for result in self._flow(ready, flip_test=flip_test, decode=decode, max_images=prefetch):
                if isinstance(result, ItemError) and errors == "raise":
                    raise result
                yield result
        finally:
            pool.shutdown(cancel_futures=True)

    def warmup(
        self,
        image_size: tuple[int, int] = (512, 512),
        num_boxes: int | None = None,
        *,
        dataset: Dataset = None,
        flip_test: bool = False,
        decode: Decode = "udp",
    ) -> None:
        """Compile every program that one image of this size (height, width) with up to `num_boxes` boxes needs.

        `num_boxes` is `max_batch` where not given. Several images in one call share a longer row of pixels: give
        its size, such as that of one image with as many pixels.
        """
        image = np.zeros((*image_size, 3), np.uint8)
        if self.detector is not None:
            self.detector(image)
        most = self.max_batch if num_boxes is None else min(num_boxes, self.max_batch)
        for size in sorted(
            {size for n in range(1, most + 1) for size in batch_sizes(n, self.max_batch, self._min_batch)}
        ):
            self(
                image, np.tile(np.asarray([0, 0, 1, 1]), (size, 1)), dataset=dataset, flip_test=flip_test, decode=decode
            )

    @property
    def device_kind(self) -> str:
        """What the first device is: "cpu", "NVIDIA H100 80GB HBM3", "TPU v5 lite", ..."""
        return jax.tree.leaves(self._leaves)[0].devices().pop().device_kind

    @property
    def num_compiled(self) -> int:
        """How many programs have been compiled so far."""
        return self._run._cache_size()

    def _dataset_indices(self, dataset: Dataset | np.ndarray | Sequence[Dataset], count: int) -> Int[np.ndarray, " n"]:
        if not _is_sequence(dataset):
            return np.full(count, self.config.dataset_index(_plain(dataset)), np.int32)
        if len(dataset) != count:
            raise ValueError(f"dataset: expected one for each of {count} boxes, got {len(dataset)}")
        return np.asarray([self.config.dataset_index(_plain(value)) for value in dataset], np.int32)

    def _request(
        self,
        boxes: Boxes | None,
        dataset: Dataset | np.ndarray | Sequence[Dataset],
        flip_test: bool,
        name: str = "boxes",
    ) -> _Request:
        """What is asked of an image, checked."""
        boxes = None if boxes is None else check_boxes(boxes, name=name)
        indices = self._dataset_indices(dataset, 1 if boxes is None else len(boxes))
        held, skeleton_index = np.unique(indices, return_inverse=True)
        if len(held) == 0:
            held = self._dataset_indices(None if _is_sequence(dataset) else dataset, 1)
        skeletons = tuple(self.config.skeleton(int(index)) for index in held)
        for skeleton in skeletons:
            _check_flip(skeleton, flip_test)
        return _Request(boxes, indices, skeletons, skeleton_index.astype(np.int32))

    def _item(self, image: ImageLike, request: _Request) -> Item:
        """Read an image; its poses are to be filled in: no coordinates, score 0."""
        # Pillow reads the pixels of an open file when they are first asked for, and not from two threads at once.
        with _PIL_LOCK if isinstance(image, Image.Image) else contextlib.nullcontext():
            pixels = load_image(image)
        pixel_bucket(pixels.shape[0] * pixels.shape[1])  # raises for an image larger than any row
        boxes, box_scores, indices, skeleton_index = request.boxes, None, request.indices, request.skeleton_index
        if boxes is None and self.detector is not None:
            found = self.detector(pixels)
            boxes, box_scores = found.boxes, found.scores
            indices, skeleton_index = (np.repeat(index, len(boxes)) for index in (indices, skeleton_index))
        elif boxes is None:
            boxes = np.asarray([[0, 0, pixels.shape[1], pixels.shape[0]]], np.float32)
        shape = (len(boxes), max(skeleton.num_keypoints for skeleton in request.skeletons))
        poses = Poses(
            keypoints=np.full((*shape, 2), np.nan, np.float32),
            scores=np.zeros(shape, np.float32),
            boxes=boxes,
            skeleton_index=skeleton_index,
            skeletons=request.skeletons,
            box_scores=box_scores,
        )
        if len(boxes) == 0:
            pixels = np.zeros((0, 0, 3), np.uint8)  # nobody will look at them again
        return Item(image=pixels, boxes=boxes, indices=indices, poses=poses, missing=len(boxes))

    def _flow(
        self, items: Iterable[Item | ItemError], *, flip_test: bool, decode: Decode, max_images: int
    ) -> Iterator[Poses | ItemError]:
        """Results in the order of the items. While the device computes, the host packs and sends the next batch."""
        jobs: collections.deque[_Job] = collections.deque()
        waiting: collections.deque[Item | ItemError] = collections.deque()

        def finished() -> Iterator[Poses | ItemError]:
            while waiting and not (isinstance(waiting[0], Item) and waiting[0].missing):
                item = waiting.popleft()
                yield item.poses if isinstance(item, Item) else item

        for group in groups(items, max_boxes=self.max_batch, max_images=max_images):
            waiting.extend(group)
            for job in self._dispatch(
                [item for item in group if isinstance(item, Item) and item.missing], flip_test=flip_test, decode=decode
            ):
                jobs.append(job)
                if len(jobs) > MAX_UNDER_WAY:
                    jobs.popleft().collect()
            yield from finished()
        while jobs:
            jobs.popleft().collect()
            yield from finished()
        yield from finished()

    def _dispatch(self, items: list[Item], *, flip_test: bool, decode: Decode) -> Iterator[_Job]:
        """Send a group's images to the device and start its batches, one each time the next is asked for."""
        if not items:
            return
        pixels, shapes = pack_images([x.image for x in items], pixel_bucket(sum(x.pixels for x in items)))
        pixels = jax.device_put(pixels, self._everywhere)
        for batch in batches(items, max_batch=self.max_batch, min_batch=self._min_batch):
            rows = batch.padded
            boxes = np.stack([items[place].boxes[box] for place, box in rows])
            keypoints, scores = self._run(
                self._leaves,
                pixels,
                jax.device_put(shapes[rows[:, 0]], self._shared),
                jax.device_put(boxes, self._shared),
                dataset_index=batch.dataset_index,
                flip_test=flip_test,
                decode=decode,
            )
            yield _Job(items, batch, keypoints, scores)


def _is_sequence(dataset: object) -> bool:
    return isinstance(dataset, list | tuple) or (isinstance(dataset, np.ndarray) and dataset.ndim > 0)


def _plain(value: Any) -> Dataset:
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def _threads(most: int) -> int:
    return max(1, min(most, os.cpu_count() or 1))


def _ahead(pool: concurrent.futures.Executor, function, entries: Iterable, ahead: int) -> Iterator:
    """Results of a function for each entry, in order, with at most so many computed ahead."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    for entry in entries:
        pending.append(pool.submit(function, entry))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _check_flip(skeleton: Skeleton, flip_test: bool) -> None:
    if flip_test and skeleton.num_keypoints > 1 and not skeleton.flip_pairs:
        raise ValueError(
            f"flip_test: the skeleton {skeleton.name!r} has no flip pairs; "
            "give from_pretrained(..., skeleton=...) one that has"
        )
