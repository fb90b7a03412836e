"""Every block of docs/guides/research.md runs on tiny models and drawn people, and the models learn."""

import pathlib
import re
import tomllib

import numpy as np
import pytest

from tests.support.models import random_model
from tests.support.training import ONE_BLOCK, assert_same_arrays, lines, tensors, write_people
from vitpose_jax import VitPoseConfig, checkpoint
from vitpose_jax.storage import parameters
from vitpose_jax.training import loop, setup
from vitpose_jax.training.config import TrainConfig, from_dict
from vitpose_jax.training.distill import TOKEN
from vitpose_jax.vitpose.modeling import abstract_vitpose

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "guides" / "research.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))

pytestmark = pytest.mark.usefixtures("compiled_once")

# Wide enough to learn in a few seconds; initial weights are large enough for attention to matter from the start.
TINY = {**ONE_BLOCK, "num_layers": 2, "hidden_size": 24, "initializer_range": 0.25}
# Every batch holds all people, and nothing is random: if the loss falls, the model has learnt.
FAST = {
    "steps": 80,
    "batch_size": 8,
    "sigma": 1.0,
    "loader": {"threads": 1},
    "log": {"every_steps": 1},
    "augmentation": {"jitter": 0.0, "flip": 0.0, "half_body": 0.0, "scale": 0.0, "rotation": 0.0},
}
OPTIM = {"warmup_steps": 0, "learning_rate": 3e-3, "layer_decay": 1.0, "drop_path": 0.0, "milestones": []}


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> dict[str, str]:
    """A dataset of eight drawn people."""
    return write_people(tmp_path_factory.mktemp("people"), 4)


def shrunk(section: str, number: int, people: dict, output: pathlib.Path, **changes) -> TrainConfig:
    """A run of the page with a tiny model, drawn people and 80 steps; its other settings stay."""
    values = tomllib.loads(blocks(section, "toml")[number])
    del values["epochs"]
    assert [entry["dataset"] for entry in values["data"]] == ["coco"]
    model = {name: value for name, value in values["model"].items() if name != "preset"}
    values["model"] = {**model, **TINY, **changes.pop("model", {})}
    values["optim"] = {**OPTIM, **values.get("optim", {}), **changes.pop("optim", {})}
    return from_dict({**values, **FAST, "data": [people], "output": str(output), **changes})


def falls(output: pathlib.Path, key: str = "loss") -> float:
    """The last value of a metric divided by the first."""
    values = list(lines(output, key).values())
    return values[-1] / values[0]


@pytest.fixture(scope="module")
def trained(people, tmp_path_factory) -> pathlib.Path:
    """The folder of a tiny trained model."""
    output = tmp_path_factory.mktemp("base") / "output"
    values = {**FAST, "steps": 60, "data": [people], "output": str(output), "model": TINY, "optim": OPTIM}
    result = loop.fit(from_dict(values))
    assert falls(output) < 0.5
    return result.model


def test_python_blocks_return_the_shapes_in_their_comments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = VitPoseConfig(hidden_size=12, num_layers=2, num_heads=2, mlp_ratio=2, decoder="simple")
    checkpoint.save(random_model(config), "models/base")
    namespace: dict = {}
    python = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(python) == 3
    for block in python:
        exec(block, namespace)
        # The shapes in the comments, with the width and depth of this model.
        for name, shape in re.findall(r"^(\w+) = .*#.*?\(([\d, ]+)\)", block, re.MULTILINE):
            sides = [int(side) for side in shape.split(", ")]
            tiny = {768: 12, 13: 3}
            assert namespace[name].shape == tuple(tiny.get(side, side) for side in sides), name
    assert namespace["second"].shape == (2, 16, 12, 12)


@pytest.mark.slow
def test_a_model_with_windows_learns(people, trained, tmp_path):
    config = shrunk("Windows", 0, people, tmp_path / "output", init=str(trained), model={"window_size": [2, 2]})
    assert config.model.window_shift and config.model.window_pool
    result = loop.fit(config)
    assert falls(tmp_path / "output") < 0.8
    assert checkpoint.load(result.model).config.window_size == (2, 2)
    with pytest.raises(ValueError, match="transformers has no attention in windows"):
        loop.fit(shrunk("Windows", 0, people, tmp_path / "hub", init=str(trained), huggingface=True))
    assert not (tmp_path / "hub").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "names"),
    [
        ("attention", r"backbone\.blocks\.(attention|norm1)\..+"),
        pytest.param("ffn", r"backbone\.(patch_embed|blocks\.(mlp|norm2))\..+", marks=pytest.mark.slow),
        pytest.param("backbone", r"backbone\..+", marks=pytest.mark.slow),
    ],
)
def test_frozen_parts_do_not_change_and_the_others_learn(people, trained, tmp_path, frozen, names):
    config = shrunk("Frozen parts", 0, people, tmp_path / "output", init=str(trained))
    assert config.optim.frozen == ("attention",)
    if frozen != "attention":
        config = shrunk("Frozen parts", 0, people, tmp_path / "output", init=str(trained), optim={"frozen": [frozen]})
    before, after = tensors(trained), tensors(loop.fit(config).model)
    assert falls(tmp_path / "output") < (0.9 if frozen == "backbone" else 0.8)
    for name in before:
        assert (before[name] == after[name]).all() == bool(re.fullmatch(names, name)), name


@pytest.mark.slow
def test_a_student_approaches_its_teacher(people, trained, tmp_path):
    """The student is initialised at random and narrower than its teacher."""
    changes = {"init": None, "model": {"hidden_size": 16}}
    config = shrunk("Output distillation", 0, people, tmp_path / "output", **changes)
    assert config.distillation.weight == 1
    values = config.to_dict()
    values["distillation"]["teacher"] = str(trained)
    result = loop.fit(from_dict(values))
    assert falls(tmp_path / "output") < 0.6
    assert falls(tmp_path / "output", "distillation") < 0.5
    assert not any("teacher" in name for name in tensors(result.model))


@pytest.mark.slow
def test_a_student_gets_the_token_of_its_teacher(people, trained, tmp_path):
    """And an interrupted run resumes bit-equal."""
    # A teacher with large random weights: its output depends much on attention.
    config = from_dict({**FAST, "data": [people], "output": "unused", "model": TINY}).model
    flat = parameters.flatten(random_model(config))
    large = {name: 4 * leaf if re.fullmatch(r"backbone.+kernel", name) else leaf for name, leaf in flat.items()}
    checkpoint.save(parameters.fill(abstract_vitpose(config), large), tmp_path / "strong")
    changes = {"init": str(tmp_path / "strong"), "model": {"knowledge_token": 24}, "optim": {"learning_rate": 0.05}}
    result = loop.fit(shrunk("Knowledge token", 0, people, tmp_path / "token", **changes))
    assert falls(tmp_path / "token") < 0.85
    before, after = tensors(tmp_path / "strong"), tensors(result.model)
    assert set(after) == {*before, TOKEN}
    assert_same_arrays(before, {name: leaf for name, leaf in after.items() if name != TOKEN})

    changes = {"init": None, "model": {"knowledge_token": 24, "hidden_size": 16}, "steps": 20}
    changes["distillation"] = {"token": str(result.model), "teacher": str(trained)}
    student = shrunk("Knowledge token", 1, people, tmp_path / "student", **changes, checkpoint={"every_steps": 6})
    with pytest.MonkeyPatch.context() as patched:
        make = setup.make_train_step

        def interrupted(*arguments, **options):
            train_step = make(*arguments, **options)

            def run(state, batch, key):
                if state.micro_step == 10:
                    raise KeyboardInterrupt
                return train_step(state, batch, key)

            return run

        patched.setattr(setup, "make_train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.fit(student)
    resumed = loop.fit(student, resume=True)
    assert (resumed.step, resumed.finished) == (20, True)
    whole = loop.fit(from_dict({**student.to_dict(), "output": str(tmp_path / "whole")}))
    assert_same_arrays(tensors(resumed.model), tensors(whole.model))
    assert_same_arrays(lines(tmp_path / "student"), lines(tmp_path / "whole"))
    assert falls(tmp_path / "whole") < 0.9
    learnt = tensors(resumed.model)
    np.testing.assert_array_equal(learnt[TOKEN], after[TOKEN])
    assert "backbone.knowledge_token.proj.kernel" in learnt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation": {}}, "distillation: expected a teacher, a token or both, got none"),
        ({"distillation": {"teacher": "x", "weight": 0}}, "distillation.weight: expected a positive number, got 0"),
        ({"distillation": {"techer": "x"}}, "unknown key distillation.techer; did you mean teacher?"),
        ({"distillation": {"token": "x"}}, "distillation.token: expected its width as model.knowledge_token, got none"),
    ],
)
def test_distillation_settings_are_checked(people, tmp_path, changes, message):
    values = {**FAST, "data": [people], "output": str(tmp_path), "model": TINY, **changes}
    with pytest.raises(ValueError, match=re.escape(message)):
        from_dict(values)


def test_a_token_from_another_model_is_frozen(people, tmp_path):
    model = {**TINY, "knowledge_token": 12}
    values = {**FAST, "data": [people], "output": str(tmp_path), "model": model, "distillation": {"token": "x"}}
    assert from_dict(values).optim_for(9).frozen == ("knowledge_token",)
    assert from_dict({**values, "optim": {"frozen": ["ffn"]}}).optim_for(9).frozen == ("ffn", "knowledge_token")


def test_all_blocks_of_the_page_are_tested_and_its_links_exist():
    assert sum(len(blocks(section, "toml")) for section in SECTIONS) == PAGE.count("```toml") == 5
    folder = pathlib.Path(__file__).parents[2] / "docs" / "guides"
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE):
        assert (folder / link).exists(), link
