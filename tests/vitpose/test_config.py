import json
import math

import pytest

from vitpose_jax.skeletons import AP10K, COCO, DATASETS, SKELETONS, WHOLEBODY
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose.config import PRESETS, VitPoseConfig
from vitpose_jax.vitpose.modeling import abstract_vitpose

TINY = VitPoseConfig(hidden_size=24, num_layers=2, num_heads=3)
PLUS = TINY.replace(experts=tuple(skeleton.name for skeleton in DATASETS), part_features=6, skeletons=DATASETS)

# Millions of parameters of the published checkpoints. The running means and variances of BatchNorm (1,024 numbers
# in a classic decoder) are not among them; the "plus" files of the Hub hold the COCO head alone.
PUBLISHED = {
    "small": 24.29,
    "base": 89.99,
    "large": 308.54,
    "huge": 637.21,
    "small-simple": 21.72,
    "base-simple": 85.91,
    "large-simple": 303.45,
    "huge-simple": 631.11,
    "plus-small": 33.14,
    "plus-base": 125.40,
    "plus-large": 434.40,
    "plus-huge": 899.40,
}


def sizes(config: VitPoseConfig) -> dict[str, int]:
    return {name: math.prod(leaf.shape) for name, leaf in parameters.flatten(abstract_vitpose(config)).items()}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    flat = sizes(VitPoseConfig.preset(name, skeletons=(COCO,)))
    running = sum(size for name, size in flat.items() if name.endswith((".mean", ".var")))
    assert running == (0 if name.endswith("simple") else 1024)
    assert round((sum(flat.values()) - running) / 1e6, 2) == PUBLISHED[name]


def test_plus_presets_hold_six_heads():
    config = VitPoseConfig.preset("plus-base")
    heads = {name.split(".")[1] for name in sizes(config) if name.startswith("heads.")}
    assert heads == {"coco", "aic", "mpii", "ap10k", "apt36k", "wholebody"}
    assert config.num_experts == 6
    assert config.layer_norm_eps == 1e-6


def test_presets_are_known_by_name_and_can_be_changed():
    with pytest.raises(ValueError, match=r"no preset named 'giant'; expected one of small, base"):
        VitPoseConfig.preset("giant")
    config = VitPoseConfig.preset("base", image_size=(384, 288))
    assert (config.grid_size, config.num_patches, config.heatmap_size) == ((24, 18), 432, (96, 72))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_json_round_trip(name):
    config = VitPoseConfig.preset(name, layer_norm_eps=1e-12, out_indices=(3, 12))
    again = VitPoseConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


def test_from_dict_lists_missing_and_unknown_fields():
    values = TINY.to_dict()
    del values["decoder"]
    with pytest.raises(ValueError, match=r"missing fields \['decoder'\], unknown fields \['depth'\]"):
        VitPoseConfig.from_dict(values | {"depth": 2})


def test_equal_configurations_share_a_cache_entry():
    assert len({TINY, VitPoseConfig(hidden_size=24, num_layers=2, num_heads=3), TINY.replace(num_layers=3)}) == 2


def test_out_indices_follow_the_number_of_layers():
    assert TINY.out_indices == (2,)
    assert TINY.replace(num_layers=5).out_indices == (5,)
    assert TINY.replace(num_layers=5, out_indices=(0, 4)).out_indices == (0, 4)


def test_sizes_follow_from_other_fields():
    config = TINY.replace(image_size=(64, 96), patch_size=(16, 32), decoder="simple", scale_factor=2, mlp_ratio=2.5)
    assert config.grid_size == (4, 3)
    assert config.heatmap_size == (8, 6)
    assert config.mlp_features == 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers: expected a positive whole number, got 0"),
        ({"image_size": (256, -192)}, "image_size: expected two positive whole numbers"),
        ({"patch_size": (16, 0)}, "patch_size: expected two positive whole numbers"),
        ({"image_size": (256, 190)}, r"image_size: expected multiples of the patch size \(16, 16\), got \(256, 190\)"),
        ({"patch_size": (4, 4)}, "patch_size: expected more than 4 pixels"),
        ({"num_heads": 5}, "num_heads: expected a divisor of hidden_size 24, got 5"),
        ({"hidden_act": "swish"}, "hidden_act: expected one of gelu"),
        ({"decoder": "fancy"}, "decoder: expected one of classic, simple"),
        ({"scale_factor": 2}, "scale_factor: the classic decoder enlarges by 4, got 2"),
        ({"experts": ("coco",)}, "part_features: expected 1 to 23 with experts, got 0"),
        ({"experts": ("coco",), "part_features": 24}, "part_features: expected 1 to 23"),
        ({"part_features": 6}, "part_features: expected 0 without experts, got 6"),
        ({"out_indices": (2, 1)}, "out_indices: expected rising block numbers from 0 to 2"),
        ({"out_indices": (1, 1)}, "out_indices"),
        ({"out_indices": (3,)}, "out_indices"),
        ({"skeletons": ()}, "skeletons: expected one or more"),
        ({"skeletons": (COCO, COCO)}, "skeletons: expected one or more with distinct names"),
        ({"experts": ("coco",), "part_features": 6, "skeletons": (AP10K,)}, "skeletons: expected names among"),
        ({"experts": ("coco", "coco"), "part_features": 6}, "distinct experts"),
        ({"image_mean": (0.5,)}, "image_mean, image_std: expected 3 numbers each"),
    ],
)
def test_contradictory_fields_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        TINY.replace(**changes)


def test_all_contradictions_are_listed_at_once():
    with pytest.raises(ValueError, match=r"num_heads.*hidden_act.*decoder"):
        TINY.replace(num_heads=5, hidden_act="swish", decoder="fancy")


def test_dataset_index_takes_a_name_an_index_or_none():
    assert PLUS.datasets == ("coco", "aic", "mpii", "ap10k", "apt36k", "wholebody")
    assert [PLUS.dataset_index(name) for name in (None, "AP-10K", "whole_body", 4)] == [0, 3, 5, 4]
    assert TINY.dataset_index() == TINY.dataset_index("COCO") == TINY.dataset_index(0) == 0
    for unknown in ("halpe", 6, -1):
        with pytest.raises(ValueError, match=r"no dataset .* it knows coco \(0\), aic \(1\)"):
            PLUS.dataset_index(unknown)


def test_the_first_head_is_the_default_even_if_it_is_not_the_first_expert():
    config = PLUS.replace(skeletons=(WHOLEBODY, COCO))
    assert config.dataset_index() == 5
    assert config.skeleton() is WHOLEBODY


def test_a_dataset_has_the_skeleton_of_its_head():
    for index, skeleton in enumerate(DATASETS):
        assert PLUS.skeleton(index) is PLUS.skeleton(skeleton.name) is skeleton
    assert TINY.replace(skeletons=(SKELETONS["coco25"],)).skeleton() is SKELETONS["coco25"]


def test_a_dataset_with_an_expert_but_no_head_raises():
    hub = PLUS.replace(skeletons=(COCO,))
    assert hub.skeleton("coco") is COCO
    for dataset in ("ap10k", 3):
        with pytest.raises(ValueError, match=r"an expert for 'ap10k' but no head; its heads are: coco"):
            hub.skeleton(dataset)
