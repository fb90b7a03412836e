"""Who computes what: the pool on a Ray that is played by this process, where workers are lost when a test says so."""

import collections
import sys
import types

import pytest

from tests.support.bulk import smallest_estimator
from vitpose_jax.distributed.inputs import Columns, Partition, Piece
from vitpose_jax.distributed.pool import GivenUp, Pool, Resources, choose_resources
from vitpose_jax.distributed.worker import Job, Report

JOB = Job(output="/out", load=smallest_estimator, options={}, columns=Columns(), whole_image=True)
PARTITIONS = [Partition(number, "files", [Piece(f"{number}.png")]) for number in range(5)]


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(f"a long text\nwith {cause} in it")
        self.cause = cause


class ActorDiedError(RayError):
    pass


class FakeRay(types.ModuleType):
    """Calls end in the order in which they were made. `plan` says what becomes of each call, by its name and number."""

    def __init__(self, plan=None, nodes=()):
        super().__init__("ray")
        self.exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.plan, self._nodes = plan or (lambda worker, call, count: None), nodes
        self.started, self.killed, self.counts, self.options = 0, [], collections.Counter(), []

    def put(self, value):
        return value

    def is_initialized(self):
        return True

    def nodes(self):
        return self._nodes

    def remote(self, _):
        ray = self

        class Class:
            def options(self, **options):
                ray.options.append(options)
                return self

            def remote(self, job):
                ray.started += 1
                return FakeWorker(ray, ray.started)

        return Class()

    def wait(self, calls, *, num_returns, timeout):
        ready = [call for call in calls if not call.waits][:1]
        return ready, [call for call in calls if call not in ready]

    def get(self, call):
        if isinstance(call.result, Exception):
            raise call.result
        return call.result

    def kill(self, worker):
        self.killed.append(worker.number)


class Call:
    def __init__(self, result):
        self.result, self.waits = result, result == "wait"


class FakeWorker:
    def __init__(self, ray, number):
        self.number = number
        self.load = types.SimpleNamespace(remote=lambda: self._call(ray, "load", {"model_sha256": "a"}))
        self.run = types.SimpleNamespace(
            remote=lambda partition, last_attempt: self._call(
                ray, partition.number, Report(partition.number, 1, 2, 0, 1.0, 0.1, 9)
            )
        )

    def _call(self, ray, name, result):
        ray.counts[name] += 1
        return Call(ray.plan(self.number, name, ray.counts[name]) or result)


@pytest.fixture
def run(monkeypatch):
    """Results, messages and the Ray of a pool of two workers and three attempts."""

    def call(plan=None, partitions=PARTITIONS, models=None):
        ray = FakeRay(plan)
        monkeypatch.setitem(sys.modules, "ray", ray)
        messages = []
        check = (lambda record: None) if models is None else models
        resources = Resources(2, 1, 0, {})
        pool = Pool(JOB, resources, attempts=3, check_model=check, report=messages.append)
        return list(pool.run(iter(partitions))), messages, ray

    return call


def numbers(results):
    return sorted(result.partition for result in results if isinstance(result, Report))


def test_every_partition_is_computed_once(run):
    results, messages, ray = run()
    assert numbers(results) == [0, 1, 2, 3, 4] and messages == []
    assert all(count == 1 for name, count in ray.counts.items() if name != "load")
    assert sorted(ray.killed) == [1, 2]
    # No more threads than CPUs.
    assert ray.options[0]["runtime_env"]["env_vars"]["NPROC"] == "1"


def test_a_lost_worker_is_replaced_and_its_partition_goes_to_another(run):
    results, messages, ray = run(lambda worker, name, count: ActorDiedError() if (name, count) == (1, 1) else None)
    assert numbers(results) == [0, 1, 2, 3, 4]
    assert ray.counts[1] == 2 and ray.started == 3
    assert messages == ["partition 1: its worker was lost (ActorDiedError); attempt 2 of 3 follows"]


def test_a_machine_that_never_comes_back_holds_nothing_up(run):
    """The replacement waits for ever; the other worker does it all."""

    def plan(worker, name, count):
        if worker == 1 and name != "load":
            return ActorDiedError()
        return "wait" if worker == 3 else None

    results, _, ray = run(plan)
    assert numbers(results) == [0, 1, 2, 3, 4]
    assert 3 in ray.killed


def test_a_partition_that_ends_every_worker_is_given_up(run):
    results, messages, ray = run(lambda worker, name, count: ActorDiedError() if name == 3 else None)
    assert numbers(results) == [0, 1, 2, 4]
    assert [result for result in results if isinstance(result, GivenUp)] == [
        GivenUp(3, "its worker was lost (ActorDiedError)")
    ]
    assert ray.counts[3] == 3 and len(messages) == 2


def test_an_error_of_a_partition_is_tried_again(run):
    error = RayTaskError(OSError("no space left"))
    results, messages, ray = run(lambda worker, name, count: error if (name, count) == (2, 1) else None)
    assert numbers(results) == [0, 1, 2, 3, 4]
    assert messages == ["partition 2: OSError: no space left; attempt 2 of 3 follows"]
    assert ray.started == 3


def test_a_run_in_which_everything_fails_stops(run):
    error = RayTaskError(ValueError("nothing fits"))
    with pytest.raises(ValueError, match="the first 3 partitions failed: ValueError: nothing fits"):
        run(lambda worker, name, count: None if name == "load" else error)


def test_an_error_of_loading_is_the_users(run):
    with pytest.raises(FileNotFoundError, match=r"^no such model$"):
        run(lambda worker, name, count: RayTaskError(FileNotFoundError("no such model")))
    with pytest.raises(ValueError, match="10 workers were lost before they could compute"):
        run(lambda worker, name, count: ActorDiedError("out of memory"))


def test_workers_with_other_weights_end_the_run(run):
    def check(record):
        raise ValueError("model_sha256 was a, now b")

    with pytest.raises(ValueError, match="model_sha256"):
        run(models=check)


def test_resources_by_default(monkeypatch):
    def choose(nodes, *given):
        described = [{"Alive": True, "Resources": node} for node in nodes]
        dead = {"Alive": False, "Resources": {"CPU": 1, "GPU": 9}}
        monkeypatch.setitem(sys.modules, "ray", FakeRay(nodes=[*described, dead]))
        return choose_resources(*given)[:3]

    nothing = (None, None, None, None)
    assert choose([{"CPU": 8}, {"CPU": 6}], *nothing) == (2, 6, 0)
    assert choose([{"CPU": 8, "GPU": 4}, {"CPU": 4}], *nothing) == (4, 2, 1)
    assert choose([{"CPU": 8, "GPU": 1}], None, None, 0.5, None) == (2, 4, 0.5)
    assert choose([{"CPU": 2}], 4, None, None, None) == (4, 1, 0)
    assert choose([{"CPU": 2}], 1, 1, 0, None) == (1, 1, 0)
    with pytest.raises(ValueError, match="num_cpus: expected a positive number, got 0"):
        choose([{"CPU": 2}], 1, 0, 0, None)
