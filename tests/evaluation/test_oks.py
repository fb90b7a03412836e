import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tests.tolerances import FLOAT32, FLOAT64, NMS_SECONDS
from vitpose_jax.evaluation.oks import box_nms, instance_scores, object_keypoint_similarity, oks_nms
from vitpose_jax.skeletons import COCO, WHOLEBODY

SIGMAS = np.array(COCO.sigmas)


def people(seed: int, n: int, k: int = 17) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints, scores and areas of n people, many of them near copies of one another."""
    rng = np.random.default_rng(seed)
    heads = rng.uniform(0, 600, (max(n // 3, 1), 1, 2)) + rng.uniform(0, 100, (1, k, 2))
    keypoints = heads[rng.integers(len(heads), size=n)] + rng.normal(0, 4, (n, k, 2))
    return keypoints, rng.uniform(0, 1, n), rng.uniform(2000, 20000, n)


def slow_oks(predicted, target, visible, area, box=None) -> float:
    """One pose against one labelled pose, keypoint by keypoint, as COCO's evaluation does."""
    total, count = 0.0, 0
    for (px, py), (tx, ty), seen, sigma in zip(predicted, target, visible, SIGMAS, strict=True):
        dx, dy = px - tx, py - ty
        if not visible.any():
            if box is None:
                return 0.0
            x, y, w, h = box
            dx = max(0, x - w - px) + max(0, px - (x + 2 * w))
            dy = max(0, y - h - py) + max(0, py - (y + 2 * h))
        elif not seen:
            continue
        total += np.exp(-(dx**2 + dy**2) / (2 * (2 * sigma) ** 2 * area))
        count += 1
    return total / count


# Object keypoint similarity


@hypothesis.given(st.integers(0, 10**6))
def test_oks_equals_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    target, _, area = people(seed, 4)
    predicted = target[:, None] + rng.normal(0, 20, (4, 3, 17, 2))
    visible = rng.random((4, 17)) < 0.5
    visible[0] = False
    boxes = np.concatenate([target.min(1), np.ptp(target, axis=1) / 8], axis=-1)
    for given_boxes in (None, boxes):
        oks = object_keypoint_similarity(
            predicted,
            target[:, None],
            visible[:, None],
            area[:, None],
            COCO.sigmas,
            boxes=None if given_boxes is None else given_boxes[:, None],
        )
        assert oks.shape == (4, 3)
        for i, j in np.ndindex(4, 3):
            box = None if given_boxes is None else given_boxes[i]
            assert oks[i, j] == pytest.approx(
                slow_oks(predicted[i, j], target[i], visible[i], area[i], box), abs=FLOAT64
            )


def test_oks_equals_pycocotools(sample_folder):
    """With the people that have no visible keypoint, where the distance to a larger box counts."""
    from pycocotools import coco
    from pycocotools.cocoeval import COCOeval

    truth = coco.COCO(sample_folder / "person_keypoints.json")
    for annotation in truth.dataset["annotations"][3:5]:
        annotation.update(keypoints=[0.0] * 51, num_keypoints=0)
    rng = np.random.default_rng(0)
    results = [
        {
            "image_id": annotation["image_id"],
            "category_id": 1,
            "score": 1 - 0.01 * index,
            "keypoints": (np.array(annotation["keypoints"]) + rng.normal(0, 15, 51)).tolist(),
        }
        for index, annotation in enumerate(truth.dataset["annotations"])
    ]
    evaluator = COCOeval(truth, truth.loadRes(results), "keypoints")
    evaluator.evaluate()
    compared, unlabelled = 0, 0
    for image in truth.getImgIds():
        expected = np.array(evaluator.ious[image, 1])
        targets = truth.imgToAnns[image]
        found = np.array([r["keypoints"] for r in results if r["image_id"] == image]).reshape(-1, 1, 17, 3)
        labels = np.array([t["keypoints"] for t in targets]).reshape(1, -1, 17, 3)
        oks = object_keypoint_similarity(
            found[..., :2],
            labels[..., :2],
            labels[..., 2] > 0,
            np.array([[t["area"] for t in targets]]),
            COCO.sigmas,
            boxes=np.array([[t["bbox"] for t in targets]]),
        )
        np.testing.assert_allclose(oks, expected, rtol=0, atol=FLOAT64)
        compared += oks.size
        unlabelled += (labels[..., 2] > 0).any(-1).size - (labels[..., 2] > 0).any(-1).sum()
    assert compared > 30
    assert unlabelled == 2


def test_oks_is_one_for_equal_poses_and_does_not_depend_on_scale():
    keypoints, _, area = people(0, 5)
    visible = np.ones((5, 17), bool)
    assert object_keypoint_similarity(keypoints, keypoints, visible, area, COCO.sigmas).tolist() == [1.0] * 5
    moved = object_keypoint_similarity(keypoints + 5, keypoints, visible, area, COCO.sigmas)
    twice = object_keypoint_similarity(2 * (keypoints + 5), 2 * keypoints, visible, 4 * area, COCO.sigmas)
    np.testing.assert_allclose(moved, twice, rtol=0, atol=FLOAT64)
    assert (moved < 1).all()
    no_area = object_keypoint_similarity(keypoints + 5, keypoints, visible, 0 * area, COCO.sigmas)
    assert no_area.tolist() == [0.0] * 5


def test_wrong_number_of_sigmas_is_refused():
    keypoints, scores, areas = people(0, 2)
    with pytest.raises(ValueError, match="sigmas: expected one for each of 17 keypoints, got 16"):
        object_keypoint_similarity(keypoints, keypoints, np.ones((2, 17), bool), areas, COCO.sigmas[:16])
    with pytest.raises(ValueError, match="sigmas: expected one for each of 17 keypoints, got 133"):
        oks_nms(keypoints, scores, areas, WHOLEBODY.sigmas)


# Scores of instances


def test_instance_score_is_box_score_times_mean_keypoint_score():
    keypoint_scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.1, 0.2], [1.5, -1.0, 0.25]], np.float32)
    scores = instance_scores(np.array([0.5, 1.0, 2.0]), keypoint_scores)
    np.testing.assert_allclose(scores, [0.5 * 0.7, 0, 2 * 0.875], rtol=FLOAT32)
    assert instance_scores(np.array([1.0, 1, 1]), keypoint_scores, 0.05)[0] == pytest.approx(0.5, rel=FLOAT32)
    assert instance_scores(np.zeros(0), np.zeros((0, 17))).shape == (0,)


# Non-maximum suppression


def slow_nms(keypoints, scores, areas, threshold, soft) -> list[int]:
    left, kept = dict(enumerate(scores)), []
    while left and not (soft and len(kept) == 20):
        best = max(left, key=left.get)
        kept.append(best)
        del left[best]
        for other in list(left):
            area = (areas[best] + areas[other]) / 2
            overlap = slow_oks(keypoints[other], keypoints[best], np.ones(17, bool), area)
            if soft:
                left[other] *= np.exp(-(overlap**2) / threshold)
            elif overlap > threshold:
                del left[other]
    return kept


@hypothesis.given(st.integers(0, 10**6), st.integers(0, 40), st.sampled_from([0.2, 0.5, 0.9]), st.booleans())
def test_oks_nms_equals_a_plain_loop(seed, n, threshold, soft):
    keypoints, scores, areas = people(seed, n)
    kept = oks_nms(keypoints, scores, areas, COCO.sigmas, threshold=threshold, soft=soft)
    assert kept.tolist() == slow_nms(keypoints, scores, areas, threshold, soft)


def test_oks_nms_keeps_the_published_poses():
    keypoints = np.full((3, 17, 2), 10.0)
    keypoints[2] = 100
    scores, areas = np.array([0.9, 0.4, 0.7]), np.full(3, 100.0)
    assert oks_nms(keypoints, scores, areas, COCO.sigmas, threshold=0.9).tolist() == [0, 2]
    assert oks_nms(keypoints, scores, areas, COCO.sigmas, threshold=0.9, soft=True).tolist() == [0, 2, 1]
    assert scores.tolist() == [0.9, 0.4, 0.7]


def test_oks_nms_keeps_the_best_and_stays_apart():
    keypoints, scores, areas = people(3, 60)
    kept = oks_nms(keypoints, scores, areas, COCO.sigmas, threshold=0.5)
    assert 1 < len(kept) < 60
    assert kept[0] == scores.argmax()
    assert (np.diff(scores[kept]) <= 0).all()
    again = oks_nms(keypoints[kept], scores[kept], areas[kept], COCO.sigmas, threshold=0.5)
    assert again.tolist() == list(range(len(kept)))
    assert len(oks_nms(keypoints, scores, areas, COCO.sigmas, soft=True)) == 20
    assert len(oks_nms(keypoints, scores, areas, COCO.sigmas, soft=True, max_detections=7)) == 7


def test_oks_nms_of_no_poses_is_empty():
    assert oks_nms(np.zeros((0, 17, 2)), np.zeros(0), np.zeros(0), COCO.sigmas).tolist() == []


@pytest.mark.parametrize("name", ["keypoints", "scores", "areas"])
def test_oks_nms_refuses_values_that_are_not_finite(name):
    arguments = dict(zip(("keypoints", "scores", "areas"), people(0, 3), strict=True))
    arguments[name].flat[1] = np.nan
    with pytest.raises(ValueError, match=f"{name}: expected finite numbers, got nan"):
        oks_nms(**arguments, sigmas=COCO.sigmas)


def test_oks_nms_of_a_thousand_people_takes_under_two_seconds(unchecked):
    keypoints, scores, areas = people(0, 1000)
    keypoints += 10_000 * np.arange(1000)[:, None, None]
    start = time.process_time()
    kept = oks_nms(keypoints, scores, areas, COCO.sigmas)
    assert len(kept) == 1000
    assert time.process_time() - start < NMS_SECONDS


def test_box_nms_drops_overlapping_boxes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8]])
    assert box_nms(boxes, np.array([0.9, 0.8]), threshold=0.5).tolist() == [0]
    assert box_nms(boxes, np.array([0.8, 0.9]), threshold=0.5).tolist() == [1]
    # The overlap is 0.8.
    assert box_nms(boxes, np.array([0.9, 0.8]), threshold=0.79).tolist() == [0]
    assert box_nms(boxes, np.array([0.9, 0.8]), threshold=0.81).tolist() == [0, 1]
    apart = np.array([[0, 0, 10, 10], [20, 0, 10, 10], [0, 10, 10, 10]])
    assert box_nms(apart, np.array([0.1, 0.2, 0.3]), threshold=0.0).tolist() == [2, 1, 0]
    assert box_nms(np.zeros((0, 4)), np.zeros(0), threshold=0.5).tolist() == []
