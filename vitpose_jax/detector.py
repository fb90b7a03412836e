"""Detector: images in, boxes of people (or of other classes) out.

image   a path, a PIL image or a uint8 array
  load_image     threads read ahead
  pack_images    images of a group share one flat pixel buffer on the device
  resize         each image to the network's size, bit for bit as Pillow: one program for each pair of padded sides
  network        batches of images: one program for each size of batch and of input
Detections
"""

import concurrent.futures
import dataclasses
import functools
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

import vitpose_jax.finder.detect
import vitpose_jax.finder.preprocess
import vitpose_jax.rtdetr.detect
import vitpose_jax.rtdetr.preprocess
from vitpose_jax.bundled import DEFAULT_FINDER
from vitpose_jax.convert.detectors import load_detector
from vitpose_jax.convert.hub import resolve_source
from vitpose_jax.detections import Detections, Objects, choose_classes
from vitpose_jax.finder.modeling import PersonFinder
from vitpose_jax.images import ImageLike, load_image
from vitpose_jax.pipeline.packing import PackedImages, pack_images, pixel_bucket, unpack_image
from vitpose_jax.pipeline.resize import resize, resize_matrix
from vitpose_jax.pixels.arrays import ChannelOrder, check_channel_order, split_batch
from vitpose_jax.pixels.urls import remote
from vitpose_jax.rtdetr.modeling import RtDetr
from vitpose_jax.serving.batching import Item, check_power_of_two, split_rows
from vitpose_jax.serving.flow import MAX_JOBS, PREFETCH, ItemError, JobQueue, entry_bytes, read_ahead, run, stream
from vitpose_jax.serving.program import Program
from vitpose_jax.vitpose.ops import choose_dtype, choose_param_dtype

# Default: objects of these classes.
LABELS = ("person",)

# Default batch limits. One image keeps a CPU busy.
MAX_BATCH = 8
MAX_BATCH_CPU = 1


DetectionModel: TypeAlias = RtDetr | PersonFinder


class Network(NamedTuple):
    """How the detector calls a network.

    Attributes:
        resized_size: (height, width, config) -> height and width that an image is resized to.
        input_size: (those of the images of a batch, config) -> height and width of the network's input.
        detect: (model, images, sizes, resized, class_mask, count) -> `Objects`; jit-able.
    """

    resized_size: Callable[[int, int, Any], tuple[int, int]]
    input_size: Callable[[list[tuple[int, int]], Any], tuple[int, int]]
    detect: Callable[..., Objects]

    @classmethod
    def of(cls, model: DetectionModel) -> "Network":
        """The functions for a model.

        Raises:
            TypeError: for anything but a detector's model.
        """
        if isinstance(model, PersonFinder):
            place, function = vitpose_jax.finder.preprocess, vitpose_jax.finder.detect.detect
        elif isinstance(model, RtDetr):
            place, function = vitpose_jax.rtdetr.preprocess, vitpose_jax.rtdetr.detect.detect
        else:
            raise TypeError(f"model: expected an RtDetr or a PersonFinder, got {type(model).__name__}")
        return cls(place.resized_size, place.input_size, function)


class DetectorOptions(NamedTuple):
    """The options of a call, checked.

    Attributes:
        threshold: objects have a higher score.
        class_mask: True for each of the detector's classes to find.
        max_detections: the maximum number of objects in an image.
    """

    threshold: float
    class_mask: Bool[np.ndarray, " classes"]
    max_detections: int


@dataclasses.dataclass(eq=False)
class _DetectorItem(Item):
    """An image on its way through the detector."""

    detections: Detections | None = None

    @property
    def num_boxes(self) -> int:
        return 1  # `max_boxes` of a group bounds the images that are detected together

    @property
    def finished(self) -> bool:
        return self.detections is not None


class _Job(NamedTuple):
    """A batch of images on the device, and where its detections go."""

    objects: concurrent.futures.Future[Objects]
    items: Sequence[Any]
    detector: "Detector"
    options: DetectorOptions

    def collect(self) -> None:
        boxes, scores, class_ids = map(np.asarray, self.objects.result())
        for item, *row in zip(self.items, boxes, scores, class_ids, strict=False):
            item.detections = self.detector.to_detections(row[0], row[1], row[2], self.options)


class Detector:
    """Finds objects in images.

    Programs are compiled for batches of 1, 2, 4, ... `max_batch` images, and small ones that resize, for images whose
    sides lie within a fifth of each other.

    Args:
        model: a `PersonFinder` or an `RtDetr`; later changes to it are not seen.
        threshold: minimum score, from 0 to less than 1; objects have a higher one. None for the network's default:
            0.4 for the person finder, 0.3 for an RT-DETR. Each call can override it.
        labels: names of the classes to look for; "animals" for COCO's ten, "all" for every class. Each call can
            override them.
        max_detections: the maximum number of objects in an image, the highest-scoring; None for the network's own
            maximum. Each call can override it.
        max_batch: most images in one batch, a power of two; None for the default of the device: 1 on CPUs, 8
            elsewhere.

    Raises:
        ValueError: for a max_batch that is not a power of two, a threshold outside 0 to 1, a max_detections below 1, or
            a class that the detector does not know.
    """

    def __init__(
        self,
        model: DetectionModel,
        *,
        threshold: float | int | None = None,
        labels: str | Sequence[str] = LABELS,
        max_detections: int | None = None,
        max_batch: int | None = None,
    ):
        if max_batch is None:
            max_batch = MAX_BATCH_CPU if jax.default_backend() == "cpu" else MAX_BATCH
        check_power_of_two(max_batch)
        self._network = Network.of(model)
        self.model, self.config, self.max_batch = model, model.config, max_batch
        self.threshold = self.config.score_threshold if threshold is None else threshold
        self.labels, self.max_detections = labels, max_detections
        self.check_options()
        self._program = Program(model, functools.partial(_detect, self._network))
        # A CPU computes two images at once faster than one after the other; an accelerator is only fed from here.
        self._pool = concurrent.futures.ThreadPoolExecutor(MAX_JOBS)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] = DEFAULT_FINDER,
        *,
        dtype: DTypeLike | Literal["auto"] = jnp.float32,
        param_dtype: DTypeLike | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        strict: bool = True,
        **kwargs: Any,
    ) -> "Detector":
        """A detector with a pretrained model.

        Args:
            source: a Hub id such as "PekingU/rtdetr_r50vd_coco_o365", a folder in the Hub's format, or a person finder.
                By default the bundled person finder.
            dtype, param_dtype: see `vitpose_jax.from_pretrained`.
            revision: branch, tag or commit on the Hub.
            cache_dir, token, local_files_only, strict: see `vitpose_jax.from_pretrained`.
            kwargs: for the class: threshold, labels, max_detections, max_batch.

        Raises:
            ValueError: if the source is not found, is damaged or is not a detector; or listing at once all tensors that
                are missing, unexpected or have a wrong shape.
        """
        dtype = choose_dtype(dtype)
        param_dtype = choose_param_dtype(dtype, param_dtype)
        folder = resolve_source(
            source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
        )
        return cls(load_detector(folder, dtype=dtype, param_dtype=param_dtype, strict=strict), **kwargs)

    @overload
    def __call__(
        self,
        images: ImageLike,
        *,
        threshold: float | int | None = None,
        labels: str | Sequence[str] | None = None,
        max_detections: int | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Detections: ...
    @overload
    def __call__(
        self,
        images: Sequence[ImageLike],
        *,
        threshold: float | int | None = None,
        labels: str | Sequence[str] | None = None,
        max_detections: int | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> list[Detections]: ...

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        threshold: float | int | None = None,
        labels: str | Sequence[str] | None = None,
        max_detections: int | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Detections | list[Detections]:
        """Find objects.

        Args:
            images: a path, a URL, the bytes of a file, a PIL image, or an array or tensor, (height, width, 3) of uint8
                or of floats from 0 to 1; see `load_image`. A list of them, or a batch (n, height, width, 3), is n
                images.
            threshold, labels, max_detections: see the class; None for the class's.
            channel_order: "bgr" for arrays in OpenCV's order of channels; files and PIL images know theirs.

        Returns:
            `Detections`, or a list of them for a list of images; empty if nothing is found.

        Raises:
            ValueError, TypeError, FileNotFoundError: as the class, and for an image that cannot be read.
        """
        images = split_batch(images)
        if not isinstance(images, list | tuple):
            image = cast(ImageLike, images)
            options: dict[str, Any] = {"threshold": threshold, "labels": labels, "max_detections": max_detections}
            return self([image], channel_order=channel_order, **options)[0]
        check_channel_order(channel_order)
        read = functools.partial(_read, channel_order=channel_order)
        start = functools.partial(self._start_group, options=self.check_options(threshold, labels, max_detections))
        items = read_ahead(read, map(remote, images), PREFETCH, size=entry_bytes)
        finished = run(items, start, max_boxes=self.max_batch, max_images=PREFETCH)
        return [_detections(item) for item in finished]

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: float | int | None = None,
        labels: str | Sequence[str] | None = None,
        max_detections: int | None = None,
        channel_order: ChannelOrder = "rgb",
        prefetch: int = PREFETCH,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[Detections | ItemError]:
        """Detections of any number of images, in their order and in bounded memory.

        Args:
            images: read as they are needed.
            threshold, labels, max_detections: see the class; None for the class's.
            channel_order: as for a call.
            prefetch: images read ahead.
            errors: "raise" an image's error in its turn, or "return" it in the place of its detections.

        Raises:
            ItemError: naming the image's index, with errors="raise".
            ValueError: as the class; for a prefetch below 1 or an unknown `errors`.
        """
        options = self.check_options(threshold, labels, max_detections)
        check_channel_order(channel_order)
        return stream(
            functools.partial(_read, channel_order=channel_order),
            images,
            functools.partial(self._start_group, options=options),
            _detections,
            prefetch=prefetch,
            errors=errors,
            max_boxes=self.max_batch,
        )

    def detect_packed(self, images: PackedImages, options: DetectorOptions | None = None) -> list[Detections]:
        """Find objects in images whose pixels are on the device already.

        Args:
            images: `pixels` on the device, `shapes` on the host.
            options: from `check_options`; None for the class's.
        """
        items = [_DetectorItem(np.zeros((0, 0, 3), np.uint8)) for _ in images.shapes]
        jobs = JobQueue()
        for job in self._start(images, items, self.check_options() if options is None else options):
            jobs.add(job)
        jobs.collect_all()
        return [_detections(item) for item in items]

    def check_options(
        self,
        threshold: float | int | None = None,
        labels: str | Sequence[str] | None = None,
        max_detections: int | None = None,
    ) -> DetectorOptions:
        """Check the options of a call; None means the class's.

        Raises:
            ValueError, TypeError: as the class.
        """
        threshold = self.threshold if threshold is None else threshold
        if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or not 0 <= threshold < 1:
            raise ValueError(f"threshold: expected a number from 0 to less than 1, got {threshold!r}")
        count = self.max_detections if max_detections is None else max_detections
        count = self.config.max_objects if count is None else count
        if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1:
            raise ValueError(f"max_detections: expected a positive whole number, got {count!r}")
        class_mask = choose_classes(self.labels if labels is None else labels, self.config.labels)
        return DetectorOptions(float(threshold), class_mask, int(count))

    def to_detections(
        self,
        boxes: Float[np.ndarray, "count 4"],
        scores: Float[np.ndarray, " count"],
        class_ids: Int[np.ndarray, " count"],
        options: DetectorOptions,
    ) -> Detections:
        """The objects of one image that pass the options."""
        # Boxes without area cannot be cropped.
        rows = np.flatnonzero((scores > options.threshold) & (boxes[:, 2:] > 0).all(axis=1))[: options.max_detections]
        return Detections(boxes=boxes[rows], scores=scores[rows], class_ids=class_ids[rows], classes=self.config.labels)

    @property
    def num_compiled(self) -> int:
        """The number of programs with the network compiled so far; all detectors share those that resize."""
        return self._program.num_compiled

    def _start_group(self, items: list[_DetectorItem], options: DetectorOptions) -> Iterator[_Job]:
        if items:
            images = pack_images([item.image for item in items], pixel_bucket(sum(item.pixels for item in items)))
            for item in items:
                item.release_pixels()
            yield from self._start(images._replace(pixels=jax.device_put(images.pixels)), items, options)

    def _start(self, images: PackedImages, items: Sequence[Any], options: DetectorOptions) -> Iterator[_Job]:
        for rows, size in split_rows(len(items), self.max_batch):
            objects = self._pool.submit(self._run, images.pixels, images.shapes[rows], size, options)
            yield _Job(objects, items[rows], self, options)

    def _run(
        self,
        pixels: UInt8[Array | np.ndarray, "p 3"],
        shapes: Int[Array | np.ndarray, "images 3"],
        size: int,
        options: DetectorOptions,
    ) -> Objects:
        """Resize images and run the network; the last image is repeated to fill the batch."""
        sides = [(int(height), int(width)) for _, height, width in np.asarray(shapes)]
        resized = [self._network.resized_size(*pair, self.config) for pair in sides]
        size_in = self._network.input_size(resized, self.config)
        images = [
            _resize_packed(pixels, shape, *map(_matrix, old, new, size_in))
            for shape, old, new in zip(np.asarray(shapes), sides, resized, strict=True)
        ]
        padding = size - len(images)
        old_sizes, new_sizes = (
            np.pad(np.asarray(rows, np.float32), ((0, padding), (0, 0)), mode="edge") for rows in (sides, resized)
        )
        return self._program(images + images[-1:] * padding, old_sizes, new_sizes, options.class_mask)


def _detect(
    network: Network,
    model: DetectionModel,
    images: list[UInt8[Array, "height width 3"]],
    sizes: Float[Array, "n 2"],
    resized: Float[Array, "n 2"],
    class_mask: Bool[Array, " classes"],
) -> Objects:
    """One batch through the network."""
    return network.detect(model, jnp.stack(images), sizes, resized, class_mask, model.config.max_objects)


@jax.jit
def _resize_packed(
    pixels: UInt8[Array | np.ndarray, "p 3"],
    shape: Int[Array, "3"],
    down: Float[Array, "2 height rows"],
    across: Float[Array, "2 width columns"],
) -> UInt8[Array, "height width 3"]:
    return resize(unpack_image(pixels, shape, (down.shape[2], across.shape[2])), down, across)


@functools.lru_cache(maxsize=64)
def _matrix(old: int, new: int, rows: int) -> Float[Array, "2 rows padded"]:
    # Kept on the device: all photographs of one camera have one size.
    return jax.device_put(resize_matrix(old, new, rows))


def _detections(item: Item | Exception) -> Detections:
    """The result of a finished item."""
    return cast(Detections, cast(_DetectorItem, item).detections)


def _read(image: ImageLike, channel_order: ChannelOrder) -> _DetectorItem:
    item = _DetectorItem(load_image(image, channel_order=channel_order))
    pixel_bucket(item.pixels)  # raises for an image larger than any buffer
    return item
