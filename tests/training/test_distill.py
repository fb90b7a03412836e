"""Distillation: the teacher's heatmaps in the loss, its knowledge token, and which parameters are stored where."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import PartitionSpec

from tests.support.models import PLUS, TINY, random_crops, random_model
from tests.support.reference_training import mae
from tests.support.training_step import KEY, NONE, begin, copied, crops_and_targets, random_batch
from tests.tolerances import BFLOAT16_LOSSES, BLOCK, FLOAT32, HEATMAPS, LOSSES, UPDATES
from vitpose_jax import VitPose, VitPoseConfig, checkpoint
from vitpose_jax.convert import write
from vitpose_jax.skeletons import AIC, AP10K, COCO
from vitpose_jax.storage import parameters
from vitpose_jax.training import losses, optim
from vitpose_jax.training.distill import TOKEN, make_teacher, with_token
from vitpose_jax.training.initialize import initialize
from vitpose_jax.training.optim import OptimConfig
from vitpose_jax.training.sharding import make_mesh, parameter_specs
from vitpose_jax.training.step import init_state, make_train_step

SMALL = {**TINY, "decoder": "simple"}
# Wider and deeper.
TEACHER = {**SMALL, "hidden_size": 36, "num_layers": 3}
SETTINGS = OptimConfig(total_steps=9, warmup_steps=0, drop_path=0.0, learning_rate=1e-2)


def token_of(model: VitPose) -> jax.Array:
    return parameters.flatten(model)[TOKEN]


@pytest.mark.parametrize("width", [24, 36])
def test_a_token_is_one_of_the_tokens_until_the_decoder(width):
    """Block by block: equal to appending the token by hand and removing it at the end."""
    config = VitPoseConfig(**SMALL, knowledge_token=width)
    model, crops = random_model(config), random_crops(config)
    backbone = model.backbone
    token = token_of(model)
    assert token.shape == (width,)
    if width != 24:
        proj = backbone.knowledge_token.proj
        token = token @ proj.kernel[...] + proj.bias[...]
    tokens = jnp.concatenate([backbone.patch_embed(crops), jnp.tile(token, (3, 1, 1))], axis=1)
    states = [tokens]
    for index in range(2):
        tokens, weights = jax.tree.map(lambda leaf, index=index: leaf[index], backbone.blocks)(tokens)
        states.append(tokens)
    outputs = backbone(crops, output_hidden_states=True, output_attentions=True, feature_blocks=(1,))
    np.testing.assert_allclose(outputs.tokens, backbone.norm(tokens[:, :12]), atol=BLOCK)
    np.testing.assert_allclose(outputs.hidden_states, jnp.stack(states)[:, :, :12], atol=BLOCK)
    np.testing.assert_allclose(outputs.feature_maps[0].reshape(3, 12, 24), backbone.norm(states[1][:, :12]), atol=BLOCK)
    assert outputs.attentions.shape == (2, 3, 3, 13, 13)
    np.testing.assert_allclose(outputs.attentions[1], weights, atol=BLOCK)
    np.testing.assert_allclose(model(crops), model.heads["coco"](outputs.tokens.reshape(3, 4, 3, 24)), atol=HEATMAPS)


def test_configurations_and_checkpoints_hold_the_token(tmp_path):
    config = VitPoseConfig(**SMALL, knowledge_token=36)
    model = random_model(config)
    checkpoint.save(model, tmp_path / "native")
    again = checkpoint.load(tmp_path / "native")
    assert again.config == config
    np.testing.assert_array_equal(token_of(again), token_of(model))
    with pytest.raises(ValueError, match="transformers has no knowledge token, got one of width 36"):
        write(model, tmp_path / "hub", to="huggingface")
    assert "knowledge_token" not in VitPoseConfig(**SMALL).to_dict()
    with pytest.raises(ValueError, match="knowledge_token: expected none with a window_size, got width 36"):
        config.replace(window_size=(2, 2))
    with pytest.raises(ValueError, match="knowledge_token: expected its width, or 0 for none, got -1"):
        config.replace(knowledge_token=-1)


def test_rules_cover_the_token():
    config = VitPoseConfig(**SMALL, knowledge_token=36)
    shapes = optim.parameter_shapes(config)
    token_shapes = {name: shape for name, shape in shapes.items() if "knowledge_token" in name}
    proj = TOKEN.replace("token.token", "token.proj")
    assert token_shapes == {TOKEN: (36,), f"{proj}.kernel": (36, 24), f"{proj}.bias": (24,)}
    scales = optim.layer_scales(config, 0.5)
    assert [float(scales[name][0]) for name in token_shapes] == [1, 1, 1]
    decayed = optim.match_rules(optim.WEIGHT_DECAY, shapes)
    assert [decayed[name] for name in (TOKEN, f"{proj}.kernel", f"{proj}.bias")] == [False, True, False]
    specs = parameter_specs(shapes, 4)
    assert (specs[TOKEN], specs[f"{proj}.kernel"]) == (PartitionSpec(), PartitionSpec("fsdp"))
    trains = optim.trainable(("knowledge_token",), shapes)
    assert [name for name in shapes if not trains[name]] == [TOKEN]
    assert optim.trainable(("all_but_knowledge_token",), shapes) == {name: name == TOKEN for name in shapes}


def test_only_the_token_of_a_teacher_is_trained():
    """With a classic decoder: its BatchNorms use their running statistics and do not change them."""
    config = VitPoseConfig(**TINY, knowledge_token=24)
    settings = OptimConfig(
        total_steps=9, warmup_steps=0, drop_path=0.0, frozen=("all_but_knowledge_token",), weight_decay=0.5
    )
    model = random_model(config)
    state, train_step = begin(model, settings, augmentation=NONE)
    assert set(state.trained) == {TOKEN}
    before = copied(state)
    batch = random_batch(config, ["coco"] * 3)
    state, metrics = train_step(state, batch, KEY)
    crops, targets, weights = crops_and_targets(config, batch)
    np.testing.assert_allclose(metrics["loss"], losses.joints_mse(model(crops), targets, weights), rtol=LOSSES)
    for name, leaf in copied(state).items():
        if name == TOKEN:
            # Adam's first step has the size of the learning rate for every element; the token is not decayed.
            np.testing.assert_allclose(np.abs(leaf - before[name]), settings.learning_rate, rtol=0, atol=UPDATES)
        else:
            np.testing.assert_array_equal(leaf, before[name], err_msg=name)


def test_statistics_of_trained_heads_change():
    config = VitPoseConfig(**TINY)
    state, train_step = begin(random_model(config), OptimConfig(total_steps=9, frozen=("backbone",)), augmentation=NONE)
    before = copied(state)
    state, _ = train_step(state, random_batch(config, ["coco"] * 3), KEY)
    after = copied(state)
    moved = {name for name in before if (after[name] != before[name]).any()}
    assert {name for name in before if name.endswith((".mean", ".var"))} <= moved
    assert not any(name.startswith("backbone.") for name in moved)


@pytest.mark.slow
def test_a_teacher_adds_its_distance_to_the_loss():
    """The token is frozen and its layer learns. The teacher is neither in the state nor a constant of the program."""
    config = VitPoseConfig(**SMALL, knowledge_token=36)
    model = random_model(config)
    teacher_model = random_model(VitPoseConfig(**TEACHER), seed=1)
    teacher = make_teacher(teacher_model, config, weight=3.0)
    settings = OptimConfig(total_steps=9, warmup_steps=0, drop_path=0.0, frozen=("knowledge_token",))
    state, train_step = begin(model, settings, augmentation=NONE, teacher=teacher)
    before = copied(state)
    assert set(before) == set(parameters.flatten(model))
    batch = random_batch(config, ["coco"] * 3)
    program = jax.make_jaxpr(train_step)(state, batch, KEY).eqns[-1].params["jaxpr"]
    assert sum(np.size(constant) for constant in program.consts) < 1000
    largest = max(np.size(leaf) for leaf in teacher.tensors.values())
    assert largest in [np.prod(variable.aval.shape) for variable in program.jaxpr.invars]

    state, metrics = train_step(state, batch, KEY)
    crops, targets, weights = crops_and_targets(config, batch)
    apart = jnp.mean((model(crops) - teacher_model(crops)) ** 2)
    np.testing.assert_allclose(metrics["distillation"], apart, rtol=LOSSES)
    own = losses.joints_mse(model(crops), targets, weights)
    np.testing.assert_allclose(metrics["loss"], own + 3 * apart, rtol=LOSSES)
    after = copied(state)
    moved = {name for name in before if (after[name] != before[name]).any()}
    assert TOKEN not in moved and TOKEN.replace("token.token", "token.proj.kernel") in moved

    # Without labels only the teacher counts: the student approaches it.
    state, train_step = begin(model, SETTINGS, augmentation=NONE, teacher=teacher)
    batch = batch._replace(weights=np.zeros_like(batch.weights))
    values = []
    for _ in range(12):
        state, metrics = train_step(state, batch, KEY)
        np.testing.assert_allclose(metrics["loss"], 3 * metrics["distillation"], rtol=FLOAT32)
        values.append(float(metrics["distillation"]))
    np.testing.assert_allclose(values[0], apart, rtol=LOSSES)
    assert values[-1] < 0.8 * values[0]


@pytest.mark.slow
def test_heads_learn_from_the_teachers_heads_of_the_same_name():
    """The teacher has more experts and heads, in another order, and computes in bfloat16."""
    config = VitPoseConfig(**SMALL, experts=("coco", "aic", "ap10k"), part_features=7, skeletons=(COCO, AP10K))
    names = tuple(reversed(PLUS["experts"]))
    experts = {"experts": names, "part_features": 7, "skeletons": (AIC, COCO, AP10K)}
    teacher_config = VitPoseConfig(**TEACHER, **experts)
    teacher_model = random_model(teacher_config, seed=1, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    model = random_model(config)
    state, train_step = begin(model, SETTINGS, augmentation=NONE, teacher=make_teacher(teacher_model, config))
    datasets = ["ap10k", "coco", "ap10k", "ap10k"]
    batch = random_batch(config, datasets)
    _, metrics = train_step(state, batch, KEY)
    crops, _, _ = crops_and_targets(config, batch)
    # Like the losses: a mean over the whole batch and the head's own keypoints.
    apart = sum(
        np.mean(
            (np.asarray(model(crops[row : row + 1], name)) - np.asarray(teacher_model(crops[row : row + 1], name))) ** 2
        )
        for row, name in enumerate(datasets)
    )
    np.testing.assert_allclose(metrics["distillation"], apart / 4, rtol=BFLOAT16_LOSSES)
    whole = metrics["loss/coco"] + metrics["loss/ap10k"] + metrics["distillation"]
    np.testing.assert_allclose(metrics["loss"], whole, rtol=FLOAT32)


def test_one_head_learns_from_the_expert_of_its_dataset():
    """A teacher in training mode also uses the running statistics of its BatchNorms."""
    config = VitPoseConfig(**TINY, skeletons=(AP10K,))
    teacher_model = random_model(
        VitPoseConfig(**{**TEACHER, "decoder": "classic"}, **{**PLUS, "skeletons": (COCO, AP10K)})
    )
    teacher = make_teacher(optim.training_view(teacher_model), config)
    crops = random_crops(config)
    heatmaps = jax.jit(teacher.heatmaps)(teacher.tensors, crops, jnp.zeros(3, jnp.int32))
    np.testing.assert_allclose(heatmaps, teacher_model(crops, "ap10k"), atol=HEATMAPS)


def test_make_teacher_lists_all_differences():
    teacher_model = random_model(VitPoseConfig(**SMALL, image_mean=(0.5, 0.5, 0.5)))
    config = VitPoseConfig(**{**SMALL, "image_size": (64, 64)}, skeletons=(COCO, AIC))
    with pytest.raises(ValueError) as caught:
        make_teacher(teacher_model, config, source="models/large")
    message = str(caught.value)
    assert message.startswith("models/large: 4 problems")
    for part in (
        "image_size: expected (64, 64), as the student's, got (64, 48)",
        "image_mean: expected (0.485, 0.456, 0.406), as the student's, got (0.5, 0.5, 0.5)",
        "heatmap_size: expected (16, 16), as the student's, got (16, 12)",
        "expected a head for aic, got heads for coco",
    ):
        assert part in message
    fewer = dataclasses.replace(COCO, keypoints=COCO.keypoints[:15], flip_pairs=(), edges=(), sigmas=(), upper_body=())
    with pytest.raises(ValueError, match="head coco: expected the student's 15 keypoints, got 17 others"):
        make_teacher(random_model(VitPoseConfig(**SMALL)), VitPoseConfig(**SMALL, skeletons=(fewer,)))


def test_with_token_takes_a_model_or_a_folder(tmp_path):
    plain = random_model(VitPoseConfig(**SMALL))
    taught = random_model(VitPoseConfig(**SMALL, knowledge_token=24), seed=1)
    # A source without a token: the token is new. A source with one: the token is copied.
    for source, same in ((plain, False), (taught, True)):
        model = initialize(taught.config, source, rngs=nnx.Rngs(0))
        assert np.isfinite(token_of(model)).all() and np.abs(token_of(model)).max() > 0
        assert (token_of(model) == token_of(taught)).all() == same
        kernel = "backbone.blocks.mlp.fc1.kernel"
        np.testing.assert_array_equal(parameters.flatten(model)[kernel], parameters.flatten(source)[kernel])
    torch.save({"model": mae()}, tmp_path / "mae.pth")
    model = initialize(taught.config, tmp_path / "mae.pth", rngs=nnx.Rngs(0))
    assert np.abs(token_of(model)).max() > 0
    with pytest.raises(ValueError, match=r"unexpected backbone\.knowledge_token\.token, shape \(24,\)"):
        initialize(plain.config, taught, rngs=nnx.Rngs(0))
    checkpoint.save(taught, tmp_path / "taught")
    student = random_model(VitPoseConfig(**{**SMALL, "hidden_size": 12}, knowledge_token=24), seed=2)
    model = with_token(student, tmp_path / "taught")
    for name, leaf in parameters.flatten(model).items():
        expected = token_of(taught) if name == TOKEN else parameters.flatten(student)[name]
        np.testing.assert_array_equal(leaf, expected, err_msg=name)
    with pytest.raises(ValueError, match="expected a ViTPose with a knowledge token, got one without"):
        with_token(student, plain)
    with pytest.raises(ValueError, match="expected a knowledge token of width 12, got 24"):
        with_token(random_model(VitPoseConfig(**SMALL, knowledge_token=12)), taught)


@pytest.mark.slow
def test_a_teacher_on_a_mesh_of_one_device_gives_the_same_losses():
    config = VitPoseConfig(**SMALL)
    teacher_model = random_model(VitPoseConfig(**TEACHER), seed=1)
    batch = random_batch(config, ["coco"] * 3)
    values = []
    for mesh in (None, make_mesh(devices=jax.devices()[:1])):
        graphdef, optimizer, state = init_state(random_model(config), SETTINGS, mesh)
        teacher = make_teacher(teacher_model, config, mesh=mesh)
        options = {"optim_config": SETTINGS, "augmentation": NONE, "mesh": mesh, "teacher": teacher}
        _, metrics = make_train_step(config, graphdef, optimizer, **options)(state, batch, KEY)
        values.append([float(metrics[name]) for name in ("loss", "distillation")])
    np.testing.assert_allclose(*values, rtol=FLOAT32)
