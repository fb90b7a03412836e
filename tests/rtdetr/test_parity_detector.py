"""RT-DETR and RT-DETRv2 against transformers, stage by stage and from images to boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.support.reference_rtdetr import SIZE, random_images, run, save, tiny_detector
from tests.tolerances import BFLOAT16, BLOCK, DETECTOR, FLOAT32
from vitpose_jax.convert.detectors import load_detector
from vitpose_jax.rtdetr.decoder import inverse_sigmoid
from vitpose_jax.rtdetr.encoder import sine_positions
from vitpose_jax.rtdetr.modeling import make_anchors

BOTTLENECK = {"layer_type": "bottleneck", "hidden_sizes": [8, 12, 16, 24]}
VARIANTS = {
    "v1-basic": (1, {}, {}),
    "v1-bottleneck": (1, {**BOTTLENECK, "depths": [2, 1, 2, 1], "embedding_size": 6}, {"hidden_expansion": 0.5}),
    "v2-basic": (2, {"hidden_act": "gelu"}, {"decoder_offset_scale": 0.7, "decoder_n_points": 3}),
    "v2-discrete": (2, {}, {"decoder_method": "discrete", "activation_function": "relu"}),
    "norm-first": (
        1,
        {**BOTTLENECK, "downsample_in_bottleneck": True},
        {"normalize_before": True, "encoder_layers": 2, "encode_proj_layers": [1, 2], "encoder_hidden_dim": 24},
    ),
    "four-levels": (2, {}, {"num_feature_levels": 4, "decoder_n_levels": 4, "decoder_layers": 3}),
    "five-levels": (1, {}, {"num_feature_levels": 5, "batch_norm_eps": 1e-3, "layer_norm_eps": 1e-3}),
    "two-maps": (
        1,
        {"out_indices": [2, 3], "embedding_size": 10, "downsample_in_first_stage": True},
        {
            "num_feature_levels": 2,
            "encode_proj_layers": [1],
            "feat_strides": [16, 32],
            "decoder_activation_function": "gelu",
            "positional_encoding_temperature": 50,
        },
    ),
}
# For these, single stages are also compared on the same input.
ALONE = ["v1-bottleneck", "v2-discrete"]


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """The reference, the detector loaded from its saved files, and the outputs of both for the same images."""
    version, backbone, fields = VARIANTS[request.param]
    reference = tiny_detector(version, backbone=backbone, **fields)
    detector = load_detector(save(reference, tmp_path_factory.mktemp("hub")))
    images = random_images()
    ours = jax.jit(lambda detector, images: detector(images))(detector, jnp.asarray(images))
    return reference, detector, ours, run(reference, images)


def assert_close(ours, expected, tolerance: float = DETECTOR):
    expected = np.asarray(expected.detach())
    assert 0.1 < np.abs(expected).max() < 30
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, strict=True)


def first(array) -> torch.Tensor:
    """Channels first, for torch."""
    return torch.from_numpy(np.moveaxis(np.asarray(array), -1, 1).copy())


def last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.movedim(1, -1)


def test_feature_maps_of_the_backbone_equal_transformers(pair):
    reference, detector, ours, _ = pair
    expected = reference.model.backbone.model(first(random_images())).feature_maps
    assert len(ours.feature_maps) == len(expected) == len(detector.config.out_indices)
    for output, expected_map in zip(ours.feature_maps, expected, strict=True):
        assert_close(output, last(expected_map))


def test_feature_maps_of_the_encoder_equal_transformers(pair):
    _, _, ours, reference_output = pair
    for output, expected_map in zip(ours.encoded, reference_output.encoder_last_hidden_state, strict=True):
        assert_close(output, last(expected_map))


@pytest.mark.parametrize("pair", ALONE, indirect=True)
def test_the_encoder_equals_transformers_on_the_same_input(pair):
    reference, detector, ours, _ = pair
    projected = [
        project(first(feature_map))
        for project, feature_map in zip(reference.model.encoder_input_proj, ours.feature_maps, strict=True)
    ]
    expected = reference.model.encoder(projected).last_hidden_state
    alone = jax.jit(lambda encoder, maps: encoder(maps))(detector.encoder, ours.feature_maps)
    for output, expected_map in zip(alone, expected, strict=True):
        assert_close(output, last(expected_map), BLOCK)


def test_proposals_equal_transformers(pair):
    _, detector, ours, reference_output = pair
    # Positions with equal scores can come in any order: compare sorted logits, and the boxes in the same order.
    scores = ours.proposals.logits.max(axis=-1)
    assert np.all(np.diff(scores, axis=1) <= 0)
    expected_logits = reference_output.enc_topk_logits.numpy()
    for image in range(len(scores)):
        order, other = np.lexsort(np.asarray(ours.proposals.logits)[image].T), np.lexsort(expected_logits[image].T)
        assert_close(ours.proposals.logits[image][order], torch.from_numpy(expected_logits[image][other]))
        assert_close(
            jax.nn.sigmoid(ours.proposals.boxes[image][order]),
            reference_output.enc_topk_bboxes[image][torch.from_numpy(other)],
        )
    assert ours.memory.shape[1] == len(make_anchors(detector.config.level_sizes)[0])


def test_every_layer_of_the_decoder_equals_transformers(pair):
    _, _, ours, reference_output = pair
    assert_close(jnp.moveaxis(ours.queries, 0, 1), reference_output.intermediate_hidden_states)
    assert_close(jnp.moveaxis(ours.layer_logits, 0, 1), reference_output.intermediate_logits)
    assert_close(jnp.moveaxis(ours.layer_boxes, 0, 1), reference_output.intermediate_reference_points)


@pytest.mark.parametrize("pair", ALONE, indirect=True)
def test_the_decoder_equals_transformers_on_the_same_input(pair):
    reference, detector, ours, _ = pair
    rng = np.random.default_rng(1)
    queries, boxes, memory = (
        rng.normal(size=shape).astype(np.float32) for shape in ((2, 9, 16), (2, 9, 4), ours.memory.shape)
    )
    got = jax.jit(lambda decoder, *inputs: decoder(*inputs))(
        detector.decoder, *map(jnp.asarray, (queries, boxes, memory))
    )
    sizes = detector.config.level_sizes
    expected = reference.model.decoder(
        inputs_embeds=torch.from_numpy(queries),
        encoder_hidden_states=torch.from_numpy(memory),
        reference_points=torch.from_numpy(boxes),
        spatial_shapes=torch.tensor(sizes),
        spatial_shapes_list=list(sizes),
        level_start_index=None,
    )
    assert_close(jnp.moveaxis(got.logits, 0, 1), expected.intermediate_logits, BLOCK)
    assert_close(jnp.moveaxis(got.boxes, 0, 1), expected.intermediate_reference_points, BLOCK)


def test_logits_and_boxes_equal_transformers(pair):
    _, _, ours, reference_output = pair
    assert ours.logits.shape == (2, 30, 5) and ours.boxes.shape == (2, 30, 4)
    assert_close(ours.logits, reference_output.logits)
    assert_close(ours.boxes, reference_output.pred_boxes)
    # Boxes differ between queries and between images: nothing has been averaged away.
    assert np.asarray(ours.boxes).std(axis=1).min() > 1e-3
    assert np.abs(np.asarray(ours.boxes[0] - ours.boxes[1])).max() > 1e-3


@pytest.mark.parametrize("pair", ALONE[:1], indirect=True)
def test_images_of_another_size_raise(pair):
    _, detector, _, _ = pair
    with pytest.raises(ValueError, match=r"expected \(n, 64, 96, 3\), got \(1, 96, 64, 3\)"):
        detector(jnp.zeros((1, *SIZE[::-1], 3)))


@pytest.mark.parametrize(
    "sizes", [((8, 12), (4, 6), (2, 3)), ((80, 80), (40, 40), (20, 20)), ((160, 160),) * 5], ids=str
)
def test_anchors_equal_transformers(sizes):
    reference = tiny_detector().model
    expected, valid = reference.generate_anchors(sizes)
    ours, ours_valid = make_anchors(sizes)
    np.testing.assert_array_equal(ours_valid, valid[0, :, 0])
    np.testing.assert_allclose(ours, expected[0], rtol=0, atol=BLOCK)
    # Positions at the edge are not valid at strides of 8 and less, nor are anchors of almost the image's size.
    assert ours_valid.all() == (sizes[0] == (8, 12))


def test_sine_positions_equal_transformers():
    reference = tiny_detector(encoder_hidden_dim=20, positional_encoding_temperature=77).model.encoder.aifi[0]
    expected = reference.position_embedding(width=7, height=5, device=torch.device("cpu"), dtype=torch.float32)
    np.testing.assert_allclose(sine_positions(5, 7, 20, 77.0), expected[0], rtol=0, atol=BLOCK)


def test_inverse_sigmoid_equals_transformers_at_the_ends():
    x = jnp.asarray([-0.1, 0.0, 1e-6, 0.3, 1 - 1e-6, 1.0, 1.1])
    from transformers.models.rt_detr.modeling_rt_detr import inverse_sigmoid as torch_inverse_sigmoid

    np.testing.assert_allclose(inverse_sigmoid(x), torch_inverse_sigmoid(torch.from_numpy(np.array(x))), rtol=FLOAT32)


def test_equal_proposals_keep_their_order(tmp_path):
    reference = tiny_detector()
    with torch.no_grad():
        reference.model.enc_score_head.weight.zero_()
    detector = load_detector(save(reference, tmp_path))
    memory = jnp.asarray(np.random.default_rng(0).normal(size=(1, 126, 16)), jnp.float32)
    np.testing.assert_array_equal(detector.select(memory).index[0], np.arange(30))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_half_precision_is_close_to_float32(tmp_path, dtype):
    # Before the selection of proposals, which is discrete, and in the decoder with the same inputs.
    folder = save(tiny_detector(2), tmp_path)
    images = jnp.asarray(random_images())
    full, low = load_detector(folder), load_detector(folder, dtype=dtype)
    assert (
        low.decoder.layers.mlp.layers[0].kernel.dtype == dtype and low.decoder.layers.norm1.scale.dtype == jnp.float32
    )

    @jax.jit
    def stages(detector, images, boxes, queries):
        encoded = detector.encoder(detector.backbone(images.astype(detector.dtype)))
        memory = jnp.ones((2, 126, 16), detector.dtype) * jnp.linspace(-1, 1, 126, dtype=detector.dtype)[:, None]
        return *encoded, *detector.decoder(queries, boxes, memory)

    rng = np.random.default_rng(0)
    inputs = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 9, 4), (2, 9, 16)))
    boxes, queries = inputs
    for ours, expected in zip(stages(low, images, boxes, queries), stages(full, images, boxes, queries), strict=True):
        assert 1e-6 < np.abs(ours.astype(jnp.float32) - expected).max() / np.abs(expected).max() < BFLOAT16
