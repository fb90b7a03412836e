"""The network in training: gradients and running statistics against torch, stochastic depth, heads and experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.support import reference_torch as torch_reference
from tests.support.models import PLUS, TINY, random_crops, random_model
from tests.tolerances import BLOCK, LOSSES, STANDARD_DEVIATIONS
from vitpose_jax import VitPoseConfig
from vitpose_jax.convert.formats.huggingface import HUGGINGFACE, parse_config
from vitpose_jax.convert.sources import build_model, check_tensors
from vitpose_jax.skeletons import AIC, AP10K, COCO
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import LazyTensor
from vitpose_jax.vitpose.modeling import BatchNorm, VitPose

THREE_HEADS = {**PLUS, "skeletons": (COCO, AIC, AP10K)}
KEY = jax.random.key(0)


def training_view(model: VitPose) -> VitPose:
    return nnx.view(model, use_running_average=False, raise_if_not_found=False)


def split(model: VitPose):
    return nnx.split(model, nnx.Param, ...)


def by_name(state: nnx.State) -> dict[str, np.ndarray]:
    return {".".join(path): np.asarray(variable.get_value()) for path, variable in nnx.to_flat_state(state)}


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (1, 2, 1, 7)])
def test_batch_norm_equals_torch(shape):
    rng = np.random.default_rng(0)
    reference = torch_reference.randomize(torch.nn.BatchNorm2d(7), 0).train()
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    tensors = {names[name]: tensor.numpy() for name, tensor in reference.state_dict().items() if name in names}
    module = nnx.eval_shape(lambda: BatchNorm(7, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    module = parameters.fill(module, {name: tensor.copy() for name, tensor in tensors.items()})
    for _ in range(3):
        x = rng.normal(3, 2, shape).astype(np.float32)
        reference_values = reference(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
        before = np.asarray(module.var[...])
        ours = nnx.view(module, use_running_average=False)(jnp.asarray(x))
        np.testing.assert_allclose(ours, reference_values, atol=BLOCK)
        assert np.abs(module.var[...] - before).max() > 1e-2
        np.testing.assert_allclose(module.mean[...], reference.running_mean, atol=BLOCK)
        np.testing.assert_allclose(module.var[...], reference.running_var, atol=BLOCK)
    # In prediction it reads the statistics and does not change them.
    reference_values = (
        reference.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    )
    np.testing.assert_allclose(module(jnp.asarray(x)), reference_values, atol=BLOCK)
    np.testing.assert_allclose(module.var[...], reference.running_var, atol=BLOCK)


def test_a_training_step_equals_torch():
    """Loss, all gradients and the new statistics, with the classic decoder and the statistics of the batch."""
    reference = torch_reference.tiny_model(decoder="classic", num_experts=3)
    crops = torch_reference.random_crops(reference)
    config = parse_config(reference.config.to_dict(), None, source="the reference")
    dtypes = {"dtype": jnp.float32, "param_dtype": jnp.float32}

    def ours(tensors: dict[str, torch.Tensor]) -> VitPose:
        arrays = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
        lazy = {name: LazyTensor(array.shape, array.dtype, lambda array=array: array) for name, array in arrays.items()}
        return build_model(check_tensors(HUGGINGFACE, config, lazy, name="the reference"), **dtypes)

    graphdef, trained, statistics = split(training_view(ours(reference.state_dict())))
    targets = np.random.default_rng(1).uniform(size=(len(crops), 16, 12, 17)).astype(np.float32)

    def loss(trained, statistics):
        model = nnx.merge(graphdef, trained, statistics, copy=True)
        return jnp.mean((model(jnp.asarray(crops)) - targets) ** 2), parameters.flatten(model)

    (value, after), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained, statistics)

    pixels = torch.from_numpy(crops.transpose(0, 3, 1, 2).copy())
    heatmaps = reference.train()(pixels, dataset_index=torch.zeros(len(crops), dtype=torch.long)).heatmaps
    expected = torch.nn.functional.mse_loss(heatmaps, torch.from_numpy(targets.transpose(0, 3, 1, 2).copy()))
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=LOSSES)
    # Gradients are converted like their parameters. In torch, experts without crops have no gradient.
    reference_values = {name: torch.zeros_like(leaf) for name, leaf in reference.state_dict().items()}
    reference_values |= {name: leaf.grad for name, leaf in reference.named_parameters() if leaf.grad is not None}
    reference_values = parameters.flatten(ours(reference_values))
    for name, gradient in by_name(gradients).items():
        scale = np.abs(reference_values[name]).max()
        assert scale > 0, name
        np.testing.assert_allclose(gradient, reference_values[name], rtol=0, atol=BLOCK * scale, err_msg=name)
    reference_values = parameters.flatten(ours(reference.state_dict()))
    for name, leaf in after.items():
        np.testing.assert_allclose(leaf, reference_values[name], atol=BLOCK, err_msg=name)
    assert np.abs(after["heads.coco.norm1.var"] - by_name(statistics)["heads.coco.norm1.var"]).max() > 1e-2


def test_gradients_reach_the_right_heads_and_experts():
    model = training_view(random_model(VitPoseConfig(**TINY, **THREE_HEADS)))
    crops = random_crops(model.config)
    graphdef, trained, statistics = split(model)
    index = np.array([0, 3, 3])

    @jax.jit
    def gradients(trained, index):
        def loss(trained):
            model = nnx.merge(graphdef, trained, statistics, copy=True)
            return jnp.mean(jnp.nan_to_num(model(crops, index)) ** 2), model.heads["aic"].norm1.mean[...]

        return jax.grad(loss, has_aux=True)(trained)

    leaves, aic_mean = gradients(trained, index)
    for name, gradient in by_name(leaves).items():
        assert np.isfinite(gradient).all(), name
        if "experts" in name:
            assert (np.abs(gradient).max(axis=(0, *range(2, gradient.ndim))) > 0).tolist() == [1, 0, 0, 1, 0, 0], name
        elif name.startswith("heads.aic."):
            assert (gradient == 0).all(), name
        else:
            assert np.abs(gradient).max() > 0, name
    # Each head averages over the whole batch, here without any crop of its own dataset: as in the original.
    before = parameters.flatten(model)["heads.aic.norm1.mean"]
    assert np.abs(aic_mean - before).max() > 1e-3
    tokens = model.backbone(crops, jnp.asarray(index)).tokens.reshape(3, *model.config.grid_size, -1)
    batch_mean = model.heads["aic"].deconv1(tokens).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(aic_mean, 0.9 * before + 0.1 * batch_mean, rtol=0, atol=BLOCK)
    # MPII (2) has an expert but no head here: its heatmaps are NaN, which the loss leaves out. The selection of heads
    # must not spread them to other crops.
    leaves, _ = gradients(trained, np.array([0, 3, 2]))
    assert all(np.isfinite(gradient).all() for gradient in by_name(leaves).values())


def test_stochastic_depth_drops_branches_of_single_crops():
    config = VitPoseConfig(**TINY)
    backbone = random_model(config).backbone
    crops = jnp.tile(random_crops(config, 1), (400, 1, 1, 1))
    dropped = jax.jit(lambda model, x, key: model(x, drop_path=0.25, key=key).tokens)(backbone, crops, KEY)
    # The first block has rate 0. In the second block each of the two branches is dropped or divided by 0.75.
    block = jax.tree.map(lambda leaf: leaf[1], backbone.blocks)

    @jax.jit
    def by_hand(first, second):
        tokens = backbone(crops[:1], output_hidden_states=True).hidden_states[1]
        middle = tokens + first * block.attention(block.norm1(tokens))[0]
        return backbone.norm(middle + second * block.mlp(block.norm2(middle), 0))

    counts = {}
    for first in (0.0, 1 / 0.75):
        for second in (0.0, 1 / 0.75):
            expected = by_hand(first, second)
            counts[first > 0, second > 0] = int((jnp.abs(dropped - expected).max(axis=(1, 2)) < BLOCK).sum())
    assert sum(counts.values()) == 400
    for branches, count in counts.items():
        probability = np.prod([0.75 if present else 0.25 for present in branches])
        error = np.sqrt(400 * probability * (1 - probability))
        assert abs(count - 400 * probability) < STANDARD_DEVIATIONS * error, counts


def test_stochastic_depth_rises_linearly_and_depends_on_the_key():
    config = VitPoseConfig(**{**TINY, "num_layers": 3})
    model = random_model(config)
    crops = jnp.tile(random_crops(config, 1), (500, 1, 1, 1))
    run = jax.jit(lambda key: model.backbone(crops, drop_path=0.5, key=key, output_hidden_states=True).hidden_states)
    states = run(KEY)
    # If both branches are dropped, a block returns its input: for 0, 0.25^2 and 0.5^2 of the crops.
    same = np.asarray((states[1:] == states[:-1]).all(axis=(2, 3)).mean(axis=1))
    assert same[0] == 0
    for fraction, expected in zip(same[1:], (0.0625, 0.25), strict=True):
        assert abs(fraction - expected) < STANDARD_DEVIATIONS * np.sqrt(expected * (1 - expected) / 500)
    np.testing.assert_array_equal(states, run(KEY))
    assert (states != run(jax.random.key(1))).any()


def test_remat_changes_no_result_and_rate_zero_draws_no_random_bits():
    config = VitPoseConfig(**TINY, decoder="simple")
    model = random_model(config).backbone
    crops = random_crops(config)
    graphdef, trained, statistics = split(model)

    def run(**options):
        def loss(trained):
            model = nnx.merge(graphdef, trained, statistics, copy=True)
            return jnp.mean(model(crops, **options).tokens[..., :5] ** 2)

        return jax.jit(jax.value_and_grad(loss))(trained)

    options = {"drop_path": 0.5, "key": KEY}
    (value, gradients), (again, others) = run(**options), run(**options, remat=True)
    np.testing.assert_allclose(again, value, rtol=LOSSES)
    others = by_name(others)
    for name, gradient in by_name(gradients).items():
        np.testing.assert_allclose(others[name], gradient, rtol=0, atol=BLOCK * np.abs(gradient).max(), err_msg=name)
    text = str(jax.make_jaxpr(lambda: model(crops, remat=True, key=KEY).tokens)())
    assert "checkpoint" in text or "remat" in text
    assert "random_bits" not in text


def test_stochastic_depth_keeps_the_dtype():
    config = VitPoseConfig(**TINY, decoder="simple")
    model = random_model(config, dtype=jnp.bfloat16)
    output = jax.eval_shape(lambda: model(random_crops(config), drop_path=0.5, key=KEY, remat=True))
    assert output.dtype == jnp.bfloat16


def test_invalid_drop_path_rates_raise():
    config = VitPoseConfig(**TINY)
    model = random_model(config)
    with pytest.raises(ValueError, match=r"drop_path 0.1: expected a key"):
        model(random_crops(config), drop_path=0.1)
    for rate in (1.0, -0.1):
        with pytest.raises(ValueError, match="drop_path: expected a rate from 0 to less than 1"):
            model(random_crops(config), drop_path=rate, key=KEY)
