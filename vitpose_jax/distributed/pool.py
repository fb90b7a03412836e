"""Workers on Ray: each gets a partition when it has none; one that is lost is replaced, its partition goes to another.

Ray places the workers, starts their processes, carries the numbers and names of partitions to them, and says who died.
Which partition is computed when is decided here, in one loop: so an attempt is counted, a partition that ends its
worker every time is given up after a few, and a machine that never comes back holds nothing up. A partition may be
computed twice, if a worker is lost just after it wrote; the second file then replaces the first with the same rows.
"""

import collections
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from vitpose_jax.distributed.inputs import Partition
from vitpose_jax.distributed.worker import Job, Report, Worker, environment
from vitpose_jax.storage.text import printable

# Partitions given up before any is done: something is wrong with all of them.
_HOPELESS = 3
# Workers lost one after another before they can compute.
_MOST_STARTS = 10
# Seconds without a worker after which the user is told.
_PATIENCE = 30.0


class GivenUp(NamedTuple):
    """A partition that failed in all attempts, and why."""

    partition: int
    reason: str


class Resources(NamedTuple):
    """What each worker gets.

    Attributes:
        workers: how many there are.
        cpus, gpus: of each.
        custom: other resources that a cluster has, such as {"TPU": 4}.
    """

    workers: int
    cpus: float | int
    gpus: float | int
    custom: dict[str, float | int]


def choose_resources(
    workers: int | None, cpus: float | int | None, gpus: float | int | None, custom: dict[str, float | int] | None
) -> Resources:
    """Fill in what is not given: a worker for each GPU, or without GPUs one for each machine, with its CPUs.

    Raises:
        ValueError: for a number that is not positive.
    """
    import ray

    for name, value in (("concurrency", workers), ("num_cpus", cpus)):
        if value is not None and value <= 0:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    count = sum(node.get("GPU", 0) for node in nodes)
    gpus = (1 if count else 0) if gpus is None else gpus
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= gpus] if gpus else nodes
    workers = max(1, int(count / gpus) if gpus else len(nodes)) if workers is None else workers
    if cpus is None:
        each = -(-workers // max(1, len(with_gpus)))
        cpus = max(1, min((node.get("CPU", 1) for node in with_gpus), default=1) // each)
    return Resources(workers, cpus, gpus, custom or {})


class Pool:
    """Workers that compute partitions.

    Args:
        job: what they are told.
        resources: of each.
        attempts: for each partition.
        check_model: gets what a worker says about its model, and raises a ValueError if it is not that of the others.
        report: gets a message, one line, when a worker is lost.
    """

    def __init__(
        self,
        job: Job,
        resources: Resources,
        *,
        attempts: int,
        check_model: Callable[[dict[str, Any]], None],
        report: Callable[[str], None],
    ):
        import ray

        self._ray = ray
        self._resources, self._attempts, self._check_model, self._report = resources, attempts, check_model, report
        # What a worker is told is stored once.
        self._job = ray.put(job)
        self._class: Any = ray.remote(Worker)
        # Calls under way: the worker and its partition; None while it loads.
        self._calls: dict[Any, tuple[Any, Partition | None]] = {}
        self._idle: list[Any] = []
        self._tries: collections.Counter[int] = collections.Counter()
        self._again: collections.deque[Partition] = collections.deque()
        self._failed_starts = 0
        self._lost_sight = time.monotonic()

    def run(self, partitions: Iterator[Partition]) -> Generator[Report | GivenUp, None, None]:
        """Compute partitions; the results come in any order.

        Raises:
            ValueError, OSError, ImportError: if the workers cannot load their estimator, or all partitions fail.
        """
        done = given_up = 0
        try:
            for _ in range(self._resources.workers):
                self._start()
            while True:
                self._give_work(partitions)
                if not any(partition is not None for _, partition in self._calls.values()) and self._idle:
                    # A worker is free, and nothing is left to do.
                    return
                result = self._next_result()
                if isinstance(result, Report):
                    done += 1
                elif isinstance(result, GivenUp):
                    given_up += 1
                    if done == 0 and given_up == _HOPELESS:
                        raise ValueError(f"the first {given_up} partitions failed: {result.reason}")
                if result is not None:
                    yield result
        finally:
            self.close()

    def close(self) -> None:
        """End all workers."""
        # A connection that is gone has ended them; a call would make a new one.
        for worker in self._workers() if self._ray.is_initialized() else []:
            self._ray.kill(worker)
        self._calls, self._idle = {}, []

    def _workers(self) -> list[Any]:
        return [*self._idle, *(worker for worker, _ in self._calls.values())]

    def _start(self) -> None:
        """Ask for a worker; it waits until a machine has room."""
        _, cpus, gpus, custom = self._resources
        options = {"num_cpus": cpus, "num_gpus": gpus, "resources": custom, "scheduling_strategy": "SPREAD"}
        variables = environment(cpus, gpus)
        worker = self._class.options(**options, runtime_env={"env_vars": variables}).remote(self._job)
        self._calls[worker.load.remote()] = worker, None

    def _give_work(self, partitions: Iterator[Partition]) -> None:
        while self._idle:
            partition = self._again.popleft() if self._again else next(partitions, None)
            if partition is None:
                return
            self._tries[partition.number] += 1
            worker = self._idle.pop()
            last = self._tries[partition.number] >= self._attempts
            self._calls[worker.run.remote(partition, last_attempt=last)] = worker, partition

    def _next_result(self) -> Report | GivenUp | None:
        """What the next call that ends brings; None for a loaded worker, or a partition that is tried again."""
        from ray import exceptions

        ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=_PATIENCE / 3)
        self._watch(bool(ready))
        if not ready:
            return None
        worker, partition = self._calls.pop(ready[0])
        try:
            result = self._ray.get(ready[0])
        except exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if partition is None:
                raise cause from None
            # The worker lives, and its device or its memory may be at fault.
            self._ray.kill(worker)
            self._start()
            return self._try_again(partition, f"{type(cause).__name__}: {cause}")
        except exceptions.RayError as error:
            self._ray.kill(worker)
            self._start()
            reason = f"its worker was lost ({type(error).__name__})"
            if partition is not None:
                return self._try_again(partition, reason)
            self._failed_starts += 1
            if self._failed_starts >= _MOST_STARTS:
                raise ValueError(
                    f"{_MOST_STARTS} workers were lost before they could compute: {_line(error)}"
                ) from None
            return None
        self._idle.append(worker)
        self._failed_starts = 0
        if partition is None:
            self._check_model(result)
            return None
        self._tries.pop(partition.number, None)
        return result

    def _try_again(self, partition: Partition, reason: str) -> GivenUp | None:
        tries = self._tries[partition.number]
        reason = printable(reason, 500)
        if tries < self._attempts:
            self._report(f"partition {partition.number}: {reason}; attempt {tries + 1} of {self._attempts} follows")
            self._again.append(partition)
            return None
        self._tries.pop(partition.number, None)
        return GivenUp(partition.number, reason)

    def _watch(self, progress: bool) -> None:
        """Say once if no worker is ready for a long time."""
        now = time.monotonic()
        computing = self._idle or any(partition is not None for _, partition in self._calls.values())
        if progress or computing:
            self._lost_sight = now
        elif now - self._lost_sight > _PATIENCE:
            _, cpus, gpus, custom = self._resources
            needs = f"{cpus:g} CPUs, {gpus:g} GPUs" + "".join(f", {value:g} {name}" for name, value in custom.items())
            self._report(f"no worker is ready yet: they load, or wait for a machine with free {needs}")
            self._lost_sight = float("inf")


def _line(error: object) -> str:
    return printable(" ".join(str(error).split()), 500)
