"""Damaged and hostile files: one line that names the file, whatever the reader below raises."""

import contextlib
import io
import json
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
import scipy.io
from PIL import Image
from safetensors.numpy import save_file

from tests.support.models import smallest_model
from tests.support.reference_torch import save, tiny_model
from vitpose_jax import checkpoint, from_pretrained
from vitpose_jax.convert.sources import open_source
from vitpose_jax.datasets import archives, matlab
from vitpose_jax.datasets.archives import ImageStore
from vitpose_jax.datasets.matlab import read_arrays
from vitpose_jax.storage.tensors import read_json
from vitpose_jax.training.config import read_config
from vitpose_jax.training.name_rules import compile_pattern, match_rules, match_start
from vitpose_jax.training.toml import apply_override, read_table

JSON = {
    "deep": "[" * 100_000,
    "deep_object": '{"a":' * 100_000,
    "digits": '{"a": ' + "9" * 5000 + "}",
    "list": "[1]",
    "empty": "",
    "cut": '{"a": "b',
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_cannot_be_read_is_named(tmp_path, name):
    path = tmp_path / f"{name}.json"
    path.write_text(JSON[name])
    for read in (read_json, read_table):
        with pytest.raises(ValueError, match=rf"^[^\n]*{name}.json: [^\n]+$"):
            read(path)


@pytest.mark.parametrize(
    "content",
    ["a = " + "[" * 10_000, "a" + ".a" * 10_000 + " = 1", "a = " + "9" * 5000, "a = 1\na = 2", "\x00", "a = '\x1b'"],
)
def test_toml_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "a.toml").write_text(content)
    with pytest.raises(ValueError, match=r"^[^\n]*a.toml: [^\n]+$"):
        read_config(tmp_path / "a.toml")


def test_other_encodings_and_devices(tmp_path):
    (tmp_path / "mark.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "mark.json") == {"a": 1}
    (tmp_path / "utf16.json").write_text('{"a": 1}', encoding="utf-16")
    with pytest.raises(ValueError, match=r"utf16.json: expected UTF-8 text, got .* at byte 0"):
        read_json(tmp_path / "utf16.json")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        read_json(tmp_path)


@pytest.mark.parametrize("value", ["inf", "nan", "-inf", "1e400", "9" * 30, "0x" + "f" * 400])
def test_numbers_of_a_training_are_finite(tmp_path, value):
    text = f'output = "o"\nsteps = 1\nsigma = {value}\n[[data]]\ndataset="coco"\nannotations="a"\nimages="i"\n'
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=r"a.toml: sigma: expected a number, got [^\n]{1,100}$"):
        read_config(tmp_path / "a.toml")


def test_keys_of_an_override_that_lead_nowhere():
    for override in ("data.²=1", "data.99999999999999999999=1", "data.-1=1"):
        with pytest.raises(ValueError, match="expected a table, or the index of an item"):
            apply_override({"data": [1]}, override)
    table = {}
    apply_override(table, "a=" + "[" * 10_000)
    assert table["a"].startswith("[[")


@pytest.mark.parametrize(
    "name", ["model.safetensors.index.json", "other.index.json", "a.txt", "../a.safetensors", "a\0.bin"]
)
def test_an_index_names_files_of_tensors_only(tmp_path, name):
    folder = save(tiny_model(), tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "other.index.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match=r"^[^\n\0]*index.json: [^\n\0]+$"):
        from_pretrained(folder)


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    checkpoint.save(smallest_model(), tmp_path / "a")
    save_file(
        {"\x1b[31mred": np.ones(1), "backbone.patch_embed.pos_embed": np.ones(1)}, tmp_path / "a" / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"unexpected \\x1b\[31mred, shape") as caught:
        from_pretrained(tmp_path / "a")
    assert "\x1b" not in str(caught.value)
    save_file({"\x1b[31mred" * 100: np.ones(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"got \\x1b\[31mred.*\.\.\..*red$"):
        open_source(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"^[^\x1b\n]+$"):
        from_pretrained("\x1b[31mred\n")


def test_names_that_no_file_can_have(tmp_path):
    for name in ("a" * 5000, "a\0b", "~no-user-of-this-name/model", ""):
        with pytest.raises(
            ValueError, match=r"bundled model \(person-finder, vitpose-small-open\)|missing config.json"
        ):
            from_pretrained(name)


# Archives.


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    return content.getvalue()


def archive(path, **changes):
    """An archive with one image, whose header is changed at some offsets: in both places where it stands."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", png())
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\1\2")
    for field, value in changes.items():
        local, size = {"flags": (6, 2), "method": (8, 2), "unpacked": (22, 4)}[field]
        for start in (local, central + local + 2):
            content[start : start + size] = value.to_bytes(size, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flags": 1}, "expected a member that is not encrypted"),
        ({"method": 77}, "the compression method 77 is not supported"),
        ({"method": 14}, "damaged archive"),
        ({"method": 12}, "damaged archive"),
        ({"unpacked": 2**31}, "expected an image of at most 268435456 bytes, got 2147483648"),
        ({"unpacked": 3}, "damaged archive"),
    ],
)
def test_a_member_that_cannot_be_read_is_named(tmp_path, changes, message):
    path = archive(tmp_path / "a.zip", **changes)
    with pytest.raises(ValueError, match=rf"^[^\n]*a.zip: a.png: {message}[^\n]*$"):
        ImageStore(path).load(tmp_path / "a.png")


def test_a_member_of_zeros_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 2**20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(2**21))
    with pytest.raises(ValueError, match=r"a.png: expected an image of at most 1048576 bytes, got 2097152"):
        ImageStore(tmp_path / "a.zip").load(tmp_path / "a.png")


def test_a_file_that_is_no_archive_is_named(tmp_path):
    good = archive(tmp_path / "a.zip").read_bytes()
    for number, content in enumerate(
        (b"", b"PK", good[:-10], good[: len(good) // 2], good.replace(b"PK\1\2", b"PK\1\3"))
    ):
        (tmp_path / f"{number}.zip").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{number}.zip: expected a .zip archive"):
            ImageStore(tmp_path / f"{number}.zip")


# MATLAB files.

ARRAYS = {
    "doubles": np.arange(160.0).reshape(16, 2, 5),
    "bytes": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "singles": np.arange(8, dtype=np.float32).reshape(2, 2, 2),
    "one": np.array([[3.5]]),
    "none": np.zeros((0, 3)),
}


@pytest.fixture(params=[False, True], ids=["plain", "compressed"])
def mat(tmp_path, request):
    others = {"text": "a", "cells": np.array([1, "b"], object), "complex": np.array([[1j]])}
    scipy.io.savemat(tmp_path / "a.mat", {**others, **ARRAYS}, do_compression=request.param)
    return tmp_path / "a.mat"


def test_matlab_arrays_equal_those_of_scipy(mat):
    arrays, expected = read_arrays(mat, ARRAYS), scipy.io.loadmat(mat)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], strict=True)
    with pytest.raises(ValueError, match=r"a.mat: damaged MATLAB file \(text: expected an array of real numbers"):
        read_arrays(mat, ["text"])


def test_damaged_matlab_files_raise_one_line(mat, tmp_path):
    """Every 7th byte set to 255, one at a time; and the file cut off."""
    content = mat.read_bytes()
    damaged = [content[:at] for at in range(0, len(content), 37)]
    damaged += [content[:at] + b"\xff" + content[at + 1 :] for at in range(0, len(content), 7)]
    path = tmp_path / "b.mat"
    for bytes_ in damaged:
        path.write_bytes(bytes_)
        with contextlib.suppress(ValueError):
            read_arrays(path, ARRAYS)
    # Cut off in the middle of the last element, it says so.
    path.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"^[^\n]*b.mat: damaged MATLAB file \([^\n]*\)$"):
        read_arrays(path, ARRAYS)


def test_a_matlab_file_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(matlab, "LARGEST_ARRAY", 2**20)
    scipy.io.savemat(tmp_path / "a.mat", {"doubles": np.zeros((1000, 1000))}, do_compression=True)
    with pytest.raises(
        ValueError, match=r"damaged MATLAB file \(a compressed array that .* has more than 1048576 bytes"
    ):
        read_arrays(tmp_path / "a.mat", ["doubles"])
    # Sizes whose product is that of the bytes only after an overflow.
    flags, sizes = struct.pack("<IIII", 6, 8, 6, 0), struct.pack("<II2i", 5, 8, 2**31 - 1, 2**31 - 1)
    array = flags + sizes + struct.pack("<II8s", 1, 7, b"doubles") + struct.pack("<II", 9, 0)
    header = b" " * 124 + b"\0\1IM"
    for element in (struct.pack("<II", 14, len(array)) + array, struct.pack("<II", 14, 2**32 - 1) + array):
        (tmp_path / "b.mat").write_bytes(header + element)
        with pytest.raises(ValueError, match=r"b.mat: damaged MATLAB file"):
            read_arrays(tmp_path / "b.mat", ["doubles"])
    (tmp_path / "c.mat").write_bytes(header + struct.pack("<II", 15, 8) + zlib.compress(b"")[:8])
    with pytest.raises(ValueError, match=r"c.mat: damaged MATLAB file"):
        read_arrays(tmp_path / "c.mat", ["doubles"])


# Patterns of names.


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "(a+)+$",
        "(a|a)*b",
        "(?:a*)*",
        "(a?){30}",
        r"(a)\1",
        "a*a*a*a*b",
        "a?" * 30 + "a" * 30,
        "(a|a)?" * 30 + "b",
        "[",
        "a" * 501,
        "(?P<n>a)+",
        "(?P=n)",
    ],
)
def test_patterns_that_take_an_unbounded_time_are_refused(tmp_path, pattern):
    with pytest.raises(ValueError, match=r"pattern"):
        compile_pattern(pattern)
    with pytest.raises(ValueError, match=r"pattern"):
        match_rules([(pattern, 1)], ["a"])
    text = f"""output = "o"
steps = 1
[[data]]
dataset = "coco"
annotations = "a"
images = "i"
weights = {{ {json.dumps(pattern)} = 0.5 }}
"""
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*a.toml: data.0: weights: [^\n]*pattern[^\n]*$"):
        read_config(tmp_path / "a.toml")
    text = text.replace("weights", "# ") + "[optim]\nfrozen = [" + json.dumps(pattern) + "]\n"
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=r"a.toml: .*frozen: .*pattern"):
        read_config(tmp_path / "a.toml")


@pytest.mark.parametrize(
    "pattern",
    ["lsp_.*", r"backbone\.(norm|knowledge_token)\..+|heads\..+", r".+[._]bias|.+\.scale", "(ab)?c", "[(*+]x", r"\(+"],
)
def test_usual_patterns_are_allowed(pattern):
    compile_pattern(pattern)


def test_a_name_takes_a_bounded_time():
    start = time.process_time()
    assert not match_start(compile_pattern("a*a*a*b"), "a" * 10_000)
    assert time.process_time() - start < 3
