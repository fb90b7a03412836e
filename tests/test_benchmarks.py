"""The benchmarks: tables in pages equal the result files, and every command that a page gives is one that exists."""

import functools
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import types

import jax
import pytest
import typer
from PIL import Image

from vitpose_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = (
    "ahead",
    "bulk",
    "calibration",
    "clients",
    "collectives",
    "detection",
    "export",
    "figure",
    "gallery",
    "parity",
    "parts",
    "plot",
    "quantize",
    "speed",
    "stages",
    "start",
    "tables",
    "train_step",
    "variants",
    "video",
)
# What the scripts import from each other, and the processes that start.py and quantize.py start.
PARTS = (
    "common",
    "peers",
    "quantize_worker",
    "start_worker",
    "reports",
    "speed_tables",
    "scale_tables",
    "accuracy_tables",
)


@functools.cache
def load(name: str) -> types.ModuleType:
    """A script, as `python benchmarks/NAME.py` imports it. Its own name may be a library's: PyTables is `tables`."""
    environment = dict(os.environ)
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec.loader.exec_module(script)
        return script
    finally:
        sys.path.remove(str(BENCHMARKS))
        # ahead.py sets variables for the compilers.
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture(scope="module")
def tables() -> types.ModuleType:
    return load("tables")


def commands(text: str) -> list[str]:
    """The calls of benchmarks in a page or a docstring: lines of code blocks, and `...` in sentences."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```\w*\n.*?```", "", text, flags=re.DOTALL)
    calls = [line.strip() for block in blocks for line in block.splitlines()]
    calls += [line.strip() for line in prose.splitlines() if line.startswith("    ")]
    calls += [" ".join(call.split()) for call in re.findall(r"`([^`]+)`", prose)]
    return [call for call in calls if re.match(r"(\w+=\S+ )*python benchmarks/", call)]


def parse(command: str) -> types.SimpleNamespace:
    """The options of a command, as its script understands them."""
    path, *arguments = re.sub(r"^(\w+=\S+ )*python ", "", command).split(" ", 1)
    parser = load(pathlib.Path(path).stem).parser()
    if arguments == ["--help"]:
        return types.SimpleNamespace()
    try:
        options = parser.parse_args(shlex.split(" ".join(arguments), comments=True))
    except SystemExit:
        pytest.fail(f"not a command: {command}")
    return types.SimpleNamespace(**vars(options))


def test_every_script_is_known():
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == {*SCRIPTS, *PARTS}


def test_the_tables_of_all_pages_are_those_of_the_results(tables):
    missing = set(tables.TABLES)
    for path in tables.pages():
        page = path.read_text()
        text, names = tables.fill(page, str(path))
        assert page == text, f"{path}: run `python benchmarks/tables.py`"
        missing -= names
    assert not missing, "no page shows these tables"


def test_every_result_is_shown_and_says_how_it_was_measured(tables):
    for path in load("reports").RESULTS.glob("*.json"):
        document = json.loads(path.read_text())
        options = vars(parse(document["command"]))
        assert document["options"] == {name: options[name] for name in document["options"]}
        assert options["output"] == path.stem
        assert any(document["command"] in text() for text in tables.TABLES.values()), path


def test_tables_are_written_between_their_markers(tables, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    everything = "".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in tables.TABLES)
    (tmp_path / "README.md").write_text("before\n\n<!-- table: parity -->\nold\n<!-- end -->\n\nafter\n")
    (tmp_path / "docs" / "all.md").write_text(everything)
    assert tables.main(["--check"], tmp_path) == 1
    assert "old" in (tmp_path / "README.md").read_text()
    assert tables.main([], tmp_path) == 0
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("before\n\n<!-- table: parity -->\n\n`python benchmarks/parity.py")
    assert "| plus-huge | 899.40 M | 3598 MB |" in page
    assert page.endswith("|\n\n<!-- end -->\n\nafter\n")
    assert "old" not in page
    assert tables.main(["--check"], tmp_path) == 0
    (tmp_path / "docs" / "all.md").unlink()
    capsys.readouterr()
    assert tables.main(["--check"], tmp_path) == 1
    assert "no page shows these tables: ahead-h100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- table: sped -->\n<!-- end -->\n", "no table named 'sped'"),
        ("<!-- table: parity -->\n", "got 1 tables and 0 ends"),
        ("<!-- table: parity -->\n<!-- table: start -->\n<!-- end -->\n", "'parity' has no <!-- end -->"),
    ],
)
def test_wrong_markers_are_errors(tables, page, message):
    with pytest.raises(ValueError, match=message):
        tables.fill(page)


def test_the_table_of_runtimes_has_a_column_for_each_and_the_path_below():
    runtimes_table = load("speed_tables").runtimes_table

    def row(stage, program, ms):
        return {"stage": stage, "dtype": "float32", "people": 1, "flip": False, "program": program, "ms": ms}

    rows = [row("path", "vitpose-jax", 40.0), row("path", "vitpose-jax-openvino", 30.0)]
    rows += [row("forward", "vitpose-jax", 20.0), row("forward", "eager", 40.0)]
    header, _, *lines = runtimes_table(rows).splitlines()
    assert header == "| stage | dtype | people | vitpose-jax, ms | vitpose-jax on OpenVINO, ms | transformers, ms |"
    assert lines == [
        "| network alone | float32 | 1 | 20 |  | 40 (2.00x) |",
        "| image and boxes to keypoints | float32 | 1 | 40 | 30 (0.75x) |  |",
    ]
    # A run of the network alone, also with rows of other stages, has no such column.
    rows = [row for row in rows if row["stage"] == "forward"] + [row("crop", "vitpose-jax", 1.0)]
    assert runtimes_table(rows).splitlines()[2:] == ["| float32 | 1 | 20 | 40 (2.00x) |"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_has_help_and_commands_that_parse(name):
    module = load(name)
    text = module.parser().format_help()
    assert module.__doc__.splitlines()[0] in text
    examples = commands(module.__doc__)
    assert examples
    for command in examples:
        parse(command)


def test_the_commands_of_the_pages_parse(tables):
    examples = {command for path in tables.pages() for command in commands(path.read_text())}
    assert len(examples) > 10
    for command in examples:
        parse(command)


def test_the_options_of_the_package_on_the_pages_exist(tables):
    group = typer.main.get_command(cli.app)
    checked = 0
    for path in tables.pages():
        for block in re.findall(r"```(?:bash|text|console)\n(.*?)```", path.read_text(), re.DOTALL):
            for name, arguments in re.findall(r"\bvitpose-jax (\w+)(.*)", block):
                known = {option for parameter in group.commands[name].params for option in parameter.opts}
                known |= {option for parameter in group.commands[name].params for option in parameter.secondary_opts}
                for option in re.findall(r"(?<=[\s|\[])--[a-z][\w-]*", arguments.split("#")[0]):
                    assert option in {*known, "--help"}, f"{path}: vitpose-jax {name} {option}"
                    checked += 1
    assert checked > 20


def test_the_programs_that_ahead_compiles_have_the_expected_shapes(unchecked):
    """Traced only, with shapes in the place of arrays: the compilers for GPUs and TPUs are not installed everywhere."""
    ahead = load("ahead")
    config = load("common").vitpose_config("tiny")
    programs = ahead.parts(config, 2, "bfloat16")
    shapes = {name: jax.eval_shape(function, *inputs) for name, (function, inputs) in programs.items()}
    rows, columns = config.heatmap_size
    assert shapes["forward"].shape == (2, rows, columns, 17)
    assert [value.shape for value in shapes["path"]] == [(2, 17, 2), (2, 17), (2, 17, 2, 2)]
    assert {name: leaf.shape for name, leaf in shapes["step"].items()} == {
        name: leaf.shape for name, leaf in programs["step"][1][0].items()
    }


def test_programs_take_turns():
    common = load("common")
    calls = []
    programs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    first, times = common.time_interleaved(programs, rounds=3)
    # The first call, a warm one, and the rounds.
    assert calls == ["a", "b", "a", "b", *"ababab"]
    assert list(first) == ["a", "b"]
    assert [len(values) for values in times.values()] == [3, 3]


def test_rows_hold_medians_relative_to_the_baseline(monkeypatch):
    common = load("common")
    clock = iter([1.0, 2.0, 4.0, 1.0, 1.0, 2.0, 1.0, 2.0, 4.0, 7.0, 2.0, 9.0, 1.0, 3.0, 4.0])
    monkeypatch.setattr(common, "seconds", lambda program: next(clock))
    programs = {"ours": lambda: None, "other": lambda: None}
    rows, limit = common.timed_rows({"stage": "s"}, programs, rounds=3, baseline="ours", limit=lambda: None)
    # Three first calls, three warm calls, then three rounds of ours, other, limit.
    assert [row["ms"] for row in rows] == [1000.0, 2000.0]
    assert [row["ratio"] for row in rows] == [1.0, 2.0]
    assert [row["first_ms"] for row in rows] == [1000.0, 2000.0]
    assert limit == 4.0
    assert rows[0]["stage"] == "s"
    assert rows[0]["program"] == "ours"


def test_the_plot_of_the_readme_is_drawn_in_the_size_shown(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["plot.py", str(load("plot").SOURCE), str(tmp_path / "speed.png")])
    load("plot").main()
    with Image.open(tmp_path / "speed.png") as drawn, Image.open(ROOT / "docs" / "speed.png") as shown:
        assert drawn.size == shown.size


TINY = [command for command in commands((BENCHMARKS / "README.md").read_text()) if " tiny " in command]


@pytest.mark.slow
@pytest.mark.parametrize("command", TINY, ids=lambda command: pathlib.Path(command.split()[1]).stem)
def test_the_tiny_runs_print_a_table(command, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert re.search(r"^\| --- \|.*\n\| [a-z]", done.stdout, re.MULTILINE)
