"""Tensors in safetensors files: one open file for each, bounded reads, errors that name the file."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.limits import largest_file
from tests.support.models import smallest_model
from vitpose_jax import checkpoint
from vitpose_jax.convert import api, convert
from vitpose_jax.storage import tensors
from vitpose_jax.storage.tensors import open_safetensors, write_folder, write_safetensors

ARRAYS = {
    "a": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.arange(6).astype(jnp.bfloat16),
    "c": np.asarray(True),
    "none": np.zeros((0, 3), np.int8),
}


@pytest.fixture
def path(tmp_path):
    save_file(ARRAYS, tmp_path / "file.safetensors")
    return tmp_path / "file.safetensors"


def test_tensors_and_layers_are_read(path):
    opened = open_safetensors(path)
    assert set(opened) == set(ARRAYS)
    for name, expected in ARRAYS.items():
        array = np.asarray(opened[name])
        assert array.dtype == expected.dtype == opened[name].dtype
        np.testing.assert_array_equal(array, expected)
        assert array.flags.writeable and array.base is None
    np.testing.assert_array_equal(opened["a"].layer(1), ARRAYS["a"][1])


def test_header_and_numbers_are_of_one_file(path, monkeypatch):
    """Another file takes the name while the first one is opened."""
    other, check = path.with_name("other"), tensors.safe_open
    save_file({"a": np.zeros((5, 5)), "longer_name": np.zeros(7)}, other)

    def replace(*arguments, **options):
        opened = check(*arguments, **options)
        os.replace(other, path)
        return opened

    monkeypatch.setattr(tensors, "safe_open", replace)
    opened = open_safetensors(path)
    assert set(opened) == set(ARRAYS)
    np.testing.assert_array_equal(np.asarray(opened["a"]), ARRAYS["a"])


def test_a_file_that_is_cut_after_it_was_opened(path):
    opened = open_safetensors(path)
    os.truncate(path, path.stat().st_size - 80)
    with pytest.raises(ValueError, match=r"file\.safetensors: a: expected 96 bytes, got \d+: the file was cut after"):
        np.asarray(opened["a"])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "damaged header: expected an object, got list"),
        ({"a": 3}, "damaged header: a"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, "damaged header: a"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}}, "damaged header: a"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "damaged header: a"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "damaged header: a: 8 bytes for shape"),
        ({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, "a has the unknown dtype C64"),
    ],
)
def test_damaged_headers(path, monkeypatch, header, message):
    """Each header that safetensors refuses is refused by its reader here, too: it may be of another file."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match=r"file\.safetensors: "):
        open_safetensors(path)
    other = path.with_name("good")
    save_file(ARRAYS, other)
    check = tensors.safe_open
    monkeypatch.setattr(tensors, "safe_open", lambda _, **options: check(other, **options))
    with pytest.raises(ValueError, match=message):
        open_safetensors(path)
    path.write_bytes((2**40).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="truncated: expected a header of"):
        open_safetensors(path)


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    arrays = {"a": np.zeros(100_000, np.float32)}
    file, folder = tmp_path / "file", tmp_path / "folder"
    with largest_file(20_000), pytest.raises(OSError, match="File too large") as caught:
        write_safetensors(file, arrays)
    assert caught.value.filename == str(file)
    with largest_file(20_000), pytest.raises(OSError, match="File too large") as caught:
        write_folder(folder, arrays, {"config.json": {}})
    assert caught.value.filename == str(folder / "model.safetensors") and not folder.exists()


def test_new_files_have_the_default_permissions_and_any_layout(tmp_path):
    write_safetensors(tmp_path / "file", {"a": ARRAYS["a"].T}, metadata={"key": "value"})
    (tmp_path / "plain").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    np.testing.assert_array_equal(np.asarray(open_safetensors(tmp_path / "file")["a"]), ARRAYS["a"].T)
    with pytest.raises(FileExistsError):
        write_safetensors(tmp_path / "file", ARRAYS)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="lists open files as Linux does")
def test_a_source_is_closed_before_it_is_written_over(tmp_path, monkeypatch):
    checkpoint.save(smallest_model(), tmp_path)
    write, opened = api.write_folder, []

    def write_closed(*arguments, **options):
        files = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        opened.extend(os.readlink(file) for file in files if os.path.islink(file))
        write(*arguments, **options)

    monkeypatch.setattr(api, "write_folder", write_closed)
    convert(tmp_path, tmp_path, int8=True, overwrite=True)
    assert opened and str(tmp_path / "model.safetensors") not in opened
