"""Numbers in files that claim more than the files hold: nothing of that size is allocated, planned or waited for."""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.support.limits import errors_within_limits
from tests.support.models import smallest_model
from tests.support.reference_torch import original_state_dict, save, tiny_model
from vitpose_jax import checkpoint

HUGE = 10**8


def hub(folder, change):
    """A model of the Hub whose config.json a function has changed."""
    save(tiny_model(), folder)
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def native(folder, **changes):
    checkpoint.save(smallest_model(), folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    return folder


def original(path, change):
    state = original_state_dict(
        tiny_model(decoder="classic", hidden_size=384, num_attention_heads=12, image_size=[256, 192])
    )
    change(state)
    torch.save({"state_dict": state}, path)
    return path


def zip_again(source, path, content=None, **options):
    """The archive of a checkpoint with another pickle and other settings."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", **options) as new:
        for name in old.namelist():
            is_pickle = content is not None and name.endswith("data.pkl")
            new.writestr(name, content if is_pickle else old.read(name))
    return path


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """The files, each with the error that it should give."""
    folder = tmp_path_factory.mktemp("sizes")

    def backbone(**changes):
        return lambda values: values["backbone_config"].update(changes)

    def deep(state):
        state["backbone.blocks.99999999.norm1.weight"] = torch.ones(384)

    def digits(state):
        state[f"backbone.blocks.{'9' * 5000}.norm1.weight"] = torch.ones(384)

    def expanded(state):
        state["keypoint_head.final_layer.weight"] = torch.ones(1, 1, 1, 1).expand(HUGE, 256, 1, 1)

    plain = original(folder / "plain.pth", lambda state: None)
    zeros = zip_again(plain, folder / "zeros.pth", b"]" * 2**24, compression=zipfile.ZIP_DEFLATED)
    big = folder / "big.pth"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(big, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        with new.open("plain/data/999", "w", force_zip64=True) as member:
            for _ in range(512):
                member.write(bytes(2**20))
    tensors = load_file(native(folder / "many") / "model.safetensors")
    tensors |= {f"more.{number}": np.zeros(1, np.float32) for number in range(30_000)}
    save_file(tensors, folder / "many" / "model.safetensors")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}).encode()
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "length.safetensors").write_bytes(struct.pack("<Q", 2**62) + header)
    (folder / "digits.toml").write_text("seed = 0x" + "f" * 900_000)
    (folder / "large.toml").write_text("a = 1\n" * 200_000)
    return {
        hub(
            folder / "layers", backbone(num_hidden_layers=HUGE)
        ): r"num_hidden_layers: expected at most \d+, .*got 1000",
        hub(folder / "experts", backbone(num_experts=HUGE)): r"num_experts: expected at most \d+",
        hub(folder / "labels", lambda values: (values.pop("id2label"), values.update(num_labels=HUGE))): r"num_labels",
        hub(folder / "width", backbone(hidden_size=12 * HUGE)): r"mlp_ratio: expected an MLP of 1 to \d+ features",
        native(folder / "native", num_layers=HUGE, out_indices=[HUGE]): r"expected shape \(100000000, ",
        native(folder / "sides", image_size=[10**30, 16]): r"image_size: expected two positive whole numbers",
        native(folder / "crops", image_size=[16 * HUGE, 16]): r"expected shape",
        folder / "many": r"30000 problems\n(  .*\n){20}  and 29980 more$",
        original(folder / "deep.pth", deep): r"blocks.99999999.norm1.weight: expected a number below",
        original(folder / "digits.pth", digits): r"blocks.9+\.\.\.9+.norm1.weight: expected a number below",
        original(folder / "expanded.pth", expanded): r"final_layer.weight: expected \d+ bytes for shape .*, got 4$",
        zeros: r"data.pkl: expected at most 8388608 bytes, got 16777216",
        big: r"expected at most \d+ bytes when it is decompressed, got 5\d{8}",
        folder / "header.safetensors": r"not a safetensors file, or truncated",
        folder / "length.safetensors": r"not a safetensors file, or truncated",
        folder / "large.toml": r"expected at most 1048576 bytes, got more",
    }


def test_sizes_are_compared_before_anything_is_made(cases):
    for (path, message), error in zip(cases.items(), errors_within_limits(cases), strict=True):
        assert error is not None, path
        assert str(path) in error
        with pytest.raises(ValueError, match=message):
            raise ValueError(error)
