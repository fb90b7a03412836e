"""config.json of the Hub: every key used, ignored for a stated reason, or an error."""

import inspect

import pytest
import transformers

from tests.support.reference_torch import HUB_LABELS
from vitpose_jax.convert.formats import hub_keys, huggingface
from vitpose_jax.convert.formats.hub_keys import PREPROCESSOR_FILE
from vitpose_jax.convert.formats.huggingface import make_documents, parse_config
from vitpose_jax.skeletons import AP10K, COCO, DATASETS, MPII, Skeleton
from vitpose_jax.vitpose.config import VitPoseConfig

# As published for usyd-community/vitpose-plus-base, without the keys that say nothing about the network.
PLUS_BASE = {
    "architectures": ["VitPoseForPoseEstimation"],
    "backbone_config": {
        "hidden_size": 768,
        "model_type": "vitpose_backbone",
        "num_experts": 6,
        "out_features": ["stage12"],
        "out_indices": [12],
        "part_features": 192,
    },
    "edges": [list(edge) for edge in COCO.edges],
    "id2label": {str(index): label for index, label in enumerate(HUB_LABELS)},
    "model_type": "vitpose",
    "torch_dtype": "float32",
    "transformers_version": "4.48.0.dev0",
    "use_simple_decoder": False,
}


def read(top=None, backbone=None, preprocessor=None):
    values = {**PLUS_BASE, **(top or {})}
    if values["backbone_config"] is PLUS_BASE["backbone_config"]:
        values["backbone_config"] = {**PLUS_BASE["backbone_config"], **(backbone or {})}
    return parse_config(values, preprocessor, source="folder/config.json")


def test_a_published_configuration_is_read():
    expected = VitPoseConfig.preset("plus-base", layer_norm_eps=1e-12, skeletons=(COCO,))
    assert read() == expected
    assert read().datasets == tuple(known.name for known in DATASETS)


def test_missing_keys_have_the_defaults_of_transformers():
    values = {"model_type": "vitpose", "backbone_config": {"model_type": "vitpose_backbone"}}
    config = parse_config(values, None, source="x")
    reference = transformers.VitPoseBackboneConfig()
    assert config.image_size == tuple(reference.image_size) and config.patch_size == tuple(reference.patch_size)
    assert (config.hidden_size, config.num_layers, config.num_heads) == (
        reference.hidden_size,
        reference.num_hidden_layers,
        reference.num_attention_heads,
    )
    for field in ("mlp_ratio", "hidden_act", "qkv_bias", "layer_norm_eps", "initializer_range"):
        assert getattr(config, field) == getattr(reference, field), field
    assert config.out_indices == tuple(reference.out_indices)
    top = transformers.VitPoseConfig()
    assert (config.decoder == "simple", config.scale_factor) == (top.use_simple_decoder, top.scale_factor)
    assert config.skeletons[0].num_keypoints == top.num_labels == 2
    with_experts = parse_config(
        {**values, "backbone_config": {**values["backbone_config"], "num_experts": 2}}, None, source="x"
    )
    assert with_experts.part_features == reference.part_features


def test_every_key_transformers_writes_is_known():
    config = transformers.VitPoseConfig(backbone_config=transformers.VitPoseBackboneConfig())
    top, backbone = config.to_dict(), config.backbone_config.to_dict()
    fixed = set(hub_keys.FIXED_KEYS)
    assert set(top) <= huggingface.USED_KEYS | set(huggingface.IGNORED_TOP_KEYS) | fixed
    assert set(backbone) <= huggingface.USED_BACKBONE_KEYS | set(hub_keys.IGNORED_BACKBONE_KEYS) | fixed
    # Each field of the two classes that is not of the base class is used, dropout excepted.
    base = inspect.signature(transformers.PreTrainedConfig).parameters
    for cls, used in (
        (transformers.VitPoseConfig, huggingface.USED_KEYS | {"initializer_range"}),
        (transformers.VitPoseBackboneConfig, huggingface.USED_BACKBONE_KEYS | {"_out_features", "_out_indices"}),
    ):
        own = set(cls.__dataclass_fields__) - set(base) - set(transformers.PreTrainedConfig.__dataclass_fields__)
        assert {name for name in own if not name.endswith("dropout_prob")} <= used
    for ignored, used in (
        (huggingface.IGNORED_TOP_KEYS, huggingface.USED_KEYS),
        (hub_keys.IGNORED_BACKBONE_KEYS, huggingface.USED_BACKBONE_KEYS),
    ):
        assert not set(ignored) & (used | fixed)
        assert all(ignored.values())


@pytest.mark.parametrize(
    ("backbone", "field", "value"),
    [
        ({"image_size": 224}, "image_size", (224, 224)),
        ({"patch_size": 8}, "patch_size", (8, 8)),
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act", "gelu_tanh"),
        ({"num_experts": 1}, "experts", ()),
        ({"num_experts": 2}, "experts", ("coco", "aic")),
        ({"num_experts": 8}, "experts", (*(known.name for known in DATASETS), "expert6", "expert7")),
        ({"num_experts": 1, "part_features": 0}, "part_features", 0),
        ({"out_indices": [-1], "out_features": None}, "out_indices", (12,)),
        ({"out_indices": [0, 3, -2], "out_features": None}, "out_indices", (0, 3, 11)),
        ({"out_indices": None, "out_features": ["stem", "stage4"]}, "out_indices", (0, 4)),
        ({"out_indices": None, "out_features": None, "num_hidden_layers": 3}, "out_indices", (3,)),
        ({"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}, "hidden_size", 768),
        ({"pruned_heads": {}, "torchscript": False, "_attn_implementation_autoset": True}, "hidden_size", 768),
    ],
)
def test_backbone_keys_set_the_configuration(backbone, field, value):
    assert getattr(read(backbone=backbone), field) == value


@pytest.mark.parametrize(
    ("top", "backbone", "message"),
    [
        ({"model_type": "vit"}, None, r"not a ViTPose: expected model_type 'vitpose'.*got 'vit'"),
        ({"model_type": None}, None, r"not a ViTPose"),
        ({"backbone_config": None}, None, r"not a ViTPose: .*backbone_config.*None"),
        ({"backbone_config": {"model_type": "dinov2"}}, None, r"not a ViTPose: .*'vitpose_backbone', got 'dinov2'"),
        ({"use_swiglu": True}, None, r"config.json: use_swiglu: unknown, and it may matter; got True"),
        (None, {"window_size": 7}, r"backbone_config.window_size: unknown"),
        (
            {"quantization_config": {"bits": 4}},
            {"window_size": 7},
            r"quantization_config.*; backbone_config.window_size",
        ),
        (None, {"hidden_act": "silu"}, r"hidden_act: expected one of gelu, .*got 'silu'"),
        (None, {"pruned_heads": {"0": [1]}}, r"pruned_heads: expected \{\}"),
        ({"use_timm_backbone": True}, None, r"use_timm_backbone: expected False, got True"),
        (None, {"out_indices": [13], "out_features": None}, r"out_indices: expected rising block numbers"),
        (None, {"out_features": ["stage13"]}, r"out_features: expected names from stem to stage12"),
        (None, {"out_features": ["stage11"]}, r"do not name the same blocks"),
        (None, {"num_attention_heads": 7}, r"config.json: .*num_heads: expected a divisor of hidden_size 768, got 7"),
        ({"id2label": {"1": "a", "2": "b"}}, None, r"id2label: expected the indices 0 to 1, got \[1, 2\]"),
        ({"edges": [[0, 99]]}, None, r""),
        ({"id2label": {"0": "a"}, "edges": [[0, 1]]}, None, r"edges holds \(0, 1\)"),
        ({"experts": ["coco"]}, None, r"experts: expected 6 names, got \['coco'\]"),
    ],
)
def test_unknown_and_unsupported_values_raise(top, backbone, message):
    if not message:
        assert read(top, backbone).skeletons == (COCO,)  # with COCO's labels, COCO's edges are taken
        return
    with pytest.raises(ValueError, match=message):
        read(top, backbone)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_rescale", False),
        ("do_normalize", False),
        ("do_affine_transform", False),
        ("rescale_factor", 1.0),
        ("normalize_factor", 100.0),
    ],
)
def test_another_preprocessing_raises(key, value):
    with pytest.raises(ValueError, match=rf"preprocessor_config.json: {key}: expected .*, got {value}"):
        read(preprocessor={key: value})


def test_mean_and_std_come_from_the_preprocessor():
    config = read(preprocessor={"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "rescale_factor": 1 / 255})
    assert config.image_mean == (0.5, 0.4, 0.3) and config.image_std == (0.1, 0.2, 0.3)


def labels(names):
    return {str(index): name for index, name in enumerate(names)}


def test_labels_and_edges_choose_the_skeleton():
    assert read({"id2label": labels(MPII.keypoints)}).skeletons == (MPII,)
    assert read({"id2label": labels(COCO.keypoints), "edges": []}).skeletons == (COCO,)
    generic = labels(f"LABEL_{index}" for index in range(17))
    assert read({"id2label": generic}).skeletons == (COCO,)
    (unknown,) = read({"id2label": generic, "edges": [[0, 1]]}).skeletons
    assert unknown.name == "custom" and unknown.keypoints[16] == "LABEL_16" and unknown.edges == ((0, 1),)
    config = read({"id2label": labels(["L_Hip", "R_Hip", "Tail"]), "edges": [[0, 2], [1, 2]]})
    assert config.skeletons == (
        Skeleton(name="custom", keypoints=("L_Hip", "R_Hip", "Tail"), flip_pairs=((0, 1),), edges=((0, 2), (1, 2))),
    )
    # The only head of a file with experts is the first one's, and is called so.
    assert config.experts == ("custom", "aic", "mpii", "ap10k", "apt36k", "wholebody")
    assert read({"id2label": labels(AP10K.keypoints)}).experts == tuple(known.name for known in DATASETS)


@pytest.mark.parametrize(
    "config",
    [
        VitPoseConfig.preset("base"),
        VitPoseConfig.preset("large-simple", scale_factor=2, image_size=(384, 288), qkv_bias=False),
        VitPoseConfig.preset("plus-huge", skeletons=(COCO,), out_indices=(8, 16, 32)),
        VitPoseConfig.preset("plus-small", skeletons=(DATASETS[4],), layer_norm_eps=1e-5, initializer_range=0.1),
        VitPoseConfig.preset("small", skeletons=(MPII,), image_mean=(0.0, 0.0, 0.0), hidden_act="gelu_tanh"),
        VitPoseConfig.preset("small", skeletons=(Skeleton(name="one", keypoints=("dot",), sigmas=(0.5,)),)),
        VitPoseConfig.preset("base", experts=("coco", "dance"), part_features=7, num_layers=2, out_indices=(0, 1)),
    ],
)
def test_a_configuration_survives_a_round_trip(config):
    documents = make_documents(config, param_dtype="float32")
    values, preprocessor = documents["config.json"], documents[PREPROCESSOR_FILE]
    assert parse_config(values, preprocessor, source="x") == config
    reference = transformers.VitPoseConfig(**values)
    assert tuple(reference.backbone_config.out_indices) == config.out_indices
    assert reference.num_labels == config.skeletons[0].num_keypoints
    assert parse_config(reference.to_dict(), preprocessor, source="what transformers saves") == config


def test_models_that_the_format_cannot_hold_raise():
    with pytest.raises(ValueError, match=r"one head, and this model has 6: coco, aic, .*\(split\).*\(dataset\)"):
        make_documents(VitPoseConfig.preset("plus-base"), param_dtype="float32")
    with pytest.raises(ValueError, match=r"mlp_ratio: .* whole number, got 2.5"):
        make_documents(VitPoseConfig.preset("base", mlp_ratio=2.5), param_dtype="float32")
