"""Crops and keypoints in NumPy alone (export/reference.py) beside those of the pipeline."""

import ast

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.images import random_boxes, random_image
from tests.tolerances import BLOCK, FLOAT32, KEYPOINTS, NOISE_OUTLIERS
from vitpose_jax.export import reference
from vitpose_jax.export.metadata import KEY, Metadata
from vitpose_jax.pipeline.postprocess import decode_heatmaps, flip_back
from vitpose_jax.pipeline.preprocess import crop_boxes
from vitpose_jax.skeletons import COCO
from vitpose_jax.vitpose.config import VitPoseConfig

SIZE = (64, 48)
METADATA = Metadata(part="network", config=VitPoseConfig(image_size=SIZE).to_dict(), dtype="", inputs=[], outputs=[])
SETTINGS = reference.read_settings({KEY: METADATA.to_json()})

crop = jax.jit(crop_boxes, static_argnums=2)
decode = jax.jit(decode_heatmaps, static_argnames="size")


def test_settings_are_those_of_the_model():
    assert SETTINGS.size == SIZE and SETTINGS.keypoints == COCO.keypoints and SETTINGS.edges == COCO.edges
    assert SETTINGS.mean == METADATA.image_mean and SETTINGS.std == METADATA.image_std
    assert SETTINGS.flip_pairs == COCO.flip_pairs
    with pytest.raises(ValueError, match=r"expected the key 'vitpose_jax\.export', got"):
        reference.read_settings({"other": ""})


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    box=st.tuples(st.floats(-60, 160), st.floats(-60, 120), st.floats(1, 300), st.floats(1, 300)),
)
def test_crops_of_any_box(seed, box):
    image, boxes = random_image(seed), np.asarray([box, [0, 0, 160, 120]], np.float32)
    ours, expected = reference.make_crops(image, boxes, SETTINGS), np.asarray(crop(image, boxes, SIZE))
    assert ours.dtype == np.float32 and ours.shape == expected.shape
    # A sample that lies half-way between two pixel values may be rounded to either, and an edge lie outside.
    assert (np.abs(ours - expected) > BLOCK).mean() < NOISE_OUTLIERS


def test_crops_of_small_images_and_of_none():
    image = random_image(0, 1, 1)
    ours = reference.make_crops(image, [[0, 0, 1, 1]], SETTINGS)
    np.testing.assert_allclose(ours, crop(image, np.asarray([[0, 0, 1, 1]], np.float32), SIZE), rtol=0, atol=BLOCK)
    assert reference.make_crops(image, np.zeros((0, 4)), SETTINGS).shape == (0, *SIZE, 3)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), level=st.sampled_from([0.0, 0.3, -2.0]))
def test_keypoints_of_any_heatmap(seed, level):
    """Peaks anywhere, also at the edges; with level -2 no pixel is positive."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :12]
    centers = rng.uniform(-1, 16, (2, 17, 2))
    distances = (x - centers[..., :1, None]) ** 2 + (y - centers[..., 1:, None]) ** 2
    heatmaps = np.exp(-distances / 8) + rng.normal(0, 0.01, distances.shape) + level
    heatmaps = heatmaps.transpose(0, 2, 3, 1).astype(np.float32)
    boxes = random_boxes(seed, 2)
    keypoints, scores = reference.read_heatmaps(heatmaps, boxes, SETTINGS)
    expected, expected_scores = decode(heatmaps, boxes, size=SIZE)
    np.testing.assert_array_equal(scores, expected_scores)
    # A flat peak makes the Newton step sensitive to rounding.
    distances = np.abs(keypoints - np.asarray(expected)).max(axis=-1)
    assert np.median(distances) < KEYPOINTS and (distances < KEYPOINTS).mean() > 1 - NOISE_OUTLIERS * 10


def test_the_flip_test():
    heatmaps, mirrored = np.random.default_rng(0).normal(size=(2, 3, 16, 12, 17)).astype(np.float32)
    expected = (heatmaps + np.asarray(flip_back(jax.numpy.asarray(mirrored), COCO.flip_indices))) / 2
    ours = reference.average_with_mirrored(heatmaps, mirrored, SETTINGS)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=FLOAT32)


def test_bad_input_is_named():
    image = random_image(0)
    for boxes in ([[0, 0, 0, 5]], [[0, 0, np.nan, 5]]):
        with pytest.raises(ValueError, match="boxes: expected rows x y w h of finite numbers"):
            reference.make_crops(image, boxes, SETTINGS)
    with pytest.raises(ValueError, match="image: expected uint8 of shape"):
        reference.make_crops(image / 255, [[0, 0, 5, 5]], SETTINGS)
    with pytest.raises(ValueError, match=r"heatmaps: expected \(1, rows, columns, K\), got \(2, 16, 12, 17\)"):
        reference.read_heatmaps(np.zeros((2, 16, 12, 17)), [[0, 0, 5, 5]], SETTINGS)


def test_it_needs_numpy_alone():
    with open(reference.__file__) as file:
        tree = ast.parse(file.read())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"json", "collections.abc", "typing", "numpy"}
