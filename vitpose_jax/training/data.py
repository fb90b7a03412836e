"""Batches to train on: people of one or several data sets, shuffled, mixed, packed and read ahead.

What comes in which batch is a function of the seed and the number of the batch alone: any batch can be made without
those before it. So a loader's state is one number, and goes on exactly where it was saved, also with another number
of threads, workers or processes: these share a batch out among them, stretch by stretch.
"""

import functools
import operator
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from vitpose_jax.pipeline.packing import pack_images
from vitpose_jax.training.augment import skeleton_arrays
from vitpose_jax.training.people import Person, PersonSource
from vitpose_jax.vitpose.config import VitPoseConfig

# Rows of pixels are at least this long.
SHORTEST_ROW = 2**18
# As good as endless, and lengths still fit 64 bits.
MOST_EPOCHS = 2**31


class TrainingBatch(NamedTuple):
    """People that are trained on together; a pytree of NumPy arrays, ready for `augment_crops`.

    All shapes are the same from batch to batch, but that of `pixels`, which is a power of two. K is the largest
    number of keypoints of the model's heads; what a person's skeleton does not have is 0.

    Attributes:
        pixels: the windows of all images, one behind another, filled up with 0.
        shapes: of each window: where it begins in `pixels`, its height, its width.
        center, scale: of each box, in pixels of its window; `scale` with the padding of inference.
        keypoints: (x, y) in pixels of the window; anything where not visible.
        visible: 0 not labelled, 1 labelled but hidden, 2 visible.
        weights: how much each label counts.
        dataset_index: of the model's experts and heads.
        udp: whether the data set is trained with UDP.
        flip_indices, upper_body: of each person's skeleton, see `skeleton_arrays`.
    """

    pixels: UInt8[np.ndarray, "p 3"]
    shapes: Int32[np.ndarray, "n 3"]
    center: Float32[np.ndarray, "n 2"]
    scale: Float32[np.ndarray, "n 2"]
    keypoints: Float32[np.ndarray, "n K 2"]
    visible: Int32[np.ndarray, "n K"]
    weights: Float32[np.ndarray, "n K"]
    dataset_index: Int32[np.ndarray, " n"]
    udp: Bool[np.ndarray, " n"]
    flip_indices: Int32[np.ndarray, "n K"]
    upper_body: Bool[np.ndarray, "n K"]


class _Head(NamedTuple):
    """What people of one data set have in common: rows of a batch."""

    dataset_index: Int32[np.ndarray, ""]
    udp: Bool[np.ndarray, ""]
    flip_indices: Int32[np.ndarray, " K"]
    upper_body: Bool[np.ndarray, " K"]


def _head(source: PersonSource, config: VitPoseConfig) -> _Head:
    """The head of the model that a data set trains.

    Raises:
        ValueError: where the model has none, or one of other keypoints; for a source of crops of another size.
    """
    skeleton = source.skeleton
    held = config.skeleton(skeleton.name)
    if held.keypoints != skeleton.keypoints:
        raise ValueError(
            f"{source!r}: expected the {held.num_keypoints} keypoints of the model's head {held.name!r}, "
            f"got {skeleton.num_keypoints} others"
        )
    if tuple(source.size) != config.image_size:
        raise ValueError(f"{source!r}: expected the model's image_size {config.image_size}, got size {source.size}")
    num_keypoints = max(skeleton.num_keypoints for skeleton in config.skeletons)
    ((flip_indices,), _) = skeleton_arrays([held], num_keypoints)
    return _Head(
        dataset_index=np.asarray(config.dataset_index(skeleton.name), np.int32),
        udp=np.asarray(source.protocol.decode == "udp"),
        flip_indices=flip_indices,
        upper_body=_filled(source.upper_body, num_keypoints),
    )


def _filled(array: np.ndarray, length: int) -> np.ndarray:
    """An array with zeros added at its end."""
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])


def pack(people: Sequence[tuple[Person, _Head]]) -> TrainingBatch:
    """People as a batch."""
    persons, heads = zip(*people, strict=True)
    num_keypoints = len(heads[0].flip_indices)
    images = [person.image for person in persons]
    length = max(SHORTEST_ROW, sum(image.shape[0] * image.shape[1] for image in images))
    pixels, shapes = pack_images(images, 1 << (length - 1).bit_length())
    return TrainingBatch(
        pixels=pixels,
        shapes=shapes,
        center=np.stack([person.center for person in persons]),
        scale=np.stack([person.scale for person in persons]),
        keypoints=np.stack([_filled(person.keypoints, num_keypoints) for person in persons]),
        visible=np.stack([_filled(person.visible, num_keypoints) for person in persons]),
        weights=np.stack([_filled(person.weights, num_keypoints) for person in persons]),
        **{name: np.stack([getattr(head, name) for head in heads]) for name in _Head._fields},
    )


class Loader(Iterator[TrainingBatch]):
    """Batches, and where it stands among them. Made by `make_loader`; close it, or use it in a `with`.

    Attributes:
        steps_per_epoch: batches in which every process together has read as many people as there are; at least 1.
        step: how many batches have been read.
    """

    def __init__(self, batches: Any, *, identity: dict[str, Any], steps_per_epoch: int, threads: int, workers: int):
        self.steps_per_epoch = steps_per_epoch
        self.step = 0
        self._batches = batches
        self._identity = identity
        self._threads, self._workers = threads, workers
        self._iterator: Any = None
        self._closed = False

    def __next__(self) -> TrainingBatch:
        """The next batch.

        Raises:
            StopIteration: after the last epoch.
            ValueError: for an image that cannot be read, naming it; for a loader that was closed.
        """
        if self._closed:
            raise ValueError("expected an open loader, got one that was closed")
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self.step += 1
        # Workers hand over memory that they share; it is theirs once the batch is forgotten.
        return TrainingBatch(*(np.array(array) for array in batch)) if self._workers else batch

    def _start(self) -> Iterator[TrainingBatch]:
        """Read ahead from the present step on."""
        grain = _grain()
        # Each thread makes whole batches.
        options = grain.ReadOptions(self._threads, self._threads + 1 if self._threads else 0)
        if self.step >= len(self._batches):
            return iter(())
        batches = self._batches[self.step :].to_iter_dataset(options)
        if self._workers:
            from absl import flags

            # Workers read grain's flags, which only programs made with absl have parsed.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(self._workers))
        return iter(batches)

    def _stop(self) -> None:
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None

    def get_state(self) -> dict[str, Any]:
        """Where it stands, ready for JSON."""
        return {"step": self.step, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on after the batch that was the last one when `get_state` gave this state.

        The numbers of threads, workers, processes and epochs may be others.

        Raises:
            ValueError: for the state of other data, another seed or another batch size of all processes together.
        """
        step = state.get("step")
        held = {name: value for name, value in state.items() if name != "step"}
        if held != self._identity or not isinstance(step, int) or step < 0:
            raise ValueError(f"state: expected a step and {self._identity}, got {state}")
        self._stop()
        self.step = step

    def close(self) -> None:
        """Stop reading ahead, and end the workers."""
        self._stop()
        self._closed = True

    def __enter__(self) -> "Loader":
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
) -> Loader:
    """Batches of people.

    The order is new in each epoch. People are read in one endless row, so that a batch may hold the last people of
    an epoch and the first of the next, and none are dropped. Several processes together have the batch that one alone
    would have, in its order: each reads a stretch of it.

    Args:
        sources: the data sets; each is trained on with the head and the expert of its skeleton's name.
        batch_size: people in a batch, of each process.
        seed: of the order.
        config: of the model.
        ratios: the share of each data set in the batches, any positive numbers (kept to 1 % of the smallest). None
            for that of its people: then everyone comes once in an epoch.
        num_threads: that make batches ahead, of each worker; 0 makes them when they are asked for.
        num_workers: processes that make batches; 0 for threads of this one. A program that uses them must be
            guarded by `if __name__ == "__main__":`.
        process_index, process_count: of the training processes, as JAX has them.
        epochs: after which it ends; None for never.

    Raises:
        ImportError: where grain is not installed.
        ValueError: for numbers out of their range; for a data set that the model has no head for, or one of other
            keypoints; for a source of another size than the model's crops.
    """
    sources = [sources] if isinstance(sources, PersonSource) else list(sources)
    if not sources:
        raise ValueError("sources: expected one or more, got none")
    for name, number, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("num_threads", num_threads, 0),
        ("num_workers", num_workers, 0),
        ("process_count", process_count, 1),
        ("epochs", 1 if epochs is None else epochs, 1),
    ):
        if operator.index(number) < least:
            raise ValueError(f"{name}: expected at least {least}, got {number}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index: expected 0 to {process_count - 1}, got {process_index}")
    if ratios is not None and (len(ratios) != len(sources) or not all(0 < ratio < np.inf for ratio in ratios)):
        raise ValueError(f"ratios: expected {len(sources)} positive numbers, got {ratios}")

    total = sum(len(source) for source in sources)
    steps_per_epoch = max(1, total // (batch_size * process_count))
    share = _Share(_people(sources, config, ratios, seed), batch_size, process_index, process_count)
    batches = _grain().MapDataset.source(share).batch(batch_size, batch_fn=pack)
    identity = {
        "batch_size": batch_size * process_count,
        "seed": seed,
        "people": [len(source) for source in sources],
        "ratios": None if ratios is None else [float(ratio) for ratio in ratios],
    }
    return Loader(
        batches if epochs is None else batches[: epochs * steps_per_epoch],
        identity=identity,
        steps_per_epoch=steps_per_epoch,
        threads=num_threads,
        workers=num_workers,
    )


def _people(
    sources: Sequence[PersonSource],
    config: VitPoseConfig,
    ratios: Sequence[int | float] | None,
    seed: int,
) -> Any:
    """An endless row of people with their heads."""
    grain = _grain()
    datasets = [
        grain.MapDataset.source(source).map(functools.partial(_with, head=_head(source, config))) for source in sources
    ]
    # Grain's seed of an epoch is the seed plus its number: those of other seeds and data sets must not lie near.
    seeds = np.random.SeedSequence(seed).generate_state(len(sources)).tolist()
    if ratios is None:
        return grain.MapDataset.concatenate(datasets).shuffle(seeds[0]).repeat(MOST_EPOCHS)
    rows = [dataset.shuffle(each).repeat(MOST_EPOCHS) for dataset, each in zip(datasets, seeds, strict=True)]
    return grain.MapDataset.mix(rows, list(map(float, ratios)))


class _Share:
    """The people of one process: of each batch of all, its stretch of it."""

    def __init__(self, people: Any, batch_size: int, process_index: int, process_count: int):
        self._people, self._batch_size = people, batch_size
        self._index, self._count = process_index, process_count

    def __len__(self) -> int:
        return len(self._people) // (self._batch_size * self._count) * self._batch_size

    def __getitem__(self, index: int) -> tuple[Person, _Head]:
        batch, row = divmod(index, self._batch_size)
        return self._people[(batch * self._count + self._index) * self._batch_size + row]


def _with(person: Person, head: _Head) -> tuple[Person, _Head]:
    return person, head


def _grain() -> types.ModuleType:
    try:
        import grain
    except ImportError:
        raise ImportError('reading training data needs the package grain: pip install "vitpose-jax[train]"') from None
    return grain
