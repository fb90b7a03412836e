"""Loading models from paths, damaged files, and the Hub without a network."""

import os
import pickle
import shutil
import subprocess
import sys
import time

import huggingface_hub.constants
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.support import programs
from tests.support.reference_torch import original_state_dict, save, tiny_model
from vitpose_jax import checkpoint
from vitpose_jax.pretrained import describe, from_pretrained
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import LazyTensor, write_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    return save(tiny_model(decoder="classic"), tmp_path_factory.mktemp("hub"))


@pytest.fixture
def cache(tmp_path, hub_folder):
    """A cache as huggingface_hub creates it, with one model in it."""
    repository = tmp_path / "cache" / "models--someone--pose"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(hub_folder, repository / "snapshots" / COMMIT)
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch):
    # Port 9 of this machine refuses connections at once.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def test_paths_of_all_kinds_give_the_same_model(tmp_path, hub_folder):
    model = from_pretrained(hub_folder)
    checkpoint.save(model, tmp_path / "native")
    expected = parameters.flatten(model)
    for source in (
        str(hub_folder),
        hub_folder / "model.safetensors",
        tmp_path / "native",
        tmp_path / "native" / "model.safetensors",
    ):
        got = parameters.flatten(from_pretrained(source))
        assert got.keys() == expected.keys()
        assert all((got[name] == expected[name]).all() for name in got)


def test_models_load_from_the_cache_without_network(cache, no_network, monkeypatch):
    for options in ({"local_files_only": True}, {}, {"revision": COMMIT}, {"revision": "main"}):
        model = from_pretrained("someone/pose", cache_dir=cache, **options)
        assert model.config.skeletons[0].name == "coco"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert describe("someone/pose", cache_dir=cache).format == "huggingface"


def test_a_pickle_loads_from_the_cache(cache, no_network):
    snapshot = cache / "models--someone--pose" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    torch.save(tiny_model(decoder="classic").state_dict(), snapshot / "pytorch_model.bin")
    assert from_pretrained("someone/pose", cache_dir=cache).config.decoder == "classic"


def test_an_incomplete_cache_names_the_missing_file(cache, no_network):
    snapshot = cache / "models--someone--pose" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no weights; expected one of model.safetensors, "):
        from_pretrained("someone/pose", cache_dir=cache)
    (snapshot / "config.json").unlink()
    with pytest.raises(ValueError, match=r"missing config.json"):
        from_pretrained("someone/pose", cache_dir=cache)


def test_without_network_and_cache_it_fails_at_once(tmp_path, no_network, monkeypatch):
    """Without a pause before another try: a pause is the only thing that could make the user wait."""
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(ValueError, match=r"^'some/one' is not a path .* in the cache, and the Hub cannot be reached$"):
        from_pretrained("some/one", cache_dir=tmp_path)
    with pytest.raises(
        ValueError, match=r"'some/one' at revision 'v2' .* in the cache, and the network is switched off"
    ):
        from_pretrained("some/one", revision="v2", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(ValueError, match=rf"'some/one' at revision '{COMMIT}' cannot be fetched from the Hub"):
        from_pretrained("some/one", revision=COMMIT, cache_dir=tmp_path)
    assert pauses == []


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "folder/model.pth", "/no/such/folder", "some/one/"])
def test_a_path_that_does_not_exist_raises(source):
    with pytest.raises(ValueError, match=r"no such file or folder, and not a Hub id"):
        from_pretrained(source)


def test_a_revision_of_a_path_raises(hub_folder):
    with pytest.raises(ValueError, match=r"a revision \('main'\) needs a Hub id"):
        from_pretrained(hub_folder, revision="main")


def test_dtype_and_image_size_are_applied(hub_folder):
    model = from_pretrained(hub_folder, dtype=jnp.bfloat16, param_dtype=jnp.float32, image_size=(96, 64))
    assert model.config.image_size == (96, 64)
    assert parameters.flatten(model)["backbone.patch_embed.pos_embed"].shape == (25, 24)
    assert parameters.flatten(model)["heads.coco.conv.kernel"].dtype == jnp.float32
    assert model(jnp.zeros((1, 96, 64, 3))).dtype == jnp.bfloat16


def test_describe_counts_parameters_bytes_and_ignored_tensors(hub_folder):
    description = describe(hub_folder)
    assert (description.format, description.dtype) == ("huggingface", "float32")
    # The parameters of torch are those of Flax: BatchNorm's statistics are buffers in both.
    assert description.parameters == sum(tensor.numel() for tensor in tiny_model(decoder="classic").parameters())
    assert description.size == (hub_folder / "model.safetensors").stat().st_size
    assert description.config == from_pretrained(hub_folder).config
    assert list(description.ignored.values()) == [2]


def test_describe_reads_no_weights(tmp_path, hub_folder, monkeypatch):
    def read(self, dtype=None, copy=None):
        raise AssertionError("a tensor was read")

    checkpoint.save(from_pretrained(hub_folder), tmp_path)
    monkeypatch.setattr(LazyTensor, "__array__", read)
    assert describe(hub_folder).parameters == describe(tmp_path).parameters


def test_describe_checks_configuration_and_shapes(tmp_path, hub_folder):
    shutil.copytree(hub_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text((hub_folder / "config.json").read_text().replace('"stage2"', '"stage1"'))
    with pytest.raises(ValueError, match=r"do not name the same blocks"):
        describe(tmp_path)
    text = (hub_folder / "config.json").read_text().replace('"num_channels": 3', '"num_channels": 3, "mlp_ratio": 2')
    (tmp_path / "config.json").write_text(text.replace('"mlp_ratio": 4,', ""))
    with pytest.raises(ValueError, match=r"6 problems(.|\n)*fc1.bias: expected shape \(48,\), got \(96,\)"):
        describe(tmp_path)


class Code:
    """Plain `pickle` creates a folder when it reads this."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, zipped):
    trap = str(tmp_path / "sprung")
    path = tmp_path / "vitpose.pth"
    content = {"state_dict": {"backbone.pos_embed": torch.zeros(1, 13, 24)}, "more": Code(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r": refused, because reading it would run code \(\w+.mkdir\)") as caught:
        from_pretrained(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(Code(trap)))
    with pytest.raises(ValueError, match=r"vitpose.pth: not a PyTorch checkpoint with only tensors, or damaged"):
        from_pretrained(path)
    assert not os.path.exists(trap)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100, bytes(range(256)) * 9, b"PK\x03\x04" + bytes(500)])
def test_files_of_random_bytes_raise_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: not a ") as caught:
        from_pretrained(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.999])
def test_a_truncated_pickle_raises(tmp_path, zipped, fraction):
    path = tmp_path / "vitpose.pth"
    torch.save(original_state_dict(tiny_model()), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match=r"vitpose.pth: not a PyTorch checkpoint"):
        from_pretrained(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"expected tensors by name, or under one of 'state_dict', .*, got list"),
        ({}, r"expected tensors by name, .*got dict"),
        ({"epoch": 3}, r"expected tensors by name, got int for 'epoch'"),
        ({"state_dict": {"layer": {"weight": torch.ones(1)}}}, r"got dict with 'weight' for 'layer'"),
        ({"fc.weight": torch.ones(1)}, r"not a ViTPose: expected one of .* among its tensors, got fc.weight"),
        ({"backbone.pos_embed": torch.ones(1, 2, 3)}, r"missing backbone.patch_embed.proj.weight"),
        ({"a": torch.ones(1).to(torch.float8_e4m3fn)}, r"a has the dtype float8_e4m3fn; expected one of .*float32"),
    ],
)
def test_a_pickle_of_other_content_raises(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth: .*" + message):
        from_pretrained(tmp_path / "a.pth")


def test_an_unknown_file_ending_raises(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match=r"onnx: expected a file name that ends in .safetensors, .pth, .pt, .bin"):
        from_pretrained(tmp_path / "model.onnx")


def test_a_missing_config_json_raises(tmp_path, hub_folder):
    shutil.copy(hub_folder / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"missing config.json; only a file of the original format works without one"):
        from_pretrained(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing config.json"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{}", "expected a weight_map"),
        ('{"weight_map": {"a": 1}}', "expected a weight_map"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "expected shards in the same folder, got '../x.safetensors'"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "the shard gone.safetensors is missing"),
        (
            '{"weight_map": {"a": "part.safetensors"}}',
            "a is not in part.safetensors; .* is not listed",
        ),
    ],
)
def test_a_damaged_shard_index_raises(tmp_path, hub_folder, index, message):
    shutil.copy(hub_folder / "config.json", tmp_path)
    shutil.copy(hub_folder / "model.safetensors", tmp_path / "part.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json: " + message):
        from_pretrained(tmp_path)


def test_a_pickle_without_torch_names_the_extra_to_install(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r'a.pth: reading this file needs torch: pip install "vitpose-jax\[torch\]"'):
        from_pretrained(tmp_path / "a.pth")


def test_safetensors_are_read_without_torch(hub_folder):
    command = programs.command("load_without_torch", hub_folder)
    subprocess.run(command, env=programs.environment(), check=True)


def test_original_names_are_read_from_safetensors(tmp_path):
    fields = {"hidden_size": 384, "num_attention_heads": 12, "num_hidden_layers": 1, "mlp_ratio": 1}
    state = original_state_dict(tiny_model(**fields, image_size=[256, 192]))
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    write_folder(tmp_path, arrays, {"config.json": {}})
    (tmp_path / "config.json").unlink()
    model = from_pretrained(tmp_path / "model.safetensors")
    assert model.config.num_heads == 12 and model.config.layer_norm_eps == 1e-6
    kernel = parameters.flatten(model)["heads.coco.conv.kernel"]
    np.testing.assert_array_equal(kernel, arrays["keypoint_head.final_layer.weight"].transpose(2, 3, 1, 0))
