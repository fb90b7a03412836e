"""Training runs from files: settings, output files, evaluation, and exact resume after a kill or a Ctrl-C."""

import json
import pathlib
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from tests.support import programs
from tests.support.cli import run
from tests.support.training import assert_same_arrays, lines, settings, tensors, write_people
from tests.tolerances import FLOAT32
from vitpose_jax import from_pretrained, training
from vitpose_jax.bundled import bundled_models
from vitpose_jax.storage import parameters
from vitpose_jax.training import config as configs
from vitpose_jax.training import loop, setup
from vitpose_jax.training.config import TrainConfig, from_dict, read_config
from vitpose_jax.training.optim import learning_rate
from vitpose_jax.training.signals import caught_signals

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> dict[str, str]:
    return write_people(tmp_path_factory.mktemp("people"), 6)


@pytest.fixture(scope="module")
def uninterrupted(people, tmp_path_factory) -> pathlib.Path:
    """The output folder of a run of seven steps."""
    output = tmp_path_factory.mktemp("trained") / "output"
    result = loop.fit(settings(people, output))
    assert (result.step, result.finished, result.best) == (7, True, None)
    assert result.model == output / "last"
    return output


def test_a_run_writes_its_files(people, uninterrupted):
    losses = lines(uninterrupted)
    assert list(losses) == [1, 2, 3, 4, 5, 6, 7]
    assert len(set(losses.values())) == 7
    rates = lines(uninterrupted, "learning_rate")
    np.testing.assert_allclose([rates[1], rates[3]], [1e-6, 1e-3], rtol=FLOAT32)
    assert {"accuracy", "gradient_norm", "people_per_second"} < set(
        json.loads((uninterrupted / "metrics.jsonl").read_text().splitlines()[0])
    )
    assert [path.name for path in (uninterrupted / "checkpoints").iterdir()] == ["7"]
    assert read_config(uninterrupted / "config.json") == settings(people, uninterrupted)
    model = from_pretrained(uninterrupted / "last")
    assert model.config == settings(people, uninterrupted).model
    with pytest.raises(ValueError, match="already holds a training run"):
        loop.fit(settings(people, uninterrupted))
    with pytest.raises(ValueError, match="to resume it, got others for batch_size, seed"):
        loop.fit(settings(people, uninterrupted, batch_size=2, seed=3), resume=True)


@pytest.mark.slow
def test_resuming_after_a_kill_is_bit_equal(people, uninterrupted, tmp_path):
    """A real SIGKILL, once a checkpoint is on disk and steps were made after it."""
    output = tmp_path / "output"
    path = tmp_path / "training.json"
    # Slower, so that it can be killed before its end.
    path.write_text(json.dumps({**settings(people, output).to_dict()}))
    command = programs.command("train_slowly", path, 0.4)
    process = subprocess.Popen(command, env=programs.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not ((output / "checkpoints" / "3").is_dir() and max(lines(output), default=0) >= 4):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert max(lines(output)) < 7
    assert not (output / "last").exists()

    result = loop.fit(settings(people, output), resume=True)
    assert (result.step, result.finished) == (7, True)
    assert_same_arrays(lines(output), lines(uninterrupted))
    assert_same_arrays(tensors(result.model), tensors(uninterrupted / "last"))


def test_a_signal_that_is_ignored_stays_ignored(ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with caught_signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals == [] and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)
        assert signals == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_signal_waits_until_the_checkpoints_are_open(people, tmp_path, monkeypatch, ctrl_c):
    """Orbax works in threads, which print a traceback when the program ends while they begin."""
    events = []

    class Slow(setup.Checkpoints):
        def __init__(self, folder):
            signal.raise_signal(signal.SIGINT)
            super().__init__(folder)
            events.append("open")

        def close(self):
            super().close()
            events.append("closed")

    monkeypatch.setattr(setup, "Checkpoints", Slow)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(settings(people, tmp_path / "output"))
    assert events == ["open", "closed"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_control_c_saves_and_resumes_bit_equal(people, uninterrupted, tmp_path, monkeypatch, ctrl_c):
    output = tmp_path / "output"
    make = setup.make_train_step

    def interrupted(*arguments, **options):
        train_step = make(*arguments, **options)

        def run(state, batch, key):
            if state.micro_step == 4:
                signal.raise_signal(signal.SIGINT)
            return train_step(state, batch, key)

        return run

    with monkeypatch.context() as patched:
        patched.setattr(setup, "make_train_step", interrupted)
        handler = signal.getsignal(signal.SIGINT)
        result = loop.fit(settings(people, output))
        assert signal.getsignal(signal.SIGINT) is handler
    assert (result.step, result.finished, result.model) == (5, False, None)
    assert result.checkpoint == output / "checkpoints" / "5"
    result = loop.fit(settings(people, output), resume=True)
    assert (result.step, result.finished) == (7, True)
    assert_same_arrays(lines(output), lines(uninterrupted))
    assert_same_arrays(tensors(result.model), tensors(uninterrupted / "last"))


def test_a_loss_that_is_not_finite_ends_the_run(people, tmp_path, monkeypatch):
    output = tmp_path / "output"
    make = setup.make_train_step

    def poisoned(*arguments, **options):
        train_step = make(*arguments, **options)

        def run(state, batch, key):
            if state.micro_step == 4:
                batch = batch._replace(weights=np.full_like(batch.weights, np.inf))
            return train_step(state, batch, key)

        return run

    monkeypatch.setattr(setup, "make_train_step", poisoned)
    with pytest.raises(loop.DivergenceError, match=r"step 5 of 7: loss is (nan|inf); the last checkpoint, of step 3"):
        loop.fit(settings(people, output))
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["3"]
    assert max(lines(output)) == 4


def test_the_best_of_three_evaluations_is_written(people, tmp_path, monkeypatch, capsys):
    """The second is the best. It is written in the native format and for transformers."""
    output = tmp_path / "output"
    values = iter([0.2, 0.6, 0.4])
    seen = []
    measure = loop.evaluate_state

    def evaluated(config, evaluation, dataset, state):
        metrics = measure(config, evaluation, dataset, state)
        assert 0 <= metrics["AP"] <= 1
        seen.append({name: np.array(leaf) for name, leaf in (state.ema | state.rest).items()})
        return {**metrics, "AP": next(values)}

    monkeypatch.setattr(loop, "evaluate_state", evaluated)
    evaluation = {**people, "every_steps": 3, "max_batch": 8}
    result = loop.fit(settings(people, output, evaluation=evaluation, huggingface=True))
    assert result.model == output / "best" and result.best["AP"] == 0.6
    assert lines(output, "evaluation/AP") == {3: 0.2, 6: 0.6, 7: 0.4}
    assert_same_arrays(tensors(output / "best"), seen[1])
    assert_same_arrays(
        tensors(output / "best"),
        {
            n: np.asarray(x)
            for n, x in parameters.flatten(from_pretrained(output / "best-huggingface", skeleton="coco")).items()
        },
    )
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["6", "7"]
    assert "AP 0.6" in capsys.readouterr().out


@pytest.fixture
def counting(monkeypatch):
    """Replaces the micro-step by one that only counts and needs no compilation."""

    def make(*_, **__):
        names = ("loss", "accuracy", "gradient_norm", "learning_rate")
        return lambda state, batch, key: (
            state._replace(micro_step=state.micro_step + 1),
            dict.fromkeys(names, np.float32(0.5)),
        )

    monkeypatch.setattr(setup, "make_train_step", make)


def test_two_micro_steps_make_one_step(people, tmp_path, counting):
    optim = {"accumulate": 2}
    result = loop.fit(settings(people, tmp_path / "output", steps=3, batch_size=2, optim=optim))
    assert result.step == 3
    assert result.checkpoint.name == "6"
    assert list(lines(tmp_path / "output")) == [1, 2, 3]


def test_epochs_are_converted_to_steps(people, tmp_path, counting):
    """Twelve people, four in a step."""
    result = loop.fit(settings(people, tmp_path / "output", steps=None, epochs=2, checkpoint={"every_epochs": 1}))
    assert result.step == 6


EXAMPLE = """
output = "out"
epochs = 10
batch_size = 8
init = "mae.pth"

[model]
preset = "base-simple"
skeletons = ["dog"]
image_size = [128, 128]

[[skeletons]]
name = "dog"
keypoints = ["nose", "left_ear", "right_ear"]

[[data]]
dataset = "dog"
annotations = "dogs.json"
images = "dogs"
weights = { "noisy_.*" = 0.5 }

[optim]
learning_rate = 1e-4
frozen = ["attention"]

[augmentation]
rotation = 20
"""


@pytest.fixture
def example(tmp_path) -> pathlib.Path:
    path = tmp_path / "example.toml"
    path.write_text(EXAMPLE)
    return path


def test_a_file_and_overrides_give_typed_settings(example):
    config = read_config(example, ["batch_size=16", "data.0.ratio=2", "output=over/there", "mesh.fsdp=2", 'init="x"'])
    assert (config.batch_size, config.output, config.mesh.fsdp, config.init) == (16, "over/there", 2, "x")
    assert config.data[0].ratio == 2.0 and config.data[0].weights == {"noisy_.*": 0.5}
    assert config.model.image_size == (128, 128) and config.model.decoder == "simple"
    (skeleton,) = config.model.skeletons
    assert skeleton.flip_pairs == ((1, 2),)
    assert config.protocol("dog").skeleton is skeleton
    optim = config.optim_for(90)
    assert (optim.learning_rate, optim.layer_decay, optim.frozen) == (1e-4, 0.75, ("attention",))
    assert (optim.drop_path, optim.total_steps) == (0.3, 90)
    assert config.augmentation.rotation == 20 and config.augmentation.flip == 0.5
    assert from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batchsize=3", "unknown key batchsize; did you mean batch_size?"),
        ("optim.learning_rat=3", "unknown key optim.learning_rat; did you mean learning_rate?"),
        ("augmentation.rotate=3", "unknown key augmentation.rotate; did you mean rotation?"),
        ("model.widht=3", "unknown key model.widht; expected one of preset"),
        ("data.0.image=x", "unknown key data.0.image; did you mean images?"),
        ("data.1.images=x", "expected a table, or the index of an item in a list, at 1"),
        ("skeletons.0.edge=[]", "unknown key skeletons.0.edge; did you mean edges?"),
        ("batch_size=many", "batch_size: expected a whole number, got 'many'"),
        ("batch_size=true", "batch_size: expected a whole number, got True"),
        ("batch_size=0", "batch_size: expected a positive number, got 0"),
        ("precision=float8", "precision: expected one of float32, bfloat16, got 'float8'"),
        ("steps=3", "expected one of epochs and steps"),
        ("data=[]", "data: expected one dataset or more"),
        ("optim.betas=[0.9]", "optim.betas: expected 2 values"),
        ("optim.layer_decay=0", "layer_decay: expected a positive number, got 0"),
        ("augmentation.flip=2", "flip: expected a probability"),
        ("model.preset=basic", "no preset named 'basic'"),
        ('model.skeletons=["cat"]', "no skeleton named 'cat'; expected one of coco"),
        ("data.0.dataset=cat", "no dataset named 'cat'; expected one of coco"),
        ("data.0.dataset=coco", "'coco' in this model; it knows dog"),
        ("evaluation=3", "evaluation: expected a table, got 3"),
        ("evaluation.dataset=dog", "missing key evaluation.annotations"),
        ("checkpoint={every_steps=1, every_epochs=2}", "expected one of every_epochs and every_steps, got both"),
        ("nonsense", "nonsense: expected key=value"),
        ("optim.total_steps=3", "unknown key optim.total_steps; did you mean warmup_steps?"),
        ("skeletons.0.keypoints=nose", "skeletons.0.keypoints: expected a list, got 'nose'"),
        ('model.skeletons=[["dog"]]', "model.skeletons.0: expected a table, got ['dog']"),
        ("model=base", "model: expected a table, got 'base'"),
        ("data.0.cache=disk", "data.0.cache: expected one of memory, got 'disk'"),
    ],
)
def test_errors_name_the_key_and_what_was_expected(example, override, message):
    with pytest.raises(ValueError) as error:
        read_config(example, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.toml: cannot be read"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 3")
    with pytest.raises(ValueError, match=r"bad\.toml"):
        read_config(tmp_path / "bad.toml")


def test_all_problems_of_a_file_are_listed_at_once(example):
    overrides = ["batchsize=3", "seeed=1", "optim.betas=[0.9]", "optim.eps=x", "augmentation.flip=2", "data.0.image=x"]
    with pytest.raises(ValueError) as error:
        read_config(example, overrides)
    assert str(error.value).removeprefix(f"{example}: ").split("; ") == [
        "unknown key batchsize",
        "did you mean batch_size?",
        "unknown key seeed",
        "did you mean seed?",
        "unknown key data.0.image",
        "did you mean images?",
        "optim.betas: expected 2 values, got [0.9]",
        "optim.eps: expected a number, got 'x'",
        "augmentation: Augmentation: flip: expected a probability from 0 to 1, got 2",
    ]


def test_a_preset_must_have_a_field_to_fill_in(example):
    """A config.json names every field: a preset would do nothing, silently."""
    values = read_config(example).to_dict()
    values["model"]["preset"] = "large"
    with pytest.raises(ValueError, match=r"model\.preset: expected some fields to fill in"):
        from_dict(values)


def test_settings_that_a_resumed_run_may_change_exist():
    names = {field.name for field in configs.dataclasses.fields(TrainConfig)}
    assert set(configs.MAY_CHANGE) < names


@pytest.mark.parametrize("path", sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.toml")), ids=str)
def test_recipes_are_consistent(path):
    """The schedule fits into the run, and the model has a head for each dataset and no other."""
    config = read_config(path)
    if config.task == "second_stage":
        assert {config.init, config.backbone} == set(bundled_models())
        return
    assert from_dict(config.to_dict()) == config
    # In runs of epochs, an epoch has 20 steps or more; of the person finder's, 100.
    total_steps = config.steps or round(config.epochs * (20 if config.task == "pose" else 100))
    optim = config.optim_for(total_steps)
    assert optim.warmup_steps < total_steps / 2
    steps = np.linspace(optim.warmup_steps, total_steps - 1, 16).round().astype(int)
    rates = [float(learning_rate(optim)(step)) for step in steps.tolist()]
    assert optim.learning_rate / 2 < rates[0] < 1.001 * optim.learning_rate
    assert rates == sorted(rates, reverse=True) and rates[-1] < optim.learning_rate / 10
    if config.task == "pose":
        assert {config.protocol(entry.dataset).skeleton.name for entry in config.data} == {
            skeleton.name for skeleton in config.model.skeletons
        }


def test_the_command_trains_and_tells_how_to_resume(capsys, people, tmp_path, counting, monkeypatch):
    path = tmp_path / "training.json"
    path.write_text(json.dumps(settings(people, tmp_path / "unused").to_dict()))
    output = tmp_path / "1e3"
    status, printed, said = run(capsys, "train", path, "steps=1", "--output", output)
    assert (status, said) == (0, "")
    assert printed.splitlines()[0].startswith("step 1/1  ")
    assert printed.splitlines()[-1] == f"step 1: {output / 'last'}"
    assert run(capsys, "train", path, "steps=1", "--output", output) == (
        1,
        "",
        f"vitpose-jax: error: {output}: already holds a training run; resume it or choose another folder\n",
    )
    status, _, said = run(capsys, "train", path, "stepz=1")
    assert status == 1 and said.count("\n") == 1 and "did you mean steps?" in said
    monkeypatch.setattr(
        loop, "fit", lambda *_, **__: loop.FitResult(step=3, finished=False, model=None, best=None, checkpoint=output)
    )
    monkeypatch.setattr(sys, "argv", ["vitpose-jax", "train", str(path), "--output", "x"])
    status, _, said = run(capsys, "train", path, "--output", "x")
    assert status == 130
    assert f"to resume: vitpose-jax train {path} --output x --resume" in said


def test_train_help_needs_no_jax():
    command = programs.command("help_without_jax", "train")
    done = subprocess.run(command, env=programs.environment(), check=True, capture_output=True, text=True)
    assert "--resume" in done.stdout


def test_public_names_are_no_modules():
    """A module of the same name would replace the function once it is imported."""
    for name in training.__all__:
        assert not isinstance(getattr(training, name), types.ModuleType), name
    for path in pathlib.Path(training.__file__).parent.glob("*.py"):
        assert path.stem not in training.__all__
