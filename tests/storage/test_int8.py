"""Weights in int8: how much rounding changes them, how they are stored, and errors for damaged files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from tests.support.cli import run
from tests.support.models import SMALLEST, assert_same_model, smallest_model
from tests.tolerances import FLOAT32, HALF_A_SCALE
from vitpose_jax import checkpoint, from_pretrained
from vitpose_jax.convert import convert, write
from vitpose_jax.pretrained import describe
from vitpose_jax.skeletons import DATASETS
from vitpose_jax.storage import int8 as quantized
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose

EXPERTS = {"experts": tuple(known.name for known in DATASETS), "part_features": 3, "skeletons": DATASETS[:2]}


@settings(max_examples=50)
@given(
    weights=arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=4, max_side=5),
        elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False),
    ),
    stacked=st.booleans(),
)
def test_rounding_changes_a_weight_by_at_most_half_a_scale(weights, stacked):
    name = "backbone.blocks.mlp.fc1.kernel" if stacked else "heads.coco.conv.kernel"
    stored = quantized.quantize({name: weights})
    values, scale = stored[name], stored[name + ".scale"]
    assert values.dtype == np.int8 and values.shape == weights.shape
    assert scale.shape == quantized.scale_shape(name, weights.shape)
    assert values.min() >= -127
    changes = np.abs(quantized.dequantize(values, scale) - weights)
    assert (changes <= scale * 0.5 * (1 + HALF_A_SCALE)).all()
    inputs = (weights.ndim - 2,) if stacked else tuple(range(weights.ndim - 1))
    largest = np.abs(weights).max(axis=inputs, keepdims=True)
    read = np.abs(quantized.dequantize(values, scale)).max(axis=inputs, keepdims=True)
    np.testing.assert_allclose(read, largest, rtol=FLOAT32, atol=np.finfo(np.float32).tiny)


def test_each_layer_and_expert_has_its_own_scales():
    kernel = np.array([1.0, 100.0], np.float32)[:, None, None, None] * np.linspace(0.1, 1, 24).reshape(2, 3, 2, 2)
    stored = quantized.quantize({"backbone.blocks.mlp.experts_kernel": kernel})
    assert stored["backbone.blocks.mlp.experts_kernel.scale"].shape == (2, 3, 1, 2)
    shared = quantized.quantize({"heads.coco.conv.kernel": kernel})
    assert shared["heads.coco.conv.kernel.scale"].shape == (1, 1, 1, 2)


@pytest.mark.parametrize("fields", [{}, EXPERTS, {"decoder": "classic"}], ids=["simple", "experts", "classic"])
def test_an_int8_model_is_read_back_within_half_a_scale(tmp_path, fields):
    model = smallest_model(**fields)
    checkpoint.save(model, tmp_path / "int8", int8=True)
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    kernels = [name for name in stored if stored[name].dtype == np.int8]
    assert kernels == [name for name in sorted(parameters.flatten(model)) if name.endswith("kernel")]
    read = parameters.flatten(checkpoint.load(tmp_path / "int8"))
    for name, leaf in parameters.flatten(model).items():
        if name in kernels:
            assert not np.array_equal(read[name], leaf)
            bound = 0.5 * (1 + HALF_A_SCALE) * np.broadcast_to(stored[name + ".scale"], leaf.shape)
            assert (np.abs(read[name] - leaf) <= bound).all(), name
        else:
            np.testing.assert_array_equal(read[name], leaf, err_msg=name)
    # Both loaders read the same; and rounding a second time changes nothing more.
    again = from_pretrained(tmp_path / "int8")
    assert_same_model(again, checkpoint.load(tmp_path / "int8"))
    checkpoint.save(again, tmp_path / "again", int8=True)
    for name, values in load_file(tmp_path / "again" / "model.safetensors").items():
        np.testing.assert_allclose(values, stored[name], rtol=FLOAT32, err_msg=name)
    half = from_pretrained(tmp_path / "int8", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert parameters.flatten(half)["backbone.patch_embed.proj.kernel"].dtype == jnp.bfloat16


def test_int8_changes_heatmaps_by_less_than_a_twentieth(tmp_path):
    model = VitPose(VitPoseConfig(**{**SMALLEST, "hidden_size": 32, "decoder": "classic"}), rngs=nnx.Rngs(0))
    checkpoint.save(model, tmp_path, int8=True)
    crops = jax.random.normal(jax.random.key(0), (2, 32, 16, 3))
    heatmaps, read = np.asarray(model(crops)), np.asarray(checkpoint.load(tmp_path)(crops))
    assert 0 < np.linalg.norm(read - heatmaps) < 0.05 * np.linalg.norm(heatmaps)


def test_convert_and_write_store_int8(tmp_path, capsys):
    model = smallest_model()
    checkpoint.save(model, tmp_path / "model")
    assert run(capsys, "convert", tmp_path / "model", tmp_path / "int8", "--int8")[0] == 0
    description = describe(tmp_path / "int8")
    assert (description.format, description.dtype) == ("native", "int8")
    assert "stored as int8" in run(capsys, "info", tmp_path / "int8")[1]
    (folder,) = convert(tmp_path / "int8", tmp_path / "hub", to="huggingface")
    assert_same_model(from_pretrained(folder), checkpoint.load(tmp_path / "int8"))
    with pytest.raises(ValueError, match="int8: expected the native format, got 'huggingface'"):
        convert(tmp_path / "model", tmp_path / "none", to="huggingface", int8=True)
    with pytest.raises(ValueError, match="int8: expected the native format, got 'huggingface'"):
        write(model, tmp_path / "none", to="huggingface", int8=True)
    assert not (tmp_path / "none").exists()


def test_missing_and_wrong_scales_raise(tmp_path):
    checkpoint.save(smallest_model(), tmp_path, int8=True)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    name = "heads.coco.conv.kernel.scale"
    save_file({key: value for key, value in stored.items() if key != name}, path)
    for load in (checkpoint.load, from_pretrained):
        with pytest.raises(ValueError, match=rf"missing {name}, expected shape \(1, 1, 1, 17\), because .* is int8"):
            load(tmp_path)
    save_file(stored | {name: stored[name].ravel()}, path)
    with pytest.raises(ValueError, match=rf"{name}: expected shape \(1, 1, 1, 17\), got \(17,\)"):
        checkpoint.load(tmp_path)
    save_file(stored | {"backbone.norm.scale.scale": stored[name]}, path)
    with pytest.raises(ValueError, match=r"unexpected backbone\.norm\.scale\.scale"):
        checkpoint.load(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format"] == 1


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_bad_numbers_in_scales_raise(tmp_path, kind):
    checkpoint.save(smallest_model(), tmp_path, **{kind: True}, **({"group_size": 4} if kind == "int4" else {}))
    path, name = tmp_path / "model.safetensors", "backbone.blocks.attention.qkv.kernel.scale"
    stored = load_file(path)
    save_file(stored | {name: stored[name].astype(np.int32)}, path)
    with pytest.raises(ValueError, match=rf"{name}: expected floating-point numbers, got int32"):
        checkpoint.load(tmp_path)
    # It is finite, and its product with the largest integer is not: only some inputs would show it.
    save_file(stored | {name: np.full_like(stored[name], 1e38)}, path)
    for quantize in (None, kind):
        with pytest.raises(ValueError, match=rf"expected finite numbers, got NaN or infinity from {kind} and {name}"):
            checkpoint.load(tmp_path, quantize=quantize)
