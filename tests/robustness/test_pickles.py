"""What training scripts put around the tensors in .pth files, and damaged ones."""

import argparse
import collections
import pathlib
import zipfile

import numpy as np
import pytest
import torch

from tests.support.reference_torch import original_state_dict, tiny_model
from vitpose_jax import VitPoseConfig
from vitpose_jax.convert.sources import open_source

CONFIG = VitPoseConfig(image_size=(64, 48), hidden_size=24, num_layers=2, num_heads=2)


@pytest.fixture(scope="module")
def state():
    return original_state_dict(tiny_model(decoder="classic"))


def tensors_of(path):
    return {name: np.asarray(tensor) for name, tensor in open_source(path, config=CONFIG).tensors.items()}


@pytest.fixture(scope="module")
def expected(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "a.pth"
    torch.save(state, path)
    return tensors_of(path)


def assert_reads(path, expected):
    tensors = tensors_of(path)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.model."])
def test_prefixes_of_wrappers_are_removed(state, expected, tmp_path, prefix):
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in state.items()}}, tmp_path / "a.pth")
    assert_reads(tmp_path / "a.pth", expected)


def test_a_compiled_part_of_a_model_is_read(state, expected, tmp_path):
    renamed = {name.replace("backbone.", "backbone._orig_mod."): tensor for name, tensor in state.items()}
    torch.save(renamed, tmp_path / "a.pth")
    assert_reads(tmp_path / "a.pth", expected)


def test_a_tensor_with_and_without_a_prefix_is_refused(state, tmp_path):
    twice = {**{f"module.{name}": tensor for name, tensor in state.items()}, "backbone.last_norm.bias": torch.ones(24)}
    torch.save(twice, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth: backbone.last_norm.bias is there twice"):
        open_source(tmp_path / "a.pth", config=CONFIG)


@pytest.mark.parametrize(
    "keys", [["model_state_dict"], ["state_dict_ema"], ["ema_state_dict"], ["net"], ["model", "state_dict"]]
)
def test_keys_of_wrappers_are_known(state, expected, tmp_path, keys):
    content = state
    for key in reversed(keys):
        content = {key: content, "epoch": 1, "optimizer": {"lr": 0.1, "state": {0: torch.ones(1)}}}
    torch.save(content, tmp_path / "a.pth")
    assert_reads(tmp_path / "a.pth", expected)


@pytest.mark.parametrize(
    "meta",
    [
        {"best_score": np.float64(0.7), "epoch": np.int64(3)},
        {"sigmas": np.ones(3), "names": np.array(["a", 1], object), "dtype": np.dtype(np.float32)},
        {"path": pathlib.PurePosixPath("/a/b"), "other": pathlib.PureWindowsPath("a")},
        {"arguments": argparse.Namespace(lr=0.1), "order": collections.OrderedDict(a=1)},
    ],
)
def test_objects_beside_the_tensors_are_skipped(state, expected, tmp_path, meta):
    torch.save({"state_dict": state, "meta": meta}, tmp_path / "a.pth")
    assert_reads(tmp_path / "a.pth", expected)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_zipped_again_is_read(state, expected, tmp_path, method):
    torch.save(state, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", method) as new:
        new.mkdir("a")
        for name in reversed(old.namelist()):
            new.writestr(name, old.read(name))
    assert_reads(tmp_path / "b.pth", expected)


def test_an_archive_by_another_method_is_refused(state, tmp_path):
    torch.save(state, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_BZIP2) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match=r"b.pth: a/data.pkl: the compression method 12 is not supported"):
        open_source(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, 2).to(torch.float8_e4m3fn), "has the dtype float8_e4m3fn; expected one of"),
        (torch.ones(2, dtype=torch.complex64), "has the dtype complex64"),
        (torch.ones(2, 2).to_sparse(), "expected a dense tensor with its numbers, got torch.sparse_coo"),
        (torch.empty(2, device="meta"), "expected a dense tensor with its numbers, got torch.strided on meta"),
        (torch.ones(1).expand(10**9), "expected 4000000000 bytes for shape"),
    ],
)
def test_tensors_of_other_kinds_are_named(tmp_path, tensor, message):
    torch.save({"backbone.pos_embed": tensor}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"^[^\n]*a.pth: backbone.pos_embed:? {message}[^\n]*$"):
        open_source(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pickles_raise_one_line(state, tmp_path, zipped):
    """Bytes of the pickle changed at random, and the file cut off: read, or one line that names the file."""
    torch.save({"backbone.pos_embed": torch.ones(1, 2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "a.pth").read_bytes()
    random, path = np.random.default_rng(0), tmp_path / "b.pth"
    messages = set()
    for _ in range(400):
        damaged = bytearray(content)
        for at in random.integers(0, len(content), random.integers(1, 4)):
            damaged[at] = random.integers(256)
        path.write_bytes(damaged[: len(damaged) if random.random() < 0.8 else random.integers(len(damaged))])
        try:
            open_source(path)
        except ValueError as error:
            messages.add(str(error))
    assert len(messages) > 5
    assert [message for message in messages if not message.startswith(f"{path}: ") or "\n" in message] == []
