"""Values that are no numbers, or of another type than expected: each is named, with the file."""

import json
import math
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.cli import run
from tests.support.limits import errors_within_limits
from tests.support.models import smallest_model
from tests.support.reference_torch import save, tiny_model
from vitpose_jax import checkpoint, from_pretrained
from vitpose_jax.convert import convert
from vitpose_jax.convert.backbones import load_backbone
from vitpose_jax.convert.detectors import load_detector, write_finder
from vitpose_jax.storage import parameters
from vitpose_jax.storage.finite import all_finite
from vitpose_jax.vitpose.config import VitPoseConfig

HUGE = 10**8
KERNEL = "backbone.blocks.mlp.fc1.kernel"
HUB_KERNEL = "backbone.encoder.layer.1.mlp.fc1.weight"


def change_tensor(folder, name, value, dtype=None):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = np.array(tensors[name], dtype or tensors[name].dtype)
    tensors[name].reshape(-1)[-1] = value
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def native(tmp_path):
    checkpoint.save(smallest_model(decoder="classic"), tmp_path / "native")
    return tmp_path / "native"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return save(tiny_model(decoder="classic"), tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_one_value_in_millions_is_noticed(dtype):
    array = np.full((3, 700, 701), 2, dtype)
    array[0, 0, 0] = jnp.finfo(dtype).max
    array[0, 0, 1] = jnp.finfo(dtype).max  # their sum overflows, but both are finite
    views = (array, array.T, array[:, ::2], array[::-1])
    assert all(map(all_finite, views))
    for value in (np.nan, np.inf, -np.inf):
        array[2, 698, 699] = value
        assert not any(map(all_finite, views))
    assert all_finite(np.zeros((0, 3), dtype)) and not all_finite(np.array(np.nan, dtype))
    assert all_finite(np.array([2**31 - 1], np.int32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(native, hub, tmp_path, value):
    with pytest.raises(
        ValueError, match=rf"model.safetensors: {KERNEL}: expected finite numbers, got NaN or infinity$"
    ):
        from_pretrained(change_tensor(native, KERNEL, value))
    with pytest.raises(ValueError, match=rf"{KERNEL}: expected finite"):
        checkpoint.load(native)
    with pytest.raises(ValueError, match=rf"{KERNEL}: expected finite"):
        load_backbone(native, from_pretrained(native, check_finite=False).config)
    source = tmp_path / "hub"
    save(tiny_model(), source)
    with pytest.raises(ValueError, match=rf"{HUB_KERNEL}: expected finite numbers"):
        from_pretrained(change_tensor(source, HUB_KERNEL, value))


def test_research_may_load_and_convert_it(native, tmp_path, capsys):
    change_tensor(native, KERNEL, np.nan)
    for model in (from_pretrained(native, check_finite=False), checkpoint.load(native, check_finite=False)):
        assert np.isnan(parameters.flatten(model)[KERNEL]).sum() == 1
    assert "expected finite numbers" in run(capsys, "convert", native, tmp_path / "a")[2]
    run(capsys, "convert", native, tmp_path / "b", "--allow-non-finite")
    assert np.isnan(load_file(tmp_path / "b" / "model.safetensors")[KERNEL]).sum() == 1
    with pytest.raises(ValueError, match=rf"{KERNEL}: expected finite numbers to store as int8"):
        convert(native, tmp_path / "c", int8=True, check_finite=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_an_int8_scale_that_is_not_finite_is_named(native, tmp_path, value):
    checkpoint.save(checkpoint.load(native), tmp_path / "int8", int8=True)
    tensors = load_file(tmp_path / "int8" / "model.safetensors")
    tensors[f"{KERNEL}.scale"][:] = value
    save_file(tensors, tmp_path / "int8" / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{KERNEL}: expected finite .*from int8 and {KERNEL}.scale"):
        from_pretrained(tmp_path / "int8")


def test_a_negative_variance_is_named(native):
    change_tensor(native, "heads.coco.norm1.var", -0.5)
    with pytest.raises(ValueError, match=r"heads.coco.norm1.var: expected variances of 0 or more, got -0.5"):
        from_pretrained(native)
    from_pretrained(native, check_finite=False)


def test_numbers_that_the_model_cannot_hold_are_named(native):
    change_tensor(native, KERNEL, 1e5)
    from_pretrained(native)
    with pytest.raises(ValueError, match=rf"{KERNEL}: expected numbers that float16 can hold"):
        from_pretrained(native, dtype=jnp.float16)
    change_tensor(native, KERNEL, 1e300, np.float64)
    with pytest.raises(ValueError, match=rf"{KERNEL}: expected numbers that float32 can hold"):
        from_pretrained(native)


def test_a_detector_is_checked_too(tmp_path):
    write_finder(load_detector(_finder()), tmp_path / "finder")
    name = next(name for name in load_file(tmp_path / "finder" / "model.safetensors") if name.endswith("kernel"))
    change_tensor(tmp_path / "finder", name, np.nan)
    with pytest.raises(ValueError, match=rf"{name}: expected finite numbers"):
        load_detector(tmp_path / "finder")
    load_detector(tmp_path / "finder", check_finite=False)


def _finder():
    from vitpose_jax.bundled import DEFAULT_FINDER, bundled_model

    return bundled_model(DEFAULT_FINDER)


def test_whole_numbers_are_not_cast(native):
    change_tensor(native, KERNEL, 1, np.int32)
    with pytest.raises(ValueError, match=rf"{KERNEL}: expected floating-point numbers, got int32"):
        from_pretrained(native)


WRONG = {
    "image_mean": [
        ["a", "b", "c"],
        "abc",
        [0.1, 0.2],
        [math.nan] * 3,
        [1e400] * 3,
        None,
        3,
        [[1], 2, 3],
        [10**400] * 3,
    ],
    "image_std": [[0, 1, 1], [-1, 1, 1], [True] * 3, [math.inf] * 3],
    "mlp_ratio": [math.inf, math.nan, -1, 0, "4", [4], 1e300],
    "layer_norm_eps": [math.nan, math.inf, None, 0],
    "num_layers": [True, 1.5, 10**30, "12", None, [2]],
    "hidden_act": [["gelu"], {}, 3],
    "decoder": [[], None],
    "experts": ["coco", [1], None, {"a": 1}],
    "part_features": ["7", None, -1],
    "out_indices": ["12", [[1]], [1e3]],
    "image_size": [256, "ab", [256, "192"], [1e3, 1e3], None],
    "window_size": ["ab", 3, [0, 1]],
    "knowledge_token": [None, "a", 1.5],
    "skeletons": ["coco", [3], [[]], {}, [{"name": ["a"], "keypoints": ["b"]}], None],
}


SKELETONS = {
    "name": [["coco"], None, 3],
    "keypoints": [["nose", [10**30]], "nose", 17, [None], {"a": 1}],
    "flip_pairs": [[[1, 2, 3]], [1], [["a", "b"]], 3, [[0.5, 1]]],
    "edges": [[[0, -1]], "abc"],
    "sigmas": [["a"], [math.nan], [-1], 3],
    "upper_body": [["a"], [1.5], "ab"],
}


HUB_WRONG = {
    "num_hidden_layers": ["12", None, 1.5, []],
    "hidden_size": ["a", 24.5, None],
    "image_size": ["a", {}, [64, None]],
    "hidden_act": [["gelu"], None, {}],
    "out_indices": ["a", 3, [None], [[1]]],
    "out_features": [3, [3], {}],
    "layer_norm_eps": [None, [], math.nan],
    "mlp_ratio": [math.inf, "a", None],
    "num_experts": ["a", None, []],
}


# Of the person finder, and of an RT-DETR under the names of transformers.
FINDER_WRONG = {
    "image_mean": [["a", 1, 2], 3, [math.nan] * 3],
    "image_std": [[0, 1, 1], [math.inf] * 3],
    "labels": [3, [1], "person"],
    "depths": [3, [1, 2, 2, HUGE], ["a"] * 4],
    "widths": [None, [10**30] * 4],
    "hidden_size": [True, "a", None],
    "image_size": [[512, 512], 128 * HUGE],
    "num_candidates": [HUGE],
    "nms_iou": ["a", math.nan, None],
}
RTDETR_WRONG = {
    "encoder_hidden_dim": ["a", None, 10**30],
    "encode_proj_layers": [3, ["a"], "ab"],
    "normalize_before": [3, "yes"],
    "layer_norm_eps": [math.nan, "a"],
    "encoder_activation_function": [["gelu"], 3],
    "id2label": [3, {"a": "b"}, [1]],
    "positional_encoding_temperature": [math.inf],
    "decoder_attention_heads": [0, [8]],
}


def write_cases(folder, source, changes, write):
    """A copy of a folder for every wrong value; returns the folders with the fields."""
    cases = {}
    for field, values in changes.items():
        for number, value in enumerate(values):
            path = folder / f"{field}_{number}{source.suffix}"
            path.mkdir(parents=True)
            shutil.copy(source / "config.json", path)
            (path / "model.safetensors").symlink_to(source / "model.safetensors")
            config = json.loads((path / "config.json").read_text())
            write(config, field, value)
            (path / "config.json").write_text(json.dumps(config))
            cases[path] = field
    return cases


def test_wrong_values_are_named_with_the_file(tmp_path, native, hub):
    """Without the checks of types that these tests have."""

    def at_the_top(config, field, value):
        config[field] = value

    def in_the_backbone(config, field, value):
        config["backbone_config"][field] = value

    def in_the_skeleton(config, field, value):
        config["skeletons"][0][field] = value

    finder, rtdetr = tmp_path / "a.finder", tmp_path / "a.rtdetr"
    shutil.copytree(_finder(), finder)
    rtdetr.mkdir()
    (rtdetr / "config.json").write_text(
        json.dumps({"model_type": "rt_detr", "backbone_config": {"model_type": "rt_detr_resnet"}})
    )
    cases = {}
    for name, source, changes, write in (
        ("native", native, WRONG, at_the_top),
        ("skeletons", native, SKELETONS, in_the_skeleton),
        ("hub", hub, HUB_WRONG, in_the_backbone),
        ("finders", finder, FINDER_WRONG, at_the_top),
        ("rtdetrs", rtdetr, RTDETR_WRONG, at_the_top),
    ):
        cases |= write_cases(tmp_path / "cases" / name, source, changes, write)
    problems = []
    for (path, field), error in zip(cases.items(), errors_within_limits(cases), strict=True):
        if error is None or "\n" in error or f"{path}/config.json: " not in error or len(error) > 700:
            problems.append(f"{path.parent.name}/{path.name}: {error}")
        elif path.parent.name in ("native", "skeletons", "finders") and field.rstrip("s") not in error:
            problems.append(f"{path.parent.name}/{path.name}: expected {field} in {error}")
    assert not problems, "\n".join(problems)


def test_a_preset_is_still_what_it_was():
    assert VitPoseConfig.from_dict(VitPoseConfig.preset("plus-base").to_dict()) == VitPoseConfig.preset("plus-base")
