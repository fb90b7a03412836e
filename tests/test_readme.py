"""What the README and docs/detection.md show, runs, word for word; the Hub is a cache made here."""

import functools
import json
import pathlib
import re
import shlex
import shutil

import huggingface_hub
import pytest
from PIL import Image

from tests.support.reference_rtdetr import save as save_detector
from tests.support.reference_rtdetr import tiny_detector
from tests.support.reference_torch import save, tiny_model
from vitpose_jax import cli
from vitpose_jax.bundled import DEMO_IMAGE

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder with the project's pictures to run in, and a cache of the Hub with tiny models under the real names."""
    (tmp_path / "vitpose_jax" / "bundled").mkdir(parents=True)
    shutil.copy(DEMO_IMAGE, tmp_path / "vitpose_jax" / "bundled")
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
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # Port 9 of this machine refuses at once.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


def test_the_python_runs(checkout, capsys):
    first, *others = blocks("python")
    exec(first, {})
    assert capsys.readouterr().out.count("\n") == 17
    with Image.open(checkout / "drawn.png") as drawn:
        assert drawn.size == (512, 512)
    label_the_astronaut(checkout)
    namespace: dict = {}
    for block in others:
        exec(block, namespace)
    assert namespace["xy"].shape == (2, 17, 2)
    assert "'AP': " in capsys.readouterr().out


def test_the_page_on_detection_runs(checkout):
    page = (ROOT / "docs" / "detection.md").read_text()
    namespaces: list[dict] = [{} for _ in blocks("python", page)]
    for block, namespace in zip(blocks("python", page), namespaces, strict=True):
        exec(block, namespace)
    assert [type(namespace["poses"]).__name__ for namespace in namespaces] == ["Poses"] * 3
    assert (checkout / "drawn.png").is_file()


def label_the_astronaut(folder: pathlib.Path) -> None:
    """A data set of one image, in the format of COCO."""
    (folder / "images").symlink_to(folder / "vitpose_jax" / "bundled")
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


def test_the_first_command_runs(checkout, capsys):
    install, *parts = blocks("bash")[0].strip().split(" && ")
    assert install == "python -m pip install ."
    for part in parts:
        program, *arguments = shlex.split(part)
        assert program == "vitpose-jax"
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert not exit_.value.code
    assert "left_shoulder" in capsys.readouterr().out
    assert [path.name for path in (checkout / "demo").iterdir()] == ["astronaut_poses.png"]


def test_the_commands_exist():
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    names |= {group.name for group in cli.app.registered_groups}
    shown = set(re.findall(r"^vitpose-jax (\w+)", README, re.MULTILINE))
    assert shown == names


def test_the_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        path, _, heading = link.partition("#")
        assert (ROOT / path).exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], link
