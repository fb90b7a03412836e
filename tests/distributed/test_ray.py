"""`predict_dataset` on two nodes of a Ray cluster on this machine: killed workers, killed nodes, killed drivers."""

import collections
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import threading
import time

import numpy as np
import pyarrow.parquet as parquet
import pytest

from tests.support import programs
from tests.support.bulk import OPTIONS, slow_estimator, write_images
from vitpose_jax.distributed import predict_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_once"), pytest.mark.filterwarnings("ignore")]

IMAGES, SIZE = 96, 4


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes with one CPU each, to which this process is connected."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Processes of other programs must not slow them down.
        "RAY_worker_niceness": "0",
        # A dead node is noticed soon.
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "4",
    }.items():
        monkeypatch.setenv(name, value)
    import ray
    from ray.cluster_utils import Cluster

    # Workers find the tests.
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    try:
        cluster.second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def alone(tmp_path):
    """The rows of a run in this process alone."""
    write_images(tmp_path / "images", IMAGES)
    options = {**OPTIONS, "images_per_partition": SIZE, "concurrency": 0}
    predict_dataset(tmp_path / "images", tmp_path / "alone", model=slow_estimator(0.0), **options)
    return rows(tmp_path / "alone")


def rows(folder: pathlib.Path) -> list[dict]:
    return parquet.read_table(folder).to_pylist()


def workers(cluster) -> list[int]:
    """The processes of the workers of all nodes."""
    parents = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in parents and (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                found.append(int(folder.name))
    return found


def wait_for(condition, seconds: float = 120.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def assert_once(found: list[dict], expected: list[dict]) -> None:
    """Every image exactly once, and to the bit as in a run alone."""
    counts = collections.Counter(row["image"] for row in found)
    assert len(counts) == IMAGES and set(counts.values()) == {1}
    for row, other in zip(found, expected, strict=True):
        assert {name: value for name, value in row.items() if name not in ("keypoints", "scores")} == {
            name: value for name, value in other.items() if name not in ("keypoints", "scores")
        }
        np.testing.assert_array_equal(row["keypoints"], other["keypoints"])
        np.testing.assert_array_equal(row["scores"], other["scores"])


def test_a_worker_and_a_node_are_killed(cluster, alone, tmp_path):
    output, messages, summaries = tmp_path / "out", [], []

    def predict():
        summaries.append(
            predict_dataset(
                tmp_path / "images",
                output,
                model=slow_estimator(0.2),
                concurrency=2,
                num_cpus=1,
                attempts=4,
                images_per_partition=SIZE,
                report=messages.append,
                **OPTIONS,
            )
        )

    running = threading.Thread(target=predict)
    running.start()

    def done() -> int:
        return len(list(output.glob("*.parquet")))

    wait_for(lambda: len(workers(cluster)) == 2 and done() >= 2)
    os.kill(workers(cluster)[0], signal.SIGKILL)
    before = done()
    wait_for(lambda: done() >= before + 3)
    # The processes of the second node, all at once.
    for processes in cluster.second.all_processes.values():
        for process in processes:
            os.kill(process.process.pid, signal.SIGKILL)
    assert done() < IMAGES // SIZE
    running.join(180)
    assert not running.is_alive()
    (summary,) = summaries
    assert summary.failed == {} and summary.errors == 0
    assert len(messages) >= 2 and all("its worker was lost" in message for message in messages)
    assert_once(rows(output), alone)
    assert not list((output / "_run").glob("*.tmp"))


def test_a_run_whose_driver_is_killed_is_resumed(cluster, alone, tmp_path):
    output = tmp_path / "out"
    command = programs.command("bulk_slowly", tmp_path / "images", output, cluster.address, SIZE)
    with subprocess.Popen(command, env=programs.environment(), stderr=subprocess.PIPE, text=True) as driver:
        try:
            wait_for(lambda: len(list(output.glob("*.parquet"))) >= 3)
        finally:
            driver.kill()
    # Its workers end with it.
    wait_for(lambda: not workers(cluster))
    early = {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert 3 <= len(early) < IMAGES // SIZE
    done = subprocess.run(command, env=programs.environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["skipped"] == len(early) and summary["images"] == IMAGES - SIZE * len(early)
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet") if path.name in early} == early
    assert_once(rows(output), alone)


def test_a_partition_that_ends_its_worker_is_given_up(cluster, tmp_path):
    write_images(tmp_path / "images", 4)
    # Images are 20, 21 and 22 pixels high in turn.
    summary = predict_dataset(
        [str(path) for path in sorted((tmp_path / "images").rglob("*.png"), key=lambda path: path.name)],
        tmp_path / "out",
        model=slow_estimator(0.0, 21),
        concurrency=1,
        num_cpus=1,
        attempts=2,
        images_per_partition=1,
        report=lambda _: None,
        **OPTIONS,
    )
    assert sorted(summary.failed) == [1] and summary.images == 3
    assert all("its worker was lost" in reason for reason in summary.failed.values())
    assert len(rows(tmp_path / "out")) == 3
