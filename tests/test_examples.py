"""Every example runs as it stands, in an empty folder, and gives what it says."""

import json
import pathlib
import runpy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import programs
from tests.tolerances import BLOCK, HEATMAPS, KEYPOINTS, REFINED, REFINED_MOST
from vitpose_jax import PoseEstimator, Poses, export, from_pretrained
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE, GROUP_IMAGE
from vitpose_jax.pretrained import describe

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# Bytes of a notebook with its outputs: no more than a picture in the repository.
MAX_NOTEBOOK = 300_000

# What a notebook must have found, as a last cell.
LAST_CELLS = {
    "fine_tuning": "assert losses[-1] < losses[0] and after > before - 0.05, (losses, before, after)",
    "conversion_and_parity": f"""import numpy as np
np.testing.assert_allclose(ours, theirs, rtol=0, atol={HEATMAPS})
np.testing.assert_allclose(poses.keypoints, expected, rtol=0, atol={KEYPOINTS})""",
}

pytestmark = pytest.mark.usefixtures("compiled_once", "unchecked")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run an example in an empty folder; what it defines."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


def test_image(run, tmp_path, capsys):
    run("image.py")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 19
    assert lines[0].endswith(" people; the first:") and lines[1].split()[0] == "nose"
    with Image.open(tmp_path / "image_poses.png") as drawn, Image.open(GROUP_IMAGE) as image:
        assert drawn.size == image.size


def test_many_images(run, tmp_path, capsys):
    folder = tmp_path / "photographs"
    folder.mkdir()
    with Image.open(DEMO_IMAGE) as image:
        image.save(folder / "a.png")
        image.resize((300, 200)).save(folder / "c.jpg")
    (folder / "b.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("not an image")
    run("many_images.py", str(folder))
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:3]] == ["a.png", "b.jpg", "c.jpg"]
    lines = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["a.png", "c.jpg"]
    assert all(line["poses"] for line in lines)


def test_own_jit(run, tmp_path):
    values = run("own_jit.py")
    assert values["keypoints"].shape == (1, 17, 2)
    height, width = values["model"].config.image_size
    assert values["gradient"].shape == (height, width)
    assert values["gradient"].max() > 0
    with Image.open(tmp_path / "saliency.png") as drawing:
        assert drawing.size == (2 * width, height)


def test_new_head(run):
    values = run("new_head.py")
    assert values["losses"][-1] < 1e-3 * values["losses"][0]
    assert values["error"] < 1


def test_fine_tune(run, tmp_path):
    values = run("fine_tune.py")
    assert values["result"].finished
    assert values["result"].step == 6
    assert (tmp_path / "fine_tuned" / "last" / "model.safetensors").is_file()
    assert isinstance(values["poses"], Poses)
    steps = [json.loads(line)["step"] for line in (tmp_path / "fine_tuned" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]


def test_evaluate(run, capsys):
    values = run("evaluate.py")
    assert values["result"].metrics["AP50"] == 1
    assert values["result"].counts["boxes"] == 1
    assert "right_wrist" in capsys.readouterr().out


def test_features(run):
    values = run("features.py")
    output, config = values["output"], values["model"].config
    assert output.tokens.shape == (2, config.num_patches, config.hidden_size)
    assert len(output.hidden_states) == config.num_layers + 1
    assert [features.shape for features in output.feature_maps] == [(2, *config.grid_size, config.hidden_size)] * 2
    # The attention of one patch to all patches.
    np.testing.assert_allclose(values["weights"].sum(), 1, rtol=0, atol=BLOCK)


def test_many_devices(run, tmp_path):
    # XLA makes the devices when JAX starts: in a process of its own.
    command = [sys.executable, str(EXAMPLES / "many_devices.py")]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "4 devices: cpu"
    assert second.startswith("6 people; largest difference")
    assert float(second.split(": ")[1].split()[0]) <= KEYPOINTS


def test_linen(run):
    values = run("linen.py")
    np.testing.assert_allclose(values["scores"], values["expected"], rtol=0, atol=HEATMAPS)


def test_supervision_annotators(run, tmp_path):
    values = run("supervision_annotators.py")
    assert 1 <= len(values["boxes"]) <= len(values["poses"])
    np.testing.assert_array_equal(values["poses"].box_scores, values["people"].scores)
    assert (values["scene"] != values["image"]).any()
    assert (tmp_path / "supervision_poses.png").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # qwix calls deprecated functions
def test_quantization_aware(run, tmp_path):
    """The loss falls, and so does the error of int4 where it was trained."""
    values = run("quantization_aware.py")
    assert values["losses"][-1] < values["losses"][0] / 2
    before, after = values["errors"]["trained on"]
    assert after < before
    assert describe(tmp_path / "int4_aware").dtype == "int4"


def test_exported_onnx(tmp_path):
    """In a process that imports neither JAX nor this package."""
    model = from_pretrained()
    export.to_onnx(model, tmp_path / "vitpose.onnx", batch=1)
    arguments = [str(EXAMPLES / "exported_onnx.py"), "vitpose.onnx", str(DEMO_IMAGE), ",".join(map(str, DEMO_BOX))]
    code = (
        f"import runpy, sys; sys.argv = {arguments!r}; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert not {'jax', 'flax', 'vitpose_jax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    poses = PoseEstimator(model)(DEMO_IMAGE, [DEMO_BOX])
    lines = [line.split() for line in done.stdout.splitlines()]
    assert tuple(name for name, *_ in lines) == poses.skeleton.keypoints
    printed = np.asarray([[float(x), float(y)] for _, x, y, _ in lines])
    distances = np.abs(printed - poses.keypoints[0]).max(axis=-1)
    assert (distances < REFINED).mean() > REFINED_MOST


def test_profile_trace(run, tmp_path):
    run("profile_trace.py")
    assert list(tmp_path.glob("trace/**/perfetto_trace.json.gz"))


def test_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = EXAMPLES / "quickstart.ipynb"
    assert path.stat().st_size < MAX_NOTEBOOK
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] or "import" in "".join(cell["source"]) for cell in cells), "save it with its outputs"
    values: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), values)
    assert len(values["first"]) == 1 and len(values["second"]) >= 1
    assert len(values["empty"]) == 0
    np.testing.assert_allclose(values["keypoints"][0], values["first"].keypoints[0], rtol=0, atol=KEYPOINTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (EXAMPLES / "notebooks").glob("*.ipynb")))
def test_the_longer_notebooks(name, tmp_path):
    """They run, and were saved with what they show."""
    path = EXAMPLES / "notebooks" / f"{name}.ipynb"
    assert path.stat().st_size < MAX_NOTEBOOK
    badge, install, *cells = json.loads(path.read_text())["cells"]
    assert f"examples/notebooks/{name}.ipynb)" in "".join(badge["source"]) and "%pip install" in "".join(
        install["source"]
    )
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert sum(bool(cell["outputs"]) for cell in code) >= 3
    # In a kernel of Jupyter, in a process of its own: its libraries leave sockets open.
    program = programs.command("execute_notebook", path, LAST_CELLS.get(name, ""))
    done = subprocess.run(program, cwd=tmp_path, env=programs.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_page_names_every_example_and_every_example_has_a_test():
    page = (EXAMPLES / "README.md").read_text()
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb", ".toml", ".json")}
    assert {link for link in names if f"]({link})" in page} == names
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tests
    for path in EXAMPLES.glob("notebooks/*"):
        assert f"]({path.relative_to(EXAMPLES)})" in page
    # tests/interop/test_transformers_listings.py runs these.
    for path in EXAMPLES.glob("from_transformers/*"):
        assert f"]({path.relative_to(EXAMPLES)})" in page
