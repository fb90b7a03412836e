"""Weights in int4: packing, rounding errors, files, and errors for damaged ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from tests.support.cli import run
from tests.support.models import assert_same_model, smallest_model
from tests.tolerances import HALF_A_SCALE
from vitpose_jax import checkpoint, from_pretrained
from vitpose_jax.convert import convert, write
from vitpose_jax.pretrained import describe
from vitpose_jax.storage import int4
from vitpose_jax.vitpose.quantized import is_quantized

KERNEL = "backbone.blocks.mlp.fc1.kernel"


@given(values=arrays.arrays(np.int8, st.tuples(*(st.integers(1, 4) for _ in range(3))), elements=st.integers(-8, 7)))
def test_packed_values_come_back(values):
    values = np.concatenate([values, values[:, ::-1]], axis=1)  # an even number of inputs
    packed = int4.pack(values)
    assert packed.dtype == np.uint8 and packed.nbytes * 2 == values.nbytes
    np.testing.assert_array_equal(int4.unpack(packed), values)


def test_the_order_of_two_values_in_a_byte():
    assert int4.pack(np.array([[1], [-2]], np.int8)).tolist() == [[0xE1]]


@st.composite
def weights_and_group_size(draw):
    group_size, groups = draw(st.sampled_from([1, 2, 3, 4])), draw(st.integers(1, 3))
    groups += group_size * groups % 2  # an even number of inputs
    shape = (*draw(st.lists(st.integers(1, 3), max_size=2)), group_size * groups, draw(st.integers(1, 3)))
    numbers = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
    return draw(arrays.arrays(np.float32, shape, elements=numbers)), group_size


@settings(max_examples=50)
@given(weights_and_group_size())
def test_rounding_changes_a_weight_by_at_most_half_a_scale(case):
    weights, size = case
    packed, scale = int4.quantize(weights, size)
    *lead, inputs, outputs = weights.shape
    assert packed.shape == (*lead, inputs // 2, outputs) and scale.shape == (*lead, inputs // size, outputs)
    changes = np.abs(int4.dequantize(packed, scale) - weights)
    assert (changes <= 0.5 * (1 + HALF_A_SCALE) * np.repeat(scale, size, axis=-2)).all()


@pytest.mark.parametrize(("inputs", "size"), [(12, 5), (12, 0), (12, 24)])
def test_a_group_size_that_does_not_divide_the_inputs(inputs, size):
    message = rf"group_size: expected a divisor of the {inputs} inputs of a layer \(2, 3, 4, ..., 12\), got {size}"
    with pytest.raises(ValueError, match=message):
        int4.quantize(np.ones((inputs, 3), np.float32), size)
    with pytest.raises(ValueError, match="expected layers with an even number of inputs, got 3"):
        int4.quantize(np.ones((3, 3), np.float32), 3)


def test_convert_and_write_store_int4(tmp_path, capsys):
    model = smallest_model()
    checkpoint.save(model, tmp_path / "model")
    arguments = ("convert", tmp_path / "model", tmp_path / "int4", "--int4", "--group-size", 4)
    assert run(capsys, *arguments)[0] == 0
    stored = load_file(tmp_path / "int4" / "model.safetensors")
    for name, values in stored.items():
        expected = np.uint8 if is_quantized(name) else np.int8 if name.endswith("kernel") else np.float32
        assert values.dtype == expected, name
    assert stored[KERNEL].shape == (2, 4, 32) and stored[KERNEL + ".scale"].shape == (2, 2, 32)
    assert describe(tmp_path / "int4").dtype == "int4"
    assert "stored as int4" in run(capsys, "info", tmp_path / "int4")[1]
    # The same bytes from a model in memory, and from a model that is quantized already.
    for source in (model, from_pretrained(tmp_path / "model", quantize="int4", group_size=4)):
        write(source, tmp_path / "written", int4=True, group_size=4, overwrite=True)
        for name, values in load_file(tmp_path / "written" / "model.safetensors").items():
            np.testing.assert_array_equal(values, stored[name], err_msg=name)
    # To floating point: the same model by every way.
    (folder,) = convert(tmp_path / "int4", tmp_path / "hub", to="huggingface")
    assert_same_model(from_pretrained(folder), checkpoint.load(tmp_path / "int4"))


def test_what_cannot_be_stored_as_int4(tmp_path, capsys):
    model = smallest_model()
    checkpoint.save(model, tmp_path / "model")
    for options, message in (
        ({"int4": True, "to": "huggingface"}, "int4: expected the native format, got 'huggingface'"),
        ({"int4": True, "int8": True}, "int8, int4: expected one of the two, got both"),
        ({"int4": True}, "group_size: expected a divisor of the 8 inputs of a layer .*, got 128"),
        ({"group_size": 4}, "group_size: expected only with int4, got 4 with floating point"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "model", tmp_path / "none", **options)
        with pytest.raises(ValueError, match=message):
            write(model, tmp_path / "none", **options)
    status, _, error = run(capsys, "convert", tmp_path / "model", tmp_path / "none", "--int4")
    assert status == 1 and "group_size: expected a divisor of the 8 inputs" in error and "Traceback" not in error
    checkpoint.save(smallest_model(), tmp_path / "int8", int8=True)
    quantized = from_pretrained(tmp_path / "int8", quantize="int8")
    with pytest.raises(ValueError, match="int4: expected a model in floating point or of the same kind, got int8"):
        checkpoint.save(quantized, tmp_path / "none", int4=True, group_size=4)
    assert not (tmp_path / "none").exists()


def test_missing_and_wrong_scales_raise(tmp_path):
    checkpoint.save(smallest_model(), tmp_path, int4=True, group_size=4)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    name = KERNEL + ".scale"
    save_file({key: value for key, value in stored.items() if key != name}, path)
    for load in (checkpoint.load, from_pretrained):
        with pytest.raises(ValueError, match=rf"missing {name}, expected shape \(2, groups, 32\).* is int4"):
            load(tmp_path)
    for wrong in (stored[name][:, :1, :5], np.ones((2, 3, 32), np.float32), np.ones((2, 0, 32), np.float32)):
        save_file(stored | {name: np.ascontiguousarray(wrong)}, path)
        with pytest.raises(ValueError, match=rf"{name}: expected shape \(2, groups, 32\), with groups a divisor of 8"):
            checkpoint.load(tmp_path)
    save_file(stored | {"backbone.norm.scale": np.ones(8, np.uint8)}, path)
    with pytest.raises(ValueError, match=r"backbone\.norm\.scale: expected two axes or more of packed int4"):
        checkpoint.load(tmp_path)
    for quantize in (None, "int4"):
        save_file(stored | {name: stored[name] * np.float32(np.nan)}, path)
        with pytest.raises(ValueError, match=rf"{KERNEL}: expected finite numbers, got NaN or infinity from int4 and"):
            checkpoint.load(tmp_path, quantize=quantize)
