"""Writes the tables of results/*.json into the pages that show them.

    python benchmarks/tables.py            # rewrite every table in README.md, docs/ and benchmarks/
    python benchmarks/tables.py --check    # write nothing; exit with 1 if a table is out of date

A page marks the place of a table by its name (see `TABLES`):

    <!-- table: parity -->
    whatever stands here is replaced by the table
    <!-- end -->

A name may stand in several pages. A marker with an unknown name is an error, and so is a table that stands nowhere.
The benchmarks print the same tables: each imports its function from here. This file needs only Python.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKER = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
OPENING = re.compile(r"^<!-- table: (\S+) -->$", re.MULTILINE)

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
EXPERTS = {
    "vitpose-jax": "one expert for all crops",
    "plain": "that expert folded into a plain model",
    "mixed experts": "six experts mixed in one batch",
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


def parity_table(rows: list[Row]) -> str:
    """Differences from transformers, load time and memory."""
    columns = {
        "parameters": ("parameters_millions", "{:.2f} M"),
        "file": ("file_mb", "{:.0f} MB"),
        "load": ("load_s", "{:.1f} s"),
        "peak memory": ("peak_memory_mb", "{:.0f} MB"),
        "heatmaps": ("heatmaps", "{:.1e}"),
        "fraction of the largest": ("heatmaps_fraction", "{:.1e}"),
        "keypoints, same crops": ("keypoints_same_crops_px", "{:.1e} px"),
        "keypoints, whole pipeline": ("keypoints_pipeline_px", "{:.1e} px"),
        "within 0.01 px": ("within_0.01_px", "{}"),
    }
    cells = [[row["model"], *(form.format(row[name]) for name, form in columns.values())] for row in rows]
    return markdown(["model", *columns], cells, numbers=len(columns))


def stages_table(rows: list[Row]) -> str:
    """Every stage of speed.py, each program; then loading, memory and number of programs, if measured."""
    header = ["stage", "model", "dtype", "people", "flip test", "program", "median, ms", "10 % to 90 %"]
    cells = [
        [
            *(str(row[name]) for name in ("stage", "preset", "dtype", "people")),
            "yes" if row["flip"] else "no",
            program_name(row),
            *spread_cells(row),
            f"{row['ratio']:.2f}",
            percent(row),
            f"{row['first_ms']:.0f}",
        ]
        for row in rows
        if "ratio" in row
    ]
    parts = [markdown([*header, "time / ours", "of limit", "first call, ms"], cells, numbers=5)] if cells else []
    once = {
        "load": ("load, ms", "ms"),
        "memory": ("memory of a forward pass, MB", "megabytes"),
        "programs": ("compiled programs", "programs"),
    }
    for stage, (title, name) in once.items():
        lines = [
            [row["preset"], row["dtype"], str(row["people"] or ""), program_name(row), f"{row[name]:.0f}"]
            for row in rows
            if row["stage"] == stage
        ]
        if lines:
            parts.append(markdown(["model", "dtype", "people", "program", title], lines, numbers=1))
    return "\n\n".join(parts)


def experts_table(rows: list[Row]) -> str:
    """The backbone of a ViTPose++: one expert, that expert in a plain model, mixed experts."""
    cells = [
        [
            *(str(row[name]) for name in ("preset", "dtype", "people")),
            EXPERTS[row["program"]],
            *spread_cells(row),
            f"{row['ratio']:.2f}",
            f"{row['first_ms']:.0f}",
        ]
        for row in rows
        if row["stage"] == "experts"
    ]
    header = ["model", "dtype", "crops", "experts", "median, ms", "10 % to 90 %", "time / first", "first call, ms"]
    return markdown(header, cells, numbers=4)


def detection_table(rows: list[Row]) -> str:
    """Boxes of an image, and its people's keypoints."""
    names = ("stage", "detector", "preset", "dtype", "people")
    cells = [
        [
            *(str(row[name]) for name in names),
            program_name(row),
            *spread_cells(row),
            f"{row['ratio']:.2f}",
            f"{row['first_ms']:.0f}",
        ]
        for row in rows
    ]
    header = ["stage", "detector", "model", "dtype", "people", "program"]
    return markdown([*header, "median, ms", "10 % to 90 %", "time / ours", "first call, ms"], cells, numbers=4)


def train_step_table(rows: list[Row]) -> str:
    """A training step of each program."""
    cells = [
        [
            *(str(row[name]) for name in ("preset", "dtype", "crops", "program")),
            *spread_cells(row, 1),
            f"{row['crops_per_second']:.1f}",
            percent(row),
            f"{row['ratio']:.2f}",
            f"{row['first_ms']:.0f}",
        ]
        for row in rows
    ]
    header = ["model", "dtype", "crops", "program", "median, ms", "10 % to 90 %", "crops/s", "of limit"]
    return markdown([*header, "time / our step", "first call, ms"], cells, numbers=6)


def start_table(rows: list[Row]) -> str:
    """From the start of a process to the first keypoints, in seconds."""
    columns = {
        "import": "import_s",
        "load": "load_s",
        "first call": "first_call_s",
        "second call": "second_call_s",
        "start to first keypoints": "first_keypoints_s",
    }
    cells = [
        [row["program"], *(f"{row[name]:.2f} s" for name in columns.values()), f"{row['peak_mb']:.0f} MB"]
        for row in rows
    ]
    return markdown(["program", *columns, "peak memory"], cells, numbers=6)


def bulk_table(rows: list[Row]) -> str:
    """Prediction on several nodes: rates, memory and kills."""
    cells = [
        [
            row["program"],
            f"{row['images']}",
            f"{row['partitions']}",
            f"{row['rate']:.0f}",
            f"{row['ratio']:.3f}" if "ratio" in row else "",
            f"{100 * row['busy']:.1f} %",
            f"{row['start_s']:.1f}",
            f"{row['worker_mb']:.0f}",
            f"{row['driver_mb']:.0f}",
            f"{row['again']}",
        ]
        for row in rows
    ]
    header = [
        "program",
        "images",
        "partitions",
        "images/s",
        "time / alone",
        "busy",
        "start, s",
        "worker, MB",
        "driver, MB",
    ]
    return markdown([*header, "partitions computed again"], cells, numbers=9)


def collectives_table(rows: list[Row]) -> str:
    """Bytes that a training step sends, by mesh."""
    cells = [
        [
            row["preset"],
            f"{row['data']} x {row['fsdp']}",
            *(f"{row[kind] / 1e6:,.1f}" for kind in ("all-reduce", "all-gather", "reduce-scatter", "other")),
            f"{row['sent'] / 1e6:,.1f}",
            f"{row['state'] / 1e6:,.1f}",
            f"{row['temp'] / 1e6:,.1f}",
        ]
        for row in rows
    ]
    header = ["model", "data x fsdp", "all-reduce, MB", "all-gather, MB", "reduce-scatter, MB", "other, MB"]
    return markdown([*header, "sent by a device, MB", "state, MB", "temporary, MB"], cells, numbers=7)


def stage_costs_table(rows: list[Row]) -> str:
    """Core milliseconds of the stages of an image."""
    cells = [
        [
            row["preset"],
            f"{row['people']}",
            row["stage"],
            f"{row['ms']:.2f}",
            f"{row['low_ms']:.2f} to {row['high_ms']:.2f}",
            f"{row['bytes']:,.0f}" if row["bytes"] else "",
        ]
        for row in rows
    ]
    return markdown(["model", "people", "stage", "median, ms", "10 % to 90 %", "bytes"], cells, numbers=3)


def clients_table(rows: list[Row]) -> str:
    """Requests a second of the HTTP interface, by the number of clients."""
    cells = [
        [
            str(row["clients"]),
            f"{row['requests_per_second']:.1f}",
            f"{row['ms']:.0f} ms",
            f"{row['images_per_call']:.1f}",
        ]
        for row in rows
    ]
    return markdown(["clients", "requests a second", "median time of a request", "images in a call"], cells, numbers=3)


def variants_table(rows: list[Row]) -> str:
    """Time of every variant, a column for each number of crops; the first of each part is the one in use."""
    batches = sorted({row["batch"] for row in rows})
    lines: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        lines.setdefault((row["part"], row["variant"]), {})[row["batch"]] = row
    used = dict(reversed(lines))
    cells = [
        [
            part,
            variant,
            "**yes**" if used[part] == variant else "",
            *(f"{timed[batch]['ms']:.2f}" if batch in timed else "" for batch in batches),
            f"{max(row['difference'] for row in timed.values()):.0e}",
        ]
        for (part, variant), timed in lines.items()
    ]
    header = ["part", "variant", "in use", *(f"{n} {'crop' if n == 1 else 'crops'}, ms" for n in batches)]
    return markdown([*header, "largest difference"], cells, numbers=len(batches) + 1)


def parts_table(rows: list[Row]) -> str:
    """The parts of the network, a table for each model, dtype and number of people."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["preset"], row["dtype"], row["people"]), []).append(row)
    tables = []
    for (preset, dtype, people), parts in groups.items():
        cells = []
        for row in parts:
            rate = f"{row['gflops']:.0f} GFLOP/s" if "gflops" in row else ""
            rate = f"{row['gbytes']:.0f} GB/s" if "gbytes" in row else rate
            limit = percent(row, "of_product") or percent(row, "of_copy")
            cells.append([row["part"], f"{row['ms']:.1f}", percent(row, "fraction"), rate, limit])
        header = [f"{preset}, {dtype}, {people} {'person' if people == 1 else 'people'}", "ms", "of the whole"]
        tables.append(markdown([*header, "rate", "of the limit"], cells, numbers=4))
    return "\n\n".join(tables)


def ahead_table(rows: list[Row]) -> str:
    """What a compiler estimates: cycles on a TPU, kernels and bytes on a GPU."""
    columns = {"temporary memory, MB": ("temp", 1e6, 0), "compile time, s": ("seconds", 1, 0)}
    if any(row["cycles"] for row in rows):
        columns = {"million cycles": ("cycles", 1e6, 2), **columns}
    else:
        columns = {"kernels": ("kernels", 1, 0), "GB read and written": ("bytes", 1e9, 2), **columns}
    if any(row["loops"] for row in rows):
        columns["loops of unknown length"] = ("loops", 1, 0)
    used = {row["part"]: row["variant"] for row in reversed(rows)}
    cells = [
        [
            row["part"],
            row["variant"],
            "**yes**" if row["variant"] and used[row["part"]] == row["variant"] else "",
            *(f"{row[name] / unit:.{digits}f}" for name, unit, digits in columns.values()),
        ]
        for row in rows
    ]
    return markdown(["part", "variant", "in use", *columns], cells, numbers=len(columns))


def read(name: str) -> Row:
    """One file of results/."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def from_rows(name: str, table: Callable[[list[Row]], str]) -> Callable[[], str]:
    """The text of a table of one result file, with its caption."""

    def text() -> str:
        document = read(f"{name}.json")
        return f"{caption(document)}\n\n{table(document['rows'])}"

    return text


def speed_summary() -> str:
    """The short table: image to keypoints beside transformers, from two runs."""
    stages, models = read("cpu_avx512.json"), read("cpu_avx512_models.json")

    def find(document: Row, **wanted: Any) -> dict[str, Row]:
        rows = [row for row in document["rows"] if "ms" in row]
        return {row["program"]: row for row in rows if all(row[name] == value for name, value in wanted.items())}

    def line(title: str, people: int, times: dict[str, float], note: str = "") -> list[str]:
        ours = times["vitpose-jax"]
        digits = 1 if ours < 10 else 0
        others = [
            f"{times[name]:.{digits}f} ({times[name] / ours:.{0 if times[name] > 9.5 * ours else 2}f}x)"
            if name in times
            else ""
            for name in ("eager", "compile")
        ]
        return [title, str(people), f"{ours:.{digits}f}{note}", *others]

    def medians(rows: dict[str, Row]) -> dict[str, float]:
        return {name: row["ms"] for name, row in rows.items()}

    lines = [
        line("base: image and boxes to keypoints", people, medians(find(stages, stage="path", people=people)))
        for people in (1, 8)
    ]
    network = find(stages, stage="forward", people=8)
    note = f", {percent(network['vitpose-jax'])} of the rate of a matrix product"
    lines.append(line("base: network alone", 8, medians(network), note))
    crop, decode = (medians(find(stages, stage=stage, people=8)) for stage in ("crop", "decode"))
    lines.append(line("base: crops and decoding", 8, {name: crop[name] + decode[name] for name in crop}))
    for preset in models["options"]["presets"]:
        rows = find(models, stage="path", preset=preset)
        people = next(iter(rows.values()))["people"]
        lines.append(line(f"{preset}: image and boxes to keypoints", people, medians(rows)))
    header = ["float32", "people", "vitpose-jax, ms", "transformers, ms", "transformers, torch.compile, ms"]
    commands = f"`{stages['command']}` and `{models['command']}`"
    machine = describe_machine(stages["machine"])
    text = f"{commands} on {machine}; medians, in brackets relative to ours."
    return f"{text}\n\n{markdown(header, lines, numbers=3)}"


def runtimes() -> str:
    """The network alone in every runtime that a user could pick, from one run."""
    document = read("cpu_avx512_runtimes.json")
    return f"{caption(document)}\n\n{runtimes_table(document['rows'])}"


def runtimes_table(rows: list[Row]) -> str:
    """A column for each program, a line for each dtype and number of people; first the network alone, then the path."""
    stages = {"forward": "network alone", "path": "image and boxes to keypoints"}
    rows = [row for row in rows if row["stage"] in stages and not row["flip"]]
    programs = list(dict.fromkeys(row["program"] for row in rows))
    several = len({row["stage"] for row in rows}) > 1
    groups: dict[tuple[int, str, int], dict[str, float]] = {}
    for row in rows:
        group = list(stages).index(row["stage"]), row["dtype"], row["people"]
        groups.setdefault(group, {})[row["program"]] = row["ms"]
    lines = []
    for (stage, dtype, people), times in sorted(groups.items(), key=lambda group: group[0][0]):
        ours = times["vitpose-jax"]
        cells = [f"{times[name]:.0f} ({times[name] / ours:.2f}x)" if name in times else "" for name in programs[1:]]
        title = [list(stages.values())[stage]] if several else []
        lines.append([*title, dtype, str(people), f"{ours:.0f}", *cells])
    header = [*(["stage"] if several else []), "dtype", "people"]
    header += [f"{PROGRAMS.get(name, name)}, ms" for name in programs]
    return markdown(header, lines, numbers=len(programs))


# An H100's memory, as its maker states it; ahead.py's description of the device holds the same figure.
H100_BYTES_PER_SECOND = 3.35232e12
# Cycles of a TPU v5e.
V5E_CYCLES_PER_SECOND = 1.5e9
# What the plan is for.
PLANNED_PEOPLE = 1e9


def plan() -> str:
    """From the stages on one core and the compilers' estimates to machines for a billion people."""
    stages = read("cpu_avx512_stages.json")
    costs = {(row["preset"], row["stage"]): row for row in stages["rows"]}
    people = stages["rows"][0]["people"]

    def ahead(name: str, value: str) -> tuple[float, int]:
        document = read(f"{name}.json")
        (row,) = (row for row in document["rows"] if row["part"] == "path")
        return row[value], document["options"]["batch"]

    def core(preset: str) -> float:
        return sum(row["ms"] for (name, _), row in costs.items() if name == preset)

    # The finder counts as so many crops as it takes time on a core.
    finder = costs["base", "finder"]["ms"] / (costs["base", "network"]["ms"] / people)
    moved, batch = ahead("ahead_h100", "bytes")
    cycles, crops = ahead("ahead_v5e", "cycles")
    rates = {
        "H100, base, bfloat16": batch * H100_BYTES_PER_SECOND / moved / (people + finder),
        "TPU v5e, base, bfloat16": crops * V5E_CYCLES_PER_SECOND / cycles / (people + finder),
        "one core of the CPU, base": 1e3 / core("base"),
        "one core of the CPU, bundled": 1e3 / core("bundled"),
    }
    jpeg = costs["base", "JPEG"]
    cells = [
        [
            name,
            f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}",
            f"{rate * people:,.0f}",
            f"{PLANNED_PEOPLE / people / rate / 3600:,.0f}",
            f"{rate * jpeg['ms'] / 1e3:.2f}",
            f"{rate * jpeg['bytes'] / 1e6:,.1f}",
            f"{rate * costs['base', 'crops']['bytes'] / 1e6:,.0f}",
            f"{PLANNED_PEOPLE / people * costs['base', 'Parquet']['bytes'] / 1e9:,.0f}",
        ]
        for name, rate in rates.items()
    ]
    header = [
        "device",
        "images/s",
        "people/s",
        "device hours for a billion people",
        "cores that decode JPEGs for it",
        "MB/s read",
        "MB/s of pixels to it",
        "GB of results in all",
    ]
    return f"{caption(stages)}\n\n{markdown(header, cells, numbers=7)}"


def small_open() -> str:
    """Accuracy of the bundled model in annotated boxes and in those of the bundled finder."""
    rows = {"annotated": read("small_open/metrics.json"), "person-finder": read("small_open/metrics_detected.json")}
    statistics = ("AP", "AP50", "AP75", "AP(M)", "AP(L)", "AR")
    lines = [
        [boxes, str(document["counts"]["images"]), *(f"{document['metrics'][name]:.3f}" for name in statistics)]
        for boxes, document in rows.items()
    ]
    return markdown(["boxes", "images", *statistics], lines, numbers=7)


def calibration_table(rows: list[Row], correlations: dict[str, float]) -> str:
    """What a keypoint's score says about its distance from the label."""
    lines = [
        [
            f"{row['low']:.1f} to {row['high']:.1f}" if row["high"] is not None else f"{row['low']:.1f} and more",
            str(row["keypoints"]),
            f"{row['closeness']:.2f}",
            f"{100 * row['near']:.0f} %",
        ]
        for row in rows
    ]
    text = markdown(["score", "keypoints", "mean closeness", "closer than 0.5"], lines, numbers=3)
    return (
        f"{text}\n\nCorrelation of ranks with the closeness: {correlations['score']:.2f} of the score, "
        f"{correlations['width']:.2f} of the width."
    )


def calibration() -> str:
    """The table of calibration.py."""
    document = read("small_open/calibration.json")
    return f"{caption(document)}\n\n{calibration_table(document['rows'], document['rank_correlations'])}"


def quantize_accuracy_table(rows: list[Row]) -> str:
    """What rounded weights cost: AP, and how far keypoints move."""
    lines = [
        [
            row["setting"],
            # Settings that the library does not have are computed by a float32 model with rounded weights.
            "" if row is not rows[0] and row["bytes"] == rows[0]["bytes"] else f"{row['bytes'] / 1e6:.0f} MB",
            f"{row['AP']:.3f}",
            f"{row['AP'] - rows[0]['AP']:+.3f}",
            f"{row['AR']:.3f}",
            f"{100 * row['moved']['median']:.2f} %",
            f"{100 * row['moved']['high']:.2f} %",
        ]
        for row in rows
    ]
    header = ["weights of the blocks", "parameters", "AP", "difference", "AR", "keypoints move by", "95 % by less than"]
    return markdown(header, lines, numbers=6)


def quantize_memory_table(rows: list[Row]) -> str:
    """What quantized weights save: bytes of the parameters, peak memory of a process."""
    sizes = ("start_bytes", "parameter_bytes", "load_bytes", "run_bytes")
    lines = [[row["preset"], row["setting"], *(f"{row[name] / 1e9:.2f} GB" for name in sizes)] for row in rows]
    header = ["model", "weights of the blocks", "JAX alone", "parameters", "peak, loaded", "peak, run"]
    return markdown(header, lines, numbers=4)


def quantize_time_table(rows: list[Row]) -> str:
    """The time of a batch, relative to parameters in float32."""
    lines = [[row["preset"], row["dtype"], row["setting"], str(row["crops"]), f"{row['ratio']:.1f}"] for row in rows]
    return markdown(["model", "computed in", "weights of the blocks", "crops", "relative time"], lines, numbers=2)


def quantize_products_table(rows: list[Row]) -> str:
    """Products of int8 tokens with int8 weights, beside those of floating-point numbers."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        line = cells.setdefault(row["layer"], [f"{row['layer']}, {row['inputs']} to {row['outputs']}"])
        line.append(f"{row['ratio']:.2f}")
    return markdown(["layer", "float32", "bfloat16", "int8 alone", "W8A8"], cells.values(), numbers=4)


def quantize_architectures_table(rows: list[Row]) -> str:
    """How far heatmaps move, a line for each architecture."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    lines: dict[str, dict[str, float]] = {}
    for row in rows:
        lines.setdefault(row["preset"], {})[row["setting"]] = row["moved"]
    cells = [[preset, *(f"{100 * moved[setting]:.1f} %" for setting in settings)] for preset, moved in lines.items()]
    return markdown(["model", *settings], cells, numbers=len(settings))


def quantize_forward_table(rows: list[Row]) -> str:
    """A whole forward pass with int8 products, beside floating point, and how far its heatmaps are."""
    lines = [
        [row["preset"], str(row["people"]), row["program"], f"{row['ms']:.0f}", f"{row['ratio']:.2f}", moved(row)]
        for row in rows
    ]
    return markdown(["model", "crops", "products", "median, ms", "relative", "heatmaps differ by"], lines, numbers=3)


def moved(row: Row) -> str:
    """The largest difference of heatmaps, as a fraction of their largest value."""
    return f"{100 * row['heatmaps']:.2f} %"


def export_table(rows: list[Row]) -> str:
    """Exported files beside the model."""
    lines = [
        [
            *(str(row[name]) for name in ("preset", "setting", "people")),
            {"stablehlo": "StableHLO", **PROGRAMS}.get(row["program"], row["program"]),
            f"{row['bytes'] / 1e6:.1f} MB",
            f"{row['load_s']:.1f} s",
            f"{row['first_ms'] / 1e3:.1f} s",
            *spread_cells(row, 0),
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    header = [
        "model",
        "weights",
        "people",
        "form",
        "file",
        "load",
        "first call",
        "median, ms",
        "10 % to 90 %",
        "relative",
    ]
    return markdown(header, lines, numbers=6)


def person_finder() -> str:
    """Accuracy of the bundled finder, as `vitpose-jax evaluate --task detection` wrote it."""
    document = read("person_finder/metrics.json")
    counts, metrics = document["counts"], document["metrics"]
    points = {point["min_precision"]: point for point in document["operating_points"]}
    line = [str(counts["people"]), str(counts["images"])]
    line += [f"{metrics[name]:.3f}" for name in ("AP", "AP50", "AP75", "AR")]
    line += [f"{points[0.8]['recall']:.3f}", f"{points[0.8]['recall_tall']:.3f}"]
    header = ["people", "images", "AP", "AP50", "AP75", "AR", "recall at precision 0.8", "of tall people"]
    return markdown(header, [line], numbers=8)


TABLES: dict[str, Callable[[], str]] = {
    "parity": from_rows("parity", parity_table),
    "evaluation-small-open": small_open,
    "evaluation-person-finder": person_finder,
    "calibration": calibration,
    "quantize-accuracy": from_rows("quantize_accuracy", quantize_accuracy_table),
    "quantize-memory": from_rows("quantize_memory", quantize_memory_table),
    "quantize-time": from_rows("quantize_time", quantize_time_table),
    "quantize-products": from_rows("quantize_products", quantize_products_table),
    "quantize-architectures": from_rows("quantize_architectures", quantize_architectures_table),
    "quantize-forward": from_rows("quantize_forward", quantize_forward_table),
    "export": from_rows("cpu_avx512_export", export_table),
    "speed-cpu": speed_summary,
    "speed-stages": from_rows("cpu_avx512", stages_table),
    "speed-models": from_rows("cpu_avx512_models", stages_table),
    "speed-people": from_rows("cpu_avx512_people", stages_table),
    "speed-runtimes": runtimes,
    "speed-bfloat16": from_rows("cpu_avx512_runtimes", stages_table),
    "parts": from_rows("cpu_avx512_parts", parts_table),
    "experts": from_rows("cpu_avx512_experts", experts_table),
    "start": from_rows("cpu_avx512_start", start_table),
    "clients": from_rows("cpu_avx512_clients", clients_table),
    "stages": from_rows("cpu_avx512_stages", stage_costs_table),
    "plan": plan,
    "bulk-overhead": from_rows("bulk_overhead", bulk_table),
    "collectives": from_rows("collectives", collectives_table),
    "detection": from_rows("cpu_avx512_detection", detection_table),
    "train-step": from_rows("cpu_avx512_train_step", train_step_table),
    "variants": from_rows("variants", variants_table),
    "ahead-h100": from_rows("ahead_h100", ahead_table),
    "ahead-v5e": from_rows("ahead_v5e", ahead_table),
}


def pages(root: pathlib.Path = ROOT) -> list[pathlib.Path]:
    """Every Markdown page that may hold tables."""
    candidates = [root / "README.md", *(root / "docs").rglob("*.md"), *(root / "benchmarks").rglob("*.md")]
    return sorted(path for path in candidates if path.is_file())


def fill(page: str, source: str = "page") -> tuple[str, set[str]]:
    """A page with its tables written anew, and their names.

    Raises:
        ValueError: for a marker with an unknown name or without an end, naming the page.
    """
    names: set[str] = set()

    def replace(match: re.Match[str]) -> str:
        opening, name, old, end = match.groups()
        if name not in TABLES:
            raise ValueError(f"{source}: no table named {name!r}; expected one of {', '.join(TABLES)}")
        if OPENING.search(old):
            raise ValueError(f"{source}: table {name!r} has no <!-- end -->")
        names.add(name)
        return f"{opening}\n{TABLES[name]()}\n\n{end}"

    text = MARKER.sub(replace, page)
    opened, closed = len(OPENING.findall(page)), len(MARKER.findall(page))
    if opened != closed:
        raise ValueError(f"{source}: expected <!-- end --> after each table, got {opened} tables and {closed} ends")
    return text, names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="write nothing, exit with 1 if a table is out of date")
    return options


def main(arguments: list[str] | None = None, root: pathlib.Path = ROOT) -> int:
    """Write all tables, or check them; the number of problems decides the exit status."""
    options = parser().parse_args(arguments)
    missing, outdated = set(TABLES), []
    for path in pages(root):
        page = path.read_text(encoding="utf-8")
        try:
            text, names = fill(page, str(path.relative_to(root)))
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        missing -= names
        if text != page:
            outdated.append(path)
            if not options.check:
                path.write_text(text, encoding="utf-8")
    for path in outdated:
        print(f"{path.relative_to(root)}: {'out of date' if options.check else 'written'}")
    if missing:
        print(f"no page shows these tables: {', '.join(sorted(missing))}", file=sys.stderr)
    return int(bool(missing) or (options.check and bool(outdated)))


if __name__ == "__main__":
    sys.exit(main())
