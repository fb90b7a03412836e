"""Conversion both ways against transformers: tensors bit for bit, heatmaps within the tolerance."""

import runpy
import subprocess
import sys
import tracemalloc
import warnings
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.support import programs
from tests.support.reference_torch import (
    head,
    heatmaps,
    original_state_dict,
    random_crops,
    save,
    split_state_dict,
    tiny_model,
)
from tests.tolerances import HEATMAPS
from vitpose_jax.convert import convert, engine, transforms, write
from vitpose_jax.convert.engine import plan, source_shapes
from vitpose_jax.convert.formats import BACKBONE_FORMATS, HUGGINGFACE, NATIVE, ORIGINAL
from vitpose_jax.convert.formats.format import vitpose_shapes
from vitpose_jax.pretrained import describe, from_pretrained
from vitpose_jax.skeletons import COCO, DATASETS, Skeleton
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose.config import VitPoseConfig

VARIANTS = {
    "simple": {},
    "classic": {"decoder": "classic"},
    "moe-simple": {"num_experts": 6},
    "moe-classic": {"decoder": "classic", "num_experts": 3, "part_features": 6},
    "no-qkv-bias": {"qkv_bias": False, "decoder": "classic"},
    "one-layer": {"num_hidden_layers": 1, "num_attention_heads": 3, "hidden_size": 30, "labels": ["one", "two"]},
    "square": {"image_size": [48, 80], "patch_size": [8, 16], "scale_factor": 2, "mlp_ratio": 3},
    "early-output": {"num_hidden_layers": 4, "out_indices": [1, 3], "hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu", "layer_norm_eps": 1e-3, "num_channels": 1},
}


@pytest.fixture(params=VARIANTS, scope="module")
def reference(request, tmp_path_factory):
    """A reference model and the folder it was saved to."""
    model = tiny_model(**VARIANTS[request.param])
    folder = save(model, tmp_path_factory.mktemp("hub"))
    if model.config.backbone_config.num_channels == 1:
        text = (folder / "preprocessor_config.json").read_text()
        (folder / "preprocessor_config.json").write_text(
            text.replace("0.485,\n    0.456,\n    0.406", "0.5").replace("0.229,\n    0.224,\n    0.225", "0.5")
        )
    return model, folder


def test_heatmaps_equal_those_of_transformers(reference):
    model, folder = reference
    converted, crops = from_pretrained(folder), random_crops(model)
    for index in range(model.config.backbone_config.num_experts):
        # The head is the first dataset's. The other experts run through the backbone and this head.
        tokens = converted.backbone(jnp.asarray(crops), index).tokens
        got = converted.decode(tokens)
        expected = heatmaps(model, crops, index)
        assert 0.3 < np.abs(expected).max() < 30
        np.testing.assert_allclose(got, expected, rtol=0, atol=HEATMAPS)
    np.testing.assert_allclose(converted(jnp.asarray(crops)), heatmaps(model, crops, 0), rtol=0, atol=HEATMAPS)


def test_round_trip_is_bit_equal_and_transformers_loads_it(reference, tmp_path):
    model, folder = reference
    assert convert(folder, tmp_path / "native") == [tmp_path / "native"]
    assert convert(tmp_path / "native", tmp_path / "hub", to="huggingface") == [tmp_path / "hub"]
    loaded, info = transformers.VitPoseForPoseEstimation.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not any(info.values()), info
    before, after = model.state_dict(), loaded.eval().state_dict()
    assert before.keys() == after.keys()
    for name in before:
        # BatchNorm's step counters are not kept.
        assert name.endswith("num_batches_tracked") or torch.equal(before[name], after[name]), name
    crops = random_crops(model)
    np.testing.assert_array_equal(heatmaps(loaded, crops), heatmaps(model, crops))
    assert from_pretrained(tmp_path / "hub").config == from_pretrained(folder).config


def test_a_pickle_of_the_hub_is_read(tmp_path):
    model = tiny_model(decoder="classic")
    folder = save(model, tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert describe(folder).format == "huggingface"
    same_tensors(from_pretrained(folder), weights)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_give_the_same_model_as_one_file(tmp_path, kind):
    model = tiny_model(num_experts=3)
    whole = from_pretrained(save(model, tmp_path / "whole"))
    folder = save(model, tmp_path / "shards", max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    if kind == "bin":
        for shard in shards:
            tensors = {name: torch.from_numpy(array) for name, array in load_file(shard).items()}
            torch.save(tensors, shard.with_name("pytorch_" + shard.stem + ".bin"))
            shard.unlink()
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    sharded = from_pretrained(folder)
    for name, leaf in parameters.flatten(whole).items():
        np.testing.assert_array_equal(leaf, parameters.flatten(sharded)[name])
    assert describe(folder).size == sum(path.stat().st_size for path in folder.glob("*model-*"))
    gone = next(folder.glob("*model-00002*"))
    gone.unlink()
    with pytest.raises(ValueError, match=rf"the shard {gone.name} is missing"):
        from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_bit_for_bit(tmp_path, dtype):
    model = tiny_model(decoder="classic", num_experts=2).to(dtype)
    folder = save(model, tmp_path / "hub")
    convert(folder, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "back", to="huggingface")
    assert describe(tmp_path / "native").dtype == describe(folder).dtype == str(dtype).removeprefix("torch.")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(after[name].view(np.uint16), tensor.view(np.uint16), err_msg=name)
    torch.save(model.state_dict(), tmp_path / "hub" / "pytorch_model.bin")
    (tmp_path / "hub" / "model.safetensors").unlink()
    same_tensors(from_pretrained(folder, dtype=jnp.bfloat16), before)


# Original files: at width 384 the number of heads is known, 12.
ORIGINAL_FIELDS = {"hidden_size": 384, "num_attention_heads": 12, "num_hidden_layers": 1, "layer_norm_eps": 1e-6}
ORIGINAL_FIELDS |= {"image_size": [256, 192], "mlp_ratio": 1, "part_features": 96}


@pytest.mark.parametrize("decoder", ["simple", "classic"])
@pytest.mark.parametrize("bare", [True, False])
def test_an_original_file_gives_the_heatmaps_of_torch(tmp_path, decoder, bare):
    model = tiny_model(decoder=decoder, **ORIGINAL_FIELDS)
    state = original_state_dict(model)
    path = tmp_path / "vitpose-s-coco.pth"
    torch.save(state if bare else {"meta": {"epoch": 210}, "state_dict": state}, path)
    converted = from_pretrained(path)
    assert converted.config == VitPoseConfig.preset("small", num_layers=1, mlp_ratio=1.0, decoder=decoder)
    crops = random_crops(model, 1)
    np.testing.assert_allclose(converted(jnp.asarray(crops)), heatmaps(model, crops), rtol=0, atol=HEATMAPS)
    assert describe(path).ignored["never read: the network has no class token"] == 1


@pytest.fixture(scope="module")
def plus():
    """A ViTPose++ with six experts and six heads: the model, its other heads, and its original tensors."""
    model = tiny_model(num_experts=6, decoder="classic", **ORIGINAL_FIELDS)
    heads = tuple(head(model, known.num_keypoints, seed=index) for index, known in enumerate(DATASETS[1:], 1))
    return model, heads, original_state_dict(model, heads)


def test_an_original_file_with_six_heads_is_converted_and_split(tmp_path, plus):
    model, heads, state = plus
    path = tmp_path / "vitpose+_small.pth"
    torch.save({"state_dict": state}, path)
    converted = from_pretrained(path)
    assert converted.config == VitPoseConfig.preset("plus-small", num_layers=1, mlp_ratio=1.0)
    crops = random_crops(model, 1)
    first = model.head
    try:
        for index, (known, module) in enumerate(zip(DATASETS, (first, *heads), strict=True)):
            model.head = module
            expected = heatmaps(model, crops, index)
            np.testing.assert_allclose(
                converted(jnp.asarray(crops), known.name), expected, rtol=0, atol=HEATMAPS, err_msg=known.name
            )
    finally:
        model.head = first

    with pytest.raises(ValueError, match=r"holds one head, and this model has 6: coco, aic, .*split"):
        convert(path, tmp_path / "hub", to="huggingface")
    assert not (tmp_path / "hub").exists()
    folders = convert(path, tmp_path / "split", to="huggingface", split=True)
    assert folders == [tmp_path / "split" / known.name for known in DATASETS]
    for index, (known, folder) in enumerate(zip(DATASETS, folders, strict=True)):
        plain, info = transformers.VitPoseForPoseEstimation.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        got = heatmaps(plain.eval(), crops)
        np.testing.assert_allclose(converted(jnp.asarray(crops), index), got, rtol=0, atol=HEATMAPS)
        assert describe(folder).config.skeletons == (known,)
    (one,) = convert(path, tmp_path / "one", dataset="AP-10K")
    assert describe(one).config.datasets == ("ap10k",)
    with pytest.raises(ValueError, match=r"no dataset 'lsp'"):
        convert(path, tmp_path / "none", dataset="lsp")


@pytest.mark.parametrize("index", [0, 3])
def test_experts_left_over_in_a_split_file_are_ignored(tmp_path, plus, index):
    state = split_state_dict(plus[2], index)
    name = DATASETS[index].name
    torch.save(state, tmp_path / "whole.pth")
    torch.save({"state_dict": plus[2]}, tmp_path / "plus.pth")
    path = (tmp_path / "whole.pth").rename(tmp_path / f"vitpose-s-{name}.pth")
    plain = from_pretrained(path)
    assert plain.config.experts == () and plain.config.skeletons == (DATASETS[index],)
    expected = parameters.flatten(from_pretrained(tmp_path / "plus.pth").specialize(name))
    assert expected.keys() == parameters.flatten(plain).keys()
    for name, leaf in parameters.flatten(plain).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    ignored = describe(path).ignored
    assert ignored["left behind when one dataset was split off: fc2 holds its expert already"] == 12 + 5 * 14


@pytest.mark.parametrize(
    ("count", "name", "skeleton"),
    [(17, "a.pth", "coco"), (17, "x-AP10K.pth", "ap10k"), (17, "apt36k.pth", "apt36k"), (14, "a.pth", "aic")]
    + [(14, "crowdpose.pth", "crowdpose"), (16, "a.pth", "mpii"), (133, "a.pth", "wholebody"), (25, "a.pth", "coco25")]
    + [(5, "a.pth", "custom")],
)
def test_the_skeleton_of_an_original_file_follows_from_its_size_and_name(tmp_path, count, name, skeleton):
    torch.save(original_state_dict(tiny_model(labels=["x"] * count, **ORIGINAL_FIELDS)), tmp_path / name)
    assert describe(tmp_path / name).config.skeletons[0].name == skeleton


def test_an_unusual_original_file_needs_a_config_or_an_image_size(tmp_path):
    path = tmp_path / "a.pth"
    model = tiny_model(hidden_size=24, layer_norm_eps=1e-6)
    torch.save(original_state_dict(model), path)
    with pytest.raises(ValueError, match=r"number of attention heads is not known for a width of 24.*config="):
        from_pretrained(path)
    config = VitPoseConfig(
        hidden_size=24, num_layers=2, num_heads=2, image_size=(64, 48), decoder="simple", skeletons=(COCO,)
    )
    crops = random_crops(model)
    got = from_pretrained(path, config=config)(jnp.asarray(crops))
    np.testing.assert_allclose(got, heatmaps(model, crops), rtol=0, atol=HEATMAPS)

    torch.save(original_state_dict(tiny_model(**{**ORIGINAL_FIELDS, "image_size": [160, 96]})), path)
    with pytest.raises(ValueError, match=r"60 patches of 16 x 16 pixels .*image_size="):
        from_pretrained(path)
    assert from_pretrained(path, image_size=(160, 96)).config.image_size == (160, 96)


def test_rules_fill_every_number_exactly_once():
    plus = VitPoseConfig.preset("plus-small", num_layers=2)
    one_head = plus.replace(skeletons=DATASETS[:1])
    for format, config in (
        (ORIGINAL, plus),
        (ORIGINAL, plus.replace(decoder="simple")),
        (ORIGINAL, VitPoseConfig.preset("base-simple", num_layers=3)),
        (HUGGINGFACE, one_head),
        (HUGGINGFACE, VitPoseConfig.preset("base", num_layers=3, qkv_bias=False)),
        (NATIVE, plus),
    ):
        pieces = [(target, *piece) for target, parts in plan(format, config).items() for piece in parts]
        sources = [source for _, source, _, _ in pieces]
        assert len(sources) == len(set(sources))
        # Each number of the model comes from exactly one source.
        covered = {name: np.zeros(shape, np.int8) for name, shape in vitpose_shapes(config).items()}
        for target, _, index, _ in pieces:
            covered[target][index] += 1
        assert all((counts == 1).all() for counts in covered.values())
    for format in (HUGGINGFACE, ORIGINAL, *BACKBONE_FORMATS):
        assert len({source for source, _, _ in format.rules}) == len(format.rules), format.name
    with pytest.raises(ValueError, match=r"huggingface checkpoint has no place for heads.aic"):
        plan(HUGGINGFACE, plus)


def test_published_checkpoints_have_the_expected_number_of_tensors():
    def names(config: VitPoseConfig) -> dict:
        return source_shapes(plan(HUGGINGFACE, config), vitpose_shapes(config))

    # Counted in the files on the Hub, without BatchNorm's step counters.
    for name, count in (("base-simple", 199), ("base", 211 - 2)):
        assert len(names(VitPoseConfig.preset(name))) == count
    coco = {"skeletons": DATASETS[:1]}
    for name, count in (("plus-small", 355 - 2), ("plus-large", 691 - 2), ("plus-huge", 915 - 2)):
        assert len(names(VitPoseConfig.preset(name, **coco))) == count


def test_all_problems_are_listed_at_once(tmp_path):
    folder = save(tiny_model(num_experts=2), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["backbone.layernorm.bias"]
    del tensors["backbone.encoder.layer.1.attention.attention.key.weight"]
    tensors["head.conv.weight"] = np.zeros((17, 24, 1, 1), np.float32)
    tensors["head.conv.bias"] = np.zeros(17, np.int32)
    tensors["backbone.encoder.layer.0.mlp.experts.2.weight"] = np.zeros((8, 96), np.float32)
    tensors["backbone.encoder.layer.2.layernorm_before.weight"] = np.zeros(24, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        from_pretrained(folder)
    first, *problems = str(caught.value).splitlines()
    assert first == f"{folder / 'model.safetensors'}: 6 problems"
    assert sorted(problems) == [
        "  head.conv.bias: expected floating-point numbers, got int32",
        "  head.conv.weight: expected shape (17, 24, 3, 3), got (17, 24, 1, 1)",
        "  missing backbone.encoder.layer.1.attention.attention.key.weight, expected shape (24, 24)",
        "  missing backbone.layernorm.bias, expected shape (24,)",
        "  unexpected backbone.encoder.layer.0.mlp.experts.2.weight, shape (8, 96)",
        "  unexpected backbone.encoder.layer.2.layernorm_before.weight, shape (24,)",
    ]


def test_loading_holds_one_tensor_besides_the_model(tmp_path, monkeypatch):
    """Besides the model, at most one of its tensors is in memory, and one tensor of the source."""
    model = tiny_model(hidden_size=96, num_hidden_layers=12)
    folder = save(model, tmp_path)
    total = sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    largest = 12 * 96 * 384 * 4
    in_memory, counts = set(), []

    def to_flax(transform, tensor):
        in_memory.add(id(tensor))
        weakref.finalize(tensor, in_memory.discard, id(tensor))
        counts.append(len(in_memory))
        return transforms.to_flax(transform, tensor)

    monkeypatch.setattr(engine, "to_flax", to_flax)
    from_pretrained(folder)  # fill the caches
    pieces = plan(HUGGINGFACE, describe(folder).config)
    assert len(counts) == sum(map(len, pieces.values())) and max(counts) == 1
    tracemalloc.start()
    loaded = from_pretrained(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded.config.num_layers == 12
    assert peak < total + 2 * largest < 1.8 * total


def test_the_module_runs_as_the_convert_command(tmp_path, capsys, monkeypatch):
    """`python -m vitpose_jax.convert` does the same as `vitpose-jax convert`."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        with warnings.catch_warnings():
            # runpy warns that the package has been imported before.
            warnings.simplefilter("ignore", RuntimeWarning)
            with pytest.raises(SystemExit) as exit_:
                runpy.run_module("vitpose_jax.convert", run_name="__main__")
        return int(exit_.value.code or 0)

    folder, native = save(tiny_model(), tmp_path / "hub"), tmp_path / "native"
    assert run(folder, native) == 0
    assert capsys.readouterr().out == f"{native}\n"
    assert run(folder, native) == 1
    assert capsys.readouterr().err == (
        f"vitpose-jax: error: {native}: already holds model.safetensors, config.json; "
        "choose another folder, or ask to overwrite\n"
    )
    assert run(folder, native, "--overwrite", "--split", "--to", "huggingface") == 0
    assert (native / "coco" / "preprocessor_config.json").is_file()
    assert run(folder, tmp_path / "other", "--image-size", 96, 64, "--skeleton", "ap10k") == 0
    config = describe(tmp_path / "other").config
    assert config.image_size == (96, 64)
    assert config.datasets == ("ap10k",)


def test_safetensors_are_converted_without_torch(tmp_path):
    folder = save(tiny_model(), tmp_path / "hub")
    command = programs.command("convert_without_torch", folder, tmp_path / "native", tmp_path / "back")
    subprocess.run(command, env=programs.environment(), check=True)


def test_a_custom_skeleton_survives_a_round_trip(tmp_path):
    odd = Skeleton(name="hands", keypoints=("left_hand", "right_hand", "face"), flip_pairs=((0, 1),), edges=((0, 2),))
    folder = save(tiny_model(labels=["a", "b", "c"], num_experts=2), tmp_path / "hub")
    model = from_pretrained(folder, skeleton=odd)
    assert model.config.skeletons == (odd,) and model.config.experts == ("hands", "aic")
    write(model, tmp_path / "back", to="huggingface")
    assert from_pretrained(tmp_path / "back").config == model.config
    loaded = transformers.VitPoseConfig.from_pretrained(tmp_path / "back")
    assert list(loaded.id2label.values()) == list(odd.keypoints)
    with pytest.raises(ValueError, match=r"expected 3 keypoints.*'coco' with 17"):
        from_pretrained(folder, skeleton="coco")


def same_tensors(model, weights):
    """The reference's tensors are in the model, bit for bit: patch kernel, one query kernel and the head's bias."""
    got = {name: np.asarray(leaf) for name, leaf in parameters.flatten(model).items()}
    kernel = weights["backbone.embeddings.patch_embeddings.projection.weight"].transpose(2, 3, 1, 0)
    query = weights["backbone.encoder.layer.1.attention.attention.query.weight"].T
    dtype = got["backbone.patch_embed.proj.kernel"].dtype
    np.testing.assert_array_equal(got["backbone.patch_embed.proj.kernel"], kernel.astype(dtype))
    np.testing.assert_array_equal(got["backbone.blocks.attention.qkv.kernel"][1, :, : len(query)], query.astype(dtype))
    np.testing.assert_array_equal(got["heads.coco.conv.bias"], weights["head.conv.bias"].astype(dtype))
