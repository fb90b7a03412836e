"""Requests of many threads, put together into calls of one estimator.

A network is faster with the people of several images than with those of one. While the estimator computes, requests
wait; then all that wait, and have the same options, go in together.
"""

import collections
import concurrent.futures
import dataclasses
import threading
from typing import Any

from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.images import ImageLike
from vitpose_jax.pipeline.postprocess import Decode
from vitpose_jax.poses import Poses
from vitpose_jax.serving.flow import ItemError

# Images that go to the estimator together, and requests that may wait.
MAX_IMAGES = 16
MAX_WAITING = 32


class BusyError(RuntimeError):
    """Too many requests wait, or the batcher is closed."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Request:
    item: tuple
    options: tuple[bool, Decode]
    result: "concurrent.futures.Future[Poses]" = dataclasses.field(default_factory=concurrent.futures.Future)


class Batcher:
    """An estimator for many threads.

    Args:
        estimator: what computes, in a thread of the batcher.
        max_images: that go to it together.
        max_waiting: requests that may wait; one more raises `BusyError`.

    Attributes:
        estimator: the same.
        calls: how often the estimator was called.
    """

    def __init__(self, estimator: PoseEstimator, *, max_images: int = MAX_IMAGES, max_waiting: int = MAX_WAITING):
        for name, value in (("max_images", max_images), ("max_waiting", max_waiting)):
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        self.estimator, self.max_images, self.max_waiting = estimator, max_images, max_waiting
        self.calls = 0
        self._waiting: collections.deque[_Request] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="poses", daemon=True)
        self._thread.start()

    def __call__(
        self,
        image: ImageLike,
        boxes: Any = None,
        *,
        dataset: str | None = None,
        flip_test: bool = False,
        decode: Decode = "udp",
    ) -> Poses:
        """The poses of one image; waits for them.

        Args:
            image, boxes, dataset, flip_test, decode: as for a call of the estimator.

        Raises:
            BusyError: if too many requests wait, or after `close`.
            ValueError, TypeError: as the estimator.
        """
        return self.submit(image, boxes, dataset=dataset, flip_test=flip_test, decode=decode).result()

    def submit(
        self,
        image: ImageLike,
        boxes: Any = None,
        *,
        dataset: str | None = None,
        flip_test: bool = False,
        decode: Decode = "udp",
    ) -> "concurrent.futures.Future[Poses]":
        """As a call, without waiting; a result that is cancelled before its turn is not computed."""
        request = _Request((image, boxes, dataset), (flip_test, decode))
        with self._changed:
            if self._closed:
                raise BusyError("the server is shutting down")
            if len(self._waiting) >= self.max_waiting:
                raise BusyError(f"{len(self._waiting)} requests are waiting already; try again later")
            self._waiting.append(request)
            self._changed.notify()
        return request.result

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Finish what is being computed; what waits gets a `BusyError`."""
        with self._changed:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for request in waiting:
            if request.result.set_running_or_notify_cancel():
                request.result.set_exception(BusyError("the server is shutting down"))
        self._thread.join()

    def _work(self) -> None:
        while group := self._take():
            group = [request for request in group if request.result.set_running_or_notify_cancel()]
            if group:
                self._compute(group)

    def _take(self) -> list[_Request]:
        # The oldest request and all that have its options; none once the batcher is closed.
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            options = self._waiting[0].options
            taken = [request for request in self._waiting if request.options == options][: self.max_images]
            for request in taken:
                self._waiting.remove(request)
            return taken

    def _compute(self, group: list[_Request]) -> None:
        flip_test, decode = group[0].options
        pending, request = iter(group), group[0]
        try:
            self.calls += 1
            items = [request.item for request in group]
            results = self.estimator.stream(items, flip_test=flip_test, decode=decode, errors="return")
            for result in results:
                request = next(pending)
                if isinstance(result, ItemError):
                    request.result.set_exception(result.__cause__ or result)
                else:
                    request.result.set_result(result)
        except BaseException as error:  # noqa: BLE001 - whoever waits must get an answer
            rest = list(pending)
            if not request.result.done():
                rest.insert(0, request)
            if len(group) == 1:
                request.result.set_exception(error)
                return
            # Such as too little memory: one of them is to blame, and the others get their answers.
            for request in rest:
                self._compute([request])
