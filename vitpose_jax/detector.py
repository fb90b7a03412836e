"""Detector: images in, boxes of people (or of anything else it knows) out.

Two programs run one after the other: one resizes an image, for each pair of padded sides; one is the network with what
is read out of it, for each size of batch.
"""

import concurrent.futures
import contextlib
import functools
import numbers
import os
import threading
from collections.abc import Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Bool, UInt8
from PIL import Image

from vitpose_jax.convert.detectors import load_detector
from vitpose_jax.convert.hub_files import resolve_source
from vitpose_jax.detections import Detections, choose_classes
from vitpose_jax.images import load_image
from vitpose_jax.rtdetr.modeling import RtDetr
from vitpose_jax.rtdetr.postprocess import find_objects
from vitpose_jax.rtdetr.preprocess import pad_image, prepare, resize, resize_matrix
from vitpose_jax.serving.batching import PIXEL_BUCKETS, batch_sizes

# Score from which an object counts, and what is looked for, where nobody says.
THRESHOLD = 0.3
LABELS = ("person",)

# Most images computed at once, where nobody says: a CPU is busy with one.
MAX_BATCH = 8
MAX_BATCH_CPU = 1

_PIL_LOCK = threading.Lock()

_resize = jax.jit(resize)


class Detector:
    """Finds objects in images.

    Programs are compiled for batches of 1, 2, 4, ... `max_batch` images, and small ones that resize, for images whose
    sides lie within a fifth of each other.

    Args:
        model: an `RtDetr`; later changes to it are not seen.
        threshold: objects with a higher score are found; where a call does not say.
        labels: classes to look for, by name; "animals" for COCO's ten, "all" for everything. Where a call does not say.
        max_detections: most objects of an image, the surest; None for as many as the network has queries. Where a call
            does not say.
        max_batch: most images in one batch, a power of two; None for what suits the device: 1 on CPUs, 8 elsewhere.

    Raises:
        ValueError: for a max_batch that is no power of two, a threshold that is no share, a max_detections below 1,
            or a name the detector does not know.
    """

    def __init__(
        self,
        model: RtDetr,
        *,
        threshold: float | int = THRESHOLD,
        labels: str | Sequence[str] = LABELS,
        max_detections: int | None = None,
        max_batch: int | None = None,
    ):
        if max_batch is None:
            max_batch = MAX_BATCH_CPU if jax.default_backend() == "cpu" else MAX_BATCH
        if max_batch < 1 or max_batch & (max_batch - 1):
            raise ValueError(f"max_batch: expected a power of two, got {max_batch}")
        self.model, self.config, self.max_batch = model, model.config, max_batch
        self.threshold, self.labels, self.max_detections = threshold, labels, max_detections
        self.request()
        graphdef, state = nnx.split(model)
        leaves, structure = jax.tree.flatten(state)
        self._leaves = jax.device_put(leaves)
        config = model.config

        @jax.jit
        def run(leaves, images, sizes, wanted):
            model = nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))
            output = model(prepare(jnp.stack(images), config))
            return find_objects(output.logits, output.boxes, sizes, wanted, config.num_queries)

        self._run = run

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> "Detector":
        """A detector with a pretrained model.

        Args:
            source: a Hub id such as "PekingU/rtdetr_r50vd_coco_o365", or a folder like one of the Hub.
            dtype: in which the network computes: float32, bfloat16 or float16.
            param_dtype: in which it stores its parameters; None means `dtype`. Norms are always float32.
            revision: branch, tag or commit on the Hub.
            cache_dir, token, local_files_only: as of `vitpose_jax.from_pretrained`.
            kwargs: for the class: threshold, labels, max_detections, max_batch.

        Raises:
            ValueError: where the source is not found, is damaged or no RT-DETR, or where tensors are missing,
                unexpected or mis-shaped: all of those are listed at once.
        """
        folder = resolve_source(
            source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
        )
        return cls(load_detector(folder, dtype=dtype, param_dtype=param_dtype), **kwargs)

    @overload
    def __call__(self, images: Any, **kwargs: Any) -> Detections: ...
    @overload
    def __call__(self, images: list | tuple, **kwargs: Any) -> list[Detections]: ...

    def __call__(
        self,
        images: Any,
        *,
        threshold: float | int | None = None,
        labels: str | Sequence[str] | None = None,
        max_detections: int | None = None,
    ) -> Detections | list[Detections]:
        """Find objects.

        Args:
            images: a path, a PIL image or a uint8 array (height, width, 3) in RGB; or a list of them.
            threshold, labels, max_detections: as for the class; None for what that was given.

        Returns:
            `Detections`, or a list of them for a list of images; empty where nothing is found.

        Raises:
            ValueError, TypeError, FileNotFoundError: as the class, and for what is no image.
        """
        if not isinstance(images, list | tuple):
            return self([images], threshold=threshold, labels=labels, max_detections=max_detections)[0]
        threshold, wanted, most = self.request(threshold, labels, max_detections)
        results: list[Detections] = []
        under_way = None
        with concurrent.futures.ThreadPoolExecutor(max(1, min(len(images), os.cpu_count() or 1))) as pool:
            begin = 0
            for size in batch_sizes(len(images), self.max_batch):
                batch = images[begin : begin + size]
                begin += len(batch)
                started = self._start(list(pool.map(_read, batch)), size, wanted)
                # The host reads one batch while the device computes the one before.
                if under_way is not None:
                    results += self._collect(*under_way, threshold, most)
                under_way = started, len(batch)
            if under_way is not None:
                results += self._collect(*under_way, threshold, most)
        return results

    def _start(self, images: list[UInt8[np.ndarray, "_height _width 3"]], size: int, wanted: np.ndarray):
        """Send images to the device; the last one fills the batch."""
        resized = []
        for image in images:
            sides = zip(image.shape[:2], self.config.image_size, strict=True)
            down, across = (_matrix(old, new) for old, new in sides)
            resized.append(_resize(jax.device_put(pad_image(image)), down, across))
        filled = resized + resized[-1:] * (size - len(resized))
        sizes = np.asarray([image.shape[:2] for image in images + images[-1:] * (size - len(images))], np.float32)
        return self._run(self._leaves, filled, sizes, wanted)

    def _collect(self, found, count: int, threshold: float, most: int) -> list[Detections]:
        """Wait for a batch, and cut what is not sure enough."""
        rows = zip(*map(np.asarray, found), strict=True)
        results = []
        for _, (boxes, scores, labels) in zip(range(count), rows, strict=False):
            # A box without area is of no use to anyone.
            kept = np.flatnonzero((scores > threshold) & (boxes[:, 2:] > 0).all(axis=1))[:most]
            results.append(
                Detections(boxes=boxes[kept], scores=scores[kept], labels=labels[kept], classes=self.config.labels)
            )
        return results

    def request(
        self,
        threshold: float | int | None = None,
        labels: str | Sequence[str] | None = None,
        max_detections: int | None = None,
    ) -> tuple[float, Bool[np.ndarray, " classes"], int]:
        """What is asked for, checked: the threshold, which classes, and at most how many.

        Raises:
            ValueError, TypeError: as the class.
        """
        threshold = self.threshold if threshold is None else threshold
        if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or not 0 <= threshold < 1:
            raise ValueError(f"threshold: expected a number from 0 to less than 1, got {threshold!r}")
        most = self.max_detections if max_detections is None else max_detections
        most = self.config.num_queries if most is None else most
        if isinstance(most, bool) or not isinstance(most, numbers.Integral) or most < 1:
            raise ValueError(f"max_detections: expected a positive whole number, got {most!r}")
        wanted = choose_classes(self.labels if labels is None else labels, self.config.labels)
        return float(threshold), wanted, int(most)

    @property
    def num_compiled(self) -> int:
        """How many programs with the network have been compiled so far; all detectors share those that resize."""
        return self._run._cache_size()


@functools.lru_cache(maxsize=64)
def _matrix(old: int, new: int) -> jax.Array:
    # On the device: photographs of one camera have one size.
    return jax.device_put(resize_matrix(old, new))


def _read(image: Any) -> UInt8[np.ndarray, "height width 3"]:
    # Pillow reads the pixels of an open file when they are first asked for, and not from two threads at once.
    with _PIL_LOCK if isinstance(image, Image.Image) else contextlib.nullcontext():
        pixels = load_image(image)
    if pixels.shape[0] * pixels.shape[1] > PIXEL_BUCKETS[-1]:
        raise ValueError(f"image: expected at most {PIXEL_BUCKETS[-1]} pixels, got {pixels.shape[0] * pixels.shape[1]}")
    return pixels
