"""Writes the tables of results/*.json into the pages that show them.

    python benchmarks/tables.py            # rewrite every table in README.md, docs/ and benchmarks/
    python benchmarks/tables.py --check    # write nothing; exit with 1 if a table is out of date

A page marks the place of a table by its name (see `TABLES`):

    <!-- table: parity -->
    whatever stands here is replaced by the table
    <!-- end -->

A name may stand in several pages. A marker with an unknown name is an error, and so is a table that stands nowhere.
The benchmarks print the same tables: speed_tables.py, scale_tables.py and accuracy_tables.py hold them. All this
needs only Python.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable

from accuracy_tables import (
    calibration,
    parity_table,
    person_finder,
    quantize_accuracy_table,
    quantize_architectures_table,
    quantize_forward_table,
    quantize_memory_table,
    quantize_products_table,
    quantize_time_table,
    small_open,
)
from reports import ROOT, Row, caption, read
from scale_tables import bulk_table, collectives_table, plan, stage_costs_table
from speed_tables import (
    ahead_table,
    clients_table,
    detection_table,
    experts_table,
    export_table,
    parts_table,
    runtimes_table,
    speed_summary,
    stages_table,
    start_table,
    train_step_table,
    variants_table,
)

MARKER = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
OPENING = re.compile(r"^<!-- table: (\S+) -->$", re.MULTILINE)


def from_rows(name: str, table: Callable[[list[Row]], str]) -> Callable[[], str]:
    """The text of a table of one result file, with its caption."""

    def text() -> str:
        document = read(f"{name}.json")
        return f"{caption(document)}\n\n{table(document['rows'])}"

    return text


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
    "speed-runtimes": from_rows("cpu_avx512_runtimes", runtimes_table),
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
