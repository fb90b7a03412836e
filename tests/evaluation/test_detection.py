"""Numbers of boxes: COCO's average precision as pycocotools computes it, and recall at a precision."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools import coco
from pycocotools.cocoeval import COCOeval

from tests.tolerances import BOX_AVERAGE_PRECISION
from vitpose_jax.datasets import read_annotations
from vitpose_jax.evaluation import box_average_precision, recall_at_precision
from vitpose_jax.evaluation.detection import FALSE, IGNORED, match_boxes

NAMES = {"AP": 0, "AP50": 1, "AP75": 2, "AP(S)": 3, "AP(M)": 4, "AP(L)": 5, "AR": 8}
PRECISIONS = (0.3, 0.5, 0.8, 0.9, 1.0)


def random_truth(seed: int) -> dict:
    """People and a few dogs of all sizes, some of them crowds; one image is full, one is empty."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(1, 9):
        for _ in range({3: 120, 5: 0}.get(image, rng.integers(1, 8))):
            width, height = rng.choice([20, 60, 200]) * rng.uniform(0.5, 1.5, 2)
            x, y = rng.uniform(0, 400, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1 if rng.random() < 0.9 else 18,
                    "bbox": [x, y, width, height],
                    "area": width * height * rng.uniform(0.3, 1),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    images = [{"id": image, "file_name": f"{image}.jpg", "width": 640, "height": 480} for image in range(1, 9)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1}, {"id": 18}]}


def random_results(truth: dict, seed: int) -> list[dict]:
    """Boxes like a detector's: near, twice, missing, somewhere else, inside crowds, of the other class."""
    rng = np.random.default_rng(seed)
    results = []
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        for _ in range(rng.choice([0, 1, 1, 2])):
            near = np.array(annotation["bbox"]) + rng.normal(0, 0.08, 4) * [width, height, width, height]
            results.append((annotation["image_id"], near, rng.uniform(0.3, 1)))
        if annotation["iscrowd"]:
            results += [(annotation["image_id"], np.array([x, y, width / 3, height / 3]), rng.uniform(0, 1))]
    for image in range(1, 9):
        for _ in range(5):
            results.append((image, np.array([*rng.uniform(0, 400, 2), *rng.uniform(10, 200, 2)]), rng.uniform(0, 0.8)))
    return [
        {
            "image_id": image,
            "category_id": 1 if rng.random() < 0.9 else 18,
            "bbox": np.maximum(box, 0.5).tolist(),
            # Two decimals, so that many scores are equal.
            "score": round(float(score), 2),
        }
        for image, box, score in results
    ]


def pycocotools_evaluator(truth: dict, results: list[dict], image_ids=None) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        targets = coco.COCO()
        targets.dataset = copy.deepcopy(truth)
        targets.createIndex()
        evaluator = COCOeval(targets, targets.loadRes(copy.deepcopy(results)), "bbox")
        evaluator.params.catIds = [1]
        if image_ids is not None:
            evaluator.params.imgIds = list(image_ids)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def brute_force(truth: dict, results: list[dict], min_precision: float) -> tuple[float | None, float, float]:
    """Threshold, recall and recall of tall people, from pycocotools's matches at an IoU of 0.5."""
    evaluator = pycocotools_evaluator(truth, results)
    heights = {entry["id"]: entry["bbox"][3] for entry in truth["annotations"]}
    people = [entry for entry in truth["annotations"] if entry["category_id"] == 1 and not entry["iscrowd"]]
    total, tall = len(people), sum(entry["bbox"][3] > 120 for entry in people)
    rows = []
    for image in filter(None, evaluator.evalImgs):
        if image["aRng"] == evaluator.params.areaRng[0]:
            rows += zip(image["dtScores"], image["dtMatches"][0], image["dtIgnore"][0], strict=True)
    best: tuple[float | None, float, float] = (None, 0.0, 0.0)
    for threshold in sorted({score for score, _, _ in rows}, reverse=True):
        matches = [match for score, match, ignored in rows if score >= threshold and not ignored]
        found = [int(match) for match in matches if match]
        if matches and len(found) / len(matches) >= min_precision and len(found) / total > best[1]:
            best = threshold, len(found) / total, sum(heights[match] > 120 for match in found) / tall
    return best


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_pycocotools(seed):
    truth = random_truth(seed)
    results = random_results(truth, seed)
    before = copy.deepcopy((truth, results))
    stats = pycocotools_evaluator(truth, results).stats
    expected = {name: stats[index] for name, index in NAMES.items()}
    assert 0 < expected["AP(S)"] < 1 and 0 < expected["AP"] < 1
    assert box_average_precision(truth, results) == pytest.approx(expected, abs=BOX_AVERAGE_PRECISION)
    assert (truth, results) == before
    # Some images alone.
    stats = pycocotools_evaluator(truth, results, (2, 3, 5)).stats
    expected = {name: stats[index] for name, index in NAMES.items()}
    part = box_average_precision(read_annotations(truth), results, image_ids=(5, 3, 2))
    assert part == pytest.approx(expected, abs=BOX_AVERAGE_PRECISION)


@pytest.mark.parametrize("seed", range(6))
def test_recall_at_a_precision_is_that_of_pycocotools_matches(seed):
    truth = random_truth(seed)
    results = random_results(truth, seed)
    points = recall_at_precision(truth, results, PRECISIONS)
    assert [point.min_precision for point in points] == list(PRECISIONS)
    assert [(point.threshold, point.recall, point.recall_tall) for point in points] == [
        brute_force(truth, results, wanted) for wanted in PRECISIONS
    ]
    for point in points:
        assert point.threshold is None or point.precision >= point.min_precision


def test_ground_truth_as_detections_is_perfect(sample_folder):
    path = sample_folder / "person_keypoints.json"
    people = json.loads(path.read_text())["annotations"]
    results = [{**{key: row[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9} for row in people]
    # The sample has no small people.
    assert box_average_precision(path, results) == {**dict.fromkeys(NAMES, 1.0), "AP(S)": -1.0}
    for point in recall_at_precision(path, results):
        assert (point.threshold, point.precision, point.recall, point.recall_tall) == (0.9, 1.0, 1.0, 1.0)


def test_no_detections_and_no_people():
    truth = random_truth(0)
    assert box_average_precision(truth, []) == dict.fromkeys(NAMES, 0.0)
    assert recall_at_precision(truth, [], [0.8]) == [(0.8, None, None, 0.0, 0.0)]
    results = random_results(truth, 0)
    for people in ([], [{**entry, "iscrowd": 1} for entry in truth["annotations"]]):
        empty = {**truth, "annotations": people}
        assert box_average_precision(empty, results) == dict.fromkeys(NAMES, -1.0)
        assert recall_at_precision(empty, results, [0.8]) == [(0.8, None, None, -1.0, -1.0)]


def test_boxes_find_the_objects_they_overlap_most():
    objects = np.array([[0.0, 0, 10, 10], [4, 0, 10, 10], [100, 0, 100, 100]])
    crowd = np.array([False, False, True])
    boxes = np.array(
        [[3.0, 0, 10, 10], [3, 0, 10, 10], [3, 0, 10, 10], [110, 10, 9, 9], [195, 0, 12, 10], [50, 50, 5, 5]]
    )
    assert match_boxes(boxes, objects, crowd).tolist() == [1, 0, FALSE, IGNORED, FALSE, FALSE]
    assert match_boxes(boxes, objects[:0], crowd[:0]).tolist() == [FALSE] * 6
    assert match_boxes(boxes[:0], objects, crowd).tolist() == []


def test_boxes_of_equal_scores_pass_a_threshold_together():
    """At the score 0.7 stand a true and a false box: the precision there is 3 of 4, whichever comes first."""
    person = {"category_id": 1, "iscrowd": 0, "area": 100}
    places = [[0, 0, 10, 10], [20, 0, 10, 10], [40, 0, 10, 10], [60, 0, 10, 60]]
    truth = {
        "images": [{"id": 1, "height": 100}],
        "annotations": [{**person, "id": 7 + row, "image_id": 1, "bbox": box} for row, box in enumerate(places)],
    }
    boxes = [(places[0], 0.9), (places[3], 0.8), ([200, 0, 10, 10], 0.7), (places[1], 0.7)]
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in boxes]
    for order in (results, results[::-1]):
        assert recall_at_precision(truth, order, (0.75, 0.8)) == [(0.75, 0.7, 0.75, 0.75, 1), (0.8, 0.8, 1, 0.5, 1)]


def test_what_the_metrics_need_is_named():
    truth = random_truth(0)
    results = random_results(truth, 0)
    without = copy.deepcopy(truth)
    index = [row["category_id"] for row in truth["annotations"]].index(1)
    del without["annotations"][index]["area"]
    with pytest.raises(ValueError, match=rf"annotation {index + 1}: expected the key 'area'"):
        box_average_precision(without, results)
    del without["images"][0]["height"]
    with pytest.raises(ValueError, match=r"image 1: expected the key 'height'"):
        recall_at_precision(without, results)
    with pytest.raises(ValueError, match=r"result 0: expected an image of the annotations, got 99"):
        box_average_precision(truth, [{**results[0], "image_id": 99}])
    with pytest.raises(ValueError, match=r"result 0: expected the key 'score'"):
        recall_at_precision(truth, [{key: results[0][key] for key in ("image_id", "category_id", "bbox")}])
    with pytest.raises(ValueError, match="image_ids: expected images of the annotations, got 99"):
        box_average_precision(truth, results, image_ids=[1, 99])
