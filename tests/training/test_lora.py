"""Low-rank adapters: the same model at the start, small files, merged models, and trainings of them."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.cli import run
from tests.support.models import PLUS, SMALLEST, assert_same_model, random_crops, random_model
from tests.support.training import ONE_BLOCK, assert_same_arrays, lines, settings, write_people
from tests.tolerances import BFLOAT16, HEATMAPS
from vitpose_jax import VitPose, VitPoseConfig, checkpoint, export, from_pretrained
from vitpose_jax.pretrained import describe
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import open_safetensors
from vitpose_jax.training import (
    LoraConfig,
    OptimConfig,
    loop,
    merge_adapters,
    save_adapters,
    setup,
    split,
    with_adapters,
)
from vitpose_jax.training import config as configs
from vitpose_jax.training.config import from_dict
from vitpose_jax.training.initialize import initialize
from vitpose_jax.training.lora import ADAPTERS
from vitpose_jax.training.optim import merge
from vitpose_jax.vitpose.adapters import Lora
from vitpose_jax.vitpose.modeling import abstract_vitpose

WIDTH = 16
FIELDS = {**SMALLEST, "hidden_size": WIDTH}
CONFIGS = {"plain": VitPoseConfig(**FIELDS), "experts": VitPoseConfig(**{**FIELDS, **PLUS})}
ROUNDINGS = [{}, {"quantize": "int8"}, {"quantize": "int4", "group_size": 8}]
ALL = {"rank": 3, "alpha": 6.0}

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("bases")
    for name, config in CONFIGS.items():
        checkpoint.save(random_model(config), root / name)
    return root


def trained(model: VitPose, seed: int = 5) -> VitPose:
    """As after a training: other adapters and heads."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = dict(parameters.flatten(model))
    for name, leaf in tensors.items():
        if ".lora_" in name:
            tensors[name] = rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        elif name.startswith("heads.") and "var" not in name:
            tensors[name] = leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32)
    return model.rebuild(model.config, tensors)


def adapted(bases: pathlib.Path, name: str, **fields) -> VitPose:
    return with_adapters(from_pretrained(bases / name), LoraConfig(**{**ALL, **fields}), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_new_adapters_change_nothing(bases, name, rounding):
    model = adapted(bases, name, **rounding)
    expected = from_pretrained(bases / name, **rounding)
    crops = random_crops(model.config)
    for dataset in (None, np.array([0, 2, 1])) if name == "experts" else (None,):
        np.testing.assert_array_equal(model(crops, dataset), expected(crops, dataset))
    names = {name.rpartition(".")[0] for name in parameters.flatten(model) if name.endswith(".lora_a")}
    assert names == {kernel for kernel in parameters.shapes(from_pretrained(bases / name)) if ".blocks." in kernel
                     and kernel.endswith("kernel")}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_merged_model_is_the_adapted_one(bases, name, rounding):
    model = trained(adapted(bases, name, **rounding))
    merged = merge_adapters(model)
    assert merged.lora is None and merged.quantization is None and merge_adapters(merged) is merged
    crops = random_crops(model.config)
    for dataset in (1, np.array([0, 2, 1])) if name == "experts" else (None,):
        expected = np.asarray(model(crops, dataset))
        np.testing.assert_allclose(
            merged(crops, dataset), expected, rtol=0, atol=HEATMAPS * np.nanmax(np.abs(expected))
        )
        assert np.abs(expected - np.asarray(from_pretrained(bases / name)(crops, dataset))).max() > 0.1


def test_in_bfloat16(bases):
    model = from_pretrained(bases / "experts", dtype="bfloat16")
    model = trained(with_adapters(model, LoraConfig(**ALL), rngs=nnx.Rngs(0)))
    expected = np.asarray(merge_adapters(trained(adapted(bases, "experts")))(random_crops(model.config)))
    heatmaps = np.asarray(model(random_crops(model.config)), np.float32)
    np.testing.assert_allclose(heatmaps, expected, rtol=0, atol=BFLOAT16 * np.abs(expected).max())


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_only_adapters_and_heads_have_gradients(bases, rounding):
    model = adapted(bases, "experts", **rounding)
    optim = OptimConfig(trained=(ADAPTERS, r"heads\.coco\..+"))
    graphdef, learnt, rest = split(model, optim.frozen, optim.trained)
    assert {name for name in learnt if not name.startswith("heads.coco.")} == {
        name for name in parameters.flatten(model) if ".lora_" in name
    }
    assert not set(learnt) & set(rest)
    crops = random_crops(model.config)

    @jax.jit
    @jax.grad
    def gradients(learnt):
        return jnp.square(merge(graphdef, learnt, rest)(crops, "coco")).sum()

    values = {name: float(jnp.abs(leaf).max()) for name, leaf in gradients(learnt).items()}
    assert values.keys() == learnt.keys()
    # lora_b is zero: nothing reaches lora_a yet.
    assert all((values[name] == 0) == name.endswith(".lora_a") for name in values)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_folder_is_the_merged_model(bases, tmp_path, name, rounding):
    model = trained(adapted(bases, name, **rounding))
    save_adapters(model, str(bases / name), tmp_path / "adapter")
    assert_same_model(from_pretrained(tmp_path / "adapter"), merge_adapters(model))
    assert describe(tmp_path / "adapter").format == "adapter"
    assert_same_model(from_pretrained(tmp_path / "adapter" / "model.safetensors"), merge_adapters(model))
    # Layer by layer.
    quantized = from_pretrained(tmp_path / "adapter", quantize="int4", group_size=4)
    checkpoint.save(merge_adapters(model), tmp_path / "merged")
    assert_same_model(quantized, from_pretrained(tmp_path / "merged", quantize="int4", group_size=4))
    # A training of all parameters starts from it, too.
    again = initialize(model.config, tmp_path / "adapter", rngs=nnx.Rngs(0))
    assert_same_model(again, merge_adapters(model))
    with pytest.raises(ValueError, match="already holds"):
        save_adapters(model, str(bases / name), tmp_path / "adapter")


def test_a_folder_is_small(tmp_path):
    """Rank times the sides of the kernels, a head, and no more than 20 kB of names."""
    config = VitPoseConfig(**{**SMALLEST, "hidden_size": 128, "num_layers": 4})
    checkpoint.save(random_model(config), tmp_path / "base")
    lora = LoraConfig(rank=4, targets=(r".+\.attention\.qkv\.kernel",))
    model = trained(with_adapters(from_pretrained(tmp_path / "base"), lora, rngs=nnx.Rngs(0)))
    save_adapters(model, str(tmp_path / "base"), tmp_path / "adapter")
    size, whole = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("adapter", "base"))
    head = 4 * (128 * 17 * 9 + 17)
    assert 0 < size - head - 4 * 4 * 4 * (128 + 3 * 128) < 20_000
    assert whole > 10 * size
    # Without a trained head there are only adapters.
    save_adapters(with_adapters(from_pretrained(tmp_path / "base"), lora, rngs=nnx.Rngs(0)), str(tmp_path / "base"),
                  tmp_path / "less")  # fmt: skip
    assert size - (tmp_path / "less" / "model.safetensors").stat().st_size > head


def test_another_skeleton_and_another_size(bases, tmp_path):
    """What the base does not have is in the folder."""
    config = CONFIGS["plain"].replace(image_size=(64, 32), skeletons=(CONFIGS["experts"].skeletons[1],))
    model = initialize(config, bases / "plain", rngs=nnx.Rngs(0))
    model = trained(with_adapters(model, LoraConfig(**ALL), rngs=nnx.Rngs(0)))
    save_adapters(model, str(bases / "plain"), tmp_path / "adapter")
    assert_same_model(from_pretrained(tmp_path / "adapter"), merge_adapters(model))


def test_the_base_is_found_and_checked(bases, tmp_path, capsys):
    folder = tmp_path / "moved"
    checkpoint.save(from_pretrained(bases / "plain"), folder / "base")
    model = trained(adapted(bases, "plain"))
    save_adapters(model, str(folder / "base"), folder / "adapter")
    document = json.loads((folder / "adapter" / "config.json").read_text())
    assert document["base"] == str(folder / "base")

    def change(**values):
        (folder / "adapter" / "config.json").write_text(json.dumps({**document, **values}))
        return folder / "adapter"

    assert_same_model(from_pretrained(change(base="../base")), merge_adapters(model))
    checkpoint.save(random_model(CONFIGS["plain"], seed=1), folder / "other")
    for values, message in (
        ({"base": "../other"}, "expected the model that its adapters were trained on, got another"),
        ({"base": str(folder / "nowhere")}, '"base", the model that its adapters belong to: .*nowhere: no such file'),
        ({"base": "."}, '"base", .* not a ViTPose: expected model_type'),
        ({"rank": 0}, "rank: expected 1 or more, got 0"),
        ({"rank": 2}, "lora_a: expected shape"),
        ({"alpha": float("inf")}, "alpha: expected a positive number"),
        ({"kernels": ["backbone.norm.scale"]}, "expected names of kernels of the blocks"),
        ({"kernels": document["kernels"][1:]}, "unexpected backbone.blocks.attention.proj.kernel.lora_a"),
        ({"kernels": [3]}, "kernels: expected names"),
        ({"quantize": "int3", "group_size": 4}, "expected one of int8, int4 with a number, or null, got 'int3', 4"),
        ({"quantize": "int4", "group_size": 5}, "expected a divisor"),
        ({"format": 9}, "expected format 1, got 9"),
        ({"more": 9}, "expected alpha, base"),
        ({"model": {}}, "config.json"),
    ):
        with pytest.raises(ValueError, match=message):
            from_pretrained(change(**values))
    status, _, said = run(capsys, "info", change(base=str(folder / "nowhere")))
    assert status == 1 and said.count("\n") == 1
    change()
    assert run(capsys, "convert", folder / "adapter", folder / "merged")[0] == 0
    assert_same_model(checkpoint.load(folder / "merged"), merge_adapters(model))
    with pytest.raises(ValueError, match="has adapters itself; `vitpose-jax convert` writes a model without"):
        save_adapters(model, str(folder / "adapter"), folder / "two")


def test_what_a_model_with_adapters_cannot(bases, tmp_path):
    model = adapted(bases, "experts")
    for call in (
        lambda: model.specialize("aic"),
        lambda: checkpoint.save(model, tmp_path / "folder"),
        lambda: export.to_stablehlo(model, tmp_path / "file"),
        lambda: initialize(model.config, model, rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(ValueError, match="expected a model without adapters, got one with"):
            call()
    with pytest.raises(ValueError, match="expected a model in floating point without adapters"):
        with_adapters(model, LoraConfig(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="expected a model with adapters"):
        save_adapters(merge_adapters(model), str(bases / "experts"), tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="sorted, each once"):
        Lora(rank=1, alpha=1.0, kernels=())


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, "rank: expected 1 or more, got 0"),
        ({"alpha": 0}, "alpha: expected a positive number"),
        ({"targets": []}, "targets: expected one pattern or more"),
        ({"targets": ["(a+)+"]}, "targets: pattern"),
        ({"targets": ["heads.+"]}, "lora.targets: expected patterns of kernels of the blocks .*got 'heads.+'"),
        ({"rank": 12}, "lora.rank: expected less than 12"),
        ({"group_size": 4}, "group_size: expected only with int4"),
        ({"quantize": "int4"}, "expected a divisor of the 12 inputs"),
        ({"quantize": "int2"}, "lora.quantize: expected one of int8, int4"),
    ],
)
def test_settings_are_checked(tmp_path, lora, message):
    people = {"dataset": "coco", "annotations": "a.json", "images": "images"}
    with pytest.raises(ValueError, match=message):
        settings(people, tmp_path, init="base", lora=lora)
    with pytest.raises(ValueError, match="adapters belong to as init, got none"):
        settings(people, tmp_path, lora={})
    with pytest.raises(ValueError, match=r"optim\.trained: expected lora\.trained instead"):
        settings(people, tmp_path, init="base", lora={}, optim={"trained": ["heads.+"]})


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> dict[str, str]:
    return write_people(tmp_path_factory.mktemp("people"), 6)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base") / "model"
    checkpoint.save(random_model(VitPoseConfig(**{**ONE_BLOCK, "image_size": (64, 48)})), folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("rounding", [{}, {"quantize": "int4", "group_size": 4}])
def test_a_training_writes_a_small_folder_and_resumes(people, base, tmp_path, monkeypatch, rounding):
    changes = {"init": base, "lora": {"rank": 2, **rounding}}
    whole = loop.fit(settings(people, tmp_path / "whole", **changes))
    losses = lines(tmp_path / "whole")
    assert whole.finished and len(losses) == 7
    # Three steps, then the rest.
    config = settings(people, tmp_path / "parts", **changes)
    make = setup.make_train_step

    def interrupted(*arguments, **options):
        step = make(*arguments, **options)

        def run(state, batch, key):
            if state.micro_step == 4:
                raise KeyboardInterrupt
            return step(state, batch, key)

        return run

    with monkeypatch.context() as patched:
        patched.setattr(setup, "make_train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.fit(config)
    result = loop.fit(config, resume=True)
    assert_same_arrays(lines(tmp_path / "parts"), losses)
    assert whole.model is not None and result.model is not None
    assert_same_model(from_pretrained(result.model), from_pretrained(whole.model))
    with pytest.raises(ValueError, match="got others for lora"):
        loop.fit(settings(people, tmp_path / "parts", **{**changes, "lora": {"rank": 3, **rounding}}), resume=True)
    # The backbone outside of the kernels is the base's, and the file has none of it.
    model, start = from_pretrained(whole.model), parameters.flatten(from_pretrained(base, **rounding))
    names = set(parameters.flatten(model))
    for name in names:
        if name.startswith("backbone.") and not name.endswith("kernel"):
            np.testing.assert_array_equal(parameters.flatten(model)[name], start[name], err_msg=name)
    stored = set(open_safetensors(whole.model / "model.safetensors"))
    assert {name for name in stored if name.startswith("backbone.")} == {name for name in stored if ".lora_" in name}


@pytest.mark.slow
def test_adapters_learn(people, base, tmp_path):
    """The loss on six drawn pictures falls, with the head as it is: adapters alone do it."""
    lora = {"rank": 4, "trained": []}
    optim = {"learning_rate": 1e-2, "warmup_steps": 2, "drop_path": 0.0, "layer_decay": 1.0, "weight_decay": 0.0}
    changes = {"init": base, "optim": optim, "steps": 40, "checkpoint": {"every_steps": 40}}
    loop.fit(settings(people, tmp_path / "output", lora=lora, **changes))
    losses = list(lines(tmp_path / "output").values())
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])


def test_the_configuration_of_the_repository(tmp_path):
    path = pathlib.Path(__file__).parents[2] / "configs" / "lora.toml"
    config = configs.read_config(path)
    assert isinstance(config, configs.TrainConfig) and config.lora is not None
    assert from_dict(config.to_dict()) == config
    abstract = abstract_vitpose(config.model)
    assert len(config.lora.choose(parameters.shapes(abstract)).kernels) == 4
