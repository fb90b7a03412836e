"""Models initialised from MAE, DINOv2 and other ViTPoses, against torch; sources that do not fit are errors."""

import argparse
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from tests.support import reference_torch as torch_reference
from tests.support.models import PLUS, SMALL_PLUS, TINY, random_crops, random_model
from tests.support.reference_training import DEPTH, DIM, mae
from tests.tolerances import BLOCK, RESAMPLED
from vitpose_jax import Skeleton, VitPoseConfig, checkpoint
from vitpose_jax.convert.backbones import load_backbone, resize_patches
from vitpose_jax.skeletons import AP10K, COCO
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import open_safetensors
from vitpose_jax.training.initialize import initialize
from vitpose_jax.vitpose.modeling import abstract_vitpose

DINO = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 2}


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A tiny DINOv2 with random weights, as transformers writes it, and its folder."""
    config = transformers.Dinov2Config(**DINO, image_size=70, patch_size=14)
    model = torch_reference.randomize(transformers.Dinov2Model(config), 0)
    folder = tmp_path_factory.mktemp("dino")
    model.save_pretrained(folder)
    return model, folder


def test_mae_checkpoints_load_as_in_the_original(tmp_path):
    tensors = mae()
    # The training script of MAE stores its settings beside the tensors.
    torch.save({"model": tensors, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "mae.pth")
    config = VitPoseConfig(**TINY)
    ours = load_backbone(tmp_path / "mae.pth", config)
    expected = {name for name in parameters.flatten(abstract_vitpose(config)) if "heads" not in name}
    assert set(ours) == expected
    numpy = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.testing.assert_array_equal(ours["backbone.norm.scale"], numpy["norm.weight"])
    for index in range(DEPTH):
        for name, original in (("attention.qkv", "attn.qkv"), ("attention.proj", "attn.proj"), ("mlp.fc2", "mlp.fc2")):
            kernel = numpy[f"blocks.{index}.{original}.weight"].T
            np.testing.assert_array_equal(ours[f"backbone.blocks.{name}.kernel"][index], kernel)
            np.testing.assert_array_equal(
                ours[f"backbone.blocks.{name}.bias"][index], numpy[f"blocks.{index}.{original}.bias"]
            )
    kernel = numpy["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(ours["backbone.patch_embed.proj.kernel"], kernel)
    grid = tensors["pos_embed"][:, 1:].reshape(1, 4, 4, DIM).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(4, 3), mode="bicubic", align_corners=False)
    positions = ours["backbone.patch_embed.pos_embed"]
    np.testing.assert_allclose(positions[1:], grid.flatten(2)[0].T, atol=BLOCK)
    np.testing.assert_array_equal(positions[0], numpy["pos_embed"][0, 0])


def test_a_backbone_without_heads_loads(tmp_path):
    tensors = mae(decoder=False)
    renamed = {
        name.replace("norm.", "last_norm.") if name.startswith("norm.") else name: tensors[name] for name in tensors
    }
    torch.save({"state_dict": renamed}, tmp_path / "bare.pth")
    torch.save(tensors, tmp_path / "mae.pth")
    bare, other = (load_backbone(tmp_path / name, VitPoseConfig(**TINY)) for name in ("bare.pth", "mae.pth"))
    for name, tensor in other.items():
        np.testing.assert_array_equal(bare[name], tensor)


def test_all_experts_start_as_the_last_channels_of_the_second_layer(tmp_path):
    tensors = mae()
    torch.save({"model": tensors}, tmp_path / "mae.pth")
    ours = load_backbone(tmp_path / "mae.pth", VitPoseConfig(**TINY, **SMALL_PLUS))
    part = PLUS["part_features"]
    for index in range(DEPTH):
        weight = tensors[f"blocks.{index}.mlp.fc2.weight"].numpy()
        bias = tensors[f"blocks.{index}.mlp.fc2.bias"].numpy()
        np.testing.assert_array_equal(ours["backbone.blocks.mlp.fc2.kernel"][index], weight[:-part].T)
        np.testing.assert_array_equal(ours["backbone.blocks.mlp.fc2.bias"][index], bias[:-part])
        for expert in range(6):
            np.testing.assert_array_equal(ours["backbone.blocks.mlp.experts_kernel"][index, expert], weight[-part:].T)
            np.testing.assert_array_equal(ours["backbone.blocks.mlp.experts_bias"][index, expert], bias[-part:])


def test_layer_scale_is_folded_exactly(dino):
    """The blocks return the same output as DINOv2's for the same tokens."""
    model, folder = dino
    backbone = initialize(VitPoseConfig(**TINY, decoder="simple"), folder, rngs=nnx.Rngs(0)).backbone
    tokens = np.random.default_rng(0).normal(size=(2, 12, DIM)).astype(np.float32)
    expected, tokens = torch.from_numpy(tokens), jnp.asarray(tokens)
    run = jax.jit(lambda block, x: block(x)[0])
    with torch.no_grad():
        for index, layer in enumerate(model.encoder.layer):
            expected = layer(expected)
            expected = expected[0] if isinstance(expected, tuple) else expected
            block = jax.tree.map(lambda leaf, index=index: leaf[index], backbone.blocks)
            tokens = run(block, tokens)
            np.testing.assert_allclose(tokens, expected, atol=BLOCK)
        np.testing.assert_allclose(backbone.norm(tokens), model.layernorm(expected), atol=BLOCK)


def test_a_dinov2_embeds_a_patch_as_before(dino):
    """The resampled kernel is exact on an enlarged patch; positions are resampled too; the class token is dropped."""
    model, folder = dino
    ours = load_backbone(folder, VitPoseConfig(**TINY))
    embeddings = model.embeddings
    weight = embeddings.patch_embeddings.projection.weight.detach().numpy().transpose(2, 3, 1, 0)
    patch = np.random.default_rng(0).normal(size=(14, 14, 3)).astype(np.float32)
    larger = np.asarray(jax.image.resize(patch, (16, 16, 3), "bilinear"))
    kernel = ours["backbone.patch_embed.proj.kernel"]
    assert kernel.shape == (16, 16, 3, DIM)
    expected = np.einsum("yxi,yxio->o", patch, weight)
    np.testing.assert_allclose(np.einsum("yxi,yxio->o", larger, kernel), expected, rtol=0, atol=BLOCK)
    np.testing.assert_array_equal(
        ours["backbone.patch_embed.proj.bias"], embeddings.patch_embeddings.projection.bias.detach()
    )
    positions = ours["backbone.patch_embed.pos_embed"]
    assert (positions[0] == 0).all()
    grid = embeddings.position_embeddings[:, 1:].detach().reshape(1, 5, 5, DIM).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(4, 3), mode="bicubic", align_corners=False)
    np.testing.assert_allclose(positions[1:], grid.flatten(2)[0].T, atol=BLOCK)


def test_smaller_patches_approximate_the_larger_ones():
    rng = np.random.default_rng(0)
    # A smooth kernel, which a smaller one can approximate.
    kernel = np.outer(np.sin(np.arange(16) / 5), np.cos(np.arange(16) / 5)).astype(np.float32)[:, :, None, None]
    smaller = resize_patches(kernel, (14, 12))
    assert smaller.shape == (14, 12, 1, 1)
    assert resize_patches(kernel, (16, 16)) is kernel
    patch = jax.image.resize(rng.normal(size=(4, 4)), (16, 16), "cubic")
    answer = (np.asarray(jax.image.resize(patch, (14, 12), "bilinear")) * smaller[..., 0, 0]).sum()
    np.testing.assert_allclose(answer, (np.asarray(patch) * kernel[..., 0, 0]).sum(), rtol=RESAMPLED)


def test_dinov2_small_loads_completely(data):
    path = data / "init" / "dinov2_vits14_fp16.safetensors"
    if not path.exists():
        pytest.skip("no DINOv2 among the sample data")
    config = VitPoseConfig.preset("small", num_heads=6)
    ours = load_backbone(path, config)
    assert sum(tensor.size for tensor in ours.values()) == sum(
        math.prod(leaf.shape)
        for name, leaf in parameters.flatten(abstract_vitpose(config)).items()
        if name.startswith("backbone.")
    )
    assert all(tensor.dtype == np.float32 and np.isfinite(tensor).all() for tensor in ours.values())
    original = open_safetensors(path)
    scale = np.asarray(original["encoder.layer.11.layer_scale2.lambda1"]).astype(np.float32)
    weight = np.asarray(original["encoder.layer.11.mlp.fc2.weight"]).astype(np.float32)
    folded = ours["backbone.blocks.mlp.fc2.kernel"][11]
    np.testing.assert_array_equal(folded, (weight * scale[:, None]).T)
    with pytest.raises(ValueError, match="num_heads: expected 12, as configured, got 6"):
        load_backbone(path, VitPoseConfig.preset("small"))


def test_another_vitpose_with_other_crops_keeps_its_head(tmp_path):
    old = random_model(VitPoseConfig(**TINY, decoder="simple"))
    checkpoint.save(old, tmp_path / "old")
    config = old.config.replace(image_size=(96, 80))
    for source in (old, tmp_path / "old"):
        new = initialize(config, source, rngs=nnx.Rngs(0))
        expected = parameters.flatten(old.resize((96, 80)))
        for name, leaf in parameters.flatten(new).items():
            np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    assert new.config == config


def test_another_skeleton_gets_a_new_head():
    old = random_model(VitPoseConfig(**TINY, **SMALL_PLUS, decoder="simple"))
    dog = Skeleton(name="dog", keypoints=("nose", "tail"))
    plain = old.specialize("ap10k")
    new = initialize(plain.config.replace(skeletons=(dog,)), plain, rngs=nnx.Rngs(0))
    assert jax.eval_shape(lambda: new(random_crops(new.config))).shape[-1] == 2
    before, after = parameters.flatten(plain), parameters.flatten(new)
    for name in before:
        if name.startswith("backbone."):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert 0.8e-3 < np.std(after["heads.dog.conv.kernel"]) < 1.2e-3
    # Name and keypoints must both be equal.
    renamed = Skeleton(name="coco", keypoints=COCO.keypoints[::-1])
    new = initialize(old.config.replace(skeletons=(renamed, AP10K)), old, rngs=nnx.Rngs(0))
    before, after = parameters.flatten(old), parameters.flatten(new)
    np.testing.assert_array_equal(after["heads.ap10k.conv.kernel"], before["heads.ap10k.conv.kernel"])
    np.testing.assert_array_equal(after["heads.ap10k.conv.bias"], before["heads.ap10k.conv.bias"])
    assert 0.8e-3 < np.std(after["heads.coco.conv.kernel"]) < 1.2e-3


def test_another_decoder_gets_new_heads():
    old = random_model(VitPoseConfig(**TINY))
    new = initialize(old.config.replace(decoder="simple"), old, rngs=nnx.Rngs(0))
    assert 0.8e-3 < np.std(parameters.flatten(new)["heads.coco.conv.kernel"]) < 1.2e-3


def test_experts_are_matched_by_name():
    old = random_model(VitPoseConfig(**TINY, **SMALL_PLUS))
    ours = load_backbone(old, old.config.replace(experts=("ap10k", "coco")))
    before = parameters.flatten(old)["backbone.blocks.mlp.experts_kernel"]
    np.testing.assert_array_equal(ours["backbone.blocks.mlp.experts_kernel"], before[:, [3, 0]])
    with pytest.raises(ValueError, match=r"has experts for coco, .*the configuration for none; .*specialize"):
        load_backbone(old, VitPoseConfig(**TINY))
    with pytest.raises(ValueError, match=r"the configuration for coco, dogs"):
        load_backbone(old, old.config.replace(experts=("coco", "dogs"), skeletons=(COCO,)))


def test_the_model_has_the_requested_dtypes(dino):
    config = VitPoseConfig(**TINY, decoder="simple")
    dtypes = {"dtype": jnp.bfloat16, "param_dtype": jnp.float16}
    model = initialize(config, dino[1], rngs=nnx.Rngs(0), **dtypes)
    assert model.backbone.dtype == jnp.bfloat16
    leaves = parameters.flatten(model)
    assert leaves["backbone.blocks.mlp.fc1.kernel"].dtype == jnp.float16
    assert leaves["backbone.norm.scale"].dtype == jnp.float32


def test_all_misfits_of_a_source_are_listed(tmp_path):
    tensors = mae(**{"blocks.1.mlp.fc1.bias": (5,), "head.weight": (3, DIM)})
    del tensors["norm.bias"]
    torch.save({"model": tensors}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match=r"mae\.pth: 3 problems") as caught:
        load_backbone(tmp_path / "mae.pth", VitPoseConfig(**TINY))
    message = str(caught.value)
    assert "missing norm.bias, expected shape (24,)" in message
    assert "blocks.1.mlp.fc1.bias: expected shape (48,), got (5,)" in message
    assert "unexpected head.weight, shape (3, 24)" in message


def test_sources_that_are_no_backbone_are_errors(tmp_path, dino):
    with pytest.raises(ValueError, match=r"num_heads: expected 4, as configured, got 3"):
        load_backbone(dino[1], VitPoseConfig(**{**TINY, "num_heads": 4}))
    with pytest.raises(ValueError, match=r"(?s)2 problems.*num_layers: expected 3.*num_heads: expected 4"):
        load_backbone(random_model(VitPoseConfig(**TINY)), VitPoseConfig(**{**TINY, "num_layers": 3, "num_heads": 4}))
    giant = transformers.Dinov2Model(transformers.Dinov2Config(**DINO, image_size=70, use_swiglu_ffn=True))
    giant.save_pretrained(tmp_path / "giant")
    with pytest.raises(ValueError, match="got SwiGLU"):
        load_backbone(tmp_path / "giant", VitPoseConfig(**TINY))
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"expected a ViTPose, or a backbone.*MAE, DINOv2.*got conv1.weight"):
        load_backbone(tmp_path / "resnet.pth", VitPoseConfig(**TINY))
    torch.save({"model": mae(pos_embed=(1, 12, DIM))}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match=r"pos_embed: expected positions of a square of patches, got 11"):
        load_backbone(tmp_path / "mae.pth", VitPoseConfig(**TINY))
    with pytest.raises(ValueError, match="no such file"):
        load_backbone(tmp_path / "missing.pth", VitPoseConfig(**TINY))
