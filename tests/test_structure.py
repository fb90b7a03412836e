"""The house: which module may import which, what is installed, and what importing it brings in."""

import ast
import functools
import graphlib
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import venv

import pytest
from flax import nnx

import vitpose_jax
from tests.support import programs
from tests.support.images import random_image
from tests.support.models import TINY

ROOT = pathlib.Path(__file__).parents[1]

# Everything may import what stands before it, and nothing that stands after it.
ORDER = (
    "skeletons",
    "sides",
    "pixels",
    "images",
    "detections",
    "overlaps",
    "storage",
    "vitpose",
    "rtdetr",
    "finder",
    "pipeline",
    "pose_formats",
    "poses",
    "draw",
    "datasets",
    "bundled",
    "convert",
    "checkpoint",
    "pretrained",
    "serving",
    "export",
    "detector",
    "estimator",
    "single_program",
    "interop",
    "bulk",
    "distributed",
    "evaluation",
    "video",
    "training",
    "transformers",
    "web",
    "cli",
)


def sources() -> list[pathlib.Path]:
    return sorted([*(ROOT / "vitpose_jax").rglob("*.py"), *(ROOT / "convert").rglob("*.py")])


def module_name(path: pathlib.Path) -> str:
    """The name under which a file is imported: convert/ installs as vitpose_jax.convert."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("vitpose_jax", *parts) if parts[0] == "convert" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources()}


def imports(path: pathlib.Path, module: str = "") -> list[tuple[str, int]]:
    """Everything a file imports, also inside functions, with the line.

    Args:
        path: the file.
        module: its name, to resolve relative imports.
    """
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else package[: len(package) - node.level + 1]
            base = ".".join([*base, node.module] if node.module else base)
            names += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return names


def resolve(name: str) -> str | None:
    """The module of this project that an import reads; None for other projects.

    `from vitpose_jax import PoseEstimator` reads the module that the lazy root names as the home of PoseEstimator.
    """
    parts = name.split(".")
    if parts[0] != "vitpose_jax":
        return None
    if len(parts) > 1 and parts[1] in vitpose_jax._HOMES:
        return f"vitpose_jax.{vitpose_jax._HOMES[parts[1]]}"
    if len(parts) == 1 or parts[1:] == ["__version__"]:
        return "vitpose_jax"
    for end in range(len(parts), 1, -1):
        if ".".join(parts[:end]) in MODULES:
            return ".".join(parts[:end])
    raise AssertionError(f"{name}: expected a file of this project, or a public name")


def room(module: str) -> str:
    """The folder or the root module: the part of a name that ORDER lists.

    interop/transformers is a room of its own: its losses are those of the training.
    """
    if module.startswith("vitpose_jax.interop.transformers"):
        return "transformers"
    return module.split(".")[1] if "." in module else "vitpose_jax"


@functools.cache
def reads(module: str) -> dict[str, int]:
    """The modules of this project that a module imports, each with a line that does so."""
    targets = {}
    for name, line in imports(MODULES[module], module):
        target = resolve(name)
        if target is not None and target != module:
            targets.setdefault(target, line)
    return targets


# The lazy root names all its modules, and `python -m` is a way in, as the command line is.
WAYS_IN = {name for name in MODULES if name == "vitpose_jax" or name.endswith(".__main__")}


def test_the_order_names_every_file_and_every_folder():
    assert {room(name) for name in MODULES} - {"vitpose_jax", "__main__"} == set(ORDER)


def test_the_architecture_page_draws_the_same_order_and_the_same_tree():
    page = (ROOT / "docs" / "explain" / "architecture.md").read_text()
    (drawing,) = re.findall(r"^    skeletons <- (?:.+\n)+", page, re.MULTILINE)
    assert tuple(re.findall(r"\w+", drawing)) == ORDER
    (tree,) = re.findall(r"^    vitpose_jax/\n(?:.+\n)+", page, re.MULTILINE)
    assert set(ORDER) <= set(re.findall(r"\w+", tree))


@pytest.mark.parametrize("module", sorted(set(MODULES) - WAYS_IN), ids=lambda name: name.removeprefix("vitpose_jax."))
def test_imports_run_one_way(module):
    place = ORDER.index(room(module))
    for target, line in reads(module).items():
        # The root itself imports nothing.
        if target != "vitpose_jax":
            assert ORDER.index(room(target)) <= place, f"{MODULES[module]}:{line} imports {target}"


def test_no_circles_inside_a_folder():
    """Files of one folder that import one another, at the top of a file or inside a function, are one file."""
    graph = {
        module: [target for target in reads(module) if target not in WAYS_IN and room(target) == room(module)]
        for module in MODULES
        if module not in WAYS_IN
    }
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_the_public_names_agree():
    """`__all__`, the homes of the lazy root and its block for type checkers."""
    tree = ast.parse(MODULES["vitpose_jax"].read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom), ast.unparse(node)
        for alias in node.names:
            assert alias.asname in (alias.name, None), f"{alias.name} is exported as {alias.asname}"
            typed[alias.name] = node.module.removeprefix("vitpose_jax.")
    assert typed == vitpose_jax._HOMES
    assert sorted(vitpose_jax._HOMES) == sorted(vitpose_jax.__all__) == list(dict.fromkeys(vitpose_jax.__all__))
    for name in vitpose_jax.__all__:
        value = getattr(vitpose_jax, name)
        assert value.__module__ == f"vitpose_jax.{vitpose_jax._HOMES[name]}", f"{name} lives in {value.__module__}"
    for name in vitpose_jax._MODULES:
        assert f"vitpose_jax.{name}" in MODULES


def test_nothing_but_one_file_imports_torch():
    for path in sources():
        for name, line in imports(path):
            if name.split(".")[0] == "torch":
                assert path.name == "torch_files.py", f"{path}:{line}"
        # A second one asks for it by name, when a user asks for its tensors.
        if re.search(r"import_module\(\W*torch\b", path.read_text()):
            assert path.parts[-2:] == ("transformers", "arrays.py"), path


def test_no_test_module_imports_another():
    """What tests share stands in tests/support; a test module can be moved or deleted alone."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for name, line in imports(path):
            modules = [part for part in name.split(".") if part.startswith("test_")]
            assert not (name.startswith("tests.") and modules), f"{path}:{line} imports {name}"


def test_tolerances_have_a_name_and_a_reason():
    """No test writes a number as its tolerance: all are in tests/tolerances.py, with comments, and all are used."""
    used = set()
    for path in sorted((ROOT / "tests").rglob("*.py")):
        names = {name.rpartition(".")[2] for name, _ in imports(path) if name.startswith("tests.tolerances.")}
        used |= names
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func).rpartition(".")[2]
            assert len(node.args) <= {"assert_allclose": 2, "approx": 1}.get(function, 255), f"{path}:{node.lineno}"
            for keyword in node.keywords:
                parts = ast.walk(keyword.value) if keyword.arg in ("atol", "rtol", "abs", "rel") else ()
                for part in parts:
                    number = isinstance(part, ast.Constant) and part.value != 0
                    constant = isinstance(part, ast.Name) and part.id.isupper() and part.id not in names
                    assert not number and not constant, (
                        f"{path}:{node.lineno}: expected a name of tests/tolerances.py, got {ast.unparse(keyword)}"
                    )
    lines = (ROOT / "tests" / "tolerances.py").read_text().splitlines()
    values = {line.split(" = ")[0]: above for above, line in itertools.pairwise(lines) if " = " in line}
    assert values.keys() == used
    assert [name for name, above in values.items() if not above.startswith("# ") and " = " not in above] == []


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

    def run(*arguments: str) -> str:
        command = [python.parent / "vitpose-jax", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # The picture is noise: no people are in it.
    assert "nose" in run("predict", "image.png", "--model", "model", "--whole-image", "--draw", "--output", "out")
    assert "tennis_poses.png: 12 people" in run("demo")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "image.json",
        "image_poses.png",
        "settings.jsonl",
    ]
