"""Target heatmaps against the original's formulas in plain NumPy, and decoded back to keypoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tolerances import BLOCK, PLACES, POSITIONS
from vitpose_jax.pipeline.postprocess import decode_regions
from vitpose_jax.pipeline.regions import Regions
from vitpose_jax.training.targets import gaussian_heatmaps

CROP, HEATMAP = (256, 192), (64, 48)

compiled = jax.jit(gaussian_heatmaps, static_argnums=(2, 3), static_argnames=("sigma", "udp"))


def reference(keypoints, visible, crop_size, heatmap_size, sigma, udp):
    """One keypoint and one pixel at a time, in float64."""
    (crop_height, crop_width), (height, width) = crop_size, heatmap_size
    heatmaps = np.zeros((len(keypoints), height, width, keypoints.shape[1]))
    weights = np.zeros(keypoints.shape[:2])
    reach = 3 * sigma
    less = 1 if udp else 0
    for crop, points in enumerate(keypoints.astype(np.float64)):
        for joint, (x, y) in enumerate(points):
            x *= (width - less) / (crop_width - less)
            y *= (height - less) / (crop_height - less)
            middle_x, middle_y = int(x + 0.5), int(y + 0.5)
            left, right = middle_x - reach, middle_x + reach + 1
            top, bottom = middle_y - reach, middle_y + reach + 1
            if not visible[crop, joint] or left >= width or top >= height or right < 0 or bottom < 0:
                continue
            weights[crop, joint] = 1
            if not udp:
                x, y = middle_x, middle_y
            for row in range(max(0, top), min(bottom, height)):
                for column in range(max(0, left), min(right, width)):
                    squares = (column - x) ** 2 + (row - y) ** 2
                    heatmaps[crop, row, column, joint] = np.exp(-squares / (2 * sigma**2))
    return heatmaps, weights


@pytest.mark.parametrize("udp", [True, False])
@pytest.mark.parametrize(
    ("crop_size", "heatmap_size", "sigma"), [(CROP, HEATMAP, 2), ((384, 288), (96, 72), 3), ((64, 96), (16, 24), 1)]
)
def test_heatmaps_equal_the_formulas(udp, crop_size, heatmap_size, sigma):
    rng = np.random.default_rng(0)
    low, high = -0.3 * np.array(crop_size[::-1]), 1.3 * np.array(crop_size[::-1])
    keypoints = rng.uniform(low, high, (5, 14, 2)).astype(np.float32)
    visible = rng.random((5, 14)) < 0.8
    heatmaps, weights = compiled(keypoints, visible, crop_size, heatmap_size, sigma=float(sigma), udp=udp)
    expected_heatmaps, expected_weights = reference(keypoints, visible, crop_size, heatmap_size, sigma, udp)
    assert heatmaps.dtype == weights.dtype == np.float32
    np.testing.assert_array_equal(weights, expected_weights)
    assert 0 < expected_weights.sum() < visible.sum()
    np.testing.assert_allclose(heatmaps, expected_heatmaps, rtol=0, atol=BLOCK)
    np.testing.assert_array_equal(np.asarray(heatmaps) > 0, expected_heatmaps > 0)


@pytest.mark.parametrize("udp", [True, False])
def test_keypoints_count_until_their_square_leaves_the_heatmap(udp):
    """In half heatmap pixels, from where the square leaves the map on one side to the other side."""
    less = 1 if udp else 0
    x = (np.arange(-9, 58, 0.5) + 0.01) * (192 - less) / (48 - less)
    keypoints = np.stack([np.stack([x, np.full_like(x, 100)], -1), np.stack([np.full_like(x, 50), x], -1)])
    keypoints = keypoints.astype(np.float32)
    visible = np.ones(keypoints.shape[:2], bool)
    heatmaps, weights = compiled(keypoints, visible, CROP, HEATMAP, udp=udp)
    expected_heatmaps, expected_weights = reference(keypoints, visible, CROP, HEATMAP, 2, udp)
    np.testing.assert_array_equal(weights, expected_weights)
    np.testing.assert_allclose(heatmaps, expected_heatmaps, rtol=0, atol=BLOCK)
    # The original counts a keypoint whose square ends one pixel before the map, although nothing is drawn.
    assert ((np.asarray(weights[0]) == 1) & (np.asarray(heatmaps[0]).max(axis=(0, 1)) == 0)).sum() == 2


def test_each_crop_has_its_encoding():
    rng = np.random.default_rng(1)
    keypoints = jnp.asarray(rng.uniform(0, 190, (4, 3, 2)), jnp.float32)
    visible = jnp.ones((4, 3))
    mixed = jax.jit(gaussian_heatmaps)(keypoints, visible, udp=jnp.asarray([True, False, False, True]))
    for udp, crops in ((True, [0, 3]), (False, [1, 2])):
        alone = compiled(keypoints, visible, udp=udp)
        for ours, theirs in zip(mixed, alone, strict=True):
            np.testing.assert_allclose(ours[np.array(crops)], theirs[np.array(crops)], rtol=0, atol=BLOCK)


def test_invisible_keypoints_may_have_any_value():
    keypoints = jnp.asarray([[[jnp.nan, 3], [jnp.inf, -jnp.inf], [1e30, 2], [40, 40]]])
    heatmaps, weights = compiled(keypoints, jnp.asarray([[0, 0, 0, 2]]))
    np.testing.assert_array_equal(weights, [[0, 0, 0, 1]])
    assert np.isfinite(heatmaps).all() and heatmaps[..., :3].max() == 0


def encode_and_decode(keypoints, extent, *, udp, decode):
    """Keypoints to heatmaps and back, with regions whose pixels are the crop's."""
    heatmaps, _ = gaussian_heatmaps(keypoints, jnp.ones(keypoints.shape[:2]), udp=udp)
    return decode_regions(heatmaps, Regions(extent / 2, extent), decode=decode)


encode_and_decode = jax.jit(encode_and_decode, static_argnames=("udp", "decode"))

# Six heatmap pixels from the edge. Nearer to it, the blur of the decoding mirrors part of the Gaussian at the edge
# and pulls the point inwards.
inner = st.tuples(st.floats(24, 167), st.floats(24, 231))


@given(points=st.lists(inner, min_size=6, max_size=6))
def test_udp_decodes_to_the_keypoint(points):
    keypoints = jnp.asarray([points], jnp.float32)
    decoded, scores = encode_and_decode(keypoints, jnp.asarray([[191.0, 255.0]]), udp=True, decode="udp")
    assert np.abs(decoded - keypoints).max() < POSITIONS
    assert scores.min() > 0.9


@given(points=st.lists(st.tuples(st.floats(0, 189), st.floats(0, 253)), min_size=6, max_size=6))
def test_msra_decodes_to_half_a_pixel_of_the_heatmap(points):
    """Two pixels of the crop: at its centre pixel the Gaussian is symmetric, so that no quarter is added."""
    keypoints = jnp.asarray([points], jnp.float32)
    decoded, _ = encode_and_decode(keypoints, jnp.asarray([[192.0, 256.0]]), udp=False, decode="quarter")
    assert np.abs(decoded - keypoints).max() <= 2 + PLACES
