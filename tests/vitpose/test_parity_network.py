"""The network against transformers and torch, stage by stage; every parameter and buffer is random.

`tiny_model` makes a reference and `from_pretrained` loads its saved files. Then each stage runs alone, on the same
input. The reference has channels first: (n, channels, height, width).
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.reference_torch import heatmaps, random_crops, save, tiny_model
from tests.tolerances import BFLOAT16, BLOCK, HEATMAPS, LOSSES
from vitpose_jax import VitPoseConfig, from_pretrained
from vitpose_jax.convert.transforms import to_flax
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose.modeling import Deconv, SimpleDecoder

MOE = {"num_experts": 3, "part_features": 5}
MIXED = [2, 0, 1, 2]


def channels_first(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(np.asarray(array), -1, 1).copy())


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(ours: jax.Array, expected: torch.Tensor | np.ndarray, tolerance: float):
    """Equal within an absolute tolerance, for values of the order of 1."""
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    assert 0.1 < np.abs(expected).max() < 30
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, strict=True)


def block_of(backbone, index: int):
    """One block of the stack."""
    return jax.tree.map(lambda leaf: leaf[index], backbone.blocks)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Gives the reference with some options, and the model loaded from what it saved; each pair is pairs once."""
    pairs = {}

    def create(**options):
        key = repr(sorted(options.items()))
        if key not in pairs:
            reference = tiny_model(**options)
            # This implementation returns attention weights; nothing else depends on it.
            reference.set_attn_implementation("eager")
            pairs[key] = reference, from_pretrained(save(reference, tmp_path_factory.mktemp("hub")))
        return pairs[key]

    return create


# The backbone


@pytest.mark.parametrize(
    ("image_size", "patch_size"), [([64, 48], [16, 16]), ([48, 64], [8, 8]), ([56, 42], [14, 14]), ([64, 48], [16, 12])]
)
def test_patch_embedding_and_positions_equal_transformers(pair, image_size, patch_size):
    reference, model = pair(image_size=image_size, patch_size=patch_size)
    crops = random_crops(reference)
    expected = reference.backbone.embeddings(channels_first(crops))
    assert_close(model.backbone.patch_embed(jnp.asarray(crops)), expected, BLOCK)


@pytest.mark.parametrize("num_heads", [1, 3, 8])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_attention_and_its_weights_equal_transformers(pair, num_heads, qkv_bias):
    reference, model = pair(num_attention_heads=num_heads, qkv_bias=qkv_bias)
    tokens = random_array(3, 12, 24)
    attention = reference.backbone.encoder.layer[1].attention
    mixed, weights = block_of(model.backbone, 1).attention(jnp.asarray(tokens))
    assert_close(mixed, attention(torch.from_numpy(tokens)), BLOCK)
    assert_close(weights, attention.attention(torch.from_numpy(tokens))[1], BLOCK)


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu"])
def test_one_block_equals_transformers(pair, activation):
    reference, model = pair(hidden_act=activation)
    tokens = random_array(3, 12, 24)
    for index, layer in enumerate(reference.backbone.encoder.layer):
        ours, _ = block_of(model.backbone, index)(jnp.asarray(tokens))
        assert_close(ours, layer(torch.from_numpy(tokens)), BLOCK)


@pytest.mark.parametrize("dataset_index", [0, 2, MIXED], ids=str)
def test_a_block_with_experts_equals_transformers(pair, dataset_index):
    reference, model = pair(**MOE)
    tokens, block = random_array(4, 12, 24), block_of(model.backbone, 1)
    layer = reference.backbone.encoder.layer[1]
    torch_index = torch.tensor(dataset_index) if isinstance(dataset_index, list) else torch.full((4,), dataset_index)
    index = jnp.asarray(dataset_index) if isinstance(dataset_index, list) else dataset_index
    assert_close(block.mlp(jnp.asarray(tokens), index), layer.mlp(torch.from_numpy(tokens), torch_index), BLOCK)
    assert_close(block(jnp.asarray(tokens), index)[0], layer(torch.from_numpy(tokens), torch_index), BLOCK)


@pytest.mark.parametrize("moe", [False, True])
def test_hidden_states_attentions_and_feature_maps_equal_transformers(pair, moe):
    reference, model = pair(num_hidden_layers=4, out_indices=[0, 2, 3], **(MOE if moe else {}))
    crops = random_crops(reference, 4)
    outputs = {"output_hidden_states": True, "output_attentions": True}
    expected_outputs = reference.backbone(
        channels_first(crops), dataset_index=torch.tensor(MIXED) if moe else None, **outputs
    )
    index = jnp.asarray(MIXED) if moe else 0
    ours = model.backbone(jnp.asarray(crops), index, **outputs, feature_blocks=model.config.out_indices)
    assert len(expected_outputs.hidden_states) == len(ours.hidden_states) == 5
    assert len(expected_outputs.attentions) == len(ours.attentions) == 4
    assert len(expected_outputs.feature_maps) == len(ours.feature_maps) == 3
    for state, expected in zip(ours.hidden_states, expected_outputs.hidden_states, strict=True):
        assert_close(state, expected, BLOCK)
    for weights, expected in zip(ours.attentions, expected_outputs.attentions, strict=True):
        assert_close(weights, expected, BLOCK)
    for feature_map, expected in zip(ours.feature_maps, expected_outputs.feature_maps, strict=True):
        assert feature_map.shape == (4, 4, 3, 24)
        assert_close(feature_map.reshape(expected.shape), expected, BLOCK)
    assert_close(ours.tokens, expected_outputs.feature_maps[-1], BLOCK)


def test_layer_norm_is_exact_for_a_large_mean(pair):
    """E[x^2] - E[x]^2 would lose the variance, which is a millionth of either."""
    reference, model = pair(hidden_size=64)
    # Eighths, and 64 of them to a mean: every order of adding them up is exact, so the variance is what is
    # compared. In double precision, because torch's running mean in single is 1e-4 off here.
    tokens = (1000 + np.round(8 * random_array(3, 12, 64)) / 8).astype(np.float32)
    norm, torch_norm = model.backbone.norm, copy.deepcopy(reference.backbone.layernorm).double()
    expected = torch_norm(torch.from_numpy(tokens).double()).float()
    assert_close(norm(jnp.asarray(tokens)), expected, BLOCK)
    fast = nnx.LayerNorm(64, epsilon=norm.epsilon, use_fast_variance=True, rngs=nnx.Rngs(0))
    slow = nnx.LayerNorm(64, epsilon=norm.epsilon, use_fast_variance=False, rngs=nnx.Rngs(0))
    assert np.abs(fast(jnp.asarray(tokens)) - slow(jnp.asarray(tokens))).max() > 100 * BLOCK


# The decoders


@given(
    n=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    features_in=st.integers(1, 9),
    features=st.integers(1, 9),
)
@settings(max_examples=15)
def test_deconvolution_equals_torch(n, height, width, features_in, features):
    x, weight = random_array(n, height, width, features_in), random_array(features_in, features, 4, 4, seed=1)
    weight *= (4 * features_in) ** -0.5
    dtypes = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    deconv = parameters.abstract(lambda: Deconv(features_in, features, **dtypes, rngs=nnx.Rngs(0)))
    deconv = parameters.fill(deconv, {"kernel": to_flax("deconv", weight)})
    expected = torch.nn.functional.conv_transpose2d(channels_first(x), torch.from_numpy(weight), stride=2, padding=1)
    ours = jax.jit(lambda deconv, x: deconv(x))(deconv, jnp.asarray(x))
    np.testing.assert_allclose(ours, channels_last(expected), rtol=0, atol=BLOCK, strict=True)


def test_the_deconvolutions_of_a_checkpoint_equal_torch(pair):
    reference, model = pair(decoder="classic")
    head = model.heads["coco"]
    for deconv, torch_deconv in ((head.deconv1, reference.head.deconv1), (head.deconv2, reference.head.deconv2)):
        x = random_array(2, 5, 3, torch_deconv.in_channels)
        assert_close(deconv(jnp.asarray(x)), channels_last(torch_deconv(channels_first(x))), BLOCK)


@pytest.mark.parametrize("scale_factor", [1, 2, 3, 4])
def test_bilinear_upsampling_equals_torch(scale_factor):
    config = VitPoseConfig(
        image_size=(80, 48), hidden_size=6, num_heads=1, num_layers=1, decoder="simple", scale_factor=scale_factor
    )
    decoder = SimpleDecoder(config, 6, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    # An identity convolution, so that the output is the upsampled map.
    decoder.conv.kernel.set_value(jnp.zeros((3, 3, 6, 6)).at[1, 1].set(jnp.eye(6)))
    features = random_array(2, 5, 3, 6)
    enlarge = torch.nn.Upsample(scale_factor=scale_factor, mode="bilinear", align_corners=False)
    assert_close(decoder(jnp.asarray(features)), channels_last(enlarge(torch.relu(channels_first(features)))), BLOCK)


@pytest.mark.parametrize(
    ("decoder", "scale_factor"), [("classic", 4), ("simple", 2), ("simple", 3), ("simple", 4)], ids=str
)
def test_a_decoder_alone_equals_transformers(pair, decoder, scale_factor):
    reference, model = pair(decoder=decoder, scale_factor=scale_factor)
    features = random_array(2, 4, 3, 24)
    ours = model.heads["coco"](jnp.asarray(features))
    assert ours.shape == (2, 4 * scale_factor, 3 * scale_factor, 17)
    assert_close(ours, channels_last(reference.head(channels_first(features))), BLOCK)


# The whole network

ODD = {
    "one-layer-one-head": {"num_hidden_layers": 1, "num_attention_heads": 1, "decoder": "classic"},
    "three-layers": {"num_hidden_layers": 3, "num_attention_heads": 6, "mlp_ratio": 2, "hidden_size": 36},
    "no-qkv-bias": {"qkv_bias": False, "mlp_ratio": 3, "decoder": "classic", "image_size": [128, 96]},
    "large-crop": {"image_size": [384, 288], "labels": ["point"]},
    "wide-crop": {"image_size": [192, 256], "labels": [f"point {i}" for i in range(52)], "decoder": "classic"},
    "patch-8": {"patch_size": [8, 8], "scale_factor": 2},
    "patch-14": {"patch_size": [14, 14], "image_size": [112, 84], "hidden_act": "gelu_pytorch_tanh"},
    "patch-16x12": {"patch_size": [16, 12], "image_size": [64, 96], "scale_factor": 3, "hidden_act": "relu"},
    "out-indices-inside": {"num_hidden_layers": 3, "out_indices": [1, 2], "layer_norm_eps": 1e-6},
    "embedding-alone": {"num_hidden_layers": 2, "out_indices": [0]},
    "two-experts": {"num_experts": 2, "part_features": 1, "decoder": "classic"},
    "three-experts": {"num_experts": 3, "part_features": 23, "num_hidden_layers": 1},
    "seven-experts": {"num_experts": 7, "part_features": 11, "mlp_ratio": 2, "labels": ["one", "two"]},
}


@pytest.mark.parametrize("options", ODD.values(), ids=ODD)
def test_heatmaps_of_odd_configurations_equal_transformers(pair, options):
    reference, model = pair(**options)
    crops = random_crops(reference)
    ours = jax.jit(lambda model, crops: model(crops))(model, jnp.asarray(crops))
    assert_close(ours, heatmaps(reference, crops), HEATMAPS)


def test_an_expert_folded_into_a_plain_model_equals_transformers(pair):
    reference, model = pair(**MOE)
    plain = model.specialize("coco")
    assert not plain.config.experts
    crops = random_crops(reference)
    assert_close(plain(jnp.asarray(crops)), heatmaps(reference, crops, 0), HEATMAPS)


@pytest.mark.parametrize("image_size", [(96, 80), (48, 32), (64, 112), (256, 192)], ids=str)
def test_another_image_size_equals_torch(pair, image_size):
    reference, model = pair(decoder="simple")
    resized = model.resize(image_size)
    positions = reference.backbone.embeddings.position_embeddings
    grid = positions[:, 1:].reshape(1, 4, 3, 24).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(
        grid, size=resized.config.grid_size, mode="bicubic", align_corners=False
    ).permute(0, 2, 3, 1)
    positions = torch.cat([positions[:, :1], grid.reshape(1, -1, 24)], dim=1)
    assert_close(resized.backbone.patch_embed.pos_embed[...], positions[0], BLOCK)

    # The reference for that size, with these positions and otherwise the same weights.
    larger = tiny_model(decoder="simple", image_size=list(image_size))
    state = reference.state_dict() | {"backbone.embeddings.position_embeddings": positions.detach()}
    larger.load_state_dict(state)
    crops = random_crops(larger)
    assert_close(resized(jnp.asarray(crops)), heatmaps(larger, crops), HEATMAPS)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("decoder", ["classic", "simple"])
def test_half_precision_is_close_to_float32(pair, tmp_path, dtype, decoder):
    options = {"decoder": decoder, **MOE}
    reference, model = pair(**options)
    folder = save(reference, tmp_path)
    crops = jnp.asarray(random_crops(reference))
    expected = np.asarray(model(crops))
    for param_dtype in (None, jnp.float32):
        low = from_pretrained(folder, dtype=dtype, param_dtype=param_dtype)(crops)
        assert low.dtype == dtype
        error = np.abs(np.asarray(low, np.float32) - expected).max() / np.abs(expected).max()
        assert 1e-6 < error < BFLOAT16


# Gradients


def torch_gradients(reference, crops: np.ndarray, dataset_index: list[int] | None, weights: np.ndarray) -> float:
    """Run the loss sum(weights x heatmaps) backwards; the gradients are left in the reference."""
    index = None if dataset_index is None else torch.tensor(dataset_index)
    reference.zero_grad()
    output = reference(channels_first(crops), dataset_index=index).heatmaps
    loss = (output * channels_first(weights)).sum()
    loss.backward()
    return loss.item()


@pytest.mark.parametrize(
    "options",
    [{"decoder": "classic"}, {"decoder": "simple", "qkv_bias": False}, {"decoder": "simple", **MOE}],
    ids=["classic", "simple-no-bias", "experts"],
)
def test_gradients_of_every_parameter_equal_torch(pair, tmp_path, options):
    reference, model = pair(**options)
    crops = random_crops(reference, 3)
    # The reference has a single head for all experts; here the loss passes the features of all experts to that head.
    dataset_index = [0, 2, 0] if "num_experts" in options else None
    weights = random_array(3, *model.config.heatmap_size, 17) / np.sqrt(np.prod(model.config.heatmap_size))
    expected_loss = torch_gradients(reference, crops, dataset_index, weights)

    graphdef, trained, statistics = nnx.split(model, nnx.Param, ...)

    def loss(trained):
        whole = nnx.merge(graphdef, trained, statistics)
        index = 0 if dataset_index is None else jnp.asarray(dataset_index)
        tokens = whole.backbone(jnp.asarray(crops), index).tokens
        features = tokens.reshape(3, *whole.config.grid_size, -1)
        return jnp.sum(whole.heads["coco"](features) * weights)

    value, gradients = jax.jit(jax.value_and_grad(loss))(trained)
    np.testing.assert_allclose(value, expected_loss, rtol=LOSSES)
    ours = {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(gradients)}

    # Convert torch's gradients as if they were weights, so that they get our names and layouts.
    as_weights = tiny_model(**options)
    with torch.no_grad():
        for parameter, source in zip(as_weights.parameters(), reference.parameters(), strict=True):
            parameter.copy_(source.grad)
    expected = parameters.flatten(from_pretrained(save(as_weights, tmp_path)))
    assert ours.keys() == {name for name in expected if not name.endswith((".mean", ".var"))}
    for name, gradient in ours.items():
        size = np.abs(expected[name]).max()
        assert size > 1e-3, name
        np.testing.assert_allclose(gradient / size, expected[name] / size, rtol=0, atol=BLOCK, err_msg=name)
