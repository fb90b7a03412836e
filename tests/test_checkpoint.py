"""The native format: the same bits are read as were written, files are whole, damaged ones raise clear errors."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.support.models import assert_same_model, smallest_model
from vitpose_jax import checkpoint
from vitpose_jax.skeletons import DATASETS, Skeleton
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import LazyTensor, write_folder


@settings(max_examples=10)
@given(
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    num_layers=st.integers(1, 3),
    num_heads=st.sampled_from([1, 2, 4]),
    decoder=st.sampled_from(["simple", "classic"]),
    qkv_bias=st.booleans(),
    num_experts=st.sampled_from([0, 1, 6]),
    eps=st.floats(1e-12, 1e-3),
)
def test_a_round_trip_returns_the_same_bits(
    tmp_path_factory, dtype, num_layers, num_heads, decoder, qkv_bias, num_experts, eps
):
    model = smallest_model(
        dtype,
        num_layers=num_layers,
        num_heads=num_heads,
        decoder=decoder,
        qkv_bias=qkv_bias,
        experts=tuple(known.name for known in DATASETS[:num_experts]),
        part_features=3 if num_experts else 0,
        skeletons=DATASETS[: max(num_experts // 2, 1)],
        layer_norm_eps=eps,
    )
    folder = tmp_path_factory.mktemp("native") / "new" / "folder"
    checkpoint.save(model, folder)
    assert_same_model(checkpoint.load(folder, dtype=dtype, param_dtype=dtype), model)


def test_the_caller_chooses_both_dtypes(tmp_path):
    checkpoint.save(smallest_model(), tmp_path)
    model = checkpoint.load(tmp_path, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert model(jnp.ones((1, 32, 16, 3))).dtype == jnp.bfloat16
    leaves = parameters.flatten(model)
    assert leaves["heads.coco.conv.kernel"].dtype == jnp.bfloat16
    assert leaves["backbone.norm.scale"].dtype == jnp.float32
    mixed = checkpoint.load(tmp_path, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    assert mixed(jnp.ones((1, 32, 16, 3))).dtype == jnp.bfloat16
    assert parameters.flatten(mixed)["heads.coco.conv.kernel"].dtype == jnp.float32


def test_a_custom_skeleton_is_kept(tmp_path):
    tail = Skeleton(name="tail", keypoints=("left", "right"), flip_pairs=((0, 1),), edges=((1, 0),), sigmas=(0.1, 0.2))
    model = smallest_model(skeletons=(tail,), image_mean=(0.0, 0.5, 1.0))
    checkpoint.save(model, tmp_path)
    assert_same_model(checkpoint.load(tmp_path), model)


def test_a_checkpoint_is_replaced_only_with_overwrite(tmp_path):
    first, second = smallest_model(), smallest_model(hidden_size=16)
    checkpoint.save(first, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"already holds model.safetensors, config.json"):
        checkpoint.save(second, tmp_path)
    assert_same_model(checkpoint.load(tmp_path), first)
    checkpoint.save(second, tmp_path, overwrite=True)
    assert_same_model(checkpoint.load(tmp_path), second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    with pytest.raises(ValueError, match=r"notes.txt: expected a folder, got a file"):
        checkpoint.save(first, tmp_path / "notes.txt")


def test_a_failed_save_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    first = smallest_model()
    checkpoint.save(first, tmp_path / "old")
    monkeypatch.setattr("vitpose_jax.storage.tensors.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(smallest_model(), tmp_path / "new")
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(smallest_model(hidden_size=16), tmp_path / "old", overwrite=True)
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["config.json", "model.safetensors"]
    assert_same_model(checkpoint.load(tmp_path / "old"), first)


def test_arrays_that_are_not_contiguous_are_written_correctly(tmp_path):
    """save_file writes the memory of an array that is not contiguous in the wrong order, without a word."""
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {"transposed": grid.T, "mirrored": grid[:, ::-1], "scalar": np.float32(3).reshape(())}
    write_folder(tmp_path, arrays, {"config.json": {}})
    for name, array in load_file(tmp_path / "model.safetensors").items():
        assert array.shape == arrays[name].shape
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_files_have_default_permissions(tmp_path):
    checkpoint.save(smallest_model(), tmp_path)
    (tmp_path / "other").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "other").stat().st_mode}


def test_a_lazy_tensor_is_read_at_each_use():
    reads = []

    def read():
        reads.append(1)
        return np.ones((2, 3), np.float32)

    tensor = LazyTensor((2, 3), np.dtype(np.float32), read)
    assert tensor.shape == (2, 3) and not reads
    assert jnp.asarray(tensor, jnp.bfloat16).dtype == jnp.bfloat16
    assert len(reads) == 1


def edit_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def drop_from_config(folder, name):
    values = json.loads((folder / "config.json").read_text())
    del values[name]
    (folder / "config.json").write_text(json.dumps(values))


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r": missing config.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config.json: not valid JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), r"config.json: expected UTF-8 text"),
        (lambda f: (f / "config.json").write_text("[1]"), r"config.json: expected a JSON object, got list"),
        (
            lambda f: edit_config(f, model_type="vit"),
            r"config.json: not a ViTPose: expected model_type 'vitpose_jax', got 'vit'",
        ),
        (lambda f: edit_config(f, format=2), r"config.json: expected format 1, got 2"),
        (lambda f: edit_config(f, depth=3), r"config.json: unknown keys, .*: depth \(3\); strict=False"),
        (lambda f: drop_from_config(f, "num_heads"), r"config.json: .*missing fields \['num_heads'\]"),
        (
            lambda f: edit_config(f, num_heads=3),
            r"config.json: .*num_heads: expected a divisor of .* 8, got 3",
        ),
        (lambda f: edit_config(f, image_size=5), r"config.json: "),
        (lambda f: (f / "model.safetensors").unlink(), r"no weights; expected one of model.safetensors, "),
        (
            lambda f: (f / "model.safetensors").write_bytes(b""),
            r"model.safetensors: not a safetensors file, or truncated",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 999), r"model.safetensors: not a safetensors file"),
        (lambda f: cut(f / "model.safetensors", 900), r"model.safetensors: not a safetensors file, or truncated"),
        (lambda f: cut(f / "model.safetensors", -4), r"model.safetensors: not a safetensors file, or truncated"),
    ],
)
def test_damaged_checkpoints_raise_with_the_file_and_the_reason(tmp_path, damage, message):
    checkpoint.save(smallest_model(), tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)


def test_all_wrong_tensors_are_listed_at_once(tmp_path):
    checkpoint.save(smallest_model(), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["backbone.norm.bias"]
    tensors["backbone.norm.scale"] = np.zeros(9, np.float32)
    tensors["neck.bias"] = np.zeros(1, np.float32)
    save_file(tensors, path)
    with pytest.raises(ValueError) as caught:
        checkpoint.load(tmp_path)
    assert str(caught.value).splitlines() == [
        f"{path}: 3 problems",
        "  missing backbone.norm.bias, expected shape (8,)",
        "  backbone.norm.scale: expected shape (8,), got (9,)",
        "  unexpected neck.bias, shape (1,)",
    ]
