"""From images and boxes to keypoints against transformers, with heatmaps that have real peaks.

The crops of the two are equal up to rounding: where a sample lies half-way between two pixel values, single
precision may round it the other way than SciPy's double. That is one value in five thousand (with samples at
exact places it would still be one in seven thousand: the reference rounds its affine matrix to single
precision). One unit more or less moves a heatmap by some 1e-4 nearby. So scores are within `HEATMAPS` for
nearly all and within `ROUNDED_SCORES` for all, and where the highest pixel leads every other one by twice that it
is the same pixel: there keypoints are compared. The same crops through both give the same keypoints everywhere.
"""

import types

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.support.fitted import (
    IMAGE_SIZE,
    PROCESSOR,
    Picture,
    crop,
    draw_people,
    fit,
    training_photographs,
    with_experts,
)
from tests.tolerances import BFLOAT16_MEDIAN, BFLOAT16_MOST, HEATMAPS, KEYPOINTS, NEARLY_ALL, ROUNDED_SCORES
from vitpose_jax import PoseEstimator, from_pretrained
from vitpose_jax.pipeline.postprocess import decode_heatmaps
from vitpose_jax.skeletons import COCO


def run_reference(reference, crops: torch.Tensor, *, flip_test: bool = False) -> np.ndarray:
    """Heatmaps (n, K, rows, columns) of the crops, those of the mirrored crops averaged in by hand."""
    moe = reference.config.backbone_config.num_experts > 1
    index = torch.zeros(len(crops), dtype=torch.long) if moe else None
    with torch.no_grad():
        heatmaps = reference(crops, dataset_index=index).heatmaps
        if flip_test:
            pairs = torch.tensor(COCO.flip_pairs)
            mirrored = reference(crops.flip(-1), dataset_index=index, flip_pairs=pairs).heatmaps
            heatmaps = (heatmaps + mirrored) / 2
    return heatmaps.numpy()


def decode_reference(heatmaps: np.ndarray, boxes: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Keypoints (n, K, 2) and scores (n, K) for each image."""
    outputs = types.SimpleNamespace(heatmaps=torch.from_numpy(heatmaps))
    images = PROCESSOR.post_process_pose_estimation(outputs, boxes=[rows.tolist() for rows in boxes])
    return [tuple(np.stack([pose[key] for pose in poses]) for key in ("keypoints", "scores")) for poses in images]


def peak_leads(heatmaps: np.ndarray) -> np.ndarray:
    """(n, K): whether the highest pixel leads every other one."""
    best = np.sort(heatmaps.reshape(*heatmaps.shape[:2], -1))[..., -2:]
    return best[..., 1] - best[..., 0] > 2 * ROUNDED_SCORES


def assert_keypoints_near_labels(pictures: list[Picture], keypoints: list[np.ndarray], fraction: float):
    """Within a twentieth of the box's height: the fit is real."""
    near = []
    for picture, points in zip(pictures, keypoints, strict=True):
        distance = np.linalg.norm(points - picture.keypoints, axis=-1) / picture.boxes[:, 3:]
        near.append((distance < 0.05)[picture.labelled])
    assert np.concatenate(near).mean() > fraction


def assert_same_poses(reference, folder, pictures: list[Picture], *, flip_test: bool = False, **options):
    """Everyone in the pictures in one call, by both; returns the reference's keypoints for each image."""
    heatmaps = run_reference(reference, crop(pictures), flip_test=flip_test)
    expected = decode_reference(heatmaps, [picture.boxes for picture in pictures])
    estimator = PoseEstimator.from_pretrained(str(folder))
    images, boxes = [picture.image for picture in pictures], [picture.boxes for picture in pictures]
    poses = estimator(images, boxes, decode="transformers", flip_test=flip_test, **options)
    assert [len(p) for p in poses] == [len(keypoints) for keypoints, _ in expected]
    clear = peak_leads(heatmaps)
    assert clear.mean() > 0.9
    differences = np.concatenate([p.keypoints for p in poses]) - np.concatenate([k for k, _ in expected])
    scores = np.concatenate([p.scores for p in poses]) - np.concatenate([s for _, s in expected])
    np.testing.assert_allclose(differences[clear], 0, atol=KEYPOINTS)
    np.testing.assert_allclose(scores, 0, atol=ROUNDED_SCORES)
    assert (np.abs(scores) < HEATMAPS).mean() > NEARLY_ALL
    return [keypoints for keypoints, _ in expected]


def save(reference, folder):
    reference.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drawn() -> list[Picture]:
    return [draw_people(seed, count=3) for seed in range(8)]


@pytest.fixture(scope="module")
def fitted(drawn, tmp_path_factory):
    """A model fitted to the drawn pictures, and the folder it was saved to."""
    reference = fit(drawn)
    return reference, save(reference, tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize("flip_test", [False, True])
def test_drawn_people_have_the_keypoints_of_transformers(drawn, fitted, flip_test):
    keypoints = assert_same_poses(*fitted, drawn, flip_test=flip_test)
    assert_keypoints_near_labels(drawn, keypoints, fraction=0.95)


def test_unseen_images_have_the_keypoints_of_transformers(fitted):
    pictures = [draw_people(100, 1, (300, 200)), draw_people(101, 5, (211, 500)), draw_people(102, 2, (180, 190))]
    keypoints = assert_same_poses(*fitted, pictures)
    assert_keypoints_near_labels(pictures, keypoints, fraction=0.5)


def test_a_model_with_experts_has_the_keypoints_of_transformers(drawn, fitted, tmp_path):
    reference = with_experts(fitted[0])
    folder = save(reference, tmp_path)
    keypoints = assert_same_poses(reference, folder, drawn, dataset=0)
    assert_keypoints_near_labels(drawn, keypoints, fraction=0.95)


def test_the_same_crops_give_the_same_heatmaps_and_keypoints(drawn, fitted):
    """Without rounding in between, every single heatmap and keypoint agrees."""
    reference, folder = fitted
    crops = crop(drawn)
    expected = run_reference(reference, crops)
    ours = from_pretrained(folder)(jnp.asarray(crops.permute(0, 2, 3, 1).numpy()))
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), expected, rtol=0, atol=HEATMAPS)
    boxes = np.concatenate([picture.boxes for picture in drawn])
    keypoints, scores = decode_heatmaps(ours, boxes, decode="transformers", size=IMAGE_SIZE)
    ((expected_keypoints, expected_scores),) = decode_reference(expected, [boxes])
    np.testing.assert_allclose(keypoints, expected_keypoints, rtol=0, atol=KEYPOINTS)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=HEATMAPS)


def test_bfloat16_moves_keypoints_little(drawn, fitted):
    images, boxes = [picture.image for picture in drawn], [picture.boxes for picture in drawn]
    exact, low = (
        np.concatenate(
            [poses.keypoints for poses in PoseEstimator.from_pretrained(fitted[1], dtype=dtype)(images, boxes)]
        )
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    distance = np.linalg.norm(low - exact, axis=-1)
    assert 0 < np.median(distance) < BFLOAT16_MEDIAN
    assert np.quantile(distance, 0.95) < BFLOAT16_MOST


@pytest.mark.slow
def test_photographs_have_the_keypoints_of_transformers(data, tmp_path):
    if not (data / "train" / "coco_0.zip").is_file():
        pytest.skip("no photographs to fit to in the sample data")
    pictures = training_photographs(data, 12)
    reference = fit(pictures, steps=200, decoder="classic", patch_size=16)
    keypoints = assert_same_poses(reference, save(reference, tmp_path), pictures)
    assert_keypoints_near_labels(pictures, keypoints, fraction=0.95)
