"""Decoding against the processor of transformers and an OpenCV version of the original's."""

import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import VitPoseImageProcessorPil
from transformers.models.vitpose.modeling_vitpose import flip_back as reference_flip_back

from tests.tolerances import FLOAT32, KEYPOINTS, PEAK_WIDTH, POSITIONS
from vitpose_jax.pipeline import postprocess
from vitpose_jax.pipeline.regions import Regions, boxes_to_regions
from vitpose_jax.skeletons import DATASETS

HEIGHT, WIDTH = 64, 48


def gaussians(rng: np.random.Generator, count: int, channels: int, noise: float) -> np.ndarray:
    """Peaks anywhere, up to and over the edge, of various widths and heights: (n, height, width, K)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH][..., None, None]
    rows, columns = np.moveaxis(rows, -1, 0), np.moveaxis(columns, -1, 0)
    shape = (count, 1, 1, channels)
    x, y = rng.uniform(-1, WIDTH, shape), rng.uniform(-1, HEIGHT, shape)
    width, peak = rng.uniform(1.2, 3, shape), rng.uniform(0.05, 1.1, shape)
    maps = peak * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2))
    return (maps + noise * rng.normal(size=maps.shape)).astype(np.float32)


def reference_poses(heatmaps: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    outputs = types.SimpleNamespace(heatmaps=torch.tensor(heatmaps.transpose(0, 3, 1, 2)))
    poses = VitPoseImageProcessorPil().post_process_pose_estimation(outputs, boxes=[boxes.tolist()])[0]
    return np.stack([pose["keypoints"] for pose in poses]), np.stack([pose["scores"] for pose in poses])


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
def test_transformers_decoding_equals_the_reference(noise):
    rng = np.random.default_rng(0)
    heatmaps = gaussians(rng, 8, 17, noise)
    boxes = rng.uniform(20, 300, (8, 4)).astype(np.float32)
    expected, expected_scores = reference_poses(heatmaps, boxes)
    decode = jax.jit(lambda maps, boxes: postprocess.decode_heatmaps(maps, boxes, decode="transformers"))
    keypoints, scores = decode(heatmaps, boxes)
    np.testing.assert_allclose(keypoints, expected, atol=KEYPOINTS, rtol=0)
    np.testing.assert_array_equal(scores, expected_scores)


def opencv_dark(heatmap: np.ndarray, x: int, y: int) -> np.ndarray:
    """The original's refinement of one heatmap: cv2.GaussianBlur(11x11, sigma 0), logarithm, one Newton step."""
    logs = np.log(np.clip(cv2.GaussianBlur(heatmap, (11, 11), 0), 0.001, 50))
    p = np.pad(logs, 1, mode="edge").astype(np.float64)[y : y + 3, x : x + 3]
    gradient = np.array([p[1, 2] - p[1, 0], p[2, 1] - p[0, 1]]) / 2
    mixed = (p[2, 2] - p[1, 2] - p[2, 1] + 2 * p[1, 1] - p[1, 0] - p[0, 1] + p[0, 0]) / 2
    hessian = np.array([[p[1, 2] - 2 * p[1, 1] + p[1, 0], mixed], [mixed, p[2, 1] - 2 * p[1, 1] + p[0, 1]]])
    return np.array([x, y]) - np.linalg.inv(hessian + np.finfo(np.float32).eps * np.eye(2)) @ gradient


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
def test_udp_decoding_equals_the_original(noise):
    heatmaps = gaussians(np.random.default_rng(1), 6, 17, noise)
    peaks, _ = postprocess.find_peaks(jnp.asarray(heatmaps))
    refined = np.asarray(postprocess.refine(jnp.asarray(heatmaps), peaks, "udp"))
    for n, k in np.ndindex(refined.shape[:2]):
        expected = opencv_dark(heatmaps[n, :, :, k], *map(int, peaks[n, k]))
        np.testing.assert_allclose(refined[n, k], expected, atol=KEYPOINTS, rtol=0)


def test_quarter_decoding_equals_the_original():
    rng = np.random.default_rng(2)
    heatmaps = gaussians(rng, 6, 17, 0.02)
    boxes = rng.uniform(20, 300, (6, 4)).astype(np.float32)
    keypoints, _ = postprocess.decode_heatmaps(heatmaps, boxes, decode="quarter")
    centers, scales, _ = boxes_to_regions(boxes)
    moved = 0
    for n, k in np.ndindex(6, 17):
        heatmap = heatmaps[n, :, :, k]
        y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
        point = np.array([x, y], np.float64)
        if 1 < x < WIDTH - 1 and 1 < y < HEIGHT - 1:
            slope = [heatmap[y, x + 1] - heatmap[y, x - 1], heatmap[y + 1, x] - heatmap[y - 1, x]]
            point += np.sign(slope) * 0.25
            moved += 1
        expected = point * np.asarray(scales[n]) / [WIDTH, HEIGHT] + np.asarray(centers[n]) - np.asarray(scales[n]) / 2
        np.testing.assert_allclose(keypoints[n, k], expected, atol=KEYPOINTS, rtol=0)
    assert moved > 50


def test_decodings_equal_published_values():
    """Values of mmpose's own tests: a peak at (31, 31) of a flat 64 x 64 map."""
    heatmap = np.ones((1, 64, 64, 1), np.float32)
    heatmap[0, 31, 31] = 2
    center, scale = jnp.full((1, 2), 127.0), jnp.full((1, 2), 64.0)
    keypoints, scores = postprocess.decode_regions(heatmap, Regions(center, scale), decode="quarter")
    np.testing.assert_allclose(keypoints[0, 0], [126, 126], rtol=0, atol=KEYPOINTS)
    assert scores[0, 0] == 2
    # A region of 32 x 200 pixels, in which a pixel of the heatmap is a hundred of the image. mmpose rounds its 76.2.
    wide = jnp.full((1, 2), 32.0 * 200)
    keypoints, _ = postprocess.decode_regions(heatmap, Regions(center, wide), decode="udp")
    np.testing.assert_allclose(keypoints[0, 0] * 63 / 6400, np.full(2, 76.2063) * 63 / 6400, rtol=0, atol=KEYPOINTS)


def test_udp_decoding_of_a_peak_with_higher_neighbours_on_one_side():
    """It moves left and up, by as much as the original moves it."""
    heatmap = np.ones((1, 64, 64, 1), np.float32)
    heatmap[0, 31, 31], heatmap[0, 31, 30], heatmap[0, 30, 31] = 2, 1.5, 1.5
    center, scale = jnp.full((1, 2), 127.0), jnp.full((1, 2), 64.0)
    keypoints, _ = postprocess.decode_regions(heatmap, Regions(center, scale), decode="udp")
    refined = opencv_dark(heatmap[0, :, :, 0], 31, 31)
    assert (refined < 31).all()
    np.testing.assert_allclose(keypoints[0, 0], refined * 64 / 63 + 127 - 32, rtol=0, atol=KEYPOINTS)


@pytest.mark.parametrize("decode", ["udp", "transformers"])
@given(x=st.floats(12, WIDTH - 13), y=st.floats(12, HEIGHT - 13), width=st.floats(1.5, 2.5))
def test_dark_finds_the_middle_of_a_gaussian(decode, x, y, width):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    heatmap = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2)).astype(np.float32)
    heatmap = jnp.asarray(heatmap)[None, :, :, None]
    peaks, _ = postprocess.find_peaks(heatmap)
    np.testing.assert_allclose(postprocess.refine(heatmap, peaks, decode)[0, 0], [x, y], rtol=0, atol=POSITIONS)


@pytest.mark.parametrize("decode", postprocess.DECODINGS)
def test_small_and_odd_inputs(decode):
    one = postprocess.decode_heatmaps(np.ones((3, 8, 6, 1), np.float32), np.ones((3, 4)), decode=decode)
    assert one[0].shape == (3, 1, 2) and one[1].shape == (3, 1)
    none = postprocess.decode_heatmaps(np.zeros((0, 64, 48, 17), np.float32), np.zeros((0, 4)), decode=decode)
    assert none[0].shape == (0, 17, 2) and none[1].shape == (0, 17)
    heatmaps = gaussians(np.random.default_rng(3), 2, 5, 0.0)
    low = jnp.asarray(heatmaps, jnp.bfloat16)
    boxes = np.array([[10.0, 20, 60, 80], [0, 0, 30, 40]])
    keypoints, scores = postprocess.decode_heatmaps(low, boxes, decode=decode)
    assert keypoints.dtype == scores.dtype == jnp.float32
    expected, _ = postprocess.decode_heatmaps(low.astype(jnp.float32), boxes, decode=decode)
    np.testing.assert_array_equal(keypoints, expected)


@pytest.mark.parametrize("decode", sorted(postprocess.DECODINGS.keys() - {"transformers"}))
def test_a_heatmap_without_a_peak_stays_inside_its_crop(decode):
    """But for the decoding of transformers, which does as transformers: tests/interop/test_transformers_defects.py."""
    heatmaps = -np.abs(np.random.default_rng(4).normal(size=(4, HEIGHT, WIDTH, 3))).astype(np.float32)
    heatmaps[0] = 0
    boxes = np.tile([[100.0, 50, 30, 40]], (4, 1))
    keypoints, scores = postprocess.decode_heatmaps(heatmaps, boxes, decode=decode)
    assert (np.asarray(scores) <= 0).all()
    center, scale, _ = boxes_to_regions(boxes)
    assert (
        np.abs(np.asarray(keypoints) - np.asarray(center)[:, None]) <= np.asarray(scale)[:, None] / 2 + POSITIONS
    ).all()


@pytest.mark.parametrize("skeleton", DATASETS, ids=lambda skeleton: skeleton.name)
def test_flip_back_equals_the_reference(skeleton):
    heatmaps = np.random.default_rng(5).normal(size=(2, 8, 6, skeleton.num_keypoints)).astype(np.float32)
    ours = postprocess.flip_back(jnp.asarray(heatmaps), skeleton.flip_indices)
    pairs = torch.tensor(skeleton.flip_pairs)
    expected = reference_flip_back(torch.tensor(heatmaps.transpose(0, 3, 1, 2)), pairs).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(postprocess.flip_back(ours, skeleton.flip_indices), heatmaps)
    shifted = np.asarray(postprocess.flip_back(jnp.asarray(heatmaps), skeleton.flip_indices, shift=True))
    np.testing.assert_array_equal(shifted[:, :, 1:], expected[:, :, :-1])
    np.testing.assert_array_equal(shifted[:, :, 0], expected[:, :, 0])


def test_an_unknown_decoding_raises():
    with pytest.raises(ValueError, match=r"expected one of udp, transformers, quarter, argmax, got 'dark'"):
        postprocess.get_decoding("dark")


@pytest.mark.parametrize("kernel_size", [0, 4, -1])
def test_a_kernel_has_an_odd_number_of_pixels(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size: expected a positive odd number, got {kernel_size}"):
        postprocess.decode_heatmaps(np.ones((1, 8, 6, 3), np.float32), np.ones((1, 4)), kernel_size=kernel_size)


def test_heatmaps_and_boxes_must_go_together(unchecked):
    with pytest.raises(ValueError, match="heatmaps: expected one row for each of 1 boxes, got 2"):
        postprocess.decode_heatmaps(np.ones((2, 8, 6, 3), np.float32), np.ones((1, 4)))


@pytest.mark.parametrize("decode", ["udp", "transformers"])
@given(
    widths=st.tuples(st.floats(1.5, 4), st.floats(1.5, 4)),
    angle=st.floats(0, np.pi),
    rotation=st.sampled_from([None, 30.0]),
    place=st.tuples(st.floats(20, 28), st.floats(25, 40)),
)
def test_the_covariance_of_a_gaussian_peak_is_its_own(decode, widths, angle, rotation, place):
    turn = np.asarray([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    covariance = turn @ np.diag(np.square(widths)) @ turn.T
    offset = np.stack(np.mgrid[:HEIGHT, :WIDTH][::-1], axis=-1) - np.asarray(place)
    heatmap = 0.8 * np.exp(-0.5 * np.einsum("hwi,ij,hwj->hw", offset, np.linalg.inv(covariance), offset))
    center, scale = jnp.asarray([[100.0, 80.0]]), jnp.asarray([[WIDTH - 1, 3 * (HEIGHT - 1)]], jnp.float32)
    turned = None if rotation is None else jnp.asarray([rotation])
    regions = Regions(center, scale, turned)
    ours = np.asarray(postprocess.peak_covariances(heatmap[None, ..., None].astype(np.float32), regions, decode=decode))
    # A pixel of the heatmap is one of the image wide and three high, and then turned.
    places = postprocess.crop_to_image(
        jnp.asarray([[[0, 0], [1, 0], [0, 1]]], jnp.float32), regions, (HEIGHT, WIDTH), udp=True
    )
    jacobian = np.asarray(places[0, 1:] - places[0, 0]).T
    expected = jacobian @ covariance @ jacobian.T
    np.testing.assert_allclose(ours[0, 0], expected, rtol=0, atol=PEAK_WIDTH * np.abs(expected).max())


def test_there_is_no_covariance_without_a_peak():
    rng = np.random.default_rng(0)
    flat, hill = np.zeros((HEIGHT, WIDTH)), gaussians(rng, 1, 1, 0)[0, :, :, 0] + 0.5
    spike = flat.copy()
    spike[30, 20] = 1
    heatmaps = np.stack([flat, -np.ones_like(flat), hill, spike], axis=-1)[None].astype(np.float32)
    regions = Regions(jnp.full((1, 2), 50.0), jnp.asarray([[WIDTH - 1, HEIGHT - 1]], jnp.float32))
    ours = np.asarray(postprocess.peak_covariances(heatmaps, regions))
    assert np.isnan(ours[0, :2]).all() and np.isfinite(ours[0, 2:]).all()
    # No finer than half a pixel, whatever the heatmap.
    assert (np.linalg.eigvalsh(ours[0, 2:]) >= postprocess.MIN_VARIANCE - FLOAT32).all()
    for decode in ("argmax", "quarter"):
        assert np.isnan(postprocess.peak_covariances(heatmaps, regions, decode=decode)).all()
