"""What the benchmarks share: command-line options, timing in interleaved rounds, the machine, and result files.

Programs that are compared run in turn (A B A B ...) in one process, warm: a noisy machine slows all of them alike.
A table shows medians. Where a limit of the machine is given, it is timed in the same rounds.
"""

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from reports import RESULTS, describe_machine

from vitpose_jax import VitPoseConfig

ON_CPU = jax.default_backend() == "cpu"
# The machine's limits are measured with a matrix product and a copy of these sizes.
PRODUCT_SIZE = 2048 if ON_CPU else 8192
COPY_BYTES = 2**28 if ON_CPU else 2**31
OURS = "vitpose-jax"
TINY = "tiny"

Program = Callable[[], object]


def arguments(
    description: str,
    *,
    presets: list[str] | None = None,
    people: list[int] | None = None,
    dtypes: list[str] | None = None,
    peers: list[str] | None = None,
    rounds: int | None = None,
) -> argparse.ArgumentParser:
    """A command line with a benchmark's options and their defaults; an option without default is left out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if presets is not None:
        parser.add_argument("--presets", nargs="+", default=presets, help=f"models; {TINY!r} shows that it runs")
    if people is not None:
        parser.add_argument("--people", nargs="+", type=int, default=people, help="numbers of people in the image")
    if dtypes is not None:
        parser.add_argument("--dtypes", nargs="+", default=dtypes, choices=["float32", "bfloat16", "float16"])
    if peers is not None:
        choices = ["eager", "compile", "onnxruntime", "onnxruntime-int8", "openvino"]
        parser.add_argument("--peers", nargs="*", default=peers, choices=choices, help="see peers.py")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="timed calls of each program")
    parser.add_argument("--output", metavar="NAME", help="write results/NAME.json; without it nothing is written")
    return parser


def vitpose_config(preset: str, **changes: object) -> VitPoseConfig:
    """A preset, or the tiny network that only shows that a benchmark runs."""
    if preset == TINY:
        return VitPoseConfig(hidden_size=16, num_heads=2, num_layers=1, decoder="simple", **changes)
    return VitPoseConfig.preset(preset, **changes)


def seconds(program: Program) -> float:
    """Time of one call, to the end of its last computation."""
    start = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - start


def time_interleaved(programs: dict[str, Program], rounds: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds of the first call of each, compilation included; then, warm, of `rounds` calls of each, in turn."""
    first = {name: seconds(program) for name, program in programs.items()}
    for program in programs.values():
        seconds(program)
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            times[name].append(seconds(program))
    return first, times


def timed_rows(
    label: dict, programs: dict[str, Program], *, rounds: int, baseline: str = OURS, limit: Program | None = None
) -> tuple[list[dict], float]:
    """Time programs in turn.

    Args:
        label: what all rows begin with.
        programs: by name.
        rounds: timed calls of each.
        baseline: the program that "ratio" is relative to.
        limit: something that the machine cannot do faster, timed in the same rounds.

    Returns:
        A row for each program: "ms" (median), "low_ms" and "high_ms" (10 % and 90 %), "first_ms" and "ratio";
        and the median seconds of the limit, NaN without one.
    """
    everything = programs if limit is None else {**programs, "limit": limit}
    first, times = time_interleaved(everything, rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name in programs:
        low, high = np.quantile(times[name], [0.1, 0.9])
        row = {**label, "program": name, "ms": 1e3 * medians[name], "low_ms": 1e3 * low, "high_ms": 1e3 * high}
        rows.append(row | {"first_ms": 1e3 * first[name], "ratio": medians[name] / medians[baseline]})
    return rows, medians.get("limit", float("nan"))


def product(dtype: str, result: str | None = None) -> Program:
    """A matrix product large enough to fill the machine: 2 * PRODUCT_SIZE**3 operations; `result` is its dtype."""
    a, b = (jax.random.normal(jax.random.key(seed), (PRODUCT_SIZE, PRODUCT_SIZE), dtype) for seed in (0, 1))
    multiply = jax.jit(functools.partial(jnp.matmul, preferred_element_type=result))
    return lambda: multiply(a, b)


def copy() -> Program:
    """Read COPY_BYTES of memory and write as many."""
    a = jnp.zeros(COPY_BYTES // 4, jnp.float32)
    add = jax.jit(lambda a: a + 1)
    return lambda: add(a)


def machine() -> dict[str, str]:
    """The device, the processor, and the versions of Python and the libraries."""
    description = {"device": jax.devices()[0].device_kind, "processor": processor()}
    for name in ("jax", "flax", "numpy", "torch", "transformers", "onnxruntime", "openvino"):
        try:
            description[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            description[name] = "missing"
    return description | {"python": platform.python_version()}


def processor() -> str:
    """Number of cores, name, and the widest vector instructions."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":")[::2] for line in cpuinfo.read_text().splitlines()]
        names = [value.strip() for name, value in lines if name.strip() == "model name"]
        flags = next((value.split() for name, value in lines if name.strip() == "flags"), [])
        widest = next((name for name in ("avx512f", "avx2") if name in flags), "")
        if names:
            return f"{len(names)} x {names[0]} {widest}".strip()
    return f"{os.cpu_count()} x {platform.processor() or platform.machine()}"


def report(table: str, rows: list[dict], options: argparse.Namespace, **more: object) -> None:
    """Print the machine and the table; with `--output NAME`, also write results/NAME.json for tables.py."""
    document = {
        "command": shlex.join(["python", f"benchmarks/{pathlib.Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": f"{datetime.date.today()}",
        "machine": machine(),
        **more,
        "options": {name: value for name, value in vars(options).items() if name != "worker"},
        "rows": rows,
    }
    print(f"{describe_machine(document['machine'])}\n\n{table}")
    if options.output:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{options.output}.json"
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(partial, path)
        print(f"\nwrote {path}; `python benchmarks/tables.py` writes the tables of the pages from it")
