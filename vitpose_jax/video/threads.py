"""Work that overlaps: frames are read ahead of the network, and drawn and encoded behind it."""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

# Items that wait between two threads.
WAITING = 4

_END: Any = object()


def frames_ahead(items: Iterable[Item], waiting: int = WAITING) -> Generator[Item, None, None]:
    """The items of an iterable that a thread runs through, at most `waiting` ahead.

    Closing the iterator ends the thread. An error of the iterable is raised in its turn.
    """
    iterator = iter(items)
    pool = concurrent.futures.ThreadPoolExecutor(1, "frames")
    try:
        pending = collections.deque(pool.submit(next, iterator, _END) for _ in range(waiting))
        while (item := pending.popleft().result()) is not _END:
            pending.append(pool.submit(next, iterator, _END))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def newest_frames(items: Iterable[Item]) -> Generator[Item, None, None]:
    """The newest item of a live source, each time one is wanted: a thread reads all, and drops those that are too many.

    Closing the iterator ends the thread, at the next item. An error of the iterable is raised after the last item.
    """
    newest: collections.deque[Item] = collections.deque(maxlen=1)
    changed, ended, wanted = threading.Event(), threading.Event(), threading.Event()
    wanted.set()

    def read() -> None:
        try:
            for item in items:
                newest.append(item)
                changed.set()
                if not wanted.is_set():
                    return
        finally:
            ended.set()
            changed.set()

    pool = concurrent.futures.ThreadPoolExecutor(1, "frames")
    try:
        reading = pool.submit(read)
        while True:
            changed.wait()
            changed.clear()
            last = ended.is_set()
            if newest:
                yield newest.pop()
            if last:
                reading.result()
                return
    finally:
        wanted.clear()
        pool.shutdown(cancel_futures=True)


class Behind(Generic[Item]):
    """A thread that handles items in order, at most `waiting` behind.

    Args:
        handle: is called with each item, in the thread.
        waiting: items that wait for it; `put` waits for room.
    """

    def __init__(self, handle: Callable[[Item], None], waiting: int = WAITING):
        self._handle, self._waiting = handle, waiting
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "drawings")
        self._pending: collections.deque[concurrent.futures.Future[None]] = collections.deque()

    def put(self, item: Item) -> None:
        """Hand over an item; raises what `handle` raised for an earlier one."""
        if len(self._pending) >= self._waiting:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._handle, item))

    def close(self) -> None:
        """Wait until all items are handled; raises what `handle` raised."""
        try:
            while self._pending:
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
