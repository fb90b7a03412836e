"""What the benchmarks share: taking turns, the machine's limits, the machine's name, tables and files."""

import argparse
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results"
ON_CPU = jax.default_backend() == "cpu"
PRODUCT_SIZE = 2048 if ON_CPU else 8192
COPY_BYTES = 2**28 if ON_CPU else 2**31


def seconds(function: Callable[[], object]) -> float:
    """Time of one call, to the end of its last computation."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def take_turns(variants: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, list]]:
    """Time of the first call of each, compilation included; then, warm, `rounds` times of each, in turn."""
    first = {name: seconds(function) for name, function in variants.items()}
    for function in variants.values():
        seconds(function)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, function in variants.items():
            times[name].append(seconds(function))
    return first, times


def product(dtype: str) -> Callable[[], object]:
    """A matrix product large enough to fill the machine: 2 * PRODUCT_SIZE**3 operations."""
    a, b = (jax.random.normal(jax.random.key(seed), (PRODUCT_SIZE, PRODUCT_SIZE), dtype) for seed in (0, 1))
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(a, b)


def copy() -> Callable[[], object]:
    """Read COPY_BYTES of memory and write as many."""
    a = jnp.zeros(COPY_BYTES // 4, jnp.float32)
    add = jax.jit(lambda a: a + 1)
    return lambda: add(a)


def spread(times: list[float]) -> dict[str, float]:
    """Median, and the borders of the fastest and the slowest tenth, in milliseconds."""
    low, high = np.quantile(times, [0.1, 0.9])
    return {"ms": 1e3 * statistics.median(times), "low_ms": 1e3 * low, "high_ms": 1e3 * high}


def machine() -> dict[str, str]:
    """What the figures are for."""
    found = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "flax": flax.__version__}
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":")[::2] for line in cpuinfo.read_text().splitlines()]
        names = [value.strip() for name, value in lines if name.strip() == "model name"]
        flags = next((value.split() for name, value in lines if name.strip() == "flags"), [])
        widest = next((name for name in ("avx512f", "avx2") if name in flags), "")
        found["processor"] = f"{len(names)} x {names[0]} {widest}" if names else platform.processor()
    for name in ("torch", "transformers"):
        try:
            found[name] = __import__(name).__version__
        except ImportError:
            found[name] = "missing"
    return found | {"python": platform.python_version()}


def arguments(description: str, *, dtypes: list[str], peers: list[str], rounds: int) -> argparse.ArgumentParser:
    """A command line with the knobs that benchmarks beside peers share, and their defaults."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", default=dtypes)
    parser.add_argument("--peers", nargs="*", default=peers)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--output", help="name of the files in results/; none are written without it")
    return parser


def measure_and_report(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], list[dict]],
    table: Callable[[list[dict]], str],
) -> None:
    """Parse the knobs, measure, and report the table of the rows."""
    options = parser.parse_args()
    rows = measure(options)
    report(table(rows), output=options.output, document={"options": vars(options), "rows": rows})


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(text: str, *, output: str | None, document: dict) -> None:
    """Print the machine and the text; with a name for it, also write both, and the document as JSON, into results/."""
    document = {"machine": machine(), **document}
    text = "\n".join(f"{name}: {value}  " for name, value in document["machine"].items()) + "\n\n" + text + "\n"
    print(text)
    if output:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{output}.json").write_text(json.dumps(document, indent=1) + "\n")
        (RESULTS / f"{output}.md").write_text(text)
