"""A worker: one estimator, to which partitions come one after another; each becomes one file."""

import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from vitpose_jax.bulk.settings import detector_settings, estimator_settings
from vitpose_jax.detector import LABELS, Detector
from vitpose_jax.distributed.inputs import Columns, Partition
from vitpose_jax.distributed.output import Output
from vitpose_jax.distributed.reading import Entry, read_partition
from vitpose_jax.distributed.table import Rows
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.images import read_size
from vitpose_jax.pixels.urls import is_remote
from vitpose_jax.serving.flow import ItemError
from vitpose_jax.serving.requests import WHOLE_IMAGE
from vitpose_jax.storage.text import printable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What all workers of a run are told.

    Attributes:
        output: the folder of the results.
        load: makes the estimator, in the worker.
        options: of `PoseEstimator.stream`: dataset, flip_test, decode.
        columns: of a Parquet source.
        whole_image: each whole image is one box.
    """

    output: str
    load: Callable[[], PoseEstimator]
    options: dict[str, Any]
    columns: Columns
    whole_image: bool


class Report(NamedTuple):
    """What a worker says about a partition that it wrote.

    Attributes:
        partition: its number.
        images, people, errors: how many rows of each there are.
        seconds: from its first image to the written file.
        writing: the seconds of these that went into the file.
        memory: the most bytes of memory that the worker ever had.
    """

    partition: int
    images: int
    people: int
    errors: int
    seconds: float
    writing: float
    memory: int


class Worker:
    """Computes partitions; lives in a process of its own.

    Args:
        job: what to do.
    """

    def __init__(self, job: Job):
        self._job = job
        self._output = Output(job.output)
        self._estimator: PoseEstimator | None = None

    def load(self) -> dict[str, Any]:
        """Load the estimator, and try it on a blank image: options that all images would fail on fail here.

        Returns:
            what results depend on besides the settings, ready for JSON: checksums of the weights.
        """
        job = self._job
        estimator = self._estimator = job.load()
        finds_boxes = not job.whole_image and job.columns.boxes is None
        boxes = None if finds_boxes else WHOLE_IMAGE
        estimator(np.zeros((64, 64, 3), np.uint8), boxes, **job.options)
        return estimator_settings(estimator) | (detector_settings(estimator.detector) if finds_boxes else {})

    def run(self, partition: Partition, *, last_attempt: bool = True) -> Report:
        """Compute a partition and write its results.

        Args:
            partition: what to compute.
            last_attempt: an image that cannot be reached becomes a row with an error; otherwise the partition fails.

        Raises:
            OSError: if something cannot be reached or written.
        """
        if self._estimator is None:
            raise ValueError("expected a worker that has loaded its estimator")
        start = time.monotonic()
        rows, entries = Rows(partition.number), []

        def items() -> Iterator[tuple]:
            for entry in read_partition(partition, self._job.columns):
                entries.append(entry)
                yield entry.image, WHOLE_IMAGE if self._job.whole_image else entry.boxes

        for result in self._estimator.stream(items(), errors="return", **self._job.options):
            # Results come in order: what is in `entries` waits for its own.
            entry: Entry = entries.pop(0)
            if not isinstance(result, ItemError):
                rows.add(entry.id, read_size(entry.image), result)
                continue
            cause = result.__cause__
            if not last_attempt and _may_pass(cause, entry.image.url):
                raise OSError(f"{entry.id}: {cause}")
            rows.add_error(entry.id, printable(cause, 1000))
        writing = time.monotonic()
        self._output.write(partition.number, rows.encode())
        end = time.monotonic()
        return Report(
            partition.number, rows.images, rows.people, rows.errors, end - start, end - writing, peak_memory()
        )


def _may_pass(error: BaseException | None, name: str) -> bool:
    """Whether a second attempt may help: a store that does not answer. A dead link of the web stays dead."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and not is_remote(name)


def load_estimator(
    model: str,
    *,
    detector: str | None,
    labels: list[str] | None,
    min_score: float | None,
    dtype: str,
    revision: str | None,
    strict: bool,
    max_batch: int | None,
    **options: Any,
) -> PoseEstimator:
    """The estimator of these options, on the devices that this process sees.

    Args:
        model, dtype, revision, strict, max_batch: of `PoseEstimator.from_pretrained`.
        detector, labels, min_score: of `Detector.from_pretrained`; None for the bundled one, loaded when it is needed.
        options: more for `PoseEstimator.from_pretrained`: runtime, quantize, group_size.
    """
    finder = None
    if detector is not None:
        wanted = {"threshold": min_score, "labels": labels or LABELS}
        finder = Detector.from_pretrained(detector, dtype=dtype, strict=strict, **wanted)
    options |= {"dtype": dtype, "revision": revision, "strict": strict}
    return PoseEstimator.from_pretrained(model, max_batch=max_batch, detector=finder, **options)


def peak_memory() -> int:
    """The most bytes of memory that this process ever had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def environment(num_cpus: float | int, num_gpus: float | int) -> dict[str, str]:
    """The environment of a worker's process: no more threads and memory than it was given.

    Args:
        num_cpus: XLA and the other runtimes take as many threads.
        num_gpus: of the memory of a GPU that several workers share, XLA takes this part.
    """
    threads = str(max(1, int(num_cpus)))
    variables = {"NPROC": threads, "OMP_NUM_THREADS": threads}
    if 0 < num_gpus < 1:
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * num_gpus:.2f}"
    names = [name for name in os.environ if name.startswith(("JAX_", "XLA_")) and name not in variables]
    return {name: os.environ[name] for name in names} | variables
