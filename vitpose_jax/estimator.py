"""PoseEstimator: images and boxes in, poses out, through one compiled program.

    image, boxes
      check_request   boxes and datasets are checked first (serving/requests.py)
      load_image      threads read ahead (serving/flow.py)
      pack_images     images of a group share one flat pixel buffer on the device
      Detector        finds the people in images that come without boxes, in the same buffer
      predict         batches of boxes: crops, network, decoding (pipeline/predict.py)
    Poses

While the device computes one batch, the host packs and sends the next.
"""

import functools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast, overload

import jax
import numpy as np

from vitpose_jax.bundled import DEFAULT_MODEL
from vitpose_jax.detector import Detector
from vitpose_jax.export.estimation import ExportedModel, ExportedPath, RuntimeModel, RuntimePath, load_model
from vitpose_jax.images import ImageLike, load_image
from vitpose_jax.pipeline.packing import PackedImages, pack_images, pixel_bucket
from vitpose_jax.pipeline.postprocess import Decode, get_decoding
from vitpose_jax.pipeline.predict import predict
from vitpose_jax.pipeline.regions import BOX_PADDING
from vitpose_jax.pipeline.warp import Border, check_border
from vitpose_jax.pixels.arrays import ChannelOrder, check_channel_order, split_batch
from vitpose_jax.pixels.urls import remote
from vitpose_jax.poses import Poses
from vitpose_jax.serving.batching import batch_sizes, batches, check_power_of_two
from vitpose_jax.serving.boxes import BoxFormat, check_box_format, is_detections
from vitpose_jax.serving.flow import PREFETCH, ItemError, entry_bytes, read_ahead, run, stream
from vitpose_jax.serving.pose_items import PoseItem, PoseJob
from vitpose_jax.serving.program import Program
from vitpose_jax.serving.requests import DatasetKey, DatasetKeys, Request, check_request, is_sequence, plain
from vitpose_jax.skeletons import ANIMAL_SKELETONS
from vitpose_jax.vitpose.modeling import VitPose

Boxes: TypeAlias = Any  # anything that `read_boxes` takes: an (n, 4) array, n rows of four numbers, detections

# Default batch limits. CPUs are fastest while a batch fits their caches.
MAX_BATCH = 64
MAX_BATCH_CPU = 16


class CallOptions(NamedTuple):
    """The options of a call that all its images share.

    Attributes:
        flip_test: also run the mirrored crops and average.
        decode: see pipeline/postprocess.py.
    """

    flip_test: bool
    decode: Decode


class PoseEstimator:
    """Finds the keypoints of the people (or animals) in boxes.

    Programs are compiled for batches of 1, 2, 4, ... `max_batch` boxes and for pixel buffers of 512 x 512,
    1024 x 1024, 2048 x 2048, ... pixels. So there are at most (1 + log2(max_batch)) programs for each size of buffer
    that occurs, times the combinations of `dataset`, `flip_test` and `decode` in use.

    Args:
        model: a `VitPose`; later changes to it are not seen. Or an `ExportedModel`; see `from_exported`. Or a
            `RuntimeModel`; see `from_pretrained`.
        max_batch: most boxes in one batch, a power of two. Longer lists are split, so memory is bounded. None for the
            default of the device: 16 on CPUs, which larger batches slow down, 64 elsewhere. An exported file for a
            fixed number of crops has its own.
        border: how pixels outside the image count, "scipy" as in transformers or "opencv" as in the original.
        padding: factor on the sides of the boxes.
        stretch: crop each box with its own aspect, stretched to the crop, as the original does for MPII.
        devices: split every batch among these, or among those of a mesh; a power of two of them, at most `max_batch`.
            None for JAX's default device.
        detector: finds the boxes of images that come without; None for the bundled person finder, which is loaded when
            it is first needed.

    Raises:
        ValueError: for a max_batch or a number of devices that is not a power of two, or an unknown border.
    """

    def __init__(
        self,
        model: VitPose | ExportedModel | RuntimeModel,
        *,
        max_batch: int | None = None,
        border: Border = "scipy",
        padding: float = BOX_PADDING,
        stretch: bool = False,
        devices: Sequence[jax.Device] | jax.sharding.Mesh | None = None,
        detector: Detector | None = None,
    ):
        if isinstance(devices, jax.sharding.Mesh):
            devices = list(devices.devices.flat)
        count = 1 if devices is None else len(devices)
        fixed = None if isinstance(model, VitPose) else model.fixed_batch()
        if max_batch is None and fixed is None:
            platform = devices[0].platform if devices else jax.default_backend()
            on_cpu = platform == "cpu" or (not isinstance(model, VitPose) and model.runtime == "openvino")
            max_batch = max(MAX_BATCH_CPU if on_cpu else MAX_BATCH, count)
        if fixed is not None:
            if max_batch not in (None, fixed):
                raise ValueError(f"max_batch: expected the {fixed} that this file takes, got {max_batch}")
            max_batch = fixed
        else:
            max_batch = cast(int, max_batch)
            check_power_of_two(max_batch)
        if not 1 <= count <= max_batch or count & (count - 1):
            raise ValueError(f"devices: expected a power of two up to max_batch {max_batch}, got {count} of them")
        check_border(border)
        self.model = model
        self.config = model.config
        self._detector, self._detector_lock = detector, threading.Lock()
        # The bundled one, which is loaded later, finds people alone.
        self._own_detector = detector is not None
        self.max_batch, self.border, self.padding, self.stretch = max_batch, border, padding, stretch
        # Parameters and pixels are on every device, boxes and results are split among them.
        self._min_batch, self._replicated, self._split = count, None, None
        if devices is not None:
            mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
            self._replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            self._split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        self._program: Program | ExportedPath | RuntimePath
        if not isinstance(model, VitPose):
            if devices is not None:
                raise ValueError("devices: expected none with an exported model, which runs on one device")
            self.dtype, self.runtime = model.dtype, model.runtime
            self._program = model.program(border=border, padding=padding, stretch=stretch)
        else:
            self.dtype, self.runtime = np.dtype(model.backbone.dtype), "jax"
            function = functools.partial(predict, border=border, padding=padding, stretch=stretch)
            options = ("dataset_index", *CallOptions._fields)
            self._program = Program(model, function, options=options, sharding=self._replicated)

    def __repr__(self) -> str:
        heads = ", ".join(skeleton.name for skeleton in self.config.skeletons)
        height, width = self.config.image_size
        return f"PoseEstimator({heads}, crops {height} x {width}, {self.dtype.name}, max_batch={self.max_batch})"

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        runtime: Literal["jax", "onnxruntime", "openvino"] = "jax",
        max_batch: int | None = None,
        border: Border = "scipy",
        padding: float = BOX_PADDING,
        stretch: bool = False,
        devices: Sequence[jax.Device] | jax.sharding.Mesh | None = None,
        detector: Detector | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> "PoseEstimator":
        """An estimator with a pretrained model.

        Args:
            source: a Hub id, a folder or a file; see `vitpose_jax.from_pretrained`. By default the bundled model.
            runtime: what the network runs in. "openvino", on the CPU, is often faster there, in float32, bfloat16 or
                float16; dtype="auto" is bfloat16 on processors with instructions for it. "onnxruntime" computes in
                float32. Crops and decoding run in JAX. Of a ViTPose++ with several heads, the network of a dataset is
                made when it is first used; the model stays in memory for the others.
            max_batch, border, padding, stretch, devices: see the class.
            detector: a `Detector`, or the source of one: a Hub id or a folder. None for the bundled person finder.
            kwargs: for `vitpose_jax.from_pretrained`: dtype, revision, image_size, skeleton, ... A `param_dtype` of
                None means `dtype`, on CPUs too; programs of your own with `model` are then slow there in bfloat16.

        Raises:
            ValueError: as `vitpose_jax.from_pretrained`; with another runtime than JAX for devices, a dtype that it
                does not know, or a network above 2 GiB.
            ImportError: if the runtime is not installed.
        """
        model = load_model(source, runtime, devices=devices, **kwargs)
        if detector is not None and not isinstance(detector, Detector):
            common = ("dtype", "param_dtype", "cache_dir", "token", "local_files_only", "strict")
            detector = Detector.from_pretrained(detector, **{key: kwargs[key] for key in common if key in kwargs})
        return cls(
            model,
            max_batch=max_batch,
            border=border,
            padding=padding,
            stretch=stretch,
            devices=devices,
            detector=detector,
        )

    @classmethod
    def from_exported(
        cls,
        path: str | os.PathLike[str],
        *,
        runtime: Literal["jax", "onnxruntime", "openvino"] | None = None,
        dtype: str | None = None,
        max_batch: int | None = None,
        border: Border = "scipy",
        padding: float = BOX_PADDING,
        stretch: bool = False,
        detector: Detector | None = None,
    ) -> "PoseEstimator":
        """An estimator with a file that `vitpose-jax export` wrote. Its calls are the same.

        A file with the whole path has its own flip_test, decode, border, padding and stretch: other ones are an error.
        A file for a fixed number of crops gets batches of that many, the last one filled up; with a flip test, a
        network gets two crops of each box, so the number must be even.

        Args:
            path: of a StableHLO file, or of an ONNX file, whose name ends with .onnx.
            runtime: "jax" for StableHLO; "onnxruntime", the default, or "openvino" for ONNX. Crops and decoding run in
                JAX.
            dtype: in which OpenVINO computes: "float32", the default, "bfloat16" or "float16".
            max_batch, border, padding, stretch, detector: see the class.

        Raises:
            ValueError: for a file that is missing, damaged or something else, or for options that do not fit it.
            ImportError: if the runtime is not installed.
        """
        model = ExportedModel.load(path, runtime, dtype=dtype)
        return cls(model, max_batch=max_batch, border=border, padding=padding, stretch=stretch, detector=detector)

    @overload
    def __call__(
        self,
        images: ImageLike,
        boxes: Boxes | None = None,
        *,
        dataset: DatasetKeys = None,
        flip_test: bool = False,
        decode: Decode = "udp",
        box_format: BoxFormat = "xywh",
        channel_order: ChannelOrder = "rgb",
    ) -> Poses: ...
    @overload
    def __call__(
        self,
        images: Sequence[ImageLike],
        boxes: Sequence[Boxes | None] | None = None,
        *,
        dataset: DatasetKey | Sequence[DatasetKeys] = None,
        flip_test: bool = False,
        decode: Decode = "udp",
        box_format: BoxFormat = "xywh",
        channel_order: ChannelOrder = "rgb",
    ) -> list[Poses]: ...

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        boxes: Any = None,
        *,
        dataset: DatasetKeys | Sequence[DatasetKeys] = None,
        flip_test: bool = False,
        decode: Decode = "udp",
        box_format: BoxFormat = "xywh",
        channel_order: ChannelOrder = "rgb",
    ) -> Poses | list[Poses]:
        """Estimate poses.

        Args:
            images: a path, a URL, the bytes of a file, a PIL image, or an array or tensor, (height, width, 3) of uint8
                or of floats from 0 to 1; see `load_image`. A list of them, or a batch (n, height, width, 3), is n
                images.
            boxes: (n, 4) x y w h in pixels of the image; no boxes are fine. With None the detector finds them; with
                "image" the whole image is one box. Also the `Detections` of this project or of supervision, whose
                scores become `box_scores`. For a list of images, a list with one entry for each.
            box_format: of rows of numbers: "xywh", "xyxy" or "cxcywh" in pixels, or "yolo", the centre and the size in
                fractions of the image. The boxes of the result are always x y w h in pixels.
            channel_order: "bgr" for arrays in OpenCV's order of channels; files and PIL images know theirs.
            dataset: the expert and head: a name or an index, or a sequence with one for each box. For a list of
                images, one for all, or a sequence with one entry for each image. None for the first head.
            flip_test: also run the mirrored crops and average.
            decode: "udp", "transformers", "quarter" or "argmax"; see pipeline/postprocess.py.

        Returns:
            `Poses` with NumPy arrays, or a list of them for a list of images.

        Raises:
            ValueError: for bad boxes (the message names them), an image that cannot be read, an unknown dataset or one
                without a head, an unknown decoding, or animals without boxes, which the person finder does not find.
        """
        images = split_batch(images)
        if not isinstance(images, list | tuple):
            image, choice = cast(ImageLike, images), cast(DatasetKeys, dataset)
            options: dict[str, Any] = {"decode": decode, "box_format": box_format, "channel_order": channel_order}
            return self([image], [boxes], dataset=[choice], flip_test=flip_test, **options)[0]
        get_decoding(decode)
        self._batch_limits(flip_test)
        check_channel_order(channel_order)
        if is_detections(boxes):
            boxes = [boxes]  # of one image
        boxes = [boxes] * len(images) if boxes is None or isinstance(boxes, str) else boxes
        datasets = list(dataset) if is_sequence(dataset) else [dataset] * len(images)
        for name, entries in (("boxes", boxes), ("dataset", datasets)):
            if len(entries) != len(images):
                raise ValueError(f"{name}: expected one entry for each of {len(images)} images, got {len(entries)}")
        # All requests are checked before the first image is read.
        requests = [
            self._check(row, cast(DatasetKeys, choice), flip_test, box_format, name=f"boxes[{index}]")
            for index, (row, choice) in enumerate(zip(boxes, datasets, strict=True))
        ]
        entries = zip(map(remote, images), requests, strict=True)
        items = read_ahead(lambda pair: self._read(*pair, channel_order), entries, size=entry_bytes)
        start = functools.partial(self._start, options=CallOptions(flip_test, decode))
        finished = run(items, start, max_boxes=self.max_batch, max_images=max(1, len(images)))
        return [cast(PoseItem, item).to_poses() for item in finished]

    def stream(
        self,
        items: Iterable[tuple],
        *,
        dataset: DatasetKeys = None,
        flip_test: bool = False,
        decode: Decode = "udp",
        box_format: BoxFormat = "xywh",
        channel_order: ChannelOrder = "rgb",
        prefetch: int = PREFETCH,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[Poses | ItemError]:
        """Poses of any number of images, in their order and in bounded memory.

        Threads read images while the device computes. At most `prefetch` images are read ahead, as many are gathered
        for the next batches, and the images of the last few batches wait for their results. So a result comes only
        after some more items were read: for a live source that waits for each result, call the estimator instead.

        Args:
            items: (image, boxes) or (image, boxes, dataset), each as for a call.
            dataset: for items that do not name one.
            flip_test, decode, box_format, channel_order: as for a call.
            prefetch: images read ahead. They share batches; with 1, each goes to the device by itself.
            errors: "raise" an item's error in its turn, after all results before it; or "return" it in the place of
                its poses and continue. An error of the iterable itself is raised at once.

        Yields:
            `Poses`, or `ItemError` with errors="return".

        Raises:
            ItemError: naming the item's index, with errors="raise".
            ValueError: for an unknown decoding or `errors`, or a prefetch below 1.
        """
        get_decoding(decode)
        self._batch_limits(flip_test)
        check_channel_order(channel_order)
        check_box_format(box_format)

        def read(entry: tuple) -> PoseItem:
            image, boxes, *choice = entry
            request = self._check(boxes, choice[0] if choice else dataset, flip_test, box_format)
            return self._read(image, request, channel_order)

        yield from stream(
            read,
            items,
            functools.partial(self._start, options=CallOptions(flip_test, decode)),
            PoseItem.to_poses,
            prefetch=prefetch,
            errors=errors,
            max_boxes=self.max_batch,
        )

    def warmup(
        self,
        image_size: tuple[int, int] = (512, 512),
        num_boxes: int | None = None,
        *,
        dataset: DatasetKey = None,
        flip_test: bool = False,
        decode: Decode = "udp",
    ) -> None:
        """Compile every program that one image with up to `num_boxes` boxes needs.

        Args:
            image_size: height and width. Several images in one call share a longer pixel buffer: for them, give the
                size of one image with as many pixels.
            num_boxes: None for `max_batch`.
            dataset, flip_test, decode: as for a call.
        """
        image = np.zeros((*image_size, 3), np.uint8)
        if self.config.skeleton(plain(dataset)).name not in ANIMAL_SKELETONS or self._own_detector:
            self.detector(image)
        largest, smallest = self._batch_limits(flip_test)
        count = largest if num_boxes is None else min(num_boxes, largest)
        sizes = {size for n in range(1, count + 1) for size in batch_sizes(n, largest, smallest)}
        for size in sorted(sizes):
            boxes = np.tile(np.asarray([0, 0, 1, 1]), (size, 1))
            self(image, boxes, dataset=dataset, flip_test=flip_test, decode=decode)

    @property
    def device_kind(self) -> str:
        """The kind of the first device: "cpu", "NVIDIA H100 80GB HBM3", "TPU v5 lite", ..."""
        return self._program.device_kind

    @property
    def num_compiled(self) -> int:
        """The number of programs compiled so far."""
        return self._program.num_compiled

    @property
    def detector(self) -> Detector:
        """Finds the boxes of images that come without; the bundled person finder unless another one was given."""
        with self._detector_lock:  # threads that read images may need it at the same time
            if self._detector is None:
                # Its convolutions are no faster in bfloat16 on a CPU.
                on_cpu = jax.default_backend() == "cpu"
                self._detector = Detector.from_pretrained(dtype="float32" if on_cpu else self.dtype)
            return self._detector

    def _check(
        self, boxes: Any, dataset: DatasetKeys, flip_test: bool, box_format: BoxFormat, *, name: str = "boxes"
    ) -> Request:
        """As `check_request`; and the detector finds what the skeleton is for."""
        request = check_request(self.config, boxes, dataset, flip_test=flip_test, box_format=box_format, name=name)
        (skeleton, *_) = request.skeletons
        needs_detector = request.boxes is None and not request.whole_image
        if needs_detector and not self._own_detector and skeleton.name in ANIMAL_SKELETONS:
            raise ValueError(
                f"{name}: expected boxes: the bundled finder finds people, and {skeleton.name!r} is for animals; "
                'give boxes, "image" for the whole image, or a detector of animals: '
                'Detector.from_pretrained("PekingU/rtdetr_r50vd_coco_o365", labels="animals")'
            )
        return request

    def _read(self, image: ImageLike, request: Request, channel_order: ChannelOrder) -> PoseItem:
        pixels = load_image(image, channel_order=channel_order)
        pixel_bucket(pixels.shape[0] * pixels.shape[1])  # raises for an image larger than any buffer
        return PoseItem(pixels, request.for_image(*pixels.shape[:2]))

    def _start(self, items: list[PoseItem], options: CallOptions) -> Iterator[PoseJob]:
        """Send the images of a group to the device once, find missing boxes, and start a batch each time."""
        if not items:
            return
        images = pack_images([item.image for item in items], pixel_bucket(sum(item.pixels for item in items)))
        images = images._replace(pixels=jax.device_put(images.pixels, self._replicated))
        for item in items:
            item.release_pixels()
        self._detect(images, items)
        boxed = [index for index, item in enumerate(items) if not item.finished]
        if not boxed:
            return
        images, items = images.select(np.asarray(boxed)), [items[index] for index in boxed]
        indices = [item.request.dataset_index for item in items]
        largest, smallest = self._batch_limits(options.flip_test)
        for batch in batches(indices, max_batch=largest, min_batch=smallest):
            rows = batch.padded
            boxes = np.stack([items[image].boxes[box] for image, box in rows])
            results = self._program(
                images._replace(shapes=jax.device_put(images.shapes[rows[:, 0]], self._split)),
                jax.device_put(boxes, self._split),
                dataset_index=batch.dataset_index,
                **options._asdict(),
            )
            yield PoseJob(items, batch, *results)

    def _batch_limits(self, flip_test: bool) -> tuple[int, int]:
        """The most and the fewest boxes in a batch; both are the number that an exported file takes, if it is fixed."""
        fixed = None if isinstance(self.model, VitPose) else self.model.fixed_batch(flip_test=flip_test)
        return (self.max_batch, self._min_batch) if fixed is None else (fixed, fixed)

    def _detect(self, images: PackedImages, items: list[PoseItem]) -> None:
        """Find the boxes of the items that have none."""
        indices = [index for index, item in enumerate(items) if item.request.boxes is None]
        if indices:
            # The detector runs on one device: that one's copy of the pixels.
            pixels = cast(jax.Array, images.pixels).addressable_data(0)
            detections = self.detector.detect_packed(PackedImages(pixels, images.shapes[indices]))
            for index, objects in zip(indices, detections, strict=True):
                items[index].set_boxes(objects.boxes, objects.scores)
