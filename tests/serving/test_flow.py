"""The flow: results in order, a bounded number of jobs, errors in their place."""

import dataclasses

import numpy as np
import pytest

from vitpose_jax.serving.batching import Item
from vitpose_jax.serving.flow import MAX_JOBS, ItemError, JobQueue, read_ahead, run, stream


@dataclasses.dataclass(eq=False)
class Numbered(Item):
    """An item whose result is twice its number."""

    number: int = 0
    result: int | None = None

    @property
    def num_boxes(self) -> int:
        return 1

    @property
    def finished(self) -> bool:
        return self.result is not None


class Job:
    """Doubles the number of an item when it is collected."""

    started = collected = most = 0

    def __init__(self, item: Numbered):
        self.item = item
        Job.started += 1
        Job.most = max(Job.most, Job.started - Job.collected)

    def collect(self) -> None:
        Job.collected += 1
        self.item.result = 2 * self.item.number


def item(number: int) -> Numbered:
    if number == 13:
        raise ValueError("thirteen")
    return Numbered(np.zeros((2, 2, 3), np.uint8), number)


def start(items):
    yield from map(Job, items)


def test_results_come_in_order_with_few_jobs_under_way():
    Job.started = Job.collected = Job.most = 0
    results = [done.result for done in run(map(item, range(12)), start, max_boxes=5, max_images=3)]
    assert results == [2 * number for number in range(12)]
    assert Job.started == Job.collected == 12 and Job.most == MAX_JOBS + 1


def test_items_that_need_no_job_come_in_their_turn():
    finished = [Numbered(np.zeros((1, 1, 3), np.uint8), number, result=-number) for number in (1, 3)]
    items = [item(0), finished[0], item(2), finished[1]]
    assert [done.result for done in run(items, start, max_boxes=9, max_images=2)] == [0, -1, 4, -3]


def test_an_error_keeps_its_place():
    def numbers(errors):
        return stream(item, range(12, 15), start, lambda done: done.result, prefetch=4, errors=errors, max_boxes=4)

    first, error, last = numbers("return")
    assert (first, last) == (24, 28) and isinstance(error, ItemError) and error.number == 1
    assert str(error.__cause__) == "thirteen"
    with pytest.raises(ItemError, match="item 1: thirteen"):
        list(numbers("raise"))


def test_a_queue_collects_the_oldest_first():
    jobs = JobQueue()
    queued = [Job(item(number)) for number in range(MAX_JOBS + 2)]
    for job in queued:
        jobs.add(job)
    assert [job.item.finished for job in queued] == [True, True] + [False] * MAX_JOBS
    jobs.collect_all()
    assert len(jobs) == 0 and all(job.item.finished for job in queued)


def test_reading_ahead_is_bounded():
    begun = []

    def entries():
        for number in range(20):
            begun.append(number)
            yield number

    results = read_ahead(lambda number: -number, entries(), prefetch=3)
    assert next(results) == 0 and len(begun) == 3
    assert list(results) == [-number for number in range(1, 20)]
