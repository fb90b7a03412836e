"""Time from the start of a fresh process to the first keypoints, by stage, beside transformers.

    python benchmarks/start.py                                 # base, 4 people
    python benchmarks/start.py --presets tiny --rounds 1       # shows that it runs

Each figure is the median of fresh processes (start_worker.py), run in turn:

    vitpose-jax, cold      compiles everything
    vitpose-jax, cached    with JAX's persistent compilation cache (JAX_COMPILATION_CACHE_DIR), filled by a run before
    transformers
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from common import arguments, report, vitpose_config
from flax import nnx
from speed_tables import start_table

from vitpose_jax import VitPose, convert

PRESETS = ["base"]
PEOPLE = [4]
ROUNDS = 3
WORKER = pathlib.Path(__file__).with_name("start_worker.py")


def run(program: str, folder: str, people: int, cache: str | None) -> dict[str, float]:
    """Seconds of each stage of one fresh process, and its peak memory in MB."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    if cache:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, str(WORKER), program, folder, str(people)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> list[dict]:
    """One row for each model, number of people and program."""
    rows = []
    for preset in options.presets:
        for people in options.people:
            rows += [{"preset": preset, "people": people, **row} for row in measure_one(preset, people, options.rounds)]
    return rows


def measure_one(preset: str, people: int, rounds: int) -> list[dict]:
    """The medians of `rounds` processes of each program."""
    with tempfile.TemporaryDirectory() as folder:
        hub, cache = os.path.join(folder, "hub"), os.path.join(folder, "cache")
        config = vitpose_config(preset, layer_norm_eps=1e-12)
        convert.write(VitPose(config, rngs=nnx.Rngs(0)), hub, to="huggingface")
        run("vitpose-jax", hub, people, cache)  # fills the cache
        programs = {
            "vitpose-jax, cold": ("vitpose-jax", None),
            "vitpose-jax, cached": ("vitpose-jax", cache),
            "transformers": ("transformers", None),
        }
        results: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
        for _ in range(rounds):
            for name, (program, directory) in programs.items():
                results[name].append(run(program, hub, people, directory))
    rows = []
    for name, runs in results.items():
        medians = {stage: statistics.median(stages[stage] for stages in runs) for stage in runs[0]}
        first = medians["import_s"] + medians["load_s"] + medians["first_call_s"]
        rows.append({"program": name, **medians, "first_keypoints_s": first})
    return rows


def parser() -> argparse.ArgumentParser:
    """The options."""
    return arguments(__doc__, presets=PRESETS, people=PEOPLE, rounds=ROUNDS)


def main() -> None:
    """Measure, and report the table of the rows."""
    options = parser().parse_args()
    rows = measure(options)
    report(start_table(rows), rows, options)


if __name__ == "__main__":
    main()
