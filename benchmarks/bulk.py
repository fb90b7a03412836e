"""Many machines, played by two nodes of a Ray cluster on this one: the cost of the engine, kills, and a long run.

    python benchmarks/bulk.py --parts overhead --images 2000 --rounds 3
    python benchmarks/bulk.py --parts run --images 10000 --kills worker node
    python benchmarks/bulk.py --parts overhead run --images 24 --rounds 1 --kills        # shows that it runs

overhead    the same images in a process without Ray (concurrency=0) and by one worker on Ray, in turn; each process is
            a fresh one and compiles its programs. "images/s" counts from the first image of a worker that is ready to
            the last file; "start" is the time before, once a run. "busy" is the fraction of the time in which workers
            had a partition: the rest is the engine's.
run         two workers on two nodes with one CPU each; `--kills` ends a worker, and then all processes of the second
            node, without a warning. Afterwards: every image exactly once, and all rows to the bit as in a run alone.

The images are small PNGs, the network is the smallest one, and every image is one box: the engine and the reading of
files weigh far more than in any real run.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

# Read by Ray when it starts: no report of its use; its workers compete with this process on equal terms; a dead node is
# noticed soon.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# One thread for XLA, here and in the workers.
os.environ.setdefault("NPROC", "1")

import numpy as np
import pyarrow.parquet as parquet
from common import arguments, report
from flax import nnx
from PIL import Image
from scale_tables import bulk_table

from vitpose_jax import PoseEstimator, VitPose, VitPoseConfig
from vitpose_jax.distributed import BulkSummary, predict_dataset

PARTS = ["overhead", "run"]
PARTITION = 100


def tiny_estimator() -> PoseEstimator:
    """The smallest network, with random weights."""
    config = VitPoseConfig(image_size=(32, 16), hidden_size=8, num_layers=2, num_heads=2, decoder="simple")
    return PoseEstimator(VitPose(config, rngs=nnx.Rngs(0)), max_batch=16)


def write_images(folder: pathlib.Path, count: int) -> None:
    """Small pictures of noise, a thousand in a folder."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(path)


def predict(images: pathlib.Path, output: pathlib.Path, **options) -> tuple[BulkSummary, float]:
    """The summary of a run, and the seconds of the whole call."""
    start = time.monotonic()
    summary = predict_dataset(
        images,
        output,
        model=tiny_estimator,
        whole_image=True,
        settings={"model": "tiny"},
        report=lambda message: print(message, flush=True),
        **options,
    )
    return summary, time.monotonic() - start


def row(part: str, program: str, summary: BulkSummary, seconds: float, workers: int = 1) -> dict:
    """A row of the table."""
    return {
        "part": part,
        "program": program,
        "images": summary.images,
        "partitions": summary.partitions,
        "rate": summary.images / summary.seconds,
        "start_s": seconds - summary.seconds,
        "seconds": seconds,
        "busy": summary.worker_seconds / summary.seconds / workers,
        "worker_mb": summary.memory / 2**20,
        "driver_mb": summary.driver_memory / 2**20,
        "kills": 0,
        "again": 0,
    }


def predict_alone(images: pathlib.Path, output: pathlib.Path, partition: int) -> tuple[BulkSummary, float]:
    """The same in a fresh process without Ray, which compiles what a fresh worker compiles."""
    command = [sys.executable, __file__, "--worker", str(images), str(output), str(partition)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    values = json.loads(done.stdout.splitlines()[-1])
    return BulkSummary(**values["summary"]), values["seconds"]


def measure_overhead(folder: pathlib.Path, count: int, partition: int, rounds: int) -> list[dict]:
    """One process alone and one worker on Ray, in turn."""
    import ray

    write_images(folder / "images", count)
    ray.init(address="local", num_cpus=1, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    runs = collections.defaultdict(list)
    for number in range(rounds):
        alone = predict_alone(folder / "images", folder / f"alone-{number}", partition)
        options = {"concurrency": 1, "num_cpus": 1, "images_per_partition": partition}
        together = predict(folder / "images", folder / f"ray-{number}", **options)
        runs["one process"].append(alone)
        runs["one worker on Ray"].append(together)
    ray.shutdown()
    rows = []
    for program, results in runs.items():
        summary, seconds = sorted(results, key=lambda result: result[0].seconds)[len(results) // 2]
        rows.append(row("overhead", program, summary, seconds))
    pairs = list(zip(*runs.values(), strict=True))
    ratios = [theirs[0].seconds / ours[0].seconds for ours, theirs in pairs]
    rows[1]["ratio"] = statistics.median(ratios)
    print("seconds on Ray / seconds alone, by round:", " ".join(f"{ratio:.3f}" for ratio in ratios))
    return rows


def find_workers(node) -> list[int]:
    """The processes of the workers of a node that are computing."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and (folder / "cmdline").read_bytes().startswith(b"ray::Worker.run"):
                found.append(int(folder.name))
    return found


def measure_run(folder: pathlib.Path, count: int, partition: int, kills: list[str]) -> list[dict]:
    """Two workers on two nodes, with kills; and the same images in one process, to compare."""
    import ray
    from ray.cluster_utils import Cluster

    write_images(folder / "images", count)
    total = -(-count // partition)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27})
    second = cluster.add_node(num_cpus=1, object_store_memory=2**27)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    output = folder / "together"
    ended = threading.Event()
    again, killed = [], []

    def kill() -> None:
        for number, kind in enumerate(kills, 1):
            while len(list(output.glob("*.parquet"))) < number * total // (len(kills) + 1):
                if ended.wait(0.1):
                    return
            # It computes at this moment.
            while not (processes := find_workers(second if kind == "node" else cluster.head_node)):
                if ended.wait(0.05):
                    return
            if kind == "node":
                processes = [entry.process.pid for entries in second.all_processes.values() for entry in entries]
            for process in processes:
                os.kill(process, signal.SIGKILL)
            killed.append(kind)
            print(f"killed a {kind}", flush=True)

    killer = threading.Thread(target=kill)
    killer.start()
    options = {"images_per_partition": partition, "attempts": 5}
    start = time.monotonic()
    summary = predict_dataset(
        folder / "images",
        output,
        model=tiny_estimator,
        whole_image=True,
        settings={"model": "tiny"},
        concurrency=2,
        num_cpus=1,
        report=lambda message: (print(message, flush=True), again.append(message)),
        **options,
    )
    seconds = time.monotonic() - start
    ended.set()
    killer.join()
    if killed != kills:
        raise SystemExit(f"expected to kill {kills}, got {killed}: too few images")
    ray.shutdown()
    cluster.shutdown()
    together = row("run", f"two nodes, killed: {', '.join(kills) or 'none'}", summary, seconds, 2)
    together |= {"kills": len(kills), "again": len(again)}
    alone = predict_alone(folder / "images", folder / "alone", partition)
    tables = [parquet.read_table(folder / name) for name in ("together", "alone")]
    names = tables[0].column("image").to_pylist()
    if len(names) != count or len(set(names)) != count:
        raise SystemExit(f"expected {count} images once each, got {len(names)} rows and {len(set(names))} images")
    if not tables[0].equals(tables[1]):
        raise SystemExit("expected the rows of one process, got others")
    print(f"every one of {count} images once; all rows equal those of one process to the bit")
    return [row("run", "one process", *alone), together]


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = arguments(__doc__, rounds=3)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    made.add_argument("--images", type=int, default=600, help="how many there are")
    made.add_argument("--partition", type=int, default=PARTITION, help="images of a partition")
    made.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    made.add_argument("--kills", nargs="*", choices=["worker", "node"], default=["worker", "node"])
    return made


def main() -> None:
    """Measure, and report the table of the rows."""
    options = parser().parse_args()
    if options.worker:
        images, output, partition = options.worker
        options = {"concurrency": 0, "images_per_partition": int(partition)}
        summary, seconds = predict(pathlib.Path(images), pathlib.Path(output), **options)
        print(json.dumps({"summary": dataclasses.asdict(summary), "seconds": seconds}))
        return
    rows = []
    # Workers import this file by its name.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder)
            if part == "overhead":
                rows += measure_overhead(place, options.images, options.partition, options.rounds)
            else:
                rows += measure_run(place, options.images, options.partition, options.kills)
    report(bulk_table(rows), rows, options)


if __name__ == "__main__":
    main()
