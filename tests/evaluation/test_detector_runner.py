"""Evaluation of detectors, and poses in the boxes that a detector finds: numbers, files, failures, and the command."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.support.cli import run
from tests.support.evaluation import SQUARE
from tests.support.models import random_model
from vitpose_jax import Detections, Detector, ItemError, PoseEstimator, VitPoseConfig, checkpoint
from vitpose_jax.datasets import BoxFile, read_dataset
from vitpose_jax.evaluation import compare_boxes, detect_dataset, evaluate, evaluate_detector

pytestmark = pytest.mark.usefixtures("compiled_once")

FILES = ["detections.json", "metrics.json"]
POSE_FILES = ["metrics.json", "per_keypoint.csv", "poses.jsonl", "results.json"]


class AnnotatedDetector(Detector):
    """Finds the annotated boxes; images that are not there fail."""

    folder: pathlib.Path

    def stream(self, images, **options):
        content = json.loads((self.folder / "person_keypoints.json").read_text())
        ids = {image["file_name"]: image["id"] for image in content["images"]}
        for path in images:
            if not path.exists():
                yield ItemError(0, f"{path.name}: gone")
                continue
            boxes = [entry["bbox"] for entry in content["annotations"] if entry["image_id"] == ids[path.name]]
            yield Detections(
                boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
                scores=np.full(len(boxes), 0.9, np.float32),
                class_ids=np.zeros(len(boxes), int),
                classes=("person",),
            )


@pytest.fixture(scope="module")
def finder() -> Detector:
    return Detector.from_pretrained()


@pytest.fixture
def photos(tmp_path, sample_folder) -> pathlib.Path:
    """A copy of the sample that a test may break."""
    return pathlib.Path(shutil.copytree(sample_folder, tmp_path / "photos"))


@pytest.fixture
def perfect(photos) -> Detector:
    detector = AnnotatedDetector.from_pretrained()
    detector.folder = photos
    return detector


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model")
    checkpoint.save(random_model(VitPoseConfig(**SQUARE)), folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def estimator(model) -> PoseEstimator:
    return PoseEstimator.from_pretrained(model, max_batch=2, border="opencv")


def paths_of(photos: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    return photos / "person_keypoints.json", photos / "images"


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_detector_that_finds_everybody_is_perfect(perfect, photos):
    evaluation = evaluate_detector(perfect, *paths_of(photos))
    assert set(evaluation.metrics.values()) == {1.0, -1.0}
    assert evaluation.metrics["AP"] == evaluation.metrics["AR"] == 1
    assert [(point.recall, point.recall_tall) for point in evaluation.operating_points] == [(1, 1), (1, 1)]
    assert evaluation.counts == {"images": 5, "people": 24, "crowds": 0, "detections": 24, "failed_images": 0}


def test_files_hold_what_the_bundled_finder_finds(finder, sample_folder, tmp_path):
    annotations, images = paths_of(sample_folder)
    output = tmp_path / "out"
    evaluation = evaluate_detector(finder, annotations, images, output, detector_name="mine")
    assert 0.2 < evaluation.metrics["AP"] < 1
    assert names(output) == FILES
    document = json.loads((output / "metrics.json").read_text())
    assert document["metrics"] == evaluation.metrics
    assert document["operating_points"] == [point._asdict() for point in evaluation.operating_points]
    assert (document["settings"]["detector"], document["settings"]["threshold"]) == ("mine", 0.05)
    assert document["failures"] == []
    results = json.loads((output / "detections.json").read_text())
    assert results == evaluation.results
    # The boxes are the detector's, and other commands read them.
    path = images / "000000329323.jpg"
    expected = finder(path, threshold=0.05, max_detections=100).to_coco(329323)
    assert [entry for entry in results if entry["image_id"] == 329323] == expected
    assert BoxFile(output / "detections.json")[path].boxes == [entry["bbox"] for entry in expected]
    dataset = read_dataset("coco", annotations, images, detections=output / "detections.json")
    assert dataset.num_boxes == len(results)


def test_results_are_not_overwritten_unless_told(perfect, photos, tmp_path):
    output = tmp_path / "out"
    evaluate_detector(perfect, *paths_of(photos), output)
    for name in FILES:
        with pytest.raises(ValueError, match=rf"already holds {name}; overwrite it or choose another folder"):
            evaluate_detector(perfect, *paths_of(photos), output)
        (output / name).unlink()
    evaluate_detector(perfect, *paths_of(photos), output)
    (photos / "images" / "000000000872.jpg").unlink()
    evaluate_detector(perfect, *paths_of(photos), output, overwrite=True)
    assert json.loads((output / "metrics.json").read_text())["counts"]["failed_images"] == 1


def test_a_run_that_breaks_writes_nothing(perfect, photos, tmp_path, monkeypatch):
    def stream(self, images, **options):
        no_boxes = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32)}
        yield Detections(**no_boxes, class_ids=np.zeros(0, int), classes=("person",))
        raise RuntimeError("power cut")

    monkeypatch.setattr(AnnotatedDetector, "stream", stream)
    with pytest.raises(RuntimeError, match="power cut"):
        evaluate_detector(perfect, *paths_of(photos), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_fail_count_as_missed(perfect, photos, tmp_path):
    (photos / "images" / "000000329323.jpg").unlink()
    evaluation = evaluate_detector(perfect, *paths_of(photos), tmp_path / "out")
    assert [pathlib.Path(image).name for image, _ in evaluation.failures] == ["000000329323.jpg"]
    assert evaluation.operating_points[0].recall == 12 / 24
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["failures"] == [dict(zip(("image", "reason"), row, strict=True)) for row in evaluation.failures]
    shutil.rmtree(photos / "images")
    (photos / "images").mkdir()
    with pytest.raises(ValueError, match="no file for any of the first 10 images"):
        evaluate_detector(perfect, *paths_of(photos))


def test_the_first_images_alone(perfect, photos):
    evaluation = evaluate_detector(perfect, *paths_of(photos), limit=2)
    assert (evaluation.counts["images"], evaluation.metrics["AP"]) == (2, 1)
    assert evaluation.counts["people"] == evaluation.counts["detections"] < 24
    with pytest.raises(ValueError, match="limit: expected at least 1 image, got 0"):
        evaluate_detector(perfect, *paths_of(photos), limit=0)


def test_annotations_are_checked_before_the_detector_runs(perfect, photos, monkeypatch):
    monkeypatch.setattr(AnnotatedDetector, "stream", lambda *arguments, **options: pytest.fail("the detector runs"))
    annotations, images = paths_of(photos)
    with pytest.raises(ValueError, match="nowhere: expected the folder of the images"):
        evaluate_detector(perfect, annotations, "nowhere")
    content = json.loads(annotations.read_text())
    del content["annotations"][3]["area"]
    annotations.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"person_keypoints.json: annotation \d+: expected the key 'area'"):
        evaluate_detector(perfect, annotations, images)
    annotations.write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match=r"person_keypoints.json: expected one or more images, got none"):
        evaluate_detector(perfect, annotations, images)


# Poses in the boxes of a detector.


def test_a_dataset_with_the_boxes_of_a_detector(perfect, estimator, photos, tmp_path):
    annotations, images = paths_of(photos)
    annotated = read_dataset("coco", annotations, images)
    (images / "000000329323.jpg").unlink()
    dataset = detect_dataset(perfect, annotated, images, tmp_path / "out", detector_name="mine")
    assert names(tmp_path / "out") == ["detections.json"]
    assert (dataset.num_boxes, dataset.num_images, dataset.min_score) == (12, 5, 0.1)
    np.testing.assert_array_equal(np.concatenate([sample.scores for sample in dataset.samples]), np.full(12, 0.9))
    evaluation = evaluate(estimator, dataset, output=tmp_path / "out", flip_test=False)
    assert names(tmp_path / "out") == sorted([*POSE_FILES, "detections.json"])
    assert [pathlib.Path(image).name for image, _ in evaluation.failures] == ["000000329323.jpg"]
    assert evaluation.counts["failed_images"] == 1
    assert evaluation.settings["detector"] == "mine"
    assert "min_score 0.1, not 0.0" in evaluation.deviations
    assert not any("detector" in line for line in evaluation.deviations)
    # Resuming needs the same boxes.
    options = {"images": images, "output": tmp_path / "out"}
    with pytest.raises(ValueError, match=r"already holds poses.jsonl; resume it"):
        detect_dataset(perfect, annotated, **options)
    assert detect_dataset(perfect, annotated, **options, resume=True).num_boxes == 12
    (images / "000000000872.jpg").unlink()
    with pytest.raises(ValueError, match=r"detections.json: cannot resume with other boxes"):
        detect_dataset(perfect, annotated, **options, resume=True)
    assert detect_dataset(perfect, annotated, **options, overwrite=True).num_boxes == 10
    # A folder of `detect`, or of a run that stopped before the poses.
    for name in POSE_FILES:
        (tmp_path / "out" / name).unlink()
    with pytest.raises(ValueError, match=r"already holds detections.json; resume it"):
        detect_dataset(perfect, annotated, **options)
    with pytest.raises(ValueError, match="dataset: expected one with the annotated boxes, got those of"):
        detect_dataset(perfect, dataset, images, tmp_path / "other")


def test_low_scores_stay_in_the_file(finder, sample_folder, tmp_path):
    annotations, images = paths_of(sample_folder)
    dataset = detect_dataset(finder, read_dataset("coco", annotations, images), images, tmp_path, min_score=0.4)
    scores = [entry["score"] for entry in json.loads((tmp_path / "detections.json").read_text())]
    assert 0.05 <= min(scores) < 0.4
    assert dataset.num_boxes == sum(score >= 0.4 for score in scores)


def test_datasets_without_boxes_to_detect_are_refused(data, perfect, tmp_path):
    folder = data / "mmpose_samples"
    mpii = read_dataset("mpii", folder / "mpii" / "test_mpii.json", folder / "mpii")
    with pytest.raises(ValueError, match="mpii is evaluated in its annotated boxes, got a detector"):
        detect_dataset(perfect, mpii, folder / "mpii", tmp_path)
    animals = read_dataset("ap10k", folder / "ap10k" / "test_ap10k.json", folder / "ap10k")
    with pytest.raises(ValueError, match="ap10k: expected a dataset of people for a detector of people"):
        detect_dataset(perfect, animals, folder / "ap10k", tmp_path)


def test_both_kinds_of_boxes_in_one_run(perfect, estimator, photos, tmp_path):
    annotations, images = paths_of(photos)
    dataset = read_dataset("coco", annotations, images)
    evaluations = compare_boxes(estimator, perfect, dataset, images, tmp_path / "out", flip_test=False)
    assert list(evaluations) == names(tmp_path / "out") == ["annotated", "detected"]
    assert names(tmp_path / "out" / "annotated") == POSE_FILES
    assert names(tmp_path / "out" / "detected") == sorted([*POSE_FILES, "detections.json"])
    for evaluation in evaluations.values():
        assert evaluation.counts["boxes"] == 24
    with pytest.raises(ValueError, match=r"annotated already holds poses.jsonl"):
        compare_boxes(estimator, perfect, dataset, images, tmp_path / "out", flip_test=False)
    with pytest.raises(ValueError, match="limit: expected none"):
        compare_boxes(estimator, perfect, dataset, images, tmp_path / "other", limit=3)
    again = compare_boxes(estimator, perfect, dataset, images, tmp_path / "out", flip_test=False, resume=True)
    assert {name: row.metrics for name, row in again.items()} == {
        name: row.metrics for name, row in evaluations.items()
    }


# The command.


def command(capsys, photos: pathlib.Path, output: pathlib.Path, *more: object) -> tuple[int, str, str]:
    annotations, images = paths_of(photos)
    return run(capsys, "evaluate", "--images", images, "--annotations", annotations, "--output", output, *more)


def test_command_measures_the_bundled_finder(capsys, photos, tmp_path):
    output = tmp_path / "out"
    status, printed, _ = command(capsys, photos, output, "--task", "detection")
    assert status == 0
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[:7]] == ["AP", "AP50", "AP75", "AP(S)", "AP(M)", "AP(L)", "AR"]
    assert lines[7].startswith("precision 0.8: recall 0.") and lines[8].startswith("precision 0.9: ")
    assert "24 people and 0 crowds in 5 images" in lines[9]
    assert names(output) == FILES
    settings = json.loads((output / "metrics.json").read_text())["settings"]
    assert (settings["detector"], settings["dtype"]) == ("person-finder", "float32")
    status, _, said = command(capsys, photos, output, "--task", "detection")
    assert (status, "already holds detections.json; overwrite it" in said) == (1, True)
    (photos / "images" / "000000000872.jpg").write_bytes(b"no image")
    status, printed, said = command(capsys, photos, output, "--task", "detection", "--overwrite")
    assert status == 1
    assert "000000000872.jpg" in said
    assert "error: 1 images failed and their people count as missed" in said


def test_command_measures_poses_in_both_kinds_of_boxes(capsys, photos, model, tmp_path):
    options = ("--dataset", "coco", "--model", model, "--max-batch", 2, "--no-flip-test", "--detector", "person-finder")
    output = tmp_path / "both"
    status, printed, _ = command(capsys, photos, output, *options, "--ground-truth-boxes")
    assert status == 0
    lines = printed.splitlines()
    assert lines[0].split() == ["annotated", "detected"]
    assert [len(line.split()) for line in lines[1:11]] == [3] * 10
    assert "annotated: not as published: boxes of the annotations, not detections" in lines
    assert "detected: not as published: min_score 0.1, not 0.0" in lines
    assert f"annotated: 24 boxes in 5 images, 24 results: {output / 'annotated'}" in lines
    document = json.loads((output / "detected" / "metrics.json").read_text())
    assert document["settings"]["detector"] == "person-finder"
    # The same boxes from the file give the same numbers.
    boxes = ("--detections", output / "detected" / "detections.json", "--min-score", 0.1)
    status, _, _ = command(capsys, photos, tmp_path / "file", *options[:-2], *boxes)
    assert status == 0
    assert json.loads((tmp_path / "file" / "metrics.json").read_text())["metrics"] == document["metrics"]
    # A detector alone.
    (photos / "images" / "000000000872.jpg").unlink()
    status, printed, said = command(capsys, photos, tmp_path / "alone", *options, "--min-score", 0.5, "--limit", 3)
    assert status == 1
    assert printed.startswith("AP  ")
    assert "in 3 images" in printed
    assert "000000000872.jpg" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "detection", "--model", "x"), "--model: not with --task detection"),
        (("--task", "detection", "--dataset", "coco"), "--dataset: not with --task detection"),
        (("--task", "detection", "--no-flip-test"), "--no-flip-test: not with --task detection"),
        (("--task", "detection", "--ground-truth-boxes"), "--ground-truth-boxes: not with --task detection"),
        (("--task", "detection", "--resume"), "--resume: not with --task detection"),
        (("--task", "detection", "--min-score", "0.1"), "--min-score: not with --task detection"),
        (("--task", "detection", "--detector", "nowhere"), "nowhere"),
        (("--task", "detection", "--annotations", "nothing.json"), "nothing.json"),
        (("--dataset", "coco", "--ground-truth-boxes"), "expected --model SOURCE: keypoints need it"),
        (("--model", "x", "--ground-truth-boxes"), "expected --dataset NAME: keypoints need it"),
        (("--dataset", "coco", "--model", "x", "--detector", "y", "--detections", "z"), "expected either --detections"),
        (
            ("--dataset", "coco", "--model", "x", "--detector", "y", "--distributed"),
            "--distributed: not with --detector",
        ),
        (
            ("--dataset", "coco", "--model", "x", "--detector", "y", "--ground-truth-boxes", "--limit", "3"),
            "--limit: not with --detector and --ground-truth-boxes",
        ),
    ],
)
def test_command_reports_a_mistake_in_one_line(capsys, photos, tmp_path, options, message):
    status, _, said = command(capsys, photos, tmp_path / "out", *options)
    assert status == 1
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
