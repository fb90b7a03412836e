"""Detectors of the Hub: configurations, tensors both ways, and the shapes of everything published."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.support.reference_rtdetr import PUBLISHED, create, published, save, tiny_detector
from vitpose_jax.convert.detectors import load_detector, write_detector
from vitpose_jax.convert.engine import arrange, plan
from vitpose_jax.convert.formats import RTDETR, rtdetr
from vitpose_jax.convert.formats.rtdetr import detector_shapes, make_documents, parse_config
from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import LazyTensor

# The sub-config as published for PekingU/rtdetr_r18vd, without the keys that say nothing about the network.
R18 = {
    "model_type": "rt_detr",
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
        "out_indices": [2, 3, 4],
    },
    "encoder_in_channels": [128, 256, 512],
    "hidden_expansion": 0.5,
    "decoder_layers": 3,
    "id2label": {"0": "person", "1": "bicycle"},
    "torch_dtype": "float32",
    "use_pretrained_backbone": False,
    "use_timm_backbone": False,
    "backbone": None,
}


def read(changes=None, backbone=None, preprocessor=None) -> DetectorConfig:
    values = {**R18, "backbone_config": {**R18["backbone_config"], **(backbone or {})}, **(changes or {})}
    return parse_config(values, preprocessor, source="folder/config.json")


# Configurations


def test_a_published_configuration_is_read():
    assert read() == DetectorConfig(
        hidden_sizes=(64, 128, 256, 512),
        depths=(2, 2, 2, 2),
        layer_type="basic",
        hidden_expansion=0.5,
        decoder_layers=3,
        labels=("person", "bicycle"),
    )


@pytest.mark.parametrize("version", [1, 2])
def test_missing_keys_have_the_defaults_of_transformers(version):
    reference = (transformers.RTDetrConfig, transformers.RTDetrV2Config)[version - 1](num_labels=80)
    resnet = {"model_type": "rt_detr_resnet", "out_indices": [2, 3, 4]}
    bare = {"model_type": reference.model_type, "backbone_config": resnet, "num_labels": 80}
    assert parse_config(bare, None, source="x") == parse_config(
        json.loads(reference.to_json_string()), None, source="x"
    )


@pytest.mark.parametrize("version", [1, 2])
def test_every_key_transformers_writes_is_known(version):
    config = (transformers.RTDetrConfig, transformers.RTDetrV2Config)[version - 1]()
    used = rtdetr.V2_KEYS if version == 2 else rtdetr.DETECTOR_KEYS
    assert set(config.to_dict()) <= used | set(rtdetr.IGNORED_DETECTOR_KEYS) | set(rtdetr.FIXED_DETECTOR_KEYS)
    known = rtdetr.RESNET_KEYS | set(rtdetr.IGNORED_RESNET_KEYS) | set(rtdetr.FIXED_DETECTOR_KEYS)
    assert set(config.backbone_config.to_dict()) <= known
    assert not set(rtdetr.IGNORED_DETECTOR_KEYS) & (used | set(rtdetr.FIXED_DETECTOR_KEYS))
    assert all(rtdetr.IGNORED_DETECTOR_KEYS.values())
    # Every field here comes from somewhere.
    tables = (rtdetr.DETECTOR_FIELDS, rtdetr.V2_FIELDS, rtdetr.RESNET_FIELDS)
    images = {"image_size", "rescale_factor", "image_mean", "image_std"}
    named = {field for table in tables for _, field, _ in table} | images | {"version", "labels", "out_indices"}
    assert named == {field.name for field in dataclasses.fields(DetectorConfig)}


@pytest.mark.parametrize(
    ("changes", "backbone", "preprocessor", "message"),
    [
        ({"new_key": 3}, {}, {}, "new_key: unknown, and it may matter; got 3"),
        ({}, {"groups": 2}, {}, "backbone_config.groups: unknown"),
        ({"learn_initial_query": True}, {}, {}, "learn_initial_query: expected False, got True"),
        ({"eval_size": [640, 640]}, {}, {}, "eval_size: expected None"),
        ({"with_box_refine": False}, {}, {}, "with_box_refine: expected True"),
        ({"use_focal_loss": False}, {}, {}, "use_focal_loss: expected True"),
        ({"use_timm_backbone": True}, {}, {}, "use_timm_backbone: expected False"),
        ({"decoder_method": "discrete"}, {}, {}, "decoder_method: unknown"),
        ({"encoder_in_channels": [1, 2, 3]}, {}, {}, r"encoder_in_channels: expected \[128, 256, 512\]"),
        ({"decoder_in_channels": [256, 256]}, {}, {}, "decoder_in_channels: expected"),
        ({"anchor_image_size": [320, 320]}, {}, {}, r"anchor_image_size: expected \[640, 640\]"),
        ({"activation_function": "mish"}, {}, {}, "activation_function: expected one of"),
        ({"encoder_attention_heads": 7}, {}, {}, "encoder_heads: expected a divisor of encoder_hidden_size 256, got 7"),
        ({"num_queries": 0}, {}, {}, "num_queries: expected a positive whole number, got 0"),
        ({}, {"out_indices": [1, 3], "out_features": ["stage1", "stage3"]}, {}, "expected consecutive stages"),
        ({}, {"out_indices": [1, 2, 3]}, {}, "do not name the same"),
        ({}, {"embedding_size": 32}, {}, "embedding_size: expected 64"),
        ({}, {"depths": [2, 2]}, {}, "stage"),
        ({}, {"hidden_act": "prelu"}, {}, "hidden_act: expected one of"),
        ({}, {}, {"size": {"shortest_edge": 640}}, "size: expected a height and a width"),
        ({}, {}, {"size": {"height": 600, "width": 640}}, "image_size: expected height and width, multiples of 32"),
        ({}, {}, {"do_resize": False}, "do_resize: expected True, got False"),
        ({}, {}, {"resample": 3}, "resample: expected 2, got 3"),
        ({"id2label": {"0": "a", "2": "b"}}, {}, {}, "id2label: expected the indices 0 to 1"),
        ({"model_type": "detr"}, {}, {}, "not a detector: expected model_type 'rt_detr' or 'rt_detr_v2'"),
        ({"backbone_config": {"model_type": "resnet"}}, {}, {}, "expected a backbone_config of model_type"),
    ],
)
def test_unknown_and_unsupported_values_raise(changes, backbone, preprocessor, message):
    with pytest.raises(ValueError, match=message) as error:
        read(changes, backbone, preprocessor)
    assert str(error.value).startswith("folder/config.json")


def test_all_configuration_problems_are_listed_at_once():
    with pytest.raises(ValueError, match=r"one: unknown.+; backbone_config.two: unknown.+; .+resample"):
        read({"one": 1}, {"two": 2}, {"resample": 3})


def test_the_preprocessor_sets_size_and_normalization():
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    config = read(preprocessor={"size": {"height": 320, "width": 352}, "image_mean": mean, "image_std": std})
    assert config.image_size == (320, 352) and config.image_mean == (0, 0, 0) and config.image_std == (1, 1, 1)
    config = read(preprocessor={"do_normalize": True, "rescale_factor": 0.5, "image_mean": mean, "image_std": std})
    assert config.image_mean == tuple(mean) and config.image_std == tuple(std) and config.rescale_factor == 0.5
    documents = make_documents(config, param_dtype=jnp.float32)
    assert parse_config(documents["config.json"], documents["preprocessor_config.json"], source="x") == config


# Tensors

VARIANTS = {
    "v1": (1, {}, {}),
    "v1-bottleneck": (1, {"layer_type": "bottleneck", "embedding_size": 6}, {"hidden_expansion": 0.5}),
    "v2": (2, {}, {"num_feature_levels": 4, "decoder_n_levels": 4, "encoder_layers": 2, "num_denoising": 0}),
    "v2-discrete": (2, {"hidden_act": "silu"}, {"decoder_method": "discrete", "freeze_backbone_batch_norms": False}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def reference(request, tmp_path_factory):
    """A reference detector and the Hub folder it was saved to."""
    version, backbone, fields = VARIANTS[request.param]
    model = tiny_detector(version, backbone=backbone, **fields)
    return model, save(model, tmp_path_factory.mktemp("hub"))


def test_round_trip_is_bit_equal_and_transformers_loads_it(reference, tmp_path):
    model, folder = reference
    detector = load_detector(folder)
    assert write_detector(detector, tmp_path / "hub") == tmp_path / "hub"
    loaded, info = type(model).from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not any(info.values()), info
    before, after = model.state_dict(), loaded.state_dict()
    # Training alone has these; and BatchNorms that are not frozen count their steps.
    left = {name for name in before if name.endswith(("denoising_class_embed.weight", "num_batches_tracked"))}
    assert set(after) - left == set(before) - left
    for name in set(before) - left:
        assert torch.equal(before[name], after[name]), name
    assert load_detector(tmp_path / "hub").config == detector.config
    with pytest.raises(ValueError, match="already holds"):
        write_detector(detector, tmp_path / "hub")


def test_rules_use_every_source_tensor_once(reference):
    _, folder = reference
    tensors, detector = load_file(folder / "model.safetensors"), load_detector(folder)
    sources = [source for pieces in plan(RTDETR, detector.config).values() for source, _, _ in pieces]
    assert len(sources) == len(set(sources))
    left = set(tensors) - set(sources)
    assert not set(sources) - set(tensors)
    assert all(name.endswith(("num_batches_tracked", "denoising_class_embed.weight")) for name in left)
    sizes = [np.prod(shape, dtype=int) for shape in detector_shapes(detector.config).values()]
    assert sum(tensors[source].size for source in sources) == sum(sizes)


def test_names_in_memory_and_duplicate_heads_are_read(reference, tmp_path):
    """As `torch.save(model.state_dict())` writes them: other names, and heads in two places."""
    model, folder = reference
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text((folder / "preprocessor_config.json").read_text())
    state = model.state_dict()
    assert not set(state) <= set(load_file(folder / "model.safetensors"))
    torch.save(state, tmp_path / "pytorch_model.bin")
    from_memory, from_files = (parameters.flatten(load_detector(path)) for path in (tmp_path, folder))
    assert from_memory.keys() == from_files.keys()
    for name in from_memory:
        np.testing.assert_array_equal(from_memory[name], from_files[name], err_msg=name)
    # With both names, both must say the same.
    name = "model.decoder.class_embed.0.bias"
    torch.save(state | {"class_embed.0.bias": state[name] + 1}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"class_embed.0.bias: expected the same numbers as model.decoder.class_embed"):
        load_detector(tmp_path)
    # The short one alone will do.
    alone = {key: tensor for key, tensor in state.items() if not key.startswith("model.decoder.class_embed.")}
    alone |= {
        f"class_embed.{number}.{kind}": state[f"model.decoder.class_embed.{number}.{kind}"]
        for number in range(2)
        for kind in ("weight", "bias")
    }
    torch.save(alone, tmp_path / "pytorch_model.bin")
    np.testing.assert_array_equal(
        load_detector(tmp_path).decoder.layers.score.bias[...], from_files["decoder.layers.score.bias"]
    )


def test_all_tensor_problems_are_listed_at_once(tmp_path):
    folder = save(tiny_detector(), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.enc_output.0.bias"]
    tensors["model.encoder.pan_blocks.1.conv2.norm.extra"] = np.zeros(3, np.float32)
    tensors["model.decoder.layers.1.fc1.weight"] = np.zeros((20, 17), np.float32)
    tensors["model.enc_score_head.bias"] = np.zeros(5, np.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: 4 problems") as error:
        load_detector(folder)
    for line in (
        r"missing model.enc_output.0.bias, expected shape (16,)",
        r"unexpected model.encoder.pan_blocks.1.conv2.norm.extra, shape (3,)",
        r"model.decoder.layers.1.fc1.weight: expected shape (20, 16), got (20, 17)",
        r"model.enc_score_head.bias: expected floating-point numbers, got int32",
    ):
        assert line in str(error.value)


def test_an_empty_folder_and_a_file_raise(tmp_path):
    with pytest.raises(ValueError, match=r"missing config\.json"):
        load_detector(tmp_path)
    (tmp_path / "file.bin").touch()
    with pytest.raises(ValueError, match=r"file\.bin: not a PyTorch checkpoint"):
        load_detector(tmp_path / "file.bin")


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", PUBLISHED)
def test_shapes_of_all_published_detectors_match(size, version):
    """Names and shapes alone, for nothing: no number is made here or in torch."""
    config = published(size, version)
    with torch.device("meta"):
        state = create(config).state_dict()
    # Heads are there under two names each, which are the same tensor.
    twins = {name for name in state if name.startswith(("class_embed.", "bbox_embed."))}
    tensors = {
        name: LazyTensor(tuple(tensor.shape), np.dtype(np.float32), tensor.numpy)
        for name, tensor in state.items()
        if name not in twins
    }
    parsed = parse_config(json.loads(config.to_json_string()), None, source=size)
    arranged, _ = arrange(RTDETR, parsed, tensors, source=size)
    assert {name: tensor.shape for name, tensor in arranged.items()} == detector_shapes(parsed)
    assert len(parsed.labels) == 80 and parsed.version == version
