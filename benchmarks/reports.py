"""What the tables share: files of results, the machine that they were measured on, and Markdown.

This file and the tables need only Python.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Row = dict[str, Any]
# How the programs of speed.py and detection.py are called in tables.
PROGRAMS = {
    "vitpose-jax-onnxruntime": "vitpose-jax on ONNX Runtime",
    "vitpose-jax-openvino": "vitpose-jax on OpenVINO",
    "eager": "transformers",
    "compile": "transformers, torch.compile",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-int8": "ONNX Runtime, int8",
    "openvino": "OpenVINO",
}


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: int = 0) -> str:
    """A Markdown table; the last `numbers` columns are aligned to the right."""
    header = list(header)
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def describe_machine(machine: dict[str, str]) -> str:
    """The processor or accelerator, and the versions of everything that was measured."""
    device = machine["processor"].replace("avx512f", "with AVX-512").replace("avx2", "with AVX2")
    if machine["device"] != "cpu":
        device = f"{machine['device']}, {device}"
    names = ("python", "jax", "flax", "torch", "transformers", "onnxruntime", "openvino")
    versions = ", ".join(f"{name} {machine[name]}" for name in names if machine.get(name, "missing") != "missing")
    return f"{device}; {versions}"


def caption(document: Row) -> str:
    """The command that printed the table, and where."""
    target = f"a compiler for {document['target']}, " if "target" in document else ""
    date = f"; {document['date']}" if "date" in document else ""
    return f"`{document['command']}` on {target}{describe_machine(document['machine'])}{date}."


def spread_cells(row: Row, digits: int = 2) -> list[str]:
    """Median, and the range without the fastest and the slowest tenth, in milliseconds."""
    return [f"{row['ms']:.{digits}f}", f"{row['low_ms']:.{digits}f} to {row['high_ms']:.{digits}f}"]


def program_name(row: Row) -> str:
    """The program of a row."""
    return PROGRAMS.get(row["program"], row["program"])


def percent(row: Row, name: str = "of_ceiling") -> str:
    """A fraction in percent; nothing if it was not measured."""
    return f"{100 * row[name]:.0f} %" if name in row else ""


def moved(row: Row) -> str:
    """The largest difference of heatmaps, as a fraction of their largest value."""
    return f"{100 * row['heatmaps']:.2f} %"


def read(name: str) -> Row:
    """One file of results/."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))
