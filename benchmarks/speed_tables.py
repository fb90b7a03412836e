"""Tables of times: stages, whole networks, other runtimes, training steps, compilers."""

from typing import Any

from reports import PROGRAMS, Row, describe_machine, markdown, percent, program_name, read, spread_cells

EXPERTS = {
    "vitpose-jax": "one expert for all crops",
    "plain": "that expert folded into a plain model",
    "mixed experts": "six experts mixed in one batch",
}


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


def runtimes_table(rows: list[Row]) -> str:
    """The runtimes that a user could pick: a column each, a line for each dtype and number of people.

    First the network alone, then the whole path.
    """
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
