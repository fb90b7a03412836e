"""Opening checkpoints: each format is recognised, compared once, and described by one record."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.support import reference_rtdetr
from tests.support.models import assert_same_model, smallest_model
from tests.support.reference_torch import original_state_dict, save, tiny_model
from vitpose_jax import VitPoseConfig, checkpoint, from_pretrained
from vitpose_jax.convert.detectors import load_detector
from vitpose_jax.convert.engine import plan
from vitpose_jax.convert.formats import (
    ADAPTER,
    BACKBONE_FORMATS,
    DETECTOR_FORMATS,
    HUGGINGFACE,
    NATIVE,
    ORIGINAL,
    VITPOSE_FORMATS,
    WRITTEN_FORMATS,
)
from vitpose_jax.convert.formats.format import read_only, vitpose_shapes
from vitpose_jax.convert.sources import build_model, open_source
from vitpose_jax.convert.torch_files import open_tensors
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose.modeling import abstract_vitpose

ALL_FORMATS = (*VITPOSE_FORMATS, *BACKBONE_FORMATS, *DETECTOR_FORMATS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One checkpoint of each format, by its name; all ViTPoses but the original one have the same weights."""
    folder = tmp_path_factory.mktemp("formats")
    save(tiny_model(decoder="classic"), folder / "huggingface")
    checkpoint.save(from_pretrained(folder / "huggingface"), folder / "native")
    fields = {"hidden_size": 384, "num_attention_heads": 12, "num_hidden_layers": 1, "image_size": [256, 192]}
    torch.save(original_state_dict(tiny_model(mlp_ratio=1, **fields)), folder / "original.pth")
    reference_rtdetr.save(reference_rtdetr.tiny_detector(), folder / "rtdetr")
    return folder


def test_names_and_shapes_are_compared_once(folders, monkeypatch):
    compare, calls = parameters.differences, []

    def differences(expected, tensors):
        calls.append(len(expected))
        return compare(expected, tensors)

    monkeypatch.setattr(parameters, "differences", differences)
    for load, source in (
        (from_pretrained, "native"),
        (from_pretrained, "huggingface"),
        (from_pretrained, "original.pth"),
        (checkpoint.load, "native"),
        (load_detector, "rtdetr"),
    ):
        calls.clear()
        load(folders / source)
        assert len(calls) == 1, source


def test_each_format_is_recognised_by_its_tensors(folders):
    for format, source in (
        (NATIVE, folders / "native" / "model.safetensors"),
        (HUGGINGFACE, folders / "huggingface" / "model.safetensors"),
        (ORIGINAL, folders / "original.pth"),
    ):
        opened = open_source(source)
        assert opened.format is format
        assert {name: tensor.shape for name, tensor in opened.tensors.items()} == vitpose_shapes(opened.config)


def test_records_are_complete_and_distinct():
    assert len({format.name for format in ALL_FORMATS}) == len({format.mark for format in ALL_FORMATS})
    model_types = [model_type for format in ALL_FORMATS for model_type in format.model_types]
    assert len(model_types) == len(set(model_types))
    assert all(format.make_documents is not read_only for format in WRITTEN_FORMATS)
    config = VitPoseConfig.preset("small", num_layers=2)
    for format in (*VITPOSE_FORMATS, *BACKBONE_FORMATS):
        if format is ADAPTER:
            continue  # its base has the other tensors
        # The mark is one of the tensors that the rules read, so a file without it is not complete.
        assert format.mark in {source for pieces in plan(format, config).values() for source, _, _ in pieces}
        ignored = format.ignored(config) if callable(format.ignored) else format.ignored
        assert all(reason for _, reason in ignored)


def test_a_new_format_is_one_record(folders, tmp_path):
    """A made-up format: the native tensors under upper-case names, PyTorch's layout for the head."""
    native = load_file(folders / "native" / "model.safetensors")
    kernel = "heads.coco.conv.kernel"
    tensors = {name.upper(): tensor for name, tensor in native.items()} | {
        "FINAL": native[kernel].transpose(3, 2, 0, 1)
    }
    del tensors[kernel.upper()]
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, tmp_path / "loud.safetensors")
    config = json.loads((folders / "native" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))

    def rules(config):
        for name in vitpose_shapes(config):
            yield ("FINAL", name, "conv") if name == kernel else (name.upper(), name, "same")

    loud = dataclasses.replace(NATIVE, name="loud", mark="FINAL", rules=rules, pytorch=True)
    source = open_source(tmp_path / "loud.safetensors", formats=(*VITPOSE_FORMATS, loud))
    assert source.format is loud
    got = parameters.flatten(build_model(source, dtype=np.float32, param_dtype=np.float32))
    assert got.keys() == native.keys()
    for name, tensor in native.items():
        np.testing.assert_array_equal(got[name], tensor, err_msg=name)


def test_load_reads_the_native_format_only(folders):
    with pytest.raises(ValueError, match=r"not a ViTPose: expected model_type 'vitpose_jax', got 'vitpose'"):
        checkpoint.load(folders / "huggingface")


def test_a_folder_of_another_network_raises(folders):
    with pytest.raises(ValueError, match=r"not a ViTPose: expected model_type .*'vitpose', got 'rt_detr'"):
        from_pretrained(folders / "rtdetr")
    with pytest.raises(
        ValueError, match=r"not a detector: expected model_type .*'rt_detr' or 'rt_detr_v2', got 'vitpose'"
    ):
        load_detector(folders / "huggingface")


def test_native_tensors_must_be_floating_point(folders, tmp_path):
    tensors = load_file(folders / "native" / "model.safetensors")
    tensors["backbone.norm.bias"] = tensors["backbone.norm.bias"].astype(np.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folders / "native" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"backbone.norm.bias: expected floating-point numbers, got int32"):
        checkpoint.load(tmp_path)


def test_a_file_that_changes_after_loading_does_not_change_the_model(tmp_path):
    """JAX uses aligned memory as it is, and torch maps the file."""
    model = smallest_model()
    tensors = {name: torch.from_numpy(np.array(leaf)) for name, leaf in parameters.flatten(model).items()}
    tensors["narrow"] = torch.ones(64, dtype=torch.bfloat16)
    path = tmp_path / "weights.pth"
    torch.save(tensors, path)
    opened = open_tensors(path)
    arrays = {name: np.asarray(tensor) for name, tensor in opened.items()}
    narrow = arrays.pop("narrow")
    abstract = abstract_vitpose(model.config)
    loaded = parameters.fill(abstract, {name: tensor for name, tensor in opened.items() if name != "narrow"})
    rebuilt = model.rebuild(model.config, arrays)
    # In place, as a program that writes the same file again does.
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    for array in arrays.values():
        array[...] = 7
    assert_same_model(loaded, model)
    assert_same_model(rebuilt, model)
    assert (narrow == 1).all()


def test_arrays_of_a_caller_that_change_do_not_change_the_model():
    model = smallest_model()
    arrays, aligned = {}, 0
    for name, leaf in parameters.flatten(model).items():
        # At a multiple of 64 bytes, which JAX can use as it is.
        memory = np.empty(leaf.size + 32, np.float32)
        start = -(memory.ctypes.data // 4) % 16
        arrays[name] = memory[start : start + leaf.size].reshape(leaf.shape)
        arrays[name][...] = leaf
        aligned += arrays[name].ctypes.data % 64 == 0
    assert aligned == len(arrays)
    rebuilt = model.rebuild(model.config, arrays)
    of_tensors = model.rebuild(model.config, {name: torch.from_numpy(array) for name, array in arrays.items()})
    for array in arrays.values():
        array[...] = 7
    assert_same_model(rebuilt, model)
    assert_same_model(of_tensors, model)
