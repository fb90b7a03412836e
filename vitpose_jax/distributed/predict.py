"""`predict_dataset`: the poses in any number of images, on any number of machines."""

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from tqdm import tqdm

from vitpose_jax.bulk.report import log
from vitpose_jax.bundled import DEFAULT_FINDER, DEFAULT_MODEL
from vitpose_jax.detector import LABELS
from vitpose_jax.distributed.extras import RAY_EXTRA
from vitpose_jax.distributed.files import absolute
from vitpose_jax.distributed.inputs import Columns, Manifest, Partition, Source, find_pieces
from vitpose_jax.distributed.output import Output
from vitpose_jax.distributed.pool import GivenUp, Pool, choose_resources
from vitpose_jax.distributed.worker import Job, Report, Worker, load_estimator, peak_memory
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.pipeline.postprocess import Decode, get_decoding
from vitpose_jax.serving.requests import DatasetKey, plain

# Of a `Report`, what is added up.
_SUMMED = ("images", "people", "errors", "seconds", "writing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BulkSummary:
    """What a run over a dataset did.

    Attributes:
        partitions: of the whole dataset.
        skipped: partitions whose results were there already.
        images, people, errors: of the partitions that this run wrote; `errors` images could not be read.
        failed: partitions without results, and why; the next run tries them again.
        seconds: from the first worker that was ready to the last result.
        worker_seconds: that all workers together spent on their partitions.
        writing_seconds: of these, on making and writing the files of results.
        memory: the most bytes of memory that a worker had.
        driver_memory: and this process.
    """

    partitions: int
    skipped: int
    images: int
    people: int
    errors: int
    failed: dict[int, str]
    seconds: float
    worker_seconds: float
    writing_seconds: float
    memory: int
    driver_memory: int


def predict_dataset(
    source: Source,
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Callable[[], PoseEstimator] = DEFAULT_MODEL,
    detector: str | os.PathLike[str] | None = None,
    labels: list[str] | None = None,
    min_score: float | None = None,
    whole_image: bool = False,
    image_column: str = "image",
    id_column: str | None = None,
    boxes_column: str | None = None,
    dataset: DatasetKey = None,
    flip_test: bool = False,
    decode: Decode = "udp",
    dtype: str = "float32",
    runtime: Literal["jax", "onnxruntime", "openvino"] = "jax",
    quantize: Literal["int8", "int4"] | None = None,
    group_size: int | None = None,
    revision: str | None = None,
    strict: bool = True,
    max_batch: int | None = None,
    images_per_partition: int = 1000,
    concurrency: int | None = None,
    num_cpus: float | int | None = None,
    num_gpus: float | int | None = None,
    resources: Mapping[str, float | int] | None = None,
    address: str | None = None,
    attempts: int = 3,
    overwrite: bool = False,
    progress: bool = False,
    report: Callable[[str], None] = log,
    settings: Mapping[str, Any] | None = None,
) -> BulkSummary:
    """Estimate the poses in a dataset of images, on all machines of a Ray cluster; `vitpose-jax bulk` in Python.

    The images are cut into partitions before the run; each becomes one Parquet file in the output folder, whole or not
    at all (table.py lists its columns). A later call with the same settings computes the partitions that are missing;
    images that came to the source after the first call are not seen. An image that cannot be read becomes a row with
    an error.

    Args:
        source: a folder with sub-folders, a pattern or a list of them: images, Parquet files, or .tar archives as
            WebDataset writes them ("shards/{000000..000999}.tar"); or a .txt file with the name of an image in each
            line. Names may be URIs of s3, gs, abfs, hdfs or what fsspec reads. All machines must see the same files.
        output: folder of the results, on this machine, on a disk that all machines share, or a URI.
        model: a Hub id, a folder, a file or a bundled model; or a function that loads an estimator in each worker.
        detector: finds the boxes: a Hub id or a folder; None for the bundled person finder.
        labels, min_score: classes that the detector looks for, and its threshold; None for its own.
        whole_image: each whole image is one box.
        image_column: of a Parquet source: the bytes of image files, their names, or a struct of "bytes" and "path".
        id_column: of a Parquet source: what names an image in the results; None for the name of the file and the row.
        boxes_column: of a Parquet source: for each image a list of x y w h in pixels; None: the detector finds them.
        dataset, flip_test, decode: see `PoseEstimator`.
        dtype, quantize, group_size, revision, strict: see `from_pretrained`.
        runtime: what the network runs in, see `PoseEstimator.from_pretrained`; each worker needs it.
        max_batch: see `PoseEstimator`.
        images_per_partition: at most; what is lost with a machine. An archive is one partition.
        concurrency: the number of workers, each with an estimator. None: one for each GPU of the cluster or, without
            GPUs, one for each machine. 0: this process computes alone, without Ray.
        num_cpus, num_gpus: of each worker; None: 1 GPU if there are any, and an equal part of a machine's CPUs.
        resources: of each worker, such as {"TPU": 4}.
        address: of a Ray cluster, if Ray is not connected yet; "auto" for the one that runs on this machine. None for
            the one that RAY_ADDRESS names; without it, a cluster of this machine alone is started and ended.
        attempts: for each partition, before it is given up. Lost workers are replaced as often as necessary.
        overwrite: delete the results of an earlier run.
        progress: show a progress bar on standard error.
        report: gets each message, one line.
        settings: more values that the results depend on, ready for JSON: with a function that loads the estimator, what
            names its model.

    Raises:
        ValueError: for a source without images; options that every image would fail on; results with other settings in
            the folder, naming what differs; or if the first partitions all fail.
        ImportError: if Ray or PyArrow is not installed.
        ConnectionError: if there is no cluster at the address.
    """
    start = time.monotonic()
    get_decoding(decode)
    if whole_image and (detector is not None or labels or boxes_column):
        raise ValueError("expected whole_image, boxes_column, or a detector and its labels; got two of them")
    if boxes_column is not None and (detector is not None or labels):
        raise ValueError("expected boxes_column, or a detector and its labels; got both")
    if attempts < 1:
        raise ValueError(f"attempts: expected at least 1, got {attempts}")
    finds_boxes = not whole_image and boxes_column is None
    columns = Columns(image_column, id_column, boxes_column)
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    record: dict[str, Any] = {
        "source": [_named(name) for name in sources],
        "images_per_partition": images_per_partition,
        "columns": list(columns),
        "boxes": "detector" if finds_boxes else "whole image" if whole_image else "column",
        "dataset": plain(dataset),
        "flip_test": flip_test,
        "decode": str(decode),
        **(settings or {}),
    }
    if callable(model):
        load = model
    else:
        wants_finder = finds_boxes and (detector is not None or labels or min_score is not None)
        chosen = {
            "detector": _named(detector or DEFAULT_FINDER) if wants_finder else None,
            "labels": list(labels or LABELS) if wants_finder else None,
            "min_score": min_score,
            "dtype": str(dtype),
            "revision": revision,
        }
        # What is not asked for is not named, so that older results can be resumed.
        asked = {"runtime": None if runtime == "jax" else runtime, "quantize": quantize, "group_size": group_size}
        chosen |= {name: value for name, value in asked.items() if value is not None}
        record |= {"model": _named(model), **chosen}
        load = functools.partial(load_estimator, _named(model), **chosen, strict=strict, max_batch=max_batch)
    options = {"dataset": plain(dataset), "flip_test": flip_test, "decode": decode}
    folder = Output(absolute(output))
    job = Job(output=folder.folder, load=load, options=options, columns=columns, whole_image=whole_image)
    if concurrency != 0:
        _check_ray()
    manifest = folder.start(
        record,
        lambda: find_pieces(sources, images_per_partition=images_per_partition, columns=columns),
        overwrite=overwrite,
    )
    done = folder.done()
    if done:
        report(f"{len(done)} of {manifest.partitions} partitions are done already; overwrite replaces them")
    todo = (partition for partition in manifest.read() if partition.number not in done)
    totals: collections.Counter[str] = collections.Counter()
    memory = 0
    failed: dict[int, str] = {}
    first: float | None = None
    if len(done) < manifest.partitions:
        with contextlib.ExitStack() as stack:
            if concurrency == 0:
                results = _run_here(job, todo, folder)
            else:
                stack.enter_context(_connected(address))
                chosen = choose_resources(concurrency, num_cpus, num_gpus, dict(resources or {}))
                pool = Pool(job, chosen, attempts=attempts, check_model=folder.check_model, report=report)
                results = stack.enter_context(contextlib.closing(pool.run(todo)))
            bar = stack.enter_context(_Bar(manifest, done, shown=progress))
            for result in results:
                if isinstance(result, GivenUp):
                    failed[result.partition] = result.reason
                    report(f"error: partition {result.partition}: {result.reason}; {attempts} attempts failed")
                    continue
                first = time.monotonic() - result.seconds if first is None else first
                totals.update({name: value for name, value in result._asdict().items() if name in _SUMMED})
                memory = max(memory, result.memory)
                bar.add(result)
    return BulkSummary(
        partitions=manifest.partitions,
        skipped=len(done),
        images=totals["images"],
        people=totals["people"],
        errors=totals["errors"],
        failed=failed,
        seconds=time.monotonic() - (start if first is None else first),
        worker_seconds=float(totals["seconds"]),
        writing_seconds=float(totals["writing"]),
        memory=memory,
        driver_memory=peak_memory(),
    )


def _named(source: str | os.PathLike[str]) -> str:
    """A source as settings name it: what is on this machine by its whole path."""
    text = os.fspath(source)
    return os.path.abspath(text) if os.path.exists(text) else text


def _run_here(job: Job, partitions: Iterator[Partition], folder: Output) -> Iterator[Report]:
    worker = Worker(job)
    folder.check_model(worker.load())
    return map(worker.run, partitions)


def _check_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ImportError(RAY_EXTRA)


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A connection to Ray; one that this function makes is ended."""
    import ray

    if ray.is_initialized():
        yield
        return
    # A cluster that is started here reports nothing about its use.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    # Without an address Ray would look for the last cluster of this machine, and wait for minutes if that is gone.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(address)
    # Ray ends a process that gets a signal without a word to what it runs.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ray.init(address=address, **options)
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check that something listens at an address; Ray itself tries for minutes.

    Raises:
        ConnectionError: if nothing does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto", "local" or a file of addresses
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"{address}: no Ray cluster answers there ({error})") from None


class _Bar:
    """Progress on standard error: images a second, and partitions."""

    def __init__(self, manifest: Manifest, done: set[int], *, shown: bool):
        self._total, self._count = manifest.partitions, len(done)
        total = None if manifest.images is None or done else manifest.images
        self._bar = tqdm(total=total, unit="image", disable=not shown, file=sys.stderr)

    def add(self, result: Report) -> None:
        self._count += 1
        self._bar.set_postfix_str(f"{self._count} of {self._total} partitions", refresh=False)
        self._bar.update(result.images)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
