"""The optimiser against torch: AdamW with groups, layer-wise rates, schedules, freezing, accumulation, name rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from tests.support.models import SMALL_PLUS, TINY, random_crops, random_model
from tests.support.reference_training import original_rate_and_decay
from tests.tolerances import FLOAT32, UPDATES
from vitpose_jax import VitPoseConfig
from vitpose_jax.storage import parameters
from vitpose_jax.training import optim
from vitpose_jax.training.name_rules import match_rules
from vitpose_jax.training.optim import OptimConfig
from vitpose_jax.vitpose import config


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def original_groups(name: str, stacked: np.ndarray, depth: int) -> list[tuple[str, np.ndarray]]:
    """The tensors of the original for one of ours, by the original's names: one for each block."""
    name = name.replace("backbone.norm", "backbone.last_norm").replace("backbone.patch_embed.pos", "backbone.pos")
    name = name.replace("kernel", "weight").replace("scale", "weight")
    if ".blocks." not in name:
        return [(name, stacked)]
    per_block = [(name.replace("blocks", f"blocks.{index}"), stacked[index]) for index in range(depth)]
    if "experts_" not in name:
        return per_block
    return [
        (name.replace("experts_", f"experts.{expert}."), block[expert])
        for name, block in per_block
        for expert in range(len(block))
    ]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_updates_equal_those_of_torch(accumulate):
    """With accumulation torch gets the mean of the gradients, the gradient of the whole step."""
    vitpose = VitPoseConfig(**TINY, **SMALL_PLUS, decoder="simple")
    settings = OptimConfig(
        total_steps=8, warmup_steps=2, warmup_ratio=0.1, milestones=(0.5, 6), learning_rate=1e-2, accumulate=accumulate
    )
    shapes = optim.parameter_shapes(vitpose)
    ours = jax.tree.map(lambda x: 0.1 * x, random_tensors(shapes, 0))
    optimizer = optim.make_optimizer(settings, vitpose)
    state = optimizer.init(ours)
    update = jax.jit(optimizer.update)

    torch_parameters, groups = {}, []
    for name, stacked in ours.items():
        for original, tensor in original_groups(name, np.asarray(stacked), vitpose.num_layers):
            scale, decay = original_rate_and_decay(original, tensor, vitpose.num_layers, 0.75)
            torch_parameters[original] = torch.nn.Parameter(torch.tensor(tensor))
            groups.append({"params": [torch_parameters[original]], "scale": scale, "weight_decay": decay})
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    # 0.1 and half-way of the warm-up, then the rate, times 0.1 from step 4 and 0.01 from step 6
    rates = np.array([1e-3, 5.5e-3, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    for step, rate in enumerate(rates):
        # The norm of the last gradients is below 1, so they are not clipped.
        size = 1e-3 if step > 5 else 1
        batches = [
            {name: size * x for name, x in random_tensors(shapes, 10 + 2 * step + part).items()}
            for part in range(accumulate)
        ]
        for gradients in batches:
            updates, state = update(gradients, state, ours)
            ours = optax.apply_updates(ours, updates)
        for name in shapes:
            mean = np.mean([gradients[name] for gradients in batches], axis=0)
            for original, tensor in original_groups(name, mean, vitpose.num_layers):
                torch_parameters[original].grad = torch.tensor(tensor)
        torch.nn.utils.clip_grad_norm_(torch_parameters.values(), 1.0)
        for group in reference.param_groups:
            group["lr"] = rate * group["scale"]
        reference.step()
        for name, stacked in ours.items():
            for original, tensor in original_groups(name, np.asarray(stacked), vitpose.num_layers):
                expected = torch_parameters[original].detach().numpy()
                np.testing.assert_allclose(tensor, expected, rtol=0, atol=UPDATES, err_msg=f"{original}, step {step}")


@pytest.mark.parametrize("decay", [0.75, 0.85])
@pytest.mark.parametrize("preset", ["base", "plus-large"])
def test_layer_scales_are_those_of_the_original(preset, decay):
    vitpose = VitPoseConfig.preset(preset)
    shapes, scales = optim.parameter_shapes(vitpose), optim.layer_scales(vitpose, decay)
    assert set(scales) == set(shapes)
    for name, shape in shapes.items():
        # One number for an axis of any length.
        tensor = np.broadcast_to(np.float32(0), shape)
        originals = original_groups(name, tensor, vitpose.num_layers)
        expected = [original_rate_and_decay(*original, vitpose.num_layers, decay)[0] for original in originals]
        got = np.repeat(scales[name], len(expected) // len(scales[name]))
        np.testing.assert_allclose(got, expected, rtol=FLOAT32, err_msg=name)


def test_schedules_equal_hand_computed_rates():
    # mmcv: lr x (1 - (1 - step / warm-up) x (1 - ratio)) before the end of the warm-up
    rate = optim.learning_rate(OptimConfig(total_steps=2100))
    by_hand = {
        0: 5e-4 * 1e-3,
        1: 5e-4 * (1 - (1 - 1 / 500) * (1 - 1e-3)),
        250: 5e-4 * (1 - 0.5 * 0.999),
        499: 5e-4 * (1 - (1 - 499 / 500) * 0.999),
        500: 5e-4,
        1699: 5e-4,
        1700: 5e-5,
        1999: 5e-5,
        2000: 5e-6,
        2099: 5e-6,
    }
    for step, expected in by_hand.items():
        np.testing.assert_allclose(rate(step), expected, rtol=FLOAT32, err_msg=str(step))
        np.testing.assert_allclose(rate(jnp.array(step)), expected, rtol=FLOAT32)
    cosine = optim.learning_rate(OptimConfig(total_steps=1000, schedule="cosine", warmup_steps=0, learning_rate=2.0))
    for step, expected in {0: 2, 250: 1 + np.sqrt(0.5), 500: 1, 1000: 0, 2000: 0}.items():
        np.testing.assert_allclose(cosine(step), expected, rtol=0, atol=FLOAT32)


def test_presets_are_the_tables_of_the_original():
    assert set(optim.PRESETS) == set(config.PRESETS)
    for name, rate, decay, drop in (
        ("small", 5e-4, 0.8, 0.1),
        ("base-simple", 5e-4, 0.75, 0.3),
        ("huge", 5e-4, 0.85, 0.55),
        ("plus-base", 1e-3, 0.75, 0.3),
        ("plus-large", 1e-3, 0.8, 0.5),
        ("plus-huge", 1e-3, 0.8, 0.55),
    ):
        preset = OptimConfig.preset(name, total_steps=9)
        assert (preset.learning_rate, preset.layer_decay, preset.drop_path) == (rate, decay, drop)
        assert (preset.total_steps, preset.weight_decay, preset.betas) == (9, 0.1, (0.9, 0.999))
    assert OptimConfig.preset("base", total_steps=9, drop_path=0.0).drop_path == 0
    with pytest.raises(ValueError, match=r"no preset named 'giant'; expected one of small, base"):
        OptimConfig.preset("giant", total_steps=9)


@pytest.mark.parametrize(
    ("frozen", "still", "moves"),
    [
        (("attention",), ("blocks.attention.qkv.kernel", "blocks.norm1.bias"), ("blocks.mlp.fc1.bias", "norm.bias")),
        (("ffn",), ("blocks.mlp.experts_bias", "patch_embed.pos_embed", "blocks.norm2.scale"), ("blocks.norm1.scale",)),
        (("backbone",), ("norm.scale", "patch_embed.proj.kernel"), ()),
        ((r"heads\.ap10k\..+", r".+\.qkv\.bias"), ("blocks.attention.qkv.bias",), ("blocks.attention.qkv.kernel",)),
    ],
)
def test_frozen_parameters_do_not_change_and_have_no_moments(frozen, still, moves):
    model = random_model(VitPoseConfig(**TINY, **SMALL_PLUS, decoder="simple"))
    _, trained, rest = optim.split(model, frozen)
    assert set(trained) | set(rest) == set(parameters.flatten(model))
    assert not set(trained) & set(rest)
    assert {f"backbone.{name}" for name in still} <= set(rest)
    assert {f"backbone.{name}" for name in moves} <= set(trained)
    assert "heads.coco.conv.kernel" in trained
    optimizer = optim.make_optimizer(OptimConfig(total_steps=9, frozen=frozen), model.config)
    state = jax.eval_shape(optimizer.init, trained)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert numbers == 2 * sum(leaf.size for leaf in trained.values())


def test_an_update_changes_only_trained_parameters():
    model = random_model(VitPoseConfig(**TINY, decoder="simple"))
    graphdef, trained, rest = optim.split(model, ("attention",))
    optimizer = optim.make_optimizer(OptimConfig(total_steps=9, frozen=("attention",)), model.config)
    gradients = random_tensors({name: leaf.shape for name, leaf in trained.items()}, 0)
    updates, _ = jax.jit(lambda x, g: optimizer.update(g, optimizer.init(x), x))(trained, gradients)
    after = parameters.flatten(optim.merge(graphdef, optax.apply_updates(trained, updates), rest))
    for name, before in parameters.flatten(model).items():
        assert (np.abs(after[name] - before).max() > 0) == (name in trained), name


def test_init_lists_parameters_that_do_not_fit():
    vitpose = VitPoseConfig(**TINY)
    optimizer = optim.make_optimizer(OptimConfig(total_steps=9, frozen=("backbone",)), vitpose)
    tensors = random_tensors(optim.parameter_shapes(vitpose), 0)
    with pytest.raises(
        ValueError, match=r"the trained parameters: 1[0-9] problems(.|\n)*unexpected backbone.norm.bias"
    ):
        optimizer.init(tensors)
    with pytest.raises(ValueError, match=r"rules: expected every rule to match.* by backbone.norm$"):
        optim.make_optimizer(OptimConfig(total_steps=9, frozen=("backbone.norm",)), vitpose)
    with pytest.raises(ValueError, match="frozen: expected at least one parameter left to train"):
        optim.make_optimizer(OptimConfig(total_steps=9, frozen=(".+",)), vitpose)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"total_steps": 0}, "total_steps: expected 1 or more, got 0"),
        ({"schedule": "poly"}, "schedule: expected one of step, cosine, got 'poly'"),
        ({"milestones": (1.5,)}, "milestones: expected"),
        ({"layer_decay": 0.0, "betas": (0.9, 1.0)}, "layer_decay: expected .*; betas: expected"),
        ({"drop_path": 1.0, "clip_norm": 0.0}, "clip_norm: .*; drop_path: "),
    ],
)
def test_optim_config_checks_its_ranges(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**{"total_steps": 9, **fields})


def test_split_and_merge_are_inverse():
    model = random_model(VitPoseConfig(**TINY, **SMALL_PLUS))
    graphdef, trained, rest = optim.split(model)
    again = optim.merge(graphdef, trained, rest)
    crops = random_crops(model.config)
    np.testing.assert_array_equal(again(crops, "ap10k"), model(crops, "ap10k"))
    # A view keeps its mode through both, and the new model's statistics are its own.
    training = nnx.view(model, use_running_average=False)
    again = optim.merge(*optim.split(training))
    again(crops)
    assert set(optim.batch_stats(model)) == {name for name in rest if name.endswith((".mean", ".var"))}
    name = "heads.coco.norm1.mean"
    assert np.abs(optim.batch_stats(again)[name] - rest[name]).max() > 1e-3
    np.testing.assert_array_equal(optim.batch_stats(model)[name], rest[name])
    assert optim.batch_stats(random_model(VitPoseConfig(**TINY, decoder="simple"))) == {}


def test_the_moving_average_follows_the_parameters():
    average = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    after = optim.update_ema(average, {"a": jnp.array([2.0, 2.0]), "b": jnp.array(-1.0)}, 0.75)
    np.testing.assert_array_equal(after["a"], [1.25, 2.0])
    assert after["b"] == 2


def test_the_first_rule_that_matches_a_whole_name_counts():
    rules = ((r".+\.bias", 1), (r"a\..+", 2), (r".+", 3))
    assert match_rules(rules, ["a.bias", "a.kernel", "b.biased"]) == {"a.bias": 1, "a.kernel": 2, "b.biased": 3}
    with pytest.raises(ValueError, match=r"rule for every parameter, got none for b\.kernel, c$"):
        match_rules(rules[:2], ["a.bias", "b.kernel", "c"])
    with pytest.raises(ValueError, match=r"every rule to match a parameter, got none matched by c, \\\.bias"):
        match_rules((("c", 0), (r"\.bias", 1), (".+", 2)), ["a.bias", "cc"])


def test_optim_config_is_hashable_and_replaceable():
    settings = OptimConfig(total_steps=9)
    assert hash(settings) == hash(dataclasses.replace(settings))
    assert dataclasses.replace(settings, schedule="cosine") != settings
