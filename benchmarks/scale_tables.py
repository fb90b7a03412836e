"""Tables of many images on many machines: what the engine costs, and what a billion people need."""

from reports import Row, caption, markdown, read

# An H100's memory, as its maker states it; ahead.py's description of the device holds the same figure.
H100_BYTES_PER_SECOND = 3.35232e12
# Cycles of a TPU v5e.
V5E_CYCLES_PER_SECOND = 1.5e9
# What the plan is for.
PLANNED_PEOPLE = 1e9


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
