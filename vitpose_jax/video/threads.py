"""Work that overlaps: frames are read ahead of the network, and drawn and encoded behind it."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

# Items that wait between two threads.
WAITING = 4
# How often a thread that waits looks whether it is still wanted, in seconds.
_PATIENCE = 0.1


class _End:
    """The end of the items, with the error that ended them."""

    def __init__(self, error: BaseException | None = None):
        self.error = error


def frames_ahead(items: Iterable[Item], waiting: int = WAITING) -> Iterator[Item]:
    """The items of an iterable that a thread runs through, at most `waiting` ahead.

    Closing the iterator ends the thread. An error of the iterable is raised in its turn.
    """
    lane: queue.Queue[Any] = queue.Queue(waiting)
    ended = threading.Event()

    def put(item: object) -> bool:
        while not ended.is_set():
            try:
                lane.put(item, timeout=_PATIENCE)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:  # raised again by the consumer
            put(_End(error))
        else:
            put(_End())

    thread = threading.Thread(target=run, name="frames", daemon=True)
    thread.start()
    try:
        while True:
            item = lane.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        ended.set()
        thread.join()


class Behind(Generic[Item]):
    """A thread that handles items in order, at most `waiting` behind.

    Args:
        handle: is called with each item, in the thread.
        waiting: items that wait for it; `put` waits for room.
    """

    def __init__(self, handle: Callable[[Item], None], waiting: int = WAITING):
        self._handle = handle
        self._lane: queue.Queue[Any] = queue.Queue(waiting)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="drawings", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over an item.

        Raises:
            BaseException: what `handle` raised for an earlier one.
        """
        self._raise_error()
        self._lane.put(item)

    def close(self) -> None:
        """Wait until all items are handled.

        Raises:
            BaseException: what `handle` raised.
        """
        self._lane.put(_End())
        self._thread.join()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        while not isinstance(item := self._lane.get(), _End):
            if self._error is None:
                try:
                    self._handle(item)
                except BaseException as error:  # raised again by the producer
                    self._error = error
