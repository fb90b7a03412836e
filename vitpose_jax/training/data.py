"""Batches to train on: people of one or several datasets, shuffled, mixed, packed and read ahead.

The people of a batch depend only on the seed and the index of the batch: any batch can be made without the earlier
ones. So the state of a loader is one number, and a loader resumes exactly, also with another number of threads, workers
or processes. Each process makes a contiguous part of every batch.
"""

import functools
import operator
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from vitpose_jax.pipeline.packing import PackedImages, pack_images
from vitpose_jax.pipeline.regions import Regions
from vitpose_jax.training.augment import skeleton_arrays
from vitpose_jax.training.people import Person, PersonSource
from vitpose_jax.vitpose.config import VitPoseConfig

# Minimum number of pixels in a flat pixel buffer. Longer ones are powers of two, not of four like `PIXEL_BUCKETS`: each
# batch is copied to the device, and the batches of a run are similar, so one or two lengths occur.
MIN_PIXELS = 2**18
# Effectively infinite; lengths still fit int64.
MAX_EPOCHS = 2**31


class TrainingBatch(NamedTuple):
    """A batch of people, ready for `augment_crops`; a pytree of NumPy arrays, or of JAX arrays on the device.

    All batches have the same shapes, except for the length of the pixel buffer, a power of two. K is the largest number
    of keypoints among the model's heads; keypoints that a person's skeleton does not have are 0.

    Attributes:
        images: the windows, one for each person.
        regions: of each box, upright, in pixels of its window; with the padding of inference.
        keypoints: (x, y) in pixels of the window; any value if not visible.
        visible: 0 not labelled, 1 labelled but hidden, 2 visible.
        weights: weight of each label.
        dataset_index: index of the model's expert and head.
        udp: whether the dataset is trained with UDP.
        flip_indices, upper_body: of each person's skeleton, see `skeleton_arrays`.
    """

    images: PackedImages
    regions: Regions
    keypoints: Float32[Array | np.ndarray, "n K 2"]
    visible: Int32[Array | np.ndarray, "n K"]
    weights: Float32[Array | np.ndarray, "n K"]
    dataset_index: Int32[Array | np.ndarray, " n"]
    udp: Bool[Array | np.ndarray, " n"]
    flip_indices: Int32[Array | np.ndarray, "n K"]
    upper_body: Bool[Array | np.ndarray, "n K"]


Batch = TypeVar("Batch")


class _Head(NamedTuple):
    """The fields of a batch that all people of a dataset share."""

    dataset_index: Int32[np.ndarray, ""]
    udp: Bool[np.ndarray, ""]
    flip_indices: Int32[np.ndarray, " K"]
    upper_body: Bool[np.ndarray, " K"]


def _head(source: PersonSource, config: VitPoseConfig) -> _Head:
    """The head of the model that a dataset trains.

    Raises:
        ValueError: if the model has no such head, or its keypoints or crop size differ from the source's.
    """
    skeleton = source.skeleton
    head_skeleton = config.skeleton(skeleton.name)
    if head_skeleton.keypoints != skeleton.keypoints:
        raise ValueError(
            f"{source!r}: expected the {head_skeleton.num_keypoints} keypoints of the model's head {skeleton.name!r}, "
            f"got {skeleton.num_keypoints} others"
        )
    if tuple(source.size) != config.image_size:
        raise ValueError(f"{source!r}: expected the model's image_size {config.image_size}, got size {source.size}")
    num_keypoints = max(skeleton.num_keypoints for skeleton in config.skeletons)
    ((flip_indices,), _) = skeleton_arrays([head_skeleton], num_keypoints)
    return _Head(
        dataset_index=np.asarray(config.dataset_index(skeleton.name), np.int32),
        udp=np.asarray(source.protocol.decode == "udp"),
        flip_indices=flip_indices,
        upper_body=_zero_padded(source.upper_body, num_keypoints),
    )


def _zero_padded(array: np.ndarray, length: int) -> np.ndarray:
    """An array with zeros appended up to a length."""
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])


def pack(people: Sequence[tuple[Person, _Head]]) -> TrainingBatch:
    """A batch of people."""
    persons, heads = zip(*people, strict=True)
    num_keypoints = len(heads[0].flip_indices)
    images = [person.image for person in persons]
    length = max(MIN_PIXELS, sum(image.shape[0] * image.shape[1] for image in images))
    return TrainingBatch(
        images=pack_images(images, 1 << (length - 1).bit_length()),
        regions=Regions(
            np.stack([person.center for person in persons]), np.stack([person.scale for person in persons])
        ),
        keypoints=np.stack([_zero_padded(person.keypoints, num_keypoints) for person in persons]),
        visible=np.stack([_zero_padded(person.visible, num_keypoints) for person in persons]),
        weights=np.stack([_zero_padded(person.weights, num_keypoints) for person in persons]),
        **{name: np.stack([getattr(head, name) for head in heads]) for name in _Head._fields},
    )


class Loader(Iterator[Batch]):
    """An iterator over batches that can be saved and resumed. From `make_loader`; close it, or use it in a `with`.

    Attributes:
        micro_steps_per_epoch: batches in which all processes together read as many people as there are; at least 1.
        micro_step: number of batches read so far.
    """

    def __init__(
        self, batches: Any, *, identity: dict[str, Any], micro_steps_per_epoch: int, threads: int, workers: int
    ):
        self.micro_steps_per_epoch = micro_steps_per_epoch
        self.micro_step = 0
        self._batches = batches
        self._identity = identity
        self._threads, self._workers = threads, workers
        self._iterator: Any = None
        self._closed = False

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            StopIteration: after the last epoch.
            ValueError: if an image cannot be read, naming it; if the loader is closed.
        """
        if self._closed:
            raise ValueError("expected an open loader, got a closed one")
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self.micro_step += 1
        # A worker reuses its shared memory when the batch is released.
        return jax.tree.map(np.array, batch) if self._workers else batch

    def _start(self) -> Iterator[Batch]:
        """Start to read ahead, at the next batch."""
        grain = import_grain()
        # Each thread makes whole batches.
        options = grain.ReadOptions(self._threads, self._threads + 1 if self._threads else 0)
        if self.micro_step >= len(self._batches):
            return iter(())
        batches = self._batches[self.micro_step :].to_iter_dataset(options)
        if self._workers:
            from absl import flags

            # Workers read grain's flags, which only absl programs have parsed.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(self._workers))
        return iter(batches)

    def _stop(self) -> None:
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None

    def get_state(self) -> dict[str, Any]:
        """The position and the identity of the data, ready for JSON."""
        return {"micro_step": self.micro_step, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Resume after the batch that was the last one when `get_state` returned this state.

        The numbers of threads, workers, processes and epochs may differ.

        Raises:
            ValueError: for a state of other data, another seed or another total batch size.
        """
        micro_step = state.get("micro_step")
        identity = {name: value for name, value in state.items() if name != "micro_step"}
        if identity != self._identity or not isinstance(micro_step, int) or micro_step < 0:
            raise ValueError(f"state: expected a micro_step and {self._identity}, got {state}")
        self._stop()
        self.micro_step = micro_step

    def close(self) -> None:
        """Stop the threads and workers."""
        self._stop()
        self._closed = True

    def __enter__(self) -> "Loader[Batch]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: types.TracebackType | None
    ) -> None:
        self.close()


def make_loader(
    sources: PersonSource | Sequence[PersonSource],
    *,
    batch_size: int,
    seed: int,
    config: VitPoseConfig,
    ratios: Sequence[int | float] | None = None,
    num_threads: int = 4,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
) -> Loader[TrainingBatch]:
    """Batches of people.

    Each epoch has a new order. People come as one endless sequence: a batch may hold the last people of an epoch and
    the first of the next, and no person is dropped. The batches of several processes together equal the batches of a
    single process, in the same order: each process makes a contiguous part.

    Args:
        sources: the datasets; each trains the head and the expert of its skeleton's name.
        batch_size: people in a batch of this process.
        seed: seed of the order.
        config: configuration of the model.
        ratios: fraction of each dataset in the batches, as any positive numbers (exact to 1 % of the smallest). None
            for fractions by number of people: then every person comes once in an epoch.
        num_threads: threads that make batches ahead, in each worker; 0 makes a batch when it is requested.
        num_workers: processes that make batches; 0 for threads of this process. A program that uses workers must be
            guarded by `if __name__ == "__main__":`.
        process_index, process_count: index and number of the training processes, as in JAX.
        epochs: number of epochs; None for endless.

    Raises:
        ImportError: if grain is not installed.
        ValueError: for numbers out of range; if the model has no head for a dataset, or its keypoints or crop size
            differ from the source's.
    """
    sources = [sources] if isinstance(sources, PersonSource) else list(sources)
    if not sources:
        raise ValueError("sources: expected one or more, got none")
    for name, number, minimum in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("num_threads", num_threads, 0),
        ("num_workers", num_workers, 0),
        ("process_count", process_count, 1),
        ("epochs", 1 if epochs is None else epochs, 1),
    ):
        if operator.index(number) < minimum:
            raise ValueError(f"{name}: expected at least {minimum}, got {number}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index: expected 0 to {process_count - 1}, got {process_index}")
    if ratios is not None and (len(ratios) != len(sources) or not all(0 < ratio < np.inf for ratio in ratios)):
        raise ValueError(f"ratios: expected {len(sources)} positive numbers, got {ratios}")

    total = sum(len(source) for source in sources)
    micro_steps_per_epoch = max(1, total // (batch_size * process_count))
    part = ProcessPart(_people(sources, config, ratios, seed), batch_size, process_index, process_count)
    batches = import_grain().MapDataset.source(part).batch(batch_size, batch_fn=pack)
    identity = {
        "batch_size": batch_size * process_count,
        "seed": seed,
        "people": [len(source) for source in sources],
        "ratios": None if ratios is None else [float(ratio) for ratio in ratios],
    }
    return Loader(
        batches if epochs is None else batches[: epochs * micro_steps_per_epoch],
        identity=identity,
        micro_steps_per_epoch=micro_steps_per_epoch,
        threads=num_threads,
        workers=num_workers,
    )


def _people(
    sources: Sequence[PersonSource],
    config: VitPoseConfig,
    ratios: Sequence[int | float] | None,
    seed: int,
) -> Any:
    """An endless sequence of people with their heads."""
    grain = import_grain()
    datasets = [
        grain.MapDataset.source(source).map(functools.partial(_with_head, head=_head(source, config)))
        for source in sources
    ]
    # Grain adds the index of the epoch to the seed, so the seeds of datasets must not be close to each other.
    seeds = np.random.SeedSequence(seed).generate_state(len(sources)).tolist()
    if ratios is None:
        return grain.MapDataset.concatenate(datasets).shuffle(seeds[0]).repeat(MAX_EPOCHS)
    sequences = [
        dataset.shuffle(dataset_seed).repeat(MAX_EPOCHS) for dataset, dataset_seed in zip(datasets, seeds, strict=True)
    ]
    return grain.MapDataset.mix(sequences, list(map(float, ratios)))


class ProcessPart:
    """The samples of one process: a contiguous part of each batch of all processes."""

    def __init__(self, samples: Any, batch_size: int, process_index: int, process_count: int):
        self._samples, self._batch_size = samples, batch_size
        self._index, self._count = process_index, process_count

    def __len__(self) -> int:
        return len(self._samples) // (self._batch_size * self._count) * self._batch_size

    def __getitem__(self, index: int) -> Any:
        batch, row = divmod(index, self._batch_size)
        return self._samples[(batch * self._count + self._index) * self._batch_size + row]


def _with_head(person: Person, head: _Head) -> tuple[Person, _Head]:
    return person, head


def import_grain() -> types.ModuleType:
    """The package grain.

    Raises:
        ImportError: if it is not installed, with the command that installs it.
    """
    try:
        import grain
    except ImportError:
        raise ImportError('reading training data needs the package grain: pip install "vitpose-jax[train]"') from None
    return grain
