"""The house: which module may import which, what is installed, and what importing it brings in."""

import ast
import os
import pathlib
import subprocess
import sys
import tomllib
import venv

import pytest
from flax import nnx

from tests.support import programs
from tests.support.images import random_image
from tests.support.models import TINY

ROOT = pathlib.Path(__file__).parents[1]

# Everything may import what stands before it, and nothing that stands after it.
ORDER = (
    "skeletons",
    "images",
    "storage",
    "vitpose",
    "rtdetr",
    "pipeline",
    "poses",
    "detections",
    "draw",
    "datasets",
    "bundled",
    "convert",
    "checkpoint",
    "pretrained",
    "serving",
    "detector",
    "estimator",
    "single_program",
    "bulk",
    "evaluation",
    "training",
    "cli",
)


def sources() -> list[pathlib.Path]:
    return sorted([*(ROOT / "vitpose_jax").rglob("*.py"), *(ROOT / "convert").rglob("*.py")])


def module_of(path: pathlib.Path) -> str:
    folder, *rest = path.relative_to(ROOT).parts
    return "convert" if folder == "convert" else pathlib.PurePath(rest[0]).stem


def imports(path: pathlib.Path) -> list[tuple[str, int]]:
    """Everything a file imports, also inside functions, with the line."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda path: "/".join(path.parts[-2:]))
def test_imports_run_one_way(path):
    module = module_of(path)
    # The package itself hands out names lazily, and `python -m` is a way in, as the command line is.
    if module == "__init__" or path.name == "__main__.py":
        return
    assert module in ORDER, f"{path} has no place in the order"
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "vitpose_jax" and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= ORDER.index(module), f"{path}:{line} imports {name}"


def test_nothing_but_one_file_imports_torch():
    for path in sources():
        for name, line in imports(path):
            if name.split(".")[0] == "torch":
                assert path.name == "torch_files.py", f"{path}:{line}"


def test_no_test_module_imports_another():
    """What tests share stands in tests/support; a test module can be moved or deleted alone."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for name, line in imports(path):
            modules = [part for part in name.split(".") if part.startswith("test_")]
            assert not (name.startswith("tests.") and modules), f"{path}:{line} imports {name}"


def test_no_asserts_and_no_catch_alls():
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in ("everything", "Exception"), f"{path}:{node.lineno} catches {caught}"


def test_package_list_names_every_folder_with_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    setuptools = project["tool"]["setuptools"]
    folders = {path.parent for path in sources()}
    listed = {
        ROOT / setuptools["package-dir"].get(name, name.replace(".", "/")): name for name in setuptools["packages"]
    }
    assert set(listed) == folders


def test_versions_agree():
    import vitpose_jax

    assert vitpose_jax.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"[{vitpose_jax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_importing_brings_no_torch_and_no_jax():
    # Outside the project, so that nothing is found that is not installed.
    subprocess.run([sys.executable, programs.path("import_everything")], check=True, cwd="/")


@pytest.mark.slow
def test_the_wheel_predicts_in_a_clean_environment(tmp_path):
    """No torch there; `convert` is inside the package and nowhere else."""
    from vitpose_jax import VitPose, VitPoseConfig, checkpoint

    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "dist", ROOT],
        check=True,
        cwd=tmp_path,
    )
    (wheel,) = (tmp_path / "dist").iterdir()
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
    checkpoint.save(VitPose(VitPoseConfig(**TINY), rngs=nnx.Rngs(0)), tmp_path / "model")
    from PIL import Image

    Image.fromarray(random_image(0)).save(tmp_path / "image.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for module in ("convert", "torch"):
        missing = subprocess.run([python, "-c", f"import {module}"], cwd=tmp_path, env=environment, capture_output=True)
        assert b"ModuleNotFoundError" in missing.stderr
    done = subprocess.run(
        [python.parent / "vitpose-jax", "predict", "image.png", "--model", "model", "--draw", "--output", "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "nose" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["image.json", "image_poses.png"]
