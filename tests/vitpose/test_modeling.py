"""The network on its own: shapes, datasets and heads, dtypes, gradients, other image sizes, both NNX modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.models import PLUS, TINY, random_crops, random_model
from tests.tolerances import BLOCK, FLOAT32
from vitpose_jax import VitPose, VitPoseConfig
from vitpose_jax.skeletons import AP10K, COCO, DATASETS
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose.modeling import abstract_vitpose


@pytest.fixture(scope="module")
def plus() -> VitPose:
    return random_model(VitPoseConfig(**TINY, **PLUS))


@pytest.mark.parametrize("decoder", ["classic", "simple"])
def test_heatmaps_have_the_configured_shape_and_dtype(decoder):
    config = VitPoseConfig(**TINY, decoder=decoder)
    heatmaps = VitPose(config, rngs=nnx.Rngs(0))(random_crops(config))
    assert heatmaps.shape == (3, 16, 12, 17)
    assert heatmaps.dtype == jnp.float32
    assert VitPose(config, rngs=nnx.Rngs(0))(jnp.zeros((0, 64, 48, 3))).shape == (0, 16, 12, 17)


def test_a_dataset_by_name_equals_its_index(plus):
    crops = random_crops(plus.config)
    for number, skeleton in enumerate(DATASETS):
        by_name = plus(crops, skeleton.name)
        assert by_name.shape[-1] == skeleton.num_keypoints
        np.testing.assert_array_equal(by_name, plus(crops, number))
    np.testing.assert_array_equal(plus(crops), plus(crops, "coco"))
    assert np.abs(plus(crops, "ap10k") - plus(crops, "apt36k")).max() > 1e-3


def test_each_crop_has_its_dataset(plus):
    crops = random_crops(plus.config)
    mixed = plus(crops, ["ap10k", "wholebody", "coco"])
    assert mixed.shape[-1] == 133
    for row, name in enumerate(("ap10k", "wholebody", "coco")):
        alone = plus(crops, name)[row]
        np.testing.assert_allclose(mixed[row, ..., : alone.shape[-1]], alone, atol=BLOCK)
        assert (mixed[row, ..., alone.shape[-1] :] == 0).all()
    traced = jax.jit(lambda model, crops, index: model(crops, index))(plus, crops, jnp.array([3, 5, 0]))
    np.testing.assert_allclose(traced, mixed, atol=BLOCK)
    # One traced number for all crops is the same as that number.
    scalar = jax.jit(lambda model, crops, index: model(crops, index))(plus, crops, jnp.array(3))
    np.testing.assert_allclose(scalar[..., :17], plus(crops, "ap10k"), atol=BLOCK)


def test_datasets_without_a_head_raise():
    """The Hub's ViTPose++ files hold six experts but the COCO head alone."""
    model = random_model(VitPoseConfig(**TINY, **{**PLUS, "skeletons": (COCO,)}))
    crops = random_crops(model.config)
    with pytest.raises(ValueError, match=r"expert for 'ap10k' but no head; its heads are: coco"):
        model(crops, "ap10k")
    with pytest.raises(ValueError, match="no head"):
        model(crops, np.array([0, 3, 0]))
    with pytest.raises(ValueError, match=r"no dataset 'horses'.*coco \(0\)"):
        model(crops, "horses")
    # Numbers under jit cannot be refused; they must not pass for COCO either.
    heatmaps = jax.jit(lambda model, crops, index: model(crops, index))(model, crops, jnp.array([0, 3, 0]))
    assert np.isfinite(heatmaps[0]).all()
    assert np.isnan(heatmaps[1]).all()
    # The features of an expert without a head are there for who wants them.
    assert model.backbone(crops, 3).tokens.shape == (3, 12, 24)


@pytest.mark.parametrize("dataset", [skeleton.name for skeleton in DATASETS])
def test_specialize_folds_an_expert_into_a_plain_model(plus, dataset):
    crops = random_crops(plus.config)
    plain = plus.specialize(dataset)
    assert not plain.config.experts
    assert plain.config.skeletons == (plus.config.skeleton(dataset),)
    assert not any("experts" in name for name in parameters.flatten(plain))
    np.testing.assert_allclose(plain(crops), plus(crops, dataset), atol=BLOCK)


def test_intermediates_come_on_request_and_change_nothing():
    config = VitPoseConfig(**TINY)
    backbone = random_model(config).backbone
    crops = random_crops(config)
    plain = backbone(crops)
    assert plain[1:] == (None, None, ())
    full = backbone(crops, output_hidden_states=True, output_attentions=True, feature_blocks=(0, 1, 2))
    assert full.hidden_states.shape == (3, 3, 12, 24)
    assert full.attentions.shape == (2, 3, 3, 12, 12)
    assert [map_.shape for map_ in full.feature_maps] == [(3, 4, 3, 24)] * 3
    np.testing.assert_allclose(full.tokens, plain.tokens, atol=BLOCK)
    np.testing.assert_allclose(full.attentions.sum(-1), 1, rtol=FLOAT32)
    np.testing.assert_allclose(full.feature_maps[2].reshape(plain.tokens.shape), plain.tokens, atol=BLOCK)
    with pytest.raises(ValueError, match="expected block numbers from 0 to 2"):
        backbone(crops, feature_blocks=(3,))


def test_the_decoder_reads_the_last_of_out_indices():
    config = VitPoseConfig(**TINY, out_indices=(1,))
    model = random_model(config)
    crops = random_crops(config)
    states = model.backbone(crops, output_hidden_states=True).hidden_states
    expected = model.backbone.norm(states[1])
    np.testing.assert_allclose(model.backbone(crops).tokens, expected, atol=BLOCK)
    np.testing.assert_allclose(model.backbone(crops, output_attentions=True).tokens, expected, atol=BLOCK)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_norms_stay_in_float32(dtype):
    config = VitPoseConfig(**TINY)
    model = random_model(config, dtype=dtype, param_dtype=dtype)
    assert model(random_crops(config)).dtype == dtype
    for name, leaf in parameters.flatten(model).items():
        assert leaf.dtype == (jnp.float32 if "norm" in name else dtype), name


def test_every_parameter_has_a_gradient():
    config = VitPoseConfig(**TINY, **{**PLUS, "skeletons": (COCO, AP10K)})
    model = random_model(config)
    crops = random_crops(config)
    graphdef, trained, statistics = nnx.split(model, nnx.Param, ...)

    def loss(trained):
        return jnp.mean(nnx.merge(graphdef, trained, statistics)(crops, np.array([0, 3, 3])) ** 2)

    gradients = nnx.to_flat_state(jax.grad(loss)(trained))
    assert len(gradients) == len(nnx.to_flat_state(trained))
    for path, gradient in gradients:
        values = np.asarray(gradient.get_value())
        assert np.isfinite(values).all(), path
        # Experts that no crop chose get none.
        chosen = values[:, [0, 3]] if "experts" in path[-1] else values
        assert np.abs(chosen).max() > 0, path
        if "experts" in path[-1]:
            assert (values[:, [1, 2, 4, 5]] == 0).all()


def test_another_image_size_interpolates_positions():
    config = VitPoseConfig(**TINY)
    model = random_model(config)
    larger = model.resize((96, 80))
    assert larger(jnp.zeros((1, 96, 80, 3))).shape == (1, 24, 20, 17)
    with pytest.raises(ValueError, match=r"expected \(n, 96, 80, 3\), got \(1, 64, 48, 3\)"):
        larger(jnp.zeros((1, 64, 48, 3)))
    with pytest.raises(ValueError, match="multiples of the patch size"):
        model.resize((100, 48))


def test_models_are_pytrees_for_jit_map_and_checkpoint(plus):
    crops = random_crops(plus.config)
    leaves = jax.tree.leaves(plus)
    assert len(leaves) == len(parameters.flatten(plus))
    doubled = jax.tree.map(lambda leaf: leaf * 2, plus)
    assert isinstance(doubled, VitPose)
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x, "mpii"))(plus, crops), plus(crops, "mpii"), atol=BLOCK)
    remat = jax.checkpoint(lambda m, x: m(x, "mpii"))(plus, crops)
    np.testing.assert_allclose(remat, plus(crops, "mpii"), atol=BLOCK)


def test_fill_lists_every_difference_at_once(plus):
    tensors = dict(parameters.flatten(plus))
    tensors["surplus"] = np.zeros(2)
    missing = "backbone.norm.bias"
    del tensors[missing]
    tensors["backbone.norm.scale"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"file.safetensors: 3 problems") as caught:
        parameters.fill(abstract_vitpose(plus.config), tensors, source="file.safetensors")
    message = str(caught.value)
    assert "missing backbone.norm.bias, expected shape (24,)" in message
    assert "unexpected surplus, shape (2,)" in message
    assert "backbone.norm.scale: expected shape (24,), got (3,)" in message


def test_crops_of_another_size_raise(plus):
    with pytest.raises(ValueError, match=r"expected \(n, 64, 48, 3\)"):
        plus(jnp.zeros((2, 48, 64, 3)))
    with pytest.raises(ValueError, match="expected one index, or 2 of them"):
        plus(jnp.zeros((2, 64, 48, 3)), np.array([0, 0, 0]))
