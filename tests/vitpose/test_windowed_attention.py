"""Attention in windows, against a slow version of its definition and against attention among all patches."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.models import PLUS, TINY, random_crops, random_model
from tests.tolerances import BFLOAT16, BLOCK, HEATMAPS
from vitpose_jax import VitPose, VitPoseConfig, checkpoint
from vitpose_jax.convert import write
from vitpose_jax.skeletons import AP10K, COCO
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose import windowed_attention as windows
from vitpose_jax.vitpose.modeling import Attention

# A grid of 5 x 7 patches.
LARGE = {**TINY, "image_size": (80, 112), "decoder": "simple"}
WAYS = {"plain": {}, "shift": {"shift": True}, "pool": {"pool": True}, "both": {"shift": True, "pool": True}}


def fields(window_size: tuple[int, int], *, shift: bool = False, pool: bool = False) -> dict:
    return {"window_size": window_size, "window_shift": shift, "window_pool": pool}


def attention_of(model: VitPose, index: int) -> Attention:
    return jax.tree.map(lambda leaf: leaf[index], model.backbone.blocks.attention)


def by_definition(
    attention: Attention,
    tokens: np.ndarray,
    grid: tuple[int, int],
    size: tuple[int, int],
    *,
    shift: tuple[int, int] = (0, 0),
    pool: bool = False,
) -> np.ndarray:
    """Patch by patch in float64: attention to the patches of its window, and to the means of the unshifted windows."""
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]

    def windows_of(shift):
        # Rounded down: patches before the first border are in window -1.
        return [tuple((at - by) // side for at, by, side in zip(place, shift, size, strict=True)) for place in places]

    block_windows, unshifted = windows_of(shift), windows_of((0, 0))
    kernel, bias = (np.asarray(leaf, np.float64) for leaf in (attention.qkv.kernel[...], attention.qkv.bias[...]))
    heads, dim = attention.num_heads, tokens.shape[-1]
    result = np.zeros(tokens.shape)
    for crop, rows in enumerate(np.asarray(tokens, np.float64)):
        means = (
            [rows[[at == window for at in unshifted]].mean(axis=0) for window in sorted(set(unshifted))] if pool else []
        )
        for place in range(len(places)):
            seen = np.array(
                [rows[other] for other in range(len(places)) if block_windows[other] == block_windows[place]] + means
            )
            query = (rows[place] @ kernel + bias)[:dim].reshape(heads, -1)
            key, value = ((seen @ kernel + bias)[:, dim * part : dim * (part + 1)] for part in (1, 2))
            key, value = (array.reshape(len(seen), heads, -1) for array in (key, value))
            logits = np.einsum("hd,khd->hk", query, key) * (dim // heads) ** -0.5
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            result[crop, place] = np.einsum("hk,khd->hd", weights, value).reshape(-1)
    proj = attention.proj
    return result @ np.asarray(proj.kernel[...], np.float64) + np.asarray(proj.bias[...], np.float64)


def random_tokens(config: VitPoseConfig, seed: int = 0) -> jax.Array:
    return jnp.asarray(
        np.random.default_rng(seed).normal(size=(2, config.num_patches, config.hidden_size)), jnp.float32
    )


@pytest.mark.parametrize("size", [(2, 3), (4, 4), (1, 7)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_attention_equals_its_definition(size, way):
    """For even and uneven cuts, for a shifted block and an unshifted one."""
    config = VitPoseConfig(**LARGE, **fields(size, **WAYS[way]))
    attention = attention_of(random_model(config), 0)
    tokens = random_tokens(config)
    shifts = windows.block_shifts(attention.windows, 2)
    # Windows as long as the grid are not shifted along it.
    half = tuple(side // 2 if side < whole else 0 for side, whole in zip(size, config.grid_size, strict=True))
    assert (shifts is None) == (half == (0, 0) or "shift" not in WAYS[way])
    for block in (0, 1):
        shift = None if shifts is None else shifts[block]
        ours, weights = jax.jit(lambda shift: attention(tokens, shift))(shift)
        moved = (0, 0) if shift is None or block == 0 else half
        expected = by_definition(
            attention, tokens, config.grid_size, size, shift=moved, pool=WAYS[way].get("pool", False)
        )
        assert weights is None
        np.testing.assert_allclose(ours, expected, rtol=0, atol=BLOCK)


def test_every_second_block_is_shifted():
    config = VitPoseConfig(**{**LARGE, "num_layers": 4}, **fields((2, 4), shift=True, pool=True))
    model = random_model(config)
    states = model.backbone(random_crops(config, 2), output_hidden_states=True).hidden_states
    for index in range(4):
        block = jax.tree.map(lambda leaf, index=index: leaf[index], model.backbone.blocks)
        shift = (1, 2) if index % 2 else (0, 0)
        mixed = by_definition(block.attention, block.norm1(states[index]), (5, 7), (2, 4), shift=shift, pool=True)
        middle = (states[index] + mixed).astype(jnp.float32)
        np.testing.assert_allclose(states[index + 1], middle + block.mlp(block.norm2(middle), 0), atol=BLOCK)


@pytest.mark.parametrize("shift", [False, True])
def test_a_window_as_large_as_the_grid_is_full_attention(shift):
    config = VitPoseConfig(**LARGE)
    model, crops = random_model(config), random_crops(config)
    for size in ((5, 7), (20, 30)):
        np.testing.assert_allclose(model.with_windows(size, shift=shift)(crops), model(crops), atol=HEATMAPS)
    back = model.with_windows((2, 2), shift=True, pool=True).with_windows(None)
    assert back.config == config
    np.testing.assert_array_equal(back(crops), model(crops))


def test_a_window_is_full_attention_on_its_own_patches():
    config = VitPoseConfig(**LARGE, **fields((2, 4)))
    full = attention_of(random_model(config).with_windows(None), 1)
    inside = attention_of(random_model(config), 1)
    tokens = random_tokens(config)
    output = np.asarray(inside(tokens)[0]).reshape(2, 5, 7, -1)
    grid = tokens.reshape(2, 5, 7, -1)
    for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
        for columns in (slice(0, 4), slice(4, 7)):
            part = grid[:, rows, columns]
            alone, _ = full(part.reshape(2, -1, part.shape[-1]))
            np.testing.assert_allclose(output[:, rows, columns], alone.reshape(part.shape), atol=BLOCK)


@pytest.mark.parametrize(("way", "rows", "columns"), [("plain", 2, 3), ("shift", 3, 4), ("pool", 5, 7)])
def test_how_far_a_patch_reaches_in_two_blocks(way, rows, columns):
    """Patch (1, 1) is changed; after two blocks the patches it reaches have changed too."""
    config = VitPoseConfig(**LARGE, **fields((2, 3), **WAYS[way]))
    backbone = random_model(config).backbone
    crops = random_crops(config, 1)
    tokens, changed = (backbone(c).tokens.reshape(5, 7, -1) for c in (crops, crops.at[:, 20:28, 20:28].add(1.0)))
    differs = np.abs(tokens - changed).max(axis=-1) > 0
    assert differs[:rows, :columns].all()
    assert differs.sum() == rows * columns


def test_gradients_are_finite_and_equal_with_remat():
    """With experts, one dataset for each crop, stochastic depth, and remat."""
    fields_ = fields((4, 4), shift=True, pool=True)
    config = VitPoseConfig(**LARGE, **{**PLUS, "skeletons": (COCO, AP10K)}, **fields_)
    model, crops = random_model(config), random_crops(config)
    graphdef, trained, statistics = nnx.split(model, nnx.Param, ...)

    @functools.partial(jax.jit, static_argnums=1)
    @jax.grad
    def gradients(trained, remat):
        model = nnx.merge(graphdef, trained, statistics)
        heatmaps = model(crops, np.array([0, 3, 3]), drop_path=0.1, key=jax.random.key(1), remat=remat)
        return jnp.mean(heatmaps**2)

    plain, again = (nnx.to_flat_state(gradients(trained, remat)) for remat in (False, True))
    largest = max(np.abs(gradient.get_value()).max() for _, gradient in plain)
    for (path, gradient), (_, other) in zip(plain, again, strict=True):
        values = np.asarray(gradient.get_value())
        assert np.isfinite(values).all() and np.abs(values).max() > 0, path
        np.testing.assert_allclose(other.get_value(), values, rtol=0, atol=BLOCK * largest, err_msg=str(path))


def test_each_crop_has_its_dataset_with_windows():
    experts = {**PLUS, "skeletons": (COCO, AP10K)}
    model = random_model(VitPoseConfig(**LARGE, **experts, **fields((2, 3), shift=True, pool=True)))
    crops = random_crops(model.config, 2)
    mixed = model(crops, ["ap10k", "coco"])
    for row, name in enumerate(("ap10k", "coco")):
        np.testing.assert_allclose(mixed[row], model(crops, name)[row], atol=BLOCK)
    plain = model.specialize("ap10k")
    assert plain.config.window_size == (2, 3) and plain.config.window_pool
    np.testing.assert_allclose(plain(crops), model(crops, "ap10k"), atol=BLOCK)


def test_bfloat16_is_close_to_float32_with_windows():
    config = VitPoseConfig(**LARGE, **fields((2, 3), shift=True, pool=True))
    exact = random_model(config)
    half = random_model(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    crops = random_crops(config)
    assert half(crops).dtype == jnp.bfloat16
    expected = exact(crops)
    np.testing.assert_allclose(half(crops), expected, rtol=0, atol=BFLOAT16 * np.abs(expected).max())


def test_blocks_after_the_decoders_input_are_skipped():
    config = VitPoseConfig(**{**LARGE, "num_layers": 3}, out_indices=(2,), **fields((2, 3), shift=True))
    model = random_model(config)
    crops = random_crops(config)
    states = model.backbone(crops, output_hidden_states=True)
    np.testing.assert_allclose(model.backbone(crops).tokens, states.tokens, atol=BLOCK)


def test_a_resized_model_takes_windows():
    model = random_model(VitPoseConfig(**TINY, decoder="simple"))
    large = model.resize((80, 112)).with_windows((2, 3), shift=True, pool=True)
    assert large(random_crops(large.config)).shape == (3, 20, 28, 17)
    assert large.with_windows((1, 1))(random_crops(large.config)).shape == (3, 20, 28, 17)
    # Back to fewer patches than a window has.
    assert large.resize((16, 32)).with_windows((8, 8), pool=True)(jnp.zeros((1, 16, 32, 3))).shape == (1, 4, 8, 17)


def test_attention_weights_of_windows_raise():
    model = random_model(VitPoseConfig(**LARGE, **fields((2, 3))))
    with pytest.raises(ValueError, match="output_attentions: expected a model without windows, got one with windows"):
        model.backbone(random_crops(model.config), output_attentions=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_size": (8, 0)}, "window_size: expected two positive whole numbers"),
        ({"window_shift": True}, "window_shift: expected a window_size with it, got none"),
        ({"window_pool": True}, "window_pool: expected a window_size with it, got none"),
    ],
)
def test_invalid_windows_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        VitPoseConfig(**changes)


def test_the_native_format_holds_windows_and_the_hub_does_not(tmp_path):
    model = random_model(VitPoseConfig(**LARGE, **fields((2, 3), shift=True)))
    checkpoint.save(model, tmp_path / "native")
    again = checkpoint.load(tmp_path / "native")
    assert again.config == model.config
    crops = random_crops(model.config)
    np.testing.assert_array_equal(again(crops), model(crops))
    with pytest.raises(ValueError, match=r"transformers.* no attention in windows, got window_size \(2, 3\)"):
        write(model, tmp_path / "hub", to="huggingface")
    assert not (tmp_path / "hub").exists()


def test_configurations_without_the_new_fields_are_read(tmp_path):
    """And models that do not use them do not write them."""
    plain = VitPoseConfig(**LARGE)
    values = plain.to_dict()
    assert not any(name.startswith("window") for name in values)
    assert VitPoseConfig.from_dict(json.loads(json.dumps(values))) == plain
    windowed = plain.replace(window_size=(2, 3), window_pool=True)
    values = json.loads(json.dumps(windowed.to_dict()))
    assert (values["window_size"], values["window_pool"], "window_shift" in values) == ([2, 3], True, False)
    assert VitPoseConfig.from_dict(values) == windowed
    with pytest.raises(ValueError, match=r"missing fields \[\], unknown fields \['window'\]"):
        VitPoseConfig.from_dict(values | {"window": 3})
    del values["decoder"]
    with pytest.raises(ValueError, match=r"missing fields \['decoder'\], unknown fields \[\]"):
        VitPoseConfig.from_dict(values)


def test_windows_add_no_parameters():
    plain, cut = (parameters.flatten(random_model(VitPoseConfig(**LARGE, **more))) for more in ({}, fields((2, 3))))
    assert {name: leaf.shape for name, leaf in plain.items()} == {name: leaf.shape for name, leaf in cut.items()}
    model = random_model(VitPoseConfig(**LARGE, **fields((2, 3), shift=True)))
    assert len(jax.tree.leaves(model)) == len(cut)
