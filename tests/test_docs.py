"""The pages: their Python runs, their commands parse, their links lead somewhere, the reference names what exists.

A Python block that cannot run in a test needs a marker with a reason in the line before it: <!-- not run: REASON -->.
docs/guides/research.md is run by tests/training/test_research.py.
"""

import ast
import functools
import importlib
import json
import pathlib
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import huggingface_hub
import numpy as np
import pytest
import typer
from PIL import Image

import vitpose_jax
from tests.support.reference_rtdetr import save as save_detector
from tests.support.reference_rtdetr import tiny_detector
from tests.support.reference_torch import save, tiny_model
from tests.support.videos import rectangles, write_video
from tests.tolerances import REFINED, REFINED_MOST
from vitpose_jax import cli
from vitpose_jax.bundled import DEMO_IMAGE, DEMO_IMAGES
from vitpose_jax.interop.transformers import VitPoseImageProcessor

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
)
RESEARCH = "docs/guides/research.md"
LANGUAGES = {"python", "bash", "toml", "text", "bibtex"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"

pytestmark = pytest.mark.usefixtures("compiled_once")


class Block(NamedTuple):
    """A fenced block of a page; `reason` says why it is not run, if it is not."""

    language: str
    code: str
    reason: str | None


def blocks_of(page: str) -> list[Block]:
    pattern = r"^(?:<!-- not run: (.+?) -->\n)?```([^\n]*)\n(.*?)^```$"
    text = (ROOT / page).read_text()
    return [Block(*match.group(2, 3, 1)) for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE)]


def codes(page: str, language: str) -> list[str]:
    return [block.code for block in blocks_of(page) if block.language == language and not block.reason]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder with the project's pictures to run in, and a cache of the Hub with tiny models under the real names."""
    (tmp_path / "vitpose_jax" / "bundled").mkdir(parents=True)
    for image in DEMO_IMAGES:
        shutil.copy(image, tmp_path / "vitpose_jax" / "bundled")
    monkeypatch.chdir(tmp_path)
    for name, write in {
        "usyd-community/vitpose-base-simple": functools.partial(save, tiny_model()),
        "usyd-community/vitpose-plus-base": functools.partial(
            save, tiny_model(decoder="classic", num_experts=6, part_features=6)
        ),
        "PekingU/rtdetr_r50vd_coco_o365": functools.partial(save_detector, tiny_detector()),
    }.items():
        repository = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        (repository / "snapshots" / COMMIT).mkdir(parents=True)
        write(repository / "snapshots" / COMMIT)
        if name.startswith("usyd-community"):
            height, width = tiny_model().config.backbone_config.image_size
            processor = VitPoseImageProcessor(size={"height": height, "width": width})
            processor.save_pretrained(repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # Port 9 of this machine refuses at once.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    label_the_astronaut(tmp_path)
    write_video(tmp_path / "in.mp4", rectangles(3))
    write_training(tmp_path)
    return tmp_path


def label_the_astronaut(folder: pathlib.Path) -> None:
    """A dataset of one image, in the format of COCO."""
    (folder / "images").mkdir()
    shutil.copy(DEMO_IMAGE, folder / "images")
    box = [15, 10, 345, 502]
    document = {
        "images": [{"id": 1, "file_name": "astronaut.jpg", "width": 512, "height": 512}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 90000, "iscrowd": 0}
            | {"keypoints": [100, 100, 2] * 17, "num_keypoints": 17}
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(document))


def write_training(folder: pathlib.Path) -> None:
    """A tiny training under the name of the one that the guide names."""
    (folder / "configs").mkdir()
    (folder / "configs" / "finetune.toml").write_text(
        """
        output = "outputs/tiny"
        batch_size = 1
        data = [{ dataset = "coco", annotations = "annotations.json", images = "images" }]
        model = { image_size = [64, 48], hidden_size = 12, num_layers = 1, num_heads = 2, decoder = "simple" }
        optim = { learning_rate = 1e-3 }
        """
    )


def check_readme(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    assert output.startswith("(12, 17, 2) [0.") and output.count(" 0.") > 17
    with Image.open(folder / "drawn.png") as drawn:
        assert drawn.size == (640, 480)


def check_quickstart(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    """Shapes as the comments say; the detector's boxes have scores."""
    assert output.startswith("(12, 17, 2)\n(12, 17)\n")
    assert namespaces[-1]["poses"].box_scores is not None
    assert (folder / "drawn.png").is_file()


def check_predict(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    expected = ["1 0", "2 0", *["(1, 17, 2)"] * 3, "missing.jpg", "(1, 17, 2) (1, 17)"]
    for line, part in zip(output.splitlines(), expected, strict=True):
        assert part in line
    namespace = namespaces[-1]
    assert len(namespace["results"]) == len(namespace["people"]) == len(namespace["plain"]["poses"]) == 1


def check_detect(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    assert [type(namespace["poses"]).__name__ for namespace in namespaces] == ["Poses"] * 3
    assert (folder / "drawn.png").is_file()


def check_evaluate(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    assert output.count("'AP': ") == 2
    assert namespaces[-1]["detected"].num_boxes >= 1
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["both", "detected", "finder"]


def check_train(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    assert namespaces[-1]["result"].model == pathlib.Path("outputs/tiny/last")
    assert (folder / "outputs" / "tiny" / "last" / "model.safetensors").is_file()


def check_convert(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    assert namespaces[-1]["same"].config == namespaces[-1]["model"].config
    assert (folder / "models" / "base-simple-int8" / "model.safetensors").is_file()


def check_export(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    """The keypoints of the NumPy file are those of the estimator."""
    assert output.count("\n") == 4 and "('nose', 'left_eye')" in output
    keypoints, poses = namespaces[-1]["keypoints"], namespaces[-1]["poses"]
    assert (np.abs(keypoints - poses.keypoints).max(axis=-1) < REFINED).mean() > REFINED_MOST


def check_quantize(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    namespace = namespaces[-1]
    assert len(namespace["poses"].keypoints) >= 1
    assert namespace["same"].quantization == namespace["smaller"].model.quantization
    assert namespace["floating"].quantization is None


def check_from_transformers(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    assert namespaces[-1]["xy"].shape == (2, 17, 2)


def check_formats(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    assert output.count("[[") >= 3 and "(2, 1, 17, 2)" in output
    assert (folder / "labels" / "val" / "astronaut.txt").is_file()


def check_video(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    """The frames of the video, then those of a photograph: everyone keeps the number."""
    assert [line.split()[0] for line in output.splitlines()] == ["0", "1", "2"]
    first, *others = namespaces[-1]["numbers"]
    assert len(first) > 2 and others == [first, first]


def check_scores(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    shown, widths = namespaces[-1]["shown"], namespaces[-1]["widths"]
    assert shown.shape == (1, 17) and widths.shape == (1, 17, 2)
    # "some 15 pixels of the image"
    assert 12 < np.median(widths[shown]) < 25


def check_decoding(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    """The page shows what its block prints."""
    assert [output] == codes("docs/explain/decoding.md", "text")


def check_many_machines(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    summary, people = namespaces[-1]["summary"], namespaces[-1]["people"]
    assert output.startswith(f"2 {summary.people} 0\n") and people.num_rows == summary.people >= 12
    assert "'keypoints', 'scores', 'error'" in output


def check_web(namespaces, printed, folder):
    assert len(namespaces[-1]["poses"]) == 12


def check_performance(namespaces: list[dict], output: str, folder: pathlib.Path) -> None:
    assert namespaces[-1]["estimator"].runtime == "openvino" and len(namespaces[-1]["poses"]) >= 1


CHECKS: dict[str, Callable[[list[dict], str, pathlib.Path], None]] = {
    "README.md": check_readme,
    "docs/quickstart.md": check_quickstart,
    "docs/guides/predict.md": check_predict,
    "docs/guides/detect.md": check_detect,
    "docs/guides/many-machines.md": check_many_machines,
    "docs/guides/evaluate.md": check_evaluate,
    "docs/guides/train.md": check_train,
    "docs/guides/convert.md": check_convert,
    "docs/guides/export.md": check_export,
    "docs/guides/quantize.md": check_quantize,
    "docs/guides/from-transformers.md": check_from_transformers,
    "docs/guides/formats.md": check_formats,
    "docs/guides/video.md": check_video,
    "docs/guides/web.md": check_web,
    "docs/explain/decoding.md": check_decoding,
    "docs/explain/scores.md": check_scores,
    "docs/explain/performance.md": check_performance,
}
# Every block of these pages runs by itself; those of the others run one after another.
BY_THEMSELVES = {"docs/guides/detect.md"}


@pytest.mark.slow
@pytest.mark.parametrize("page", CHECKS)
def test_the_python_of_a_page_runs(page, checkout, capsys):
    shared: dict = {}
    namespaces = []
    for code in codes(page, "python"):
        namespaces.append({} if page in BY_THEMSELVES else shared)
        exec(compile(code, page, "exec"), namespaces[-1])
    CHECKS[page](namespaces, capsys.readouterr().out, checkout)


def test_no_block_is_left_out():
    """Every page with Python has a check; every block is of a known language and is found by the pattern above."""
    for page in PAGES:
        blocks = blocks_of(page)
        assert len(re.findall(r"^\s*(```|~~~)", (ROOT / page).read_text(), re.MULTILINE)) == 2 * len(blocks), page
        assert {block.language for block in blocks} <= LANGUAGES, page
    with_python = {page for page in PAGES if codes(page, "python")}
    assert with_python == {*CHECKS, RESEARCH}
    assert {page for page in PAGES if codes(page, "toml")} <= {RESEARCH}


def commands_in(line: str) -> Iterator[list[str]]:
    """The arguments of every `vitpose-jax` command of a line of shell, also of one that another command is given."""
    words = shlex.split(line, comments=True)
    for word in words:
        if " && vitpose-jax " in word:
            yield from commands_in(word)
    command: list[str] = []
    for word in [*words, "&&"]:
        if word != "&&":
            command.append(word)
            continue
        if "vitpose-jax" in command[:-1]:
            yield command[command.index("vitpose-jax") + 1 :]
        command = []


def commands_of(page: str) -> list[list[str]]:
    """The arguments of every `vitpose-jax` command in the page's bash blocks."""
    lines = [line for code in codes(page, "bash") for line in code.replace("\\\n", " ").splitlines()]
    return [command for line in lines for command in commands_in(line)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)])
def test_the_commands_of_a_page_parse(page, monkeypatch):
    """Commands, options and the types of their values exist as they are written."""
    monkeypatch.chdir(ROOT)
    group = typer.main.get_command(cli.app)
    for name, *arguments in commands_of(page):
        group.commands[name].make_context(name, list(arguments))


def test_the_pages_show_every_command():
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert {name for page in PAGES for name, *_ in commands_of(page)} == names


def test_the_synopsis_of_the_commands_is_right():
    """Every command stands there, with options that it has."""
    (synopsis,) = codes("docs/quickstart.md", "text")
    group = typer.main.get_command(cli.app)
    entries = re.findall(r"^vitpose-jax (\w+)(.*?)(?=^vitpose-jax|\Z)", synopsis, re.DOTALL | re.MULTILINE)
    assert {name for name, _ in entries} == set(group.commands)
    for name, options in entries:
        known = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", options)) <= known, name


def test_the_first_command_runs(checkout, capsys):
    install, *parts = codes("README.md", "bash")[0].strip().split(" && ")
    assert install == "python -m pip install ."
    for part in parts:
        program, *arguments = shlex.split(part)
        assert program == "vitpose-jax"
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert not exit_.value.code
    assert capsys.readouterr().out.count(" people") == 2
    assert {path.name for path in (checkout / "demo").iterdir()} == {"astronaut_poses.png", "tennis_poses.png"}


def test_ci_finds_the_test_command():
    """.ci/run takes it from the README by this pattern."""
    (pattern,) = re.findall(r"sed -n 's/(.+)/\\1/p' README.md", (ROOT / ".ci" / "run").read_text())
    pattern = pattern.replace(r"\(", "(").replace(r"\)", ")")
    assert len(re.findall(pattern, README, re.MULTILINE)) == 1


def test_the_extras_of_the_readme_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = re.findall(r"^\| (`.+?`) \| ", README.split("| extra |")[1].split("\n\n")[0], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(extras) - {"test"}


def anchors(page: pathlib.Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_the_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_tests_that_the_page_on_decoding_names_exist():
    page = (ROOT / "docs" / "explain" / "decoding.md").read_text()
    rows = re.findall(r"(`test_\w+`(?:, `test_\w+`)*) in (tests/\S+\.py)", page)
    assert len(rows) > 10
    for names, path in rows:
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert set(re.findall(r"test_\w+", names)) <= functions, path


def test_the_headline_figures_are_those_of_the_tables():
    figures = re.sub(r"\s+", " ", README.split("## Figures")[1].split("\n## ")[0])
    parity = (ROOT / "docs" / "explain" / "parity.md").read_text()
    rows = [line.strip("|").split("|") for line in parity.splitlines() if re.search(r" \d+ of \d+ \|$", line)]
    assert len(rows) == 10
    close, compared = (sum(int(row[-1].split(" of ")[side]) for row in rows) for side in (0, 1))
    assert f"{close} of {compared}" in figures
    assert f"{max(float(row[5]) for row in rows):.1e}" in figures
    speed = (ROOT / "docs" / "explain" / "performance.md").read_text()
    ratios = re.findall(r"\d+(?:\.\d+)?x", figures)
    assert ratios
    for ratio in ratios:
        assert f"({ratio})" in speed, ratio


def identifiers() -> dict[str, set[str]]:
    """What the pages of the reference document, by page."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return {page.stem: set(re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)) for page in pages}


def test_the_reference_names_what_exists():
    for names in identifiers().values():
        for name in names:
            module, _, attribute = name.rpartition(".")
            if not hasattr(importlib.import_module(module), attribute):
                importlib.import_module(name)


def test_every_public_name_is_in_the_reference():
    """The names of the package one by one; those of its rooms by the module that defines them."""
    documented = set().union(*identifiers().values())
    assert {f"vitpose_jax.{name}" for name in vitpose_jax.__all__} <= documented
    for room in vitpose_jax._MODULES:
        assert [name for name in documented if re.match(rf"vitpose_jax\.{room}\b", name)], room
        module = importlib.import_module(f"vitpose_jax.{room}")
        for name in getattr(module, "__all__", ()):
            # Constants, such as PROTOCOLS, do not know their module.
            home = getattr(getattr(module, name), "__module__", "")
            if home.startswith("vitpose_jax."):
                assert {home, f"vitpose_jax.{room}.{name}"} & documented, name
