"""What is checked before an evaluation computes anything, and how often it reads its annotations."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from tests.support.datasets import read_sample
from vitpose_jax.datasets import PROTOCOLS, coco, read_dataset
from vitpose_jax.evaluation import average_precision
from vitpose_jax.evaluation.scoring import check_scorable, measure, to_results

POINTS = [number for k in range(14) for number in (10 + 3 * k, 20 + 2 * k, 2)]
CROWDPOSE = {
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 100, "crowdIndex": 0.5} for n in (1, 2)],
    "annotations": [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [5, 5, 60, 60], "keypoints": POINTS, "num_keypoints": 14}
        for n in (1, 2)
    ],
    "categories": [{"id": 1}],
}


def read(tmp_path, content, *, name="crowdpose", **options):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return read_dataset(name, path, tmp_path, **options)


@pytest.mark.parametrize("name", ["coco", "wholebody", "crowdpose"])
def test_annotations_are_parsed_once(data, name, monkeypatch):
    reads = []
    read_json = coco.read_json
    monkeypatch.setattr(coco, "read_json", lambda path: reads.append(path) or read_json(path))
    dataset = read_sample(data, name)
    check_scorable(dataset)
    poses = {
        index: np.concatenate([sample.people.keypoints, sample.people.visible[..., None]], axis=-1)
        for index, sample in enumerate(dataset.samples)
    }
    assert measure(dataset, poses, to_results(dataset, poses))["AP"] == pytest.approx(1)
    assert reads == [dataset.annotations]


def test_the_check_runs_no_metric(data, monkeypatch):
    monkeypatch.setattr(average_precision, "_evaluate", lambda *arguments: pytest.fail("the metric runs"))
    for name in ("coco", "wholebody", "crowdpose"):
        check_scorable(read_sample(data, name))


def test_missing_values_are_named(tmp_path):
    content = copy.deepcopy(CROWDPOSE)
    # An entry that is not a person of the dataset, but that the metric reads.
    content["annotations"].append({"id": 3, "image_id": 2, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 1})
    check_scorable(read(tmp_path, content))
    del content["annotations"][2]["bbox"]
    with pytest.raises(ValueError, match=r"annotations.json: annotation 3: expected the key 'bbox', got"):
        check_scorable(read(tmp_path, content))
    # Only the chosen images count.
    check_scorable(read(tmp_path, content).first(1))
    content = copy.deepcopy(CROWDPOSE)
    del content["images"][1]["crowdIndex"]
    with pytest.raises(
        ValueError, match=r"annotations.json: image 2: expected a crowdIndex, as in CrowdPose, got none"
    ):
        check_scorable(read(tmp_path, content))
    check_scorable(read(tmp_path, content).first(1))


def test_boxes_need_a_category_of_the_annotations(tmp_path):
    detections = tmp_path / "boxes.json"
    detections.write_text(
        json.dumps([{"image_id": n, "category_id": n, "bbox": [5, 5, 60, 60], "score": 1} for n in (1, 2)])
    )
    any_category = dataclasses.replace(PROTOCOLS["crowdpose"], category=None)
    dataset = read(tmp_path, CROWDPOSE, name=any_category, detections=detections)
    with pytest.raises(
        ValueError, match=r"boxes.json: image 2: expected boxes of a category in .*, one of \[1\], got 2"
    ):
        check_scorable(dataset)


def test_average_precision_needs_sigmas(tmp_path):
    protocol = PROTOCOLS["crowdpose"]
    protocol = dataclasses.replace(protocol, skeleton=dataclasses.replace(protocol.skeleton, sigmas=()))
    with pytest.raises(ValueError, match="crowdpose: average precision needs sigmas in its skeleton"):
        check_scorable(read(tmp_path, CROWDPOSE, name=protocol))
