"""Where transformers 5.23 is wrong, or has no answer, and what happens here. Each test shows both."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from transformers import VitPoseImageProcessorPil

from tests.support.images import random_image
from tests.tolerances import KEYPOINTS, NEARLY_ALL, POSITIONS
from vitpose_jax.interop.transformers import VitPoseImageProcessor
from vitpose_jax.pipeline.postprocess import decode_heatmaps

HEIGHT, WIDTH = 16, 12
SIZE = {"height": 64, "width": 48}
MINE, THEIRS = VitPoseImageProcessor(size=SIZE), VitPoseImageProcessorPil(size=SIZE)


def peaks(count: int, channels: int, *, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """One Gaussian in each heatmap, away from the edges: (count, K, height, width)."""
    random = np.random.default_rng(0)
    x, y = (random.uniform(3, side - 4, (count, channels, 1, 1)) for side in (width, height))
    rows, columns = np.mgrid[:height, :width]
    return torch.tensor(np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 4.5), dtype=torch.float32)


def boxes(count: int) -> np.ndarray:
    random = np.random.default_rng(1)
    return np.concatenate([random.uniform(0, 50, (count, 2)), random.uniform(40, 80, (count, 2))], axis=1)


def decode(processor, heatmaps: torch.Tensor, image_boxes, **options):
    return processor.post_process_pose_estimation(types.SimpleNamespace(heatmaps=heatmaps), image_boxes, **options)


def keypoints(results) -> np.ndarray:
    return np.stack([np.asarray(pose["keypoints"]) for image in results for pose in image])


def test_more_than_299_crops():
    """Their flat index is float32, which has not every whole number above 2 ** 24: later keypoints are misplaced."""
    count, height, width = 310, 64, 48
    heatmaps, rows = peaks(count, 17, height=height, width=width), boxes(count)
    single = np.concatenate(
        [
            keypoints(decode(THEIRS, heatmaps[part : part + 62], [rows[part : part + 62]]))
            for part in range(0, count, 62)
        ]
    )
    together = keypoints(decode(THEIRS, heatmaps, [rows]))
    wrong = np.abs(together - single).max(axis=(1, 2)) > KEYPOINTS
    assert wrong.any()
    assert np.flatnonzero(wrong).min() == 2**24 // (17 * (height + 2) * (width + 2)) == 299
    np.testing.assert_allclose(keypoints(decode(MINE, heatmaps, [rows])), single, rtol=0, atol=KEYPOINTS)


def test_the_box_of_a_result():
    """Theirs is made of the middle and of two hundredths of the padded size."""
    given = np.array([[10.0, 20, 60, 80]])
    mine, theirs = (decode(processor, peaks(1, 3), [given])[0][0]["bbox"] for processor in (MINE, THEIRS))
    np.testing.assert_array_equal(mine, [10, 20, 70, 100])
    middle, size = np.array([40.0, 60]), np.array([75.0, 100]) / 200
    np.testing.assert_allclose(theirs, [*middle, *(middle + size - 1)], rtol=0, atol=POSITIONS)


def test_target_sizes():
    """The documentation says (height, width) for each image; theirs reads (width, height) for each crop."""
    given, heatmaps = boxes(3), peaks(3, 5)
    expected = keypoints(decode(THEIRS, heatmaps, [given[:1], given[1:]]))
    height, width = 300, 200
    fractions = given / [width, height, width, height]
    split = [fractions[:1], fractions[1:]]
    for sizes in ([(height, width)] * 2, torch.tensor([(height, width)] * 2)):
        poses = decode(MINE, heatmaps, split, target_sizes=sizes)
        np.testing.assert_allclose(keypoints(poses), expected, rtol=0, atol=KEYPOINTS)
    swapped = decode(THEIRS, heatmaps, split, target_sizes=[(width, height)] * 3)
    np.testing.assert_allclose(keypoints(swapped), expected, rtol=0, atol=KEYPOINTS)
    documented = decode(THEIRS, heatmaps, split, target_sizes=[(height, width)] * 3)
    assert np.abs(keypoints(documented) - expected).max() > 1
    with pytest.raises(ValueError, match="as many target sizes"):
        decode(THEIRS, heatmaps, split, target_sizes=[(height, width)] * 2)
    with pytest.raises(ValueError, match=r"\(height, width\) for each of 2 images, got 3"):
        decode(MINE, heatmaps, split, target_sizes=[(height, width)] * 3)


def test_one_keypoint():
    """Theirs squeezes the axis of one keypoint away."""
    heatmaps, given = peaks(2, 1), boxes(2)
    with pytest.raises(ValueError, match="broadcast"):
        decode(THEIRS, heatmaps, [given])
    poses = decode(MINE, heatmaps, [given])
    assert [pose["scores"].shape for pose in poses[0]] == [(1,), (1,)]
    # A second keypoint does not change the first.
    two = keypoints(decode(THEIRS, torch.cat([heatmaps, heatmaps], dim=1), [given]))
    np.testing.assert_allclose(keypoints(poses), two[:, :1], rtol=0, atol=KEYPOINTS)


def test_images_without_boxes():
    image = random_image()
    with pytest.raises((ValueError, IndexError)):
        decode(THEIRS, torch.zeros(0, 17, HEIGHT, WIDTH), [[], []])
    crops = MINE([image, image], boxes=[[], []], return_tensors="pt").pixel_values
    assert crops.shape == (0, 3, 64, 48)
    assert decode(MINE, torch.zeros(0, 17, HEIGHT, WIDTH), [[], []]) == [[], []]
    # Some images with and some without.
    poses = decode(MINE, peaks(2, 3), [[], boxes(2), []])
    assert [len(image) for image in poses] == [0, 2, 0]


def test_bfloat16_heatmaps():
    """NumPy has no bfloat16 of PyTorch's."""
    heatmaps, given = peaks(2, 3).to(torch.bfloat16), boxes(2)
    with pytest.raises(TypeError, match="BFloat16"):
        decode(THEIRS, heatmaps, [given])
    expected = keypoints(decode(THEIRS, heatmaps.float(), [given]))
    np.testing.assert_allclose(keypoints(decode(MINE, heatmaps, [given])), expected, rtol=0, atol=KEYPOINTS)


def test_boxes_and_images_that_do_not_go_together():
    """Theirs leaves out the rest, silently."""
    image, given = random_image(), boxes(2)
    assert len(THEIRS([image, image], boxes=[given], return_tensors="np").pixel_values) == 2
    with pytest.raises(ValueError, match="boxes: expected a list for each of 2 images, got 1"):
        MINE([image, image], boxes=[given])
    with pytest.raises(ValueError, match=r"boxes\[0\]: box 1 has no area"):
        MINE(image, boxes=[[[0, 0, 5, 5], [0, 0, 0, 5]]])


@pytest.mark.parametrize("background", ["flat", "negative", "noise", "peaks"])
def test_heatmaps_without_a_positive_pixel(background):
    """Not a mistake that can be mended: the same results, so that those of transformers can be reproduced."""
    random = np.random.default_rng(3)
    heatmaps = peaks(4, 6).numpy()
    if background == "noise":
        heatmaps = random.normal(size=heatmaps.shape).astype(np.float32)
    elif background == "peaks":
        heatmaps[..., -1, 0] = heatmaps[..., -1, -1] = random.uniform(0, 1, heatmaps.shape[:2])
    empty = random.random(heatmaps.shape[:2]) < 0.4
    empty[0, 0] = True
    heatmaps[empty] = 0 if background == "flat" else -np.abs(heatmaps[empty]) - np.float32(0.01)
    given = boxes(4)
    expected = keypoints(decode(THEIRS, torch.tensor(heatmaps), [given]))
    # Below one right corner alone, rounding errors decide on y.
    left, right = (
        np.roll(gaussian_filter(heatmaps, 0.8, radius=5, axes=(2, 3))[..., -1, column].ravel(), 1).reshape(4, 6) > 0.001
        for column in (0, -1)
    )
    decided = np.stack([np.ones_like(empty), ~empty | left | ~right], axis=-1)
    assert decided.mean() > NEARLY_ALL or background == "noise"
    poses = keypoints(decode(MINE, torch.tensor(heatmaps), [given]))
    np.testing.assert_allclose(poses[decided], expected[decided], rtol=0, atol=KEYPOINTS)
    points, scores = decode_heatmaps(
        jnp.asarray(heatmaps.transpose(0, 2, 3, 1)), given, decode="transformers", size=(64, 48)
    )
    np.testing.assert_allclose(np.asarray(points)[decided], expected[decided], rtol=0, atol=KEYPOINTS)
    assert ((np.asarray(scores) <= 0) == empty).all()
