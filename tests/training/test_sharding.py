"""Training on several devices and processes equals training on one."""

import contextlib
import json
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.support import programs
from tests.support.training import ONE_BLOCK, lines, settings, tensors, write_people
from tests.support.training_step import random_batch
from tests.tolerances import FLOAT32, LOSSES, PARAMETERS
from vitpose_jax import VitPoseConfig
from vitpose_jax.training import loop
from vitpose_jax.training.optim import parameter_shapes
from vitpose_jax.training.sharding import make_mesh, parameter_specs, put_batch, state_sharding

# Programs are compiled without optimisation: they are run three times.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"


def on_eight_devices(meshes: dict[str, list[int] | None], kind: str = "plain") -> dict:
    command = programs.command("train_on_eight_devices", json.dumps(meshes), kind)
    done = subprocess.run(command, env=programs.environment(XLA_FLAGS=FLAGS), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_as_on_one(found: dict, name: str) -> None:
    np.testing.assert_allclose(found[name]["losses"], found["one"]["losses"], rtol=LOSSES)
    for key, value in found["one"]["sums"].items():
        np.testing.assert_allclose(found[name]["sums"][key], value, rtol=LOSSES, err_msg=key)


@pytest.mark.slow
def test_eight_devices_train_as_one():
    """Data and parameters both split; with augmentation, BatchNorm, stochastic depth and the moving average."""
    found = on_eight_devices({"one": None, "both": [2, 4]})
    assert_as_on_one(found, "both")
    assert found["both"]["parts"] == [[2, 24, 12], [2, 24, 12], [24]]


@pytest.mark.slow
def test_eight_devices_learn_from_a_teacher_as_one():
    """With a frozen token; the teacher is sharded like a state."""
    found = on_eight_devices({"one": None, "both": [2, 4]}, "taught")
    assert_as_on_one(found, "both")
    assert found["both"]["parts"] == [[2, 24, 12], [2, 24, 12], [24], [1, 32, 16]]


@pytest.mark.slow
def test_data_parallel_and_fully_sharded_training_agree():
    found = on_eight_devices({"one": None, "data": [8, 1], "fsdp": [1, 8]})
    for name, columns in (("data", 48), ("fsdp", 6)):
        assert_as_on_one(found, name)
        assert found[name]["parts"][0] == [2, 24, columns]
        # Parameters are gathered, gradients are summed; activations stay where they are.
        assert found[name]["exchanges"] == 0


@pytest.mark.slow
def test_a_checkpoint_is_restored_into_another_mesh(tmp_path):
    """To the bit, and the next step is the same up to rounding."""
    command = programs.command("restore_on_eight_devices", tmp_path / "checkpoints")
    done = subprocess.run(command, env=programs.environment(XLA_FLAGS=FLAGS), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: result["part"][2] for name, result in found.items()} == {"same": 12, "data": 48, "fsdp": 6, "one": 48}
    for name, result in found.items():
        assert result["equal"], name
        np.testing.assert_allclose(result["loss"], result["expected"], rtol=LOSSES, err_msg=name)


def test_the_longest_divisible_axis_is_split():
    shapes = parameter_shapes(VitPoseConfig.preset("plus-base"))
    specs = parameter_specs(shapes, 8)
    by_hand = {
        "backbone.patch_embed.pos_embed": PartitionSpec(None, "fsdp"),
        "backbone.patch_embed.proj.kernel": PartitionSpec(None, None, None, "fsdp"),
        "backbone.blocks.attention.qkv.kernel": PartitionSpec(None, None, "fsdp"),
        "backbone.blocks.mlp.fc2.kernel": PartitionSpec(None, "fsdp"),
        "backbone.blocks.mlp.experts_kernel": PartitionSpec(None, None, "fsdp"),
        "backbone.blocks.mlp.fc1.bias": PartitionSpec(),
        "backbone.norm.scale": PartitionSpec(),
        "heads.coco.deconv1.kernel": PartitionSpec(None, None, "fsdp"),
        "heads.coco.conv.kernel": PartitionSpec(None, None, "fsdp"),
    }
    for name, spec in by_hand.items():
        assert specs[name] == spec, name
    # Less than 1 % of all parameters are replicated.
    whole = sum(np.prod(shapes[name]) for name, spec in specs.items() if spec == PartitionSpec())
    assert whole < 0.01 * sum(map(np.prod, shapes.values()))
    assert set(parameter_specs(shapes, 1).values()) == {PartitionSpec()}
    # An axis that 7 does not divide is not split.
    assert parameter_specs(shapes, 7)["backbone.blocks.attention.qkv.kernel"] == PartitionSpec()


def test_a_mesh_of_another_kind_is_refused():
    """`jax.make_mesh` makes axes of the type Explicit."""
    batch = np.zeros((2, 3))
    for mesh in (jax.make_mesh((1, 1), ("data", "fsdp")), jax.make_mesh((1,), ("data",))):
        with pytest.raises(ValueError, match=r"^mesh: expected the axes data and fsdp of the type Auto, .* Explicit$"):
            put_batch(batch, mesh)
        with pytest.raises(ValueError, match="mesh: expected the axes"):
            state_sharding({"a.kernel": batch}, mesh)


def test_make_mesh_checks_the_number_of_devices():
    with pytest.raises(ValueError, match="fsdp: expected a divisor of the 1 devices, got 2"):
        make_mesh(fsdp=2, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="expected 1, the number of devices, got 3 x 1"):
        make_mesh(data=3, devices=jax.devices()[:1])


def test_put_batch_keeps_a_batch_on_a_mesh_of_one_device():
    batch = random_batch(VitPoseConfig(image_size=(64, 48), hidden_size=24, num_heads=3), ["coco"] * 3)
    placed = put_batch(batch, make_mesh(devices=jax.devices()[:1]))
    for (path, leaf), other in zip(jax.tree.leaves_with_path(batch), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(other, leaf, err_msg=jax.tree_util.keystr(path))


@contextlib.contextmanager
def two_processes(path: pathlib.Path, *, pause: float = 0.0) -> Iterator[list[subprocess.Popen]]:
    """Two processes, with one device each, that train together or resume a run; killed at the end.

    Args:
        path: the settings of the run.
        pause: extra seconds in each micro-step.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Compiled with the optimisations of this process: others round otherwise.
    environment = programs.environment()
    processes = [
        subprocess.Popen(
            programs.command("train_slowly", path, pause, address, number),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_two_processes_train_as_one(tmp_path):
    """Parameters are split over both processes; both are killed during the run and started again.

    A step changes a parameter by up to the learning rate, 1e-3. Adam divides a gradient by its own size, even if it is
    0 apart from rounding, like that of the keys' bias: an eps above such errors keeps them small. So a difference of
    `PARAMETERS`, a hundredth of a step, would come from other people, random numbers or statistics; rounding causes
    about 1e-6.
    """
    people = write_people(tmp_path / "people", 6)
    changes = {
        "model": {**ONE_BLOCK, "decoder": "classic"},
        "steps": 6,
        "optim": {"warmup_steps": 0, "learning_rate": 1e-3, "eps": 1e-6, "drop_path": 0.1},
    }
    output = tmp_path / "together"
    alone = loop.fit(settings(people, tmp_path / "alone", **changes))
    path = tmp_path / "training.json"
    path.write_text(json.dumps(settings(people, output, **changes, mesh={"fsdp": 2}).to_dict()))

    with two_processes(path, pause=0.4) as processes:
        deadline = time.monotonic() + 300
        while not ((output / "checkpoints" / "3").is_dir() and max(lines(output), default=0) >= 4):
            assert time.monotonic() < deadline
            for process in processes:
                assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
    assert max(lines(output)) < 6
    with two_processes(path) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors

    for name in ("loss", "gradient_norm", "accuracy"):
        ours, expected = lines(output, name), lines(tmp_path / "alone", name)
        assert list(ours) == list(expected)
        np.testing.assert_allclose(list(ours.values()), list(expected.values()), rtol=LOSSES, err_msg=name)
    np.testing.assert_allclose(lines(output)[1], lines(tmp_path / "alone")[1], rtol=FLOAT32)
    ours = tensors(output / "last")
    for name, leaf in tensors(alone.model).items():
        np.testing.assert_allclose(ours[name], leaf, rtol=0, atol=PARAMETERS, err_msg=name)

    # One process resumes the run of two.
    changes["steps"] = 7
    for folder in (output, tmp_path / "alone"):
        assert loop.fit(settings(people, folder, **changes), resume=True).step == 7
    np.testing.assert_allclose(lines(output)[7], lines(tmp_path / "alone")[7], rtol=LOSSES)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_two_processes_evaluate_as_one(tmp_path):
    """Each computes its part of the evaluation; both get the same numbers, and the first writes the best model."""
    people = write_people(tmp_path / "people", 6)
    # Keypoints of larger people may be further off: an untrained model scores, too.
    document = json.loads(pathlib.Path(people["annotations"]).read_text())
    for annotation in document["annotations"]:
        annotation["area"] *= 50
    (tmp_path / "large.json").write_text(json.dumps(document))
    evaluation = {**people, "annotations": str(tmp_path / "large.json"), "every_steps": 2, "max_batch": 2}
    changes = {
        "model": {**ONE_BLOCK, "decoder": "classic"},
        "steps": 4,
        "optim": {"warmup_steps": 0, "learning_rate": 1e-3, "eps": 1e-6},
        "evaluation": evaluation,
    }
    output = tmp_path / "together"
    alone = loop.fit(settings(people, tmp_path / "alone", **changes))
    path = tmp_path / "training.json"
    path.write_text(json.dumps(settings(people, output, **changes, mesh={"fsdp": 2}).to_dict()))
    with two_processes(path) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    keys = {key for line in (output / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    names = sorted(key for key in keys if key.startswith("evaluation/"))
    assert "evaluation/AP" in names
    for name in names:
        ours, expected = lines(output, name), lines(tmp_path / "alone", name)
        assert list(ours) == list(expected) == [2, 4]
        np.testing.assert_allclose(list(ours.values()), list(expected.values()), rtol=0, atol=PARAMETERS, err_msg=name)
    assert 0 < lines(output, "evaluation/AP")[4] < 1
    ours = tensors(output / "best")
    for name, leaf in tensors(alone.model).items():
        np.testing.assert_allclose(ours[name], leaf, rtol=0, atol=PARAMETERS, err_msg=name)
    assert not (output / "last").exists()
