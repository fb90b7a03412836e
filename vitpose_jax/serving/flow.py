"""Reading ahead on the host, and a few batches under way on the device: results in the order of the images.

entries   images by path, as PIL images or as arrays
  read_ahead   threads read and check them, a bounded number ahead
items
  groups       consecutive items that share a flat pixel buffer (batching.py)
  start        sends a group to the device and starts its jobs, one at a time
  collect      waits for the oldest job once MAX_JOBS newer ones are under way
items, finished, in their order
"""

import collections
import concurrent.futures
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

from vitpose_jax.images import decoded_bytes, own
from vitpose_jax.serving.batching import SHARED_PIXELS, AnyItem, Item, groups
from vitpose_jax.storage.forks import check_not_forked

# Jobs that are started and not yet collected.
MAX_JOBS = 2
# Images read ahead.
PREFETCH = 16
# Images are read ahead only up to this number of decoded bytes; one may be larger.
PREFETCH_BYTES = 512 * 2**20

Entry = TypeVar("Entry")
Result = TypeVar("Result")


class ItemError(ValueError):
    """An item of a stream that failed.

    Attributes:
        number: the index of the item, counted from 0. The error itself is the `__cause__`.
    """

    def __init__(self, number: int, message: str):
        super().__init__(f"item {number}: {message}")
        self.number = number


@runtime_checkable
class Job(Protocol):
    """A batch on the device."""

    def collect(self) -> None:
        """Wait for the results and put them into their items."""


class JobQueue:
    """Jobs under way: the oldest one is collected once MAX_JOBS newer ones are under way."""

    def __init__(self) -> None:
        self._jobs: collections.deque[Job] = collections.deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Add a job that was just started."""
        self._jobs.append(job)
        if len(self._jobs) > MAX_JOBS:
            self.collect_oldest()

    def collect_oldest(self) -> None:
        """Wait for the oldest job."""
        self._jobs.popleft().collect()

    def collect_all(self) -> None:
        """Wait for all jobs."""
        while self._jobs:
            self.collect_oldest()


def run(
    items: Iterable[AnyItem | Exception],
    start: Callable[[list[AnyItem]], Iterator[Job]],
    *,
    max_boxes: int,
    max_images: int,
) -> Iterator[AnyItem | Exception]:
    """Put items through the device, and yield them finished, in their order.

    Args:
        items: an exception takes the place of an item that failed.
        start: sends the unfinished items of a group to the device; its iterator starts one job at each step.
        max_boxes, max_images: of a group.
    """
    check_not_forked()
    jobs = JobQueue()
    waiting: collections.deque[AnyItem | Exception] = collections.deque()

    def finished() -> Iterator[AnyItem | Exception]:
        while waiting and not (isinstance(waiting[0], Item) and not waiting[0].finished):
            yield waiting.popleft()

    for group in groups(items, max_boxes=max_boxes, max_images=max_images):
        if sum(item.pixels for item in group if isinstance(item, Item)) > SHARED_PIXELS:
            # A large image is on the device alone.
            jobs.collect_all()
            yield from finished()
        waiting.extend(group)
        for job in start([item for item in group if isinstance(item, Item) and not item.finished]):
            jobs.add(job)
        yield from finished()
    while jobs:
        jobs.collect_oldest()
        yield from finished()
    yield from finished()


class _Budget:
    """The bytes that are read and not yet used: a reader waits until there is room for its image.

    The oldest image may always be read, so there is always one reader that does not wait.
    """

    def __init__(self, limit: int):
        self._limit, self._held, self._oldest, self._closed = limit, 0, 0, False
        self._changed = threading.Condition()

    def reserve(self, number: int, size: int) -> bool:
        """Wait for room for an image; False if its result is not wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or number == self._oldest or self._held + size <= self._limit)
            self._held += size
            return not self._closed

    def release(self, size: int) -> None:
        """The oldest image is used."""
        with self._changed:
            self._held -= size
            self._oldest += 1
            self._changed.notify_all()

    def close(self) -> None:
        """End all waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def read_ahead(
    function: Callable[[Entry], Result],
    entries: Iterable[Entry],
    prefetch: int = PREFETCH,
    *,
    size: Callable[[Entry], int] = lambda _: 0,
    max_bytes: int = PREFETCH_BYTES,
) -> Generator[Result, None, None]:
    """Results of a function that threads run, in the order of the entries.

    Closing the iterator ends the threads.

    Args:
        function: reads an entry.
        entries: taken as they are needed.
        prefetch: the most entries ahead.
        size: the bytes of an entry's result, known before it is read.
        max_bytes: the most bytes ahead; one entry may be larger.
    """
    pool = concurrent.futures.ThreadPoolExecutor(max(1, min(prefetch, os.cpu_count() or 1)))
    pending: collections.deque[concurrent.futures.Future[tuple[Result, int]]] = collections.deque()
    budget = _Budget(max_bytes)

    def read(number: int, entry: Entry) -> tuple[Result, int]:
        count = size(entry)
        if not budget.reserve(number, count):
            raise concurrent.futures.CancelledError
        return function(entry), count

    def oldest() -> Result:
        result, count = pending.popleft().result()
        budget.release(count)
        return result

    try:
        for number, entry in enumerate(entries):
            pending.append(pool.submit(read, number, entry))
            if len(pending) >= prefetch:
                yield oldest()
        while pending:
            yield oldest()
    finally:
        budget.close()
        pool.shutdown(cancel_futures=True)


def entry_bytes(entry: Any) -> int:
    """The decoded bytes of an entry: an image, or a tuple that begins with one."""
    return decoded_bytes(entry[0] if isinstance(entry, tuple) and entry else entry)


def stream(
    prepare: Callable[[Any], AnyItem],
    entries: Iterable[Any],
    start: Callable[[list[AnyItem]], Iterator[Job]],
    finish: Callable[[AnyItem], Result],
    *,
    prefetch: int,
    errors: Literal["raise", "return"],
    max_boxes: int,
) -> Iterator[Result | ItemError]:
    """Put any number of entries through the device in bounded memory.

    Args:
        prepare: reads and checks an entry, in a thread; its ValueError, TypeError or OSError is the item's error.
        entries: images, or tuples of an image and its options, read as they are needed; their owner may change arrays
            after the next one. An error of the iterable itself is raised at once.
        start: see `run`.
        finish: makes the result of a finished item.
        prefetch: images read ahead.
        errors: "raise" an item's error in its turn, or "return" it in the place of its result.
        max_boxes: of a group.

    Raises:
        ItemError: with errors="raise".
        ValueError: for a prefetch below 1 or an unknown `errors`.
    """
    if prefetch < 1:
        raise ValueError(f"prefetch: expected at least 1, got {prefetch}")
    if errors not in ("raise", "return"):
        raise ValueError(f"errors: expected 'raise' or 'return', got {errors!r}")

    def checked(numbered: tuple[int, Any]) -> AnyItem | ItemError:
        number, entry = numbered
        try:
            return prepare(entry)
        except (ValueError, TypeError, OSError) as error:
            failure = ItemError(number, str(error))
            failure.__cause__ = error
            return failure

    numbered = ((number, own(entry)) for number, entry in enumerate(entries))
    items = read_ahead(checked, numbered, prefetch, size=lambda entry: entry_bytes(entry[1]))
    try:
        for item in run(items, start, max_boxes=max_boxes, max_images=prefetch):
            if not isinstance(item, ItemError):
                yield finish(cast(AnyItem, item))
            elif errors == "raise":
                raise item
            else:
                yield item
    finally:
        items.close()
