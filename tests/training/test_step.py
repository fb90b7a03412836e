"""A training step against torch; which parameters a mixed batch changes; moving averages, keys, losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.support import reference_torch as torch_reference
from tests.support.models import PLUS, TINY, random_model
from tests.support.reference_training import original_rate_and_decay
from tests.support.training_step import KEY, NONE, begin, copied, crops_and_targets, random_batch
from tests.tolerances import BFLOAT16_LOSSES, FLOAT32, GRADIENTS, LOSSES, PARAMETERS, UPDATES
from vitpose_jax import VitPose, VitPoseConfig
from vitpose_jax.convert.formats.huggingface import HUGGINGFACE, parse_config
from vitpose_jax.convert.sources import build_model, check_tensors
from vitpose_jax.skeletons import AIC, AP10K, COCO
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import LazyTensor
from vitpose_jax.training import losses
from vitpose_jax.training.augment import Augmentation
from vitpose_jax.training.optim import OptimConfig, make_optimizer
from vitpose_jax.training.step import init_state, make_train_step
from vitpose_jax.vitpose.modeling import abstract_vitpose


def as_ours(reference, tensors, config) -> VitPose:
    arrays = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
    lazy = {name: LazyTensor(array.shape, array.dtype, lambda array=array: array) for name, array in arrays.items()}
    source = check_tensors(HUGGINGFACE, config, lazy, name="the reference")
    return build_model(source, dtype=jnp.float32, param_dtype=jnp.float32)


@pytest.mark.parametrize("decoder", ["classic", pytest.param("simple", marks=pytest.mark.slow)])
def test_steps_equal_torch(decoder):
    """The network of transformers, the loss in torch, AdamW with a rate for each layer, clipped gradients."""
    reference = torch_reference.tiny_model(decoder=decoder).train()
    config = parse_config(reference.config.to_dict(), None, source="the reference")
    # Some gradients are 0 apart from rounding (the bias of the keys): eps keeps Adam from amplifying it.
    settings = OptimConfig(
        total_steps=9, warmup_steps=0, milestones=(2,), learning_rate=1e-3, drop_path=0.0, clip_norm=0.01, eps=1e-6
    )
    state, train_step = begin(as_ours(reference, reference.state_dict(), config), settings, augmentation=NONE)

    groups = []
    for name, tensor in reference.named_parameters():
        layer = name.replace("backbone.embeddings.patch_embeddings", "backbone.patch_embed")
        layer = layer.replace("backbone.embeddings.position_embeddings", "backbone.pos_embed")
        layer = layer.replace("backbone.encoder.layer", "backbone.blocks")
        scale, decay = original_rate_and_decay(layer, tensor, config.num_layers, settings.layer_decay)
        groups.append({"params": [tensor], "weight_decay": decay, "scale": scale})
    optimizer = torch.optim.AdamW(groups, eps=settings.eps)
    for number, rate in enumerate([1e-3, 1e-3, 1e-4]):
        batch = random_batch(config, ["coco"] * 4, seed=number)
        crops, targets, weights = (torch.from_numpy(np.array(part)) for part in crops_and_targets(config, batch))
        heatmaps = reference(crops.permute(0, 3, 1, 2)).heatmaps
        error = ((heatmaps - targets.permute(0, 3, 1, 2)) * weights[:, :, None, None]) ** 2
        optimizer.zero_grad()
        error.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), settings.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        optimizer.step()

        before = copied(state)
        state, metrics = train_step(state, batch, KEY)
        assert norm > 2 * settings.clip_norm
        np.testing.assert_allclose(metrics["loss"], error.mean().item(), rtol=LOSSES)
        np.testing.assert_allclose(metrics["gradient_norm"], norm.item(), rtol=GRADIENTS)
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=FLOAT32)
        assert 0 <= metrics["accuracy"] <= 1
        expected = parameters.flatten(as_ours(reference, reference.state_dict(), config))
        after = copied(state)
        assert set(after) == set(expected)
        for name, leaf in after.items():
            np.testing.assert_allclose(leaf, expected[name], rtol=0, atol=PARAMETERS, err_msg=f"{name}, step {number}")
            if name.endswith(("kernel", "mean", "var")):
                assert np.abs(leaf - before[name]).max() > 3 * PARAMETERS, name
    assert state.micro_step == 3


@pytest.mark.slow
def test_a_mixed_batch_trains_its_own_heads_and_experts():
    """And the losses equal those of the network called separately on the crops of each dataset."""
    config = VitPoseConfig(**TINY, **{**PLUS, "skeletons": (COCO, AIC, AP10K)}, decoder="simple")
    model = random_model(config)
    # Without weight decay, parameters without a gradient do not change.
    settings = OptimConfig(total_steps=9, warmup_steps=0, weight_decay=0.0, drop_path=0.0)
    state, train_step = begin(model, settings, augmentation=NONE)
    before = copied(state)
    batch = random_batch(config, ["coco", "ap10k", "ap10k", "coco", "ap10k"])
    state, metrics = train_step(state, batch, KEY)
    crops, targets, weights = crops_and_targets(config, batch)
    for name, mine in (("coco", np.array([0, 3])), ("ap10k", np.array([1, 2, 4]))):
        heatmaps, own = model(crops[mine], name), config.skeleton(name).num_keypoints
        alone = losses.joints_mse(heatmaps, targets[mine, ..., :own], weights[mine, :own])
        np.testing.assert_allclose(metrics[f"loss/{name}"], alone * len(mine) / 5, rtol=FLOAT32)
    assert metrics["loss/aic"] == 0
    np.testing.assert_allclose(metrics["loss"], metrics["loss/coco"] + metrics["loss/ap10k"], rtol=FLOAT32)
    for name, leaf in copied(state).items():
        changed = np.abs(leaf - before[name])
        if "experts" in name:
            moved = changed.max(axis=(0, *range(2, leaf.ndim))) > 0
            assert moved.tolist() == [True, False, False, True, False, False], name
        else:
            assert (changed.max() > 0) != name.startswith("heads.aic."), name


def test_ohkm_counts_the_keypoints_with_the_largest_errors():
    config = VitPoseConfig(**TINY, decoder="simple")
    model = random_model(config)
    batch = random_batch(config, ["coco"] * 3)
    settings = OptimConfig(total_steps=9, drop_path=0.0)
    state, train_step = begin(model, settings, augmentation=NONE, loss="ohkm")
    _, metrics = train_step(state, batch, KEY)
    crops, targets, weights = crops_and_targets(config, batch)
    heatmaps = jax.jit(lambda model, crops: model(crops))(model, crops)
    errors = np.asarray(losses.keypoint_errors(heatmaps, targets, weights))
    np.testing.assert_allclose(metrics["loss"], np.sort(errors, axis=1)[:, -8:].mean(), rtol=FLOAT32)


def test_a_mirrored_label_keeps_its_weight():
    """In mirrored crops the labelled left wrist trains the channel of the right wrist."""
    config = VitPoseConfig(**TINY, decoder="simple", skeletons=(COCO,))
    model = random_model(config)
    model.heads["coco"].conv.kernel[...] *= 0
    model.heads["coco"].conv.bias[...] *= 0
    batch = random_batch(config, ["coco"] * 3)
    weights = np.zeros_like(batch.weights)
    weights[:, COCO.keypoints.index("left_wrist")] = 0.5
    keypoints = np.repeat(batch.regions.center[:, None], 17, axis=1)
    batch = batch._replace(weights=weights, visible=np.ones_like(batch.visible), keypoints=keypoints)
    settings = OptimConfig(total_steps=9, drop_path=0.0, weight_decay=0.0, warmup_steps=0)
    mirrored = Augmentation(jitter=0.0, flip=1.0, half_body=0.0, scale=0.0, rotation=0.0)
    state, train_step = begin(model, settings, augmentation=mirrored)
    state, _ = train_step(state, batch, KEY)
    moved = np.flatnonzero(np.asarray(state.trained["heads.coco.conv.bias"]))
    assert moved.tolist() == [COCO.keypoints.index("right_wrist")]


def test_steps_update_the_average_and_micro_steps_change_the_random_numbers():
    """All random numbers come from the key and the index of the micro-step."""
    config = VitPoseConfig(**TINY, decoder="simple")
    settings = OptimConfig(total_steps=9, warmup_steps=0, accumulate=2, ema_decay=0.75, learning_rate=0.1)
    state, train_step = begin(random_model(config), settings, augmentation=Augmentation())
    average = {name: np.array(leaf) for name, leaf in state.ema.items()}
    batch = random_batch(config, ["coco"] * 3)
    values = []
    for number in range(4):
        state, metrics = train_step(state, batch, KEY)
        values.append(float(metrics["loss"]))
        if number % 2:
            average = {name: 0.75 * average[name] + 0.25 * np.asarray(state.trained[name]) for name in average}
        for name, leaf in state.ema.items():
            np.testing.assert_allclose(leaf, average[name], rtol=0, atol=UPDATES, err_msg=name)
    assert np.abs(average["backbone.norm.scale"] - np.asarray(state.trained["backbone.norm.scale"])).max() > 1e-3

    # The first two micro-steps have the same parameters, so only random numbers differ.
    assert values[0] != values[1]
    for key, number in ((KEY, 0), (KEY, 1), (jax.random.key(4), 0)):
        _, _, state = init_state(random_model(config), settings)
        _, metrics = train_step(state._replace(micro_step=jnp.int32(number)), batch, key)
        assert (float(metrics["loss"]) == values[number]) == (key is KEY)


def test_mixed_precision_keeps_float32_parameters():
    config = VitPoseConfig(**TINY, decoder="simple")
    batch = random_batch(config, ["coco"] * 3)
    model = random_model(config, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    state, train_step = begin(model, OptimConfig(total_steps=9, drop_path=0.0), augmentation=NONE, remat=True)
    state, metrics = train_step(state, batch, KEY)
    assert {leaf.dtype for leaf in state.trained.values()} == {np.dtype("float32")}
    crops, targets, weights = crops_and_targets(config, batch)
    exact = jax.jit(lambda model, *batch: losses.joints_mse(model(batch[0]), *batch[1:]))(
        random_model(config), crops, targets, weights
    )
    assert metrics["loss"] != exact
    np.testing.assert_allclose(metrics["loss"], exact, rtol=BFLOAT16_LOSSES)


def test_make_train_step_checks_the_loss(unchecked):
    config = VitPoseConfig(**TINY, **{**PLUS, "skeletons": (COCO, AP10K)}, decoder="simple")
    settings = OptimConfig(total_steps=9)
    model, optimizer = nnx.graphdef(abstract_vitpose(config)), make_optimizer(settings, config)
    with pytest.raises(ValueError, match="one of mse, ohkm, got 'l1'"):
        make_train_step(config, model, optimizer, optim_config=settings, augmentation=NONE, loss="l1")
    with pytest.raises(ValueError, match="one head, got heads for coco, ap10k"):
        make_train_step(config, model, optimizer, optim_config=settings, augmentation=NONE, loss="ohkm")
