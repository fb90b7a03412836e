import builtins
import contextlib
import copy
import io
import json
import logging

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from pycocotools import coco
from pycocotools.cocoeval import COCOeval

from tests.tolerances import FLOAT64
from vitpose_jax.datasets import read_annotations
from vitpose_jax.evaluation.average_precision import (
    STATISTICS,
    WHOLEBODY_PARTS,
    crowdpose_average_precision,
    keypoint_average_precision,
    wholebody_average_precision,
)
from vitpose_jax.evaluation.oks import instance_scores, oks_nms
from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import AIC, AP10K, COCO, CROWDPOSE, WHOLEBODY

# File of the large data, skeleton, and whether the annotated areas count.
SAMPLES = {
    "coco": ("mmpose_samples/coco/test_coco.json", COCO, True),
    "coco_val": ("coco_val/person_keypoints.json", COCO, True),
    "ochuman": ("mmpose_samples/ochuman/test_ochuman.json", COCO, True),
    "aic": ("mmpose_samples/aic/test_aic.json", AIC, False),
    "ap10k": ("mmpose_samples/ap10k/test_ap10k.json", AP10K, True),
    "crowdpose": ("mmpose_samples/crowdpose/test_crowdpose.json", CROWDPOSE, False),
}
WHOLEBODY_FIELDS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")


def oracle(truth: dict, results: list[dict], sigmas, use_area=True, image_ids=None, areas=None) -> dict[str, float]:
    """The numbers of pycocotools. `areas` replaces the areas of the results."""
    truth = copy.deepcopy(truth)
    for annotation in truth["annotations"]:
        annotation.setdefault("iscrowd", 0)
        if not use_area:
            annotation["area"] = 0.53 * annotation["bbox"][2] * annotation["bbox"][3]
    with contextlib.redirect_stdout(io.StringIO()):
        targets = coco.COCO()
        targets.dataset = truth
        targets.createIndex()
        detections = targets.loadRes(copy.deepcopy(results))
        for annotation, area in zip(detections.dataset["annotations"], areas or (), strict=False):
            annotation["area"] = area
        evaluator = COCOeval(targets, detections, "keypoints")
        evaluator.params.kpt_oks_sigmas = np.array(sigmas)
        if image_ids is not None:
            evaluator.params.imgIds = list(image_ids)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(STATISTICS, evaluator.stats.tolist(), strict=True))


def predictions(truth: dict, seed: int, field: str = "keypoints") -> list[dict]:
    """Results like a model's: near, far, twice, missing, of the wrong category, with equal scores."""
    rng = np.random.default_rng(seed)
    categories = [category["id"] for category in truth["categories"]]
    results = []
    for annotation in truth["annotations"]:
        labels = np.array(annotation[field], float).reshape(-1, 3)
        x, y, w, h = annotation["bbox"]
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            points = labels.copy()
            unlabelled = labels[:, 2] == 0
            points[unlabelled, :2] = rng.uniform([x, y], [x + w, y + h], (unlabelled.sum(), 2))
            points[:, :2] += rng.normal(0, 0.02 * np.sqrt(w * h) * rng.exponential(), points[:, :2].shape)
            points[:, 2] = rng.uniform(-0.1, 1, len(points))
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if rng.random() < 0.9 else int(rng.choice(categories)),
                    "keypoints": points.ravel().tolist(),
                    "score": round(float(rng.random()), 1),
                }
            )
    return results or predictions(truth, seed + 1, field)


def synthetic(seed: int, k: int = 5) -> dict:
    """Annotations of several categories, sizes and crowds, some without keypoints; more than 20 in one image."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(1, 7):
        for _ in range(30 if image == 3 else rng.integers(0, 5)):
            width, height = rng.choice([20, 60, 200, 400]) * rng.uniform(0.5, 1.5, 2)
            x, y = rng.uniform(0, 300, 2)
            labels = np.empty((k, 3))
            labels[:, :2] = rng.uniform([x, y], [x + width, y + height], (k, 2))
            labels[:, 2] = rng.integers(0, 3, k) * (rng.random() < 0.8)
            labels[labels[:, 2] == 0] = 0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.choice([2, 7])),
                    "keypoints": labels.ravel().tolist(),
                    "num_keypoints": int((labels[:, 2] > 0).sum()),
                    "bbox": [x, y, width, height],
                    "area": width * height * rng.uniform(0.3, 1),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    images = [{"id": image, "crowdIndex": float(rng.choice([0.0, 0.2, 0.5, 0.8, 1.0]))} for image in range(1, 7)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 2}, {"id": 7}, {"id": 9}]}


def truth_as_results(truth: dict) -> list[dict]:
    """The annotations as results, as in mmpose's tests."""
    return [
        {**{key: annotation[key] for key in ("image_id", "category_id", "keypoints")}, "score": 1.0}
        for annotation in truth["annotations"]
        if any(annotation["keypoints"])
    ]


@pytest.fixture(params=["repository", *(pytest.param(name, marks=pytest.mark.large) for name in SAMPLES)])
def sample(request, sample_folder):
    """Annotations, the skeleton's sigmas, and whether the annotated areas count."""
    if request.param == "repository":
        return json.loads((sample_folder / "person_keypoints.json").read_text()), COCO.sigmas, True
    path, skeleton, use_area = SAMPLES[request.param]
    return json.loads((request.getfixturevalue("data") / path).read_text()), skeleton.sigmas, use_area


# Against pycocotools


@pytest.mark.parametrize("seed", range(3))
def test_sample_data_score_as_in_pycocotools(sample, seed):
    truth, sigmas, use_area = sample
    results = predictions(truth, seed)
    ours = keypoint_average_precision(truth, results, sigmas, use_area=use_area)
    assert list(ours) == list(STATISTICS)
    assert ours == pytest.approx(oracle(truth, results, sigmas, use_area), abs=FLOAT64)


@hypothesis.settings(max_examples=12)
@hypothesis.given(st.integers(0, 10**6), st.booleans())
def test_synthetic_data_score_as_in_pycocotools(seed, use_area):
    truth, sigmas = synthetic(seed), np.random.default_rng(seed).uniform(0.02, 0.1, 5).tolist()
    results = predictions(truth, seed)
    ours = keypoint_average_precision(truth, results, sigmas, use_area=use_area)
    expected = oracle(truth, results, sigmas, use_area)
    assert ours == pytest.approx(expected, abs=FLOAT64)
    some = [1, 3, 4]
    ours = keypoint_average_precision(truth, results, sigmas, use_area=use_area, image_ids=some)
    assert ours == pytest.approx(oracle(truth, results, sigmas, use_area, some), abs=FLOAT64)


def test_synthetic_data_have_ten_different_statistics():
    truth, sigmas = synthetic(0), [0.06] * 5
    statistics = keypoint_average_precision(truth, predictions(truth, 0), sigmas)
    assert len({round(value, 6) for value in statistics.values()}) == len(STATISTICS)
    assert 0.05 < statistics["AP"] < 0.95


@hypothesis.settings(max_examples=8)
@hypothesis.given(st.integers(0, 10**6))
def test_crowdpose_scores_as_in_pycocotools(seed):
    truth, sigmas = synthetic(seed), [0.06] * 5
    for annotation in truth["annotations"]:
        annotation["category_id"] = 2
        del annotation["area"]
    truth["categories"] = [{"id": 2}]
    results = predictions(truth, seed)
    ours = crowdpose_average_precision(truth, results, sigmas)
    whole = oracle(truth, results, sigmas, use_area=False)
    expected = {name: whole[name] for name in ("AP", "AP50", "AP75", "AR", "AR50", "AR75")}
    crowd = {image["id"]: image["crowdIndex"] for image in truth["images"]}
    for name, chosen in (
        ("AP(E)", [image for image in crowd if crowd[image] < 0.2]),
        ("AP(M)", [image for image in crowd if 0.2 <= crowd[image] < 0.8]),
        ("AP(H)", [image for image in crowd if crowd[image] >= 0.8]),
    ):
        expected[name] = oracle(truth, results, sigmas, False, chosen)["AP"] if chosen else -1
    assert ours == pytest.approx(expected, abs=FLOAT64)


@pytest.mark.parametrize("seed", range(3))
def test_wholebody_scores_as_in_pycocotools(data, seed):
    truth = json.loads((data / "mmpose_samples/coco/test_coco_wholebody.json").read_text())
    joined = copy.deepcopy(truth)
    for annotation in joined["annotations"]:
        annotation["keypoints"] = [number for field in WHOLEBODY_FIELDS for number in annotation.pop(field)]
    results = predictions(joined, seed)
    # Some without a positive score in the left hand.
    for result in results[::3]:
        result["keypoints"][2 + 3 * 91 : 3 * 112 : 3] = [-0.01] * 21
    ours = wholebody_average_precision(truth, results, WHOLEBODY.sigmas)
    points = [np.array(result["keypoints"]).reshape(133, 3) for result in results]
    for part, rows in WHOLEBODY_PARTS.items():
        part_truth = copy.deepcopy(joined)
        for annotation in part_truth["annotations"]:
            annotation["keypoints"] = annotation["keypoints"][3 * rows.start : 3 * rows.stop]
            annotation["num_keypoints"] = sum(v > 0 for v in annotation["keypoints"][2::3])
        kept = [i for i, keypoints in enumerate(points) if (keypoints[rows, 2] > 0).any()]
        assert (len(kept) < len(points)) == (part == "left_hand")
        part_results = [{**results[i], "keypoints": points[i][rows].ravel().tolist()} for i in kept]
        areas = [float(np.prod(np.ptp(points[i][:17, :2], axis=0))) for i in kept]
        expected = oracle(part_truth, part_results, WHOLEBODY.sigmas[rows], areas=areas)
        assert ours[part] == pytest.approx(expected, abs=FLOAT64)
    for name in STATISTICS:
        hands = ours["left_hand"][name], ours["right_hand"][name]
        assert ours["hand"][name] == pytest.approx(np.mean([value for value in hands if value >= 0] or -1))
    # Annotations and results may be joined or divided into five fields.
    divided = [
        {
            **result,
            **{
                field: result["keypoints"][3 * rows.start : 3 * rows.stop]
                for field, rows in zip(WHOLEBODY_FIELDS, WHOLEBODY_PARTS.values(), strict=False)
            },
        }
        for result in results
    ]
    assert wholebody_average_precision(joined, divided, WHOLEBODY.sigmas) == ours


# Published numbers


def reduced(found: list[dict], soft: bool) -> list[dict]:
    """Results after rescoring and OKS-NMS, image by image."""
    results = []
    for image in dict.fromkeys(pose["image_id"] for pose in found):
        # The original sorts the poses of an image by their ids and drops those with an id seen before.
        poses = list({pose["id"]: pose for pose in reversed([p for p in found if p["image_id"] == image])}.values())
        poses.sort(key=lambda pose: pose["id"])
        keypoints = np.stack([pose["keypoints"] for pose in poses])
        scores = instance_scores(np.array([pose["box_score"] for pose in poses]), keypoints[..., 2])
        areas = np.array([pose["area"] for pose in poses])
        for index in oks_nms(keypoints[..., :2], scores, areas, COCO.sigmas, threshold=0.9, soft=soft):
            results.append(
                {
                    "image_id": image,
                    "category_id": 1,
                    "keypoints": keypoints[index].ravel().tolist(),
                    "score": float(scores[index]),
                }
            )
    return results


def pose(annotation: dict, factors: tuple[float, float, float], box_score: float, number: int = 0) -> dict:
    return {
        "id": annotation["id"] + number,
        "image_id": annotation["image_id"],
        "keypoints": np.array(annotation["keypoints"], np.float32).reshape(-1, 3) * np.array(factors, np.float32),
        "box_score": box_score,
        "area": 1.25**2 * annotation["bbox"][2] * annotation["bbox"][3],
    }


def test_moved_poses_have_the_published_numbers(data):
    truth = json.loads((data / "mmpose_samples/coco/test_coco.json").read_text())
    found = [pose(annotation, (0.98, 1.02, 0.8), 0.98) for annotation in truth["annotations"]]
    assert keypoint_average_precision(truth, reduced(found, soft=False), COCO.sigmas) == pytest.approx(
        {
            "AP": 0.5287458745874587,
            "AP50": 0.9042904290429042,
            "AP75": 0.5009900990099009,
            "AP(M)": 0.42475247524752474,
            "AP(L)": 0.6219554455445544,
            "AR": 0.5833333333333333,
            "AR50": 0.9166666666666666,
            "AR75": 0.5833333333333334,
            "AR(M)": 0.44000000000000006,
            "AR(L)": 0.6857142857142857,
        },
        abs=FLOAT64,
    )


def test_two_detections_have_the_published_numbers(data):
    truth = json.loads((data / "mmpose_samples/coco/test_coco.json").read_text())
    found = []
    for i, annotation in enumerate(truth["annotations"]):
        found.append(pose(annotation, (1 - i / 100, 1 + i / 100, 1 - i / 100), 1.0))
        found.append(pose(annotation, (1 + i / 100, 1 - i / 100, 1 - 2 * i / 100), 1 - 2 * i / 100, 1))
    statistics = keypoint_average_precision(truth, reduced(found, soft=True), COCO.sigmas)
    expected = {
        "AP": 0.17073707370737073,
        "AP50": 0.25055005500550054,
        "AP75": 0.10671067106710669,
        "AP(M)": 0.0,
        "AP(L)": 0.29315181518151806,
        "AR": 0.2416666666666666,
    }
    assert {name: statistics[name] for name in expected} == pytest.approx(expected, abs=FLOAT64)


def test_ground_truth_scores_one(sample):
    truth, sigmas, use_area = sample
    statistics = keypoint_average_precision(truth, truth_as_results(truth), sigmas, use_area=use_area)
    assert statistics["AP"] == statistics["AR"] == pytest.approx(1)
    assert all(value == pytest.approx(1) or value == -1 for value in statistics.values())


def test_ground_truth_scores_one_in_crowdpose_and_wholebody(data):
    truth = json.loads((data / "mmpose_samples/crowdpose/test_crowdpose.json").read_text())
    statistics = crowdpose_average_precision(truth, truth_as_results(truth), CROWDPOSE.sigmas)
    assert statistics.pop("AP(E)") == statistics.pop("AP(H)") == -1
    assert list(statistics.values()) == pytest.approx([1] * 7)
    truth = json.loads((data / "mmpose_samples/coco/test_coco_wholebody.json").read_text())
    results = [{**annotation, "score": 1.0} for annotation in truth["annotations"] if any(annotation["keypoints"])]
    for part in wholebody_average_precision(truth, results, WHOLEBODY.sigmas).values():
        assert set(np.round(list(part.values()), 9)) <= {1.0, -1.0}


# Inputs and errors


def test_file_dict_and_read_annotations_give_equal_numbers(tmp_path):
    truth = synthetic(4)
    results = predictions(truth, 4)
    before = copy.deepcopy((truth, results))
    sigmas = [0.06] * 5
    statistics = keypoint_average_precision(truth, results, sigmas)
    assert (truth, results) == before
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    assert keypoint_average_precision(path, results, sigmas) == statistics
    assert keypoint_average_precision(str(path), results, sigmas) == statistics
    annotations = read_annotations(path, 5)
    assert keypoint_average_precision(annotations, results, sigmas) == statistics
    with pytest.raises(ValueError, match=r"truth.json: expected annotations of 17 keypoints, got 5"):
        keypoint_average_precision(annotations, results, COCO.sigmas)


def test_ids_do_not_change_the_numbers():
    """Names for images, an annotation numbered 0, a box in the results."""
    truth, sigmas = synthetic(5), [0.06] * 5
    results = predictions(truth, 5)
    statistics = keypoint_average_precision(truth, results, sigmas)
    renamed = copy.deepcopy(truth)
    for image in renamed["images"]:
        image["id"] = f"image {image['id']}"
    for index, annotation in enumerate(renamed["annotations"]):
        annotation.update(id=index, image_id=f"image {annotation['image_id']}")
    found = [{**result, "image_id": f"image {result['image_id']}", "bbox": [0, 0, 9, 9]} for result in results]
    assert keypoint_average_precision(renamed, found, sigmas) == statistics


def test_poses_to_coco_gives_valid_results(data):
    truth = json.loads((data / "mmpose_samples/coco/test_coco.json").read_text())
    results = []
    for image in truth["images"]:
        annotations = [a for a in truth["annotations"] if a["image_id"] == image["id"] and any(a["keypoints"])]
        labels = np.array([annotation["keypoints"] for annotation in annotations], float).reshape(-1, 17, 3)
        boxes = np.array([annotation["bbox"] for annotation in annotations]).reshape(-1, 4)
        results += Poses.create(labels[..., :2], labels[..., 2], boxes, COCO).to_coco(image["id"])
    assert keypoint_average_precision(truth, results, COCO.sigmas)["AP"] == pytest.approx(1)


def test_no_results_give_zero_and_no_targets_minus_one():
    truth, sigmas = synthetic(6), [0.06] * 5
    assert set(keypoint_average_precision(truth, [], sigmas).values()) == {0.0}
    assert set(keypoint_average_precision(truth, [], sigmas, image_ids=[]).values()) == {-1.0}
    results = predictions(truth, 6)
    for annotation in truth["annotations"]:
        del annotation["keypoints"]
    assert set(keypoint_average_precision(truth, results, sigmas).values()) == {-1.0}
    truth["annotations"] = []
    assert set(keypoint_average_precision(truth, results, sigmas).values()) == {-1.0}
    assert set(crowdpose_average_precision(truth, results, sigmas).values()) == {-1.0}
    parts = wholebody_average_precision(truth, [], WHOLEBODY.sigmas)
    assert {value for part in parts.values() for value in part.values()} == {-1.0}


def test_average_precision_prints_nothing(capfd, caplog):
    truth = synthetic(7)
    with caplog.at_level(logging.WARNING):
        keypoint_average_precision(truth, predictions(truth, 7), [0.06] * 5)
        crowdpose_average_precision(truth, predictions(truth, 7), [0.06] * 5)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_id", 99, "result 1: expected an image of the annotations, got 99"),
        ("category_id", 3, r"result 1: expected a category of \[2, 7, 9\], got 3"),
        ("keypoints", [0.0] * 12, "results: result 1: keypoints: expected 15 numbers, got 12"),
        ("keypoints", [np.nan] * 15, r"results: result 1: keypoints: expected finite numbers, got \[ ?nan"),
        ("score", np.inf, "results: result 1: score: expected finite numbers, got inf"),
        ("score", None, "results: result 1: expected the key 'score', got image_id, category_id, keypoints"),
    ],
)
def test_errors_name_the_bad_result(field, value, message):
    truth = synthetic(0)
    results = predictions(truth, 0)
    results[1][field] = value
    if value is None:
        del results[1][field]
    with pytest.raises(ValueError, match=message):
        keypoint_average_precision(truth, results, [0.06] * 5)


def test_errors_name_the_bad_annotation(tmp_path):
    truth, sigmas = synthetic(0), [0.06] * 5
    path = tmp_path / "results.json"
    path.write_text("no json")
    with pytest.raises(ValueError, match=r"results.json: expected JSON: Expecting value"):
        keypoint_average_precision(path, [], sigmas)
    path.write_text('[{"image": "1.jpg"}]')
    with pytest.raises(ValueError, match=r"results.json: expected an object with 'images', got \[{'image': '1.jpg'}\]"):
        keypoint_average_precision(path, [], sigmas)
    with pytest.raises(ValueError, match="image_ids: expected images of the annotations, got 99"):
        keypoint_average_precision(truth, [], sigmas, image_ids=[1, 99])
    with pytest.raises(ValueError, match="annotations: annotation 1: keypoints: expected 51 numbers, got 15"):
        keypoint_average_precision(truth, [], COCO.sigmas)
    with pytest.raises(ValueError, match="sigmas: expected one for each of 133 keypoints, got 5"):
        wholebody_average_precision(truth, [], sigmas)
    del truth["annotations"][1]["area"]
    keypoint_average_precision(truth, [], sigmas, use_area=False)
    with pytest.raises(
        ValueError, match="annotations: annotation 2: expected the key 'area', got image_id, id, category_id, bbox"
    ):
        keypoint_average_precision(truth, [], sigmas)
    del truth["annotations"][0]["category_id"]
    with pytest.raises(
        ValueError, match="annotations: annotation 1: expected the key 'category_id', got image_id, id, bbox"
    ):
        keypoint_average_precision(truth, [], sigmas)
    truth["annotations"][0]["category_id"] = 2
    del truth["images"][2]["crowdIndex"]
    with pytest.raises(ValueError, match="annotations: image 3: expected a crowdIndex, as in CrowdPose, got none"):
        crowdpose_average_precision(truth, [], sigmas)


def test_missing_faster_coco_eval_is_named(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("faster_coco_eval"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r'pip install "vitpose-jax\[eval\]"'):
        keypoint_average_precision(synthetic(0), [], [0.06] * 5)


def test_crowdpose_counts_as_its_annotators_do():
    """A person is not a target if num_keypoints is 0, even with visible keypoints."""
    points = [float(value) for k in range(14) for value in (10 * k, 7 * k, 1)]
    shared = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 130, 91], "keypoints": points, "iscrowd": 0}
    annotations = {
        "images": [{"id": 1, "crowdIndex": 0.5}],
        "categories": [{"id": 1}],
        "annotations": [{**shared, "id": 1, "num_keypoints": 14}, {**shared, "id": 2, "num_keypoints": 0}],
    }
    found = [{"image_id": 1, "category_id": 1, "keypoints": points, "score": 1.0}]
    assert crowdpose_average_precision(annotations, found, CROWDPOSE.sigmas)["AP"] == pytest.approx(1.0)
