"""The evaluation of whole datasets: its numbers, its files, interrupted runs, broken images, and the command."""

import csv
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.support import programs
from tests.support.cli import run
from tests.support.datasets import SAMPLES, read_sample
from tests.support.evaluation import SQUARE, small_dataset, small_estimator
from tests.support.images import random_image
from tests.support.models import random_model
from tests.tolerances import FIVE_DECIMALS, POSITIONS
from vitpose_jax import ItemError, PoseEstimator, Poses, VitPoseConfig, checkpoint
from vitpose_jax.datasets import PROTOCOLS
from vitpose_jax.evaluation import Dataset, evaluate, read_dataset
from vitpose_jax.evaluation.journal import Journal
from vitpose_jax.evaluation.oks import instance_scores
from vitpose_jax.evaluation.scoring import measure, per_keypoint, to_results

pytestmark = pytest.mark.usefixtures("compiled_once")

FILES = ["metrics.json", "per_keypoint.csv", "poses.jsonl", "results.json"]


class AnnotatedEstimator(PoseEstimator):
    """Returns the annotated poses, changed by a function."""

    def __init__(self, dataset: Dataset, change=lambda points: points):
        skeleton = dataset.protocol.skeleton
        config = VitPoseConfig(**SQUARE, skeletons=(skeleton,))
        super().__init__(random_model(config), stretch=dataset.protocol.stretch)
        self._people = {sample.path: sample.people for sample in dataset.samples}
        self._change, self._skeleton = change, skeleton

    def stream(self, items, **options):
        for path, boxes in items:
            people = self._people[path]
            visible = np.minimum(people.visible, 1)[..., None]
            # Unlabelled keypoints go to the corner of their person's box: in one place they would count as near.
            points = np.where(visible, people.keypoints, people.boxes[:, None, :2])
            points = self._change(np.concatenate([points, visible], axis=-1))
            yield Poses.create(points[..., :2], points[..., 2], boxes, self._skeleton)


def heads_of(dataset: Dataset, path: pathlib.Path) -> pathlib.Path:
    """A file like mpii_gt_val.mat, with heads of 30 pixels: 0.6 times a diagonal of 50."""
    people = sorted(
        (people.annotation_ids[row], people.keypoints[row] + 1, people.visible[row])
        for people in (sample.people for sample in dataset.samples)
        for row in range(len(people))
    )
    corners = np.array([[[10.0, 10.0], [40.0, 50.0]]] * len(people))
    content = {
        "pos_gt_src": np.stack([points for _, points, _ in people], axis=-1),
        "jnt_missing": np.stack([1 - visible for _, _, visible in people], axis=-1),
        "headboxes_src": np.moveaxis(corners, 0, -1),
    }
    savemat(path, content)
    return path


@pytest.fixture(scope="module")
def coco_val(data) -> Dataset:
    return read_dataset("coco", data / "coco_val" / "person_keypoints.json", data / "coco_val" / "images")


def test_ground_truth_is_perfect_on_coco(coco_val):
    evaluation = evaluate(AnnotatedEstimator(coco_val), coco_val)
    assert evaluation.metrics == dict.fromkeys(evaluation.metrics, 1.0)
    assert list(evaluation.metrics) == ["AP", "AP50", "AP75", "AP(M)", "AP(L)", "AR", "AR50", "AR75", "AR(M)", "AR(L)"]
    assert evaluation.counts["images"] == 106
    assert evaluation.counts["boxes"] == evaluation.counts["results"] == coco_val.num_boxes
    assert len(evaluation.per_keypoint) == 17
    for row in evaluation.per_keypoint:
        assert row["labelled"] == row["matched"] > 0
        assert (row["pixels"], row["relative"], row["near"]) == (0, 0, 1)


@pytest.mark.parametrize("name", SAMPLES)
def test_ground_truth_is_perfect_by_every_protocol(data, tmp_path, name):
    dataset = read_sample(data, name)
    if name == "mpii":
        dataset = read_sample(data, name, head_boxes=heads_of(dataset, tmp_path / "gt.mat"))
    metrics = evaluate(AnnotatedEstimator(dataset), dataset).metrics
    best = 100 if name == "mpii" else 1
    # -1 if the sample has no person of that size.
    assert {round(value, 9) for value in metrics.values()} <= {best, -1}
    assert metrics["PCKh@0.5" if name == "mpii" else "AP"] == pytest.approx(best)
    if name == "wholebody":
        assert metrics["face AP"] == 1


def test_moved_poses_have_the_published_numbers(data, tmp_path):
    """The numbers of mmpose's tests for this file: x times 0.98, y times 1.02, scores times 0.8 and 0.98.

    They include people without labelled keypoints, so all boxes are given as a detector's.
    """
    content = json.loads((data / "mmpose_samples" / "coco" / "test_coco.json").read_text())
    detections = [
        {"image_id": entry["image_id"], "category_id": 1, "bbox": entry["bbox"], "score": 0.98}
        for entry in content["annotations"]
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(detections))
    dataset = read_sample(data, "coco", detections=tmp_path / "boxes.json")
    poses = {}
    for place, sample in enumerate(dataset.samples):
        mine = [entry["keypoints"] for entry in content["annotations"] if entry["image_id"] == sample.image_id]
        poses[place] = np.reshape(mine, (-1, 17, 3)).astype(np.float32) * np.float32([0.98, 1.02, 0.8])
    metrics = measure(dataset, poses, to_results(dataset, poses))
    expected = {
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
    }
    assert metrics == pytest.approx(expected)


def test_hard_nms_drops_duplicate_poses(data):
    """Of two poses in the same place the hard NMS drops one; the soft NMS drops none."""
    dataset = read_sample(data, "ochuman")
    doubled = Dataset(
        **{**vars(dataset), "samples": tuple(_twice(sample) for sample in dataset.samples)},
    )
    poses = {
        place: np.concatenate(
            [np.repeat(sample.people.keypoints, 2, axis=0), np.ones((2 * len(sample.people), 17, 1))], -1
        )
        for place, sample in enumerate(dataset.samples)
    }
    assert len(to_results(doubled, poses)) == 5
    assert len(to_results(doubled, poses, nms="soft")) == 10
    assert len(to_results(doubled, poses, nms=None)) == 10
    assert {entry["score"] for entry in to_results(doubled, poses)} == {1.0}  # the better ones


def _twice(sample):
    columns = {name: np.repeat(getattr(sample, name), 2, axis=0) for name in ("boxes", "category_ids")}
    return type(sample)(**{**vars(sample), **columns, "scores": np.tile([0.5, 1.0], len(sample.boxes))})


def test_per_keypoint_table_matches_people_by_oks(data):
    """Each annotated person is matched with its own pose, whatever the order of the boxes."""
    boxes = data / "mmpose_samples" / "coco" / "test_coco_det_AP_H_56.json"
    dataset = read_sample(data, "coco", detections=boxes)
    poses = {}
    for place, sample in enumerate(dataset.samples):
        people = sample.people
        found = np.full((len(sample.boxes), 17, 3), 1e4)
        found[1 : 1 + len(people), :, :2] = people.keypoints[::-1] + [3, 4]
        poses[place] = found[: len(sample.boxes)]
    del poses[3]
    lost = {"nose": int((dataset.samples[3].people.visible[:, 0] > 0).sum())}
    first = per_keypoint(dataset, poses)[0]
    assert first["keypoint"] == "nose"
    total = sum(int((sample.people.visible[:, 0] > 0).sum()) for sample in dataset.samples)
    assert (first["labelled"], first["matched"]) == (total, total - lost["nose"])
    assert first["pixels"] == 5
    areas = np.concatenate([sample.people.areas[sample.people.visible[:, 0] > 0] for sample in dataset.samples[:3]])
    assert first["relative"] == round((5 / np.sqrt(areas)).mean(), 4)
    assert first["near"] == round((5 / np.sqrt(areas) <= 0.1).mean(), 4)


# A dataset of small images with two people each, and a tiny model.


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(40):
        Image.fromarray(random_image(number)).save(folder / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 160, "height": 120})
        for left in (5, 80):
            points = np.concatenate([rng.integers([left, 5], [left + 70, 105], (17, 2)), np.full((17, 1), 2)], axis=1)
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": [left, 5, 70, 100]}
            annotations.append({**entry, "area": 3500.0, "num_keypoints": 17, "keypoints": points.ravel().tolist()})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    checkpoint.save(random_model(VitPoseConfig(**SQUARE)), folder / "model")
    return folder


@pytest.fixture(scope="module")
def estimator(small) -> PoseEstimator:
    return small_estimator(small)


@pytest.fixture(scope="module")
def whole(small, estimator) -> pathlib.Path:
    """The files of an uninterrupted run."""
    evaluate(estimator, small_dataset(small), output=small / "whole", model_name="tiny")
    return small / "whole"


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_output_files_hold_the_poses_of_the_estimator(small, estimator, whole):
    dataset = small_dataset(small)
    found = json.loads((whole / "results.json").read_text())
    assert [entry["image_id"] for entry in found] == [number for number in range(40) for _ in range(2)]
    assert set(found[0]) == {"image_id", "category_id", "keypoints", "score"}
    # The poses are the estimator's own for the image and its boxes.
    sample = dataset.samples[7]
    poses = estimator(sample.path, sample.boxes, flip_test=True)
    mine = sorted((entry["score"], entry["keypoints"]) for entry in found if entry["image_id"] == 7)
    given = np.reshape([keypoints for _, keypoints in mine], (2, 17, 3))
    order = np.argsort(instance_scores(np.ones(2), poses.scores))
    np.testing.assert_allclose(given[..., :2], poses.keypoints[order], rtol=0, atol=FIVE_DECIMALS)
    np.testing.assert_allclose(given[..., 2], poses.scores[order], rtol=0, atol=FIVE_DECIMALS)
    with (whole / "per_keypoint.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["keypoint"] for row in table] == list(PROTOCOLS["coco"].skeleton.keypoints)
    document = json.loads((whole / "metrics.json").read_text())
    assert document["counts"]["boxes"] == 80
    assert document["settings"]["model"] == "tiny"
    assert document["settings"]["flip_test"] is True
    assert document["failures"] == []
    assert document["deviations"] == ["boxes of the annotations, not detections"]
    lines = (whole / "poses.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines[1:]] == list(range(40))


def test_a_killed_run_resumes_to_equal_bytes(small, estimator, whole, tmp_path, monkeypatch):
    output = tmp_path / "out"
    journal = output / "poses.jsonl"
    with subprocess.Popen(programs.command("evaluate_slowly", small, output), env=programs.environment()) as process:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 8):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = journal.read_bytes().count(b"\n") - 1
    assert 8 <= done < 40
    assert not (output / "metrics.json").exists()
    # As if the kill had come in the middle of a line.
    journal.write_bytes(journal.read_bytes() + b'{"image":39,"poses":[[1.5,')
    computed = []
    stream = PoseEstimator.stream

    def counted(self, items, **options):
        items = list(items)
        computed.extend(items)
        return stream(self, items, **options)

    monkeypatch.setattr(PoseEstimator, "stream", counted)
    evaluate(estimator, small_dataset(small), output=output, resume=True, model_name="tiny")
    assert len(computed) == 40 - done
    assert contents(output) == contents(whole)
    # A second time nothing is left to compute.
    computed.clear()
    evaluate(estimator, small_dataset(small), output=output, resume=True, model_name="tiny")
    assert computed == []
    assert contents(output) == contents(whole)


def test_resuming_with_other_settings_is_refused(small, estimator, whole, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    dataset = small_dataset(small)
    with pytest.raises(ValueError, match=r"already holds poses.jsonl; resume it, overwrite it"):
        evaluate(estimator, dataset, output=output)
    for options, key in (
        ({"flip_test": False}, "flip_test"),
        ({"decode": "argmax"}, "decode"),
        ({"limit": 3}, "boxes"),
    ):
        with pytest.raises(ValueError, match=rf"poses.jsonl: cannot resume with other settings; {key} was "):
            evaluate(estimator, dataset, output=output, resume=True, **options)
    other = PoseEstimator(random_model(VitPoseConfig(**SQUARE), seed=1), max_batch=2, border="opencv")
    with pytest.raises(ValueError, match="cannot resume with other settings; model_sha256 was"):
        evaluate(other, dataset, output=output, resume=True)
    (output / "poses.jsonl").write_text("{]\n")
    with pytest.raises(ValueError, match=r"poses.jsonl:1: damaged line"):
        evaluate(estimator, dataset, output=output, resume=True)
    evaluate(estimator, dataset, output=output, overwrite=True, model_name="tiny")
    assert contents(output) == contents(whole)


def test_overwriting_deletes_only_earlier_results(small, estimator, tmp_path, monkeypatch):
    notes = tmp_path / "poses_backup.jsonl"
    notes.write_text("mine\n")
    evaluate(estimator, small_dataset(small), limit=2, flip_test=False, output=tmp_path)
    assert notes.read_text() == "mine\n"
    shard = tmp_path / "poses.3.jsonl"
    shutil.copy(tmp_path / "poses.jsonl", shard)
    evaluate(estimator, small_dataset(small), limit=2, flip_test=False, output=tmp_path, resume=True)
    assert not shard.exists()

    def fail(*arguments, **options):
        raise RuntimeError("power cut")

    monkeypatch.setattr("vitpose_jax.evaluation.estimate._run", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        evaluate(estimator, small_dataset(small), limit=3, output=tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["poses.jsonl", "poses_backup.jsonl"]


def test_a_folder_without_the_images_is_refused_at_once(small, estimator, tmp_path):
    (tmp_path / "empty").mkdir()
    dataset = read_dataset("coco", small / "annotations.json", tmp_path / "empty")
    with pytest.raises(ValueError, match=r"0.jpg: expected an image, got no file for any of the first 10 images"):
        evaluate(estimator, dataset, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resuming_with_other_scoring_computes_no_poses(small, whole, tmp_path, monkeypatch, estimator):
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    monkeypatch.setattr(PoseEstimator, "stream", lambda *arguments, **options: pytest.fail("poses are made anew"))
    evaluation = evaluate(estimator, small_dataset(small), output=output, resume=True, keypoint_threshold=1e6)
    assert {entry["score"] for entry in evaluation.results} == {0}
    assert json.loads((output / "metrics.json").read_text())["settings"]["keypoint_threshold"] == 1e6


def test_missing_and_truncated_images_count_as_missed(small, estimator, whole, tmp_path):
    folder, output = tmp_path / "small", tmp_path / "out"
    shutil.copytree(small, folder)
    kept = {number: (folder / f"{number}.jpg").read_bytes() for number in (3, 30)}
    (folder / "3.jpg").unlink()
    (folder / "30.jpg").write_bytes(kept[30][:700])
    evaluation = evaluate(estimator, small_dataset(folder), output=output, model_name="tiny")
    assert [pathlib.Path(image).name for image, _ in evaluation.failures] == ["3.jpg", "30.jpg"]
    assert "no such file" in evaluation.failures[0][1]
    assert "truncated" in evaluation.failures[1][1]
    counts = json.loads((output / "metrics.json").read_text())["counts"]
    assert (counts["failed_images"], counts["failed_boxes"], counts["results"]) == (2, 4, 76)
    # Their people count as missed.
    dataset = small_dataset(folder)
    known = AnnotatedEstimator(dataset)
    stream = known.stream
    known.stream = lambda items, **options: (
        ItemError(0, "gone") if path.name in ("3.jpg", "30.jpg") else next(stream([(path, boxes)]))
        for path, boxes in items
    )
    assert evaluate(known, dataset).metrics["AR"] == pytest.approx(76 / 80)
    # When the images are back, only their blocks are computed again.
    for number, content in kept.items():
        (folder / f"{number}.jpg").write_bytes(content)
    evaluate(estimator, small_dataset(folder), output=output, resume=True, model_name="tiny")
    assert contents(output) == contents(whole)


def test_keypoints_that_are_not_finite_are_failures(data):
    dataset = read_sample(data, "ochuman")
    evaluation = evaluate(AnnotatedEstimator(dataset, change=lambda points: points * np.nan), dataset)
    assert [reason for _, reason in evaluation.failures] == ["the model's keypoints are not finite"] * 3
    assert evaluation.metrics["AP"] == 0


def test_unsuitable_estimators_and_options_are_refused(data, small, estimator):
    mpii, wholebody = read_sample(data, "mpii"), read_sample(data, "wholebody")
    with pytest.raises(ValueError, match="no dataset 'wholebody' in this model"):
        evaluate(estimator, wholebody)
    model = random_model(VitPoseConfig(**SQUARE, skeletons=(PROTOCOLS["mpii"].skeleton,)))
    with pytest.raises(ValueError, match="mpii: expected an estimator with stretch=True, got False"):
        evaluate(PoseEstimator(model), mpii)
    with pytest.raises(ValueError, match="PCKh needs the sizes of heads"):
        evaluate(PoseEstimator(model, stretch=True), mpii)
    with pytest.raises(ValueError, match="oks_nms: expected none for mpii"):
        evaluate(PoseEstimator(model, stretch=True), mpii, oks_nms="soft")
    with pytest.raises(ValueError, match="expected one of resume and overwrite, got both"):
        evaluate(estimator, small_dataset(small), resume=True, overwrite=True)


def test_unknown_options_are_refused(small, estimator, unchecked):
    dataset = small_dataset(small)
    with pytest.raises(ValueError, match="decode: expected one of udp"):
        evaluate(estimator, dataset, decode="nonsense")
    with pytest.raises(ValueError, match="oks_nms: expected 'hard', 'soft' or None, got 'none'"):
        evaluate(estimator, dataset, oks_nms="none")
    with pytest.raises(ValueError, match="oks_nms: expected 'hard', 'soft' or None, got 'none'"):
        to_results(dataset, {}, nms="none")


def test_deviations_from_the_published_protocol_are_listed(data, small, estimator):
    dataset = read_sample(data, "ochuman")
    assert evaluate(PoseEstimator(estimator.model, border="opencv"), dataset).deviations == []
    other = PoseEstimator(estimator.model, border="scipy", padding=1.5)
    options = {"decode": "udp", "flip_test": False, "limit": 2, "oks_nms": None, "keypoint_threshold": 0.0}
    assert evaluate(other, dataset, **options).deviations == [
        "decode udp, not quarter",
        "flip_test False, not True",
        "border scipy, not opencv",
        "padding 1.5, not 1.25",
        "limit 2, not None",
        "oks_nms None, not hard",
        "keypoint_threshold 0.0, not 0.2",
    ]


def test_a_journal_is_read_line_by_line(tmp_path):
    """Reading needs memory for the poses and one line, not for the whole file."""
    rng = np.random.default_rng(0)
    outcomes = {number: np.round(rng.uniform(0, 999, (4, 133, 3)), 5) for number in range(100)} | {100: "broken"}
    Journal(tmp_path, {}, 133, resume=False).append(outcomes)
    tracemalloc.start()
    found = Journal(tmp_path, {}, 133, resume=True).outcomes
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.3 * sum(poses.nbytes for poses in found.values() if not isinstance(poses, str))
    assert list(found) == list(outcomes)
    for number, outcome in outcomes.items():
        np.testing.assert_array_equal(found[number], outcome)
    with (tmp_path / "poses.jsonl").open("a") as file:
        file.write('{"image":3,"poses":[[1.0,2.0]]}\n')
    with pytest.raises(ValueError, match=r"poses.jsonl:103: expected poses of an evaluation"):
        Journal(tmp_path, {}, 133, resume=True)


def test_stretched_crops_reach_the_program(estimator):
    image = random_image(3)
    stretching = PoseEstimator(estimator.model, border="opencv", stretch=True)
    flat, square = np.array([[20.0, 50.0, 100.0, 20.0]]), np.array([[20.0, 10.0, 60.0, 60.0]])
    # All keypoints are inside the padded box; without stretching the region is higher.
    low, high = flat[0, :2] - flat[0, 2:] / 8, flat[0, :2] + flat[0, 2:] * 9 / 8
    options = {"decode": "argmax"}
    stretched, plain = stretching(image, flat, **options).keypoints, estimator(image, flat, **options).keypoints
    assert ((stretched >= low - POSITIONS) & (stretched <= high + POSITIONS)).all()
    assert ((plain[..., 1] < low[1]) | (plain[..., 1] > high[1])).any()
    # A box with the aspect of the crop is not stretched.
    np.testing.assert_array_equal(
        stretching(image, square, **options).keypoints, estimator(image, square, **options).keypoints
    )


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(small, whole, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    commands = [
        programs.command("evaluate_in_two_processes", small, tmp_path / "out", address, number) for number in range(2)
    ]
    processes = [
        subprocess.Popen(command, env=programs.environment(), stdout=subprocess.PIPE, text=True) for command in commands
    ]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    # Gloo says something, too.
    last = [lines.splitlines()[-1] for lines in printed]
    assert last[0] == last[1]
    assert "'AP'" in last[0]
    assert contents(tmp_path / "out") == contents(whole)


# The command.


def evaluate_small(capsys, small: pathlib.Path, output: pathlib.Path, *more: object) -> tuple[int, str, str]:
    options = ("--images", small, "--annotations", small / "annotations.json", "--model", small / "model")
    return run(capsys, "evaluate", "--dataset", "coco", *options, "--output", output, "--max-batch", 2, *more)


def test_command_prints_metrics_and_deviations(capsys, data, small, tmp_path):
    folder, output = data / "coco_val", tmp_path / "out"
    options = ("--images", folder / "images", "--annotations", folder / "person_keypoints.json", "--limit", 3)
    options += ("--ground-truth-boxes", "--model", small / "model", "--output", output, "--max-batch", 1)
    status, printed, said = run(capsys, "evaluate", "--dataset", "coco", *options)
    assert status == 0
    assert [line.split()[0] for line in printed.splitlines()[:10]] == [
        "AP", "AP50", "AP75", "AP(M)", "AP(L)", "AR", "AR50", "AR75", "AR(M)", "AR(L)",
    ]  # fmt: skip
    assert printed.splitlines()[10:12] == [
        "not as published: boxes of the annotations, not detections",
        "not as published: limit 3, not None",
    ]
    assert "in 3 images" in printed
    assert "published figures for coco use a detector's boxes" in said
    assert sorted(path.name for path in output.iterdir()) == FILES
    settings = json.loads((output / "metrics.json").read_text())["settings"]
    assert settings["model"] == str(small / "model")
    assert (settings["border"], settings["decode"], settings["limit"], settings["max_batch"]) == ("opencv", "udp", 3, 1)
    status, _, said = run(capsys, "evaluate", "--dataset", "coco", *options)
    assert (status, "already holds poses.jsonl" in said) == (1, True)
    assert run(capsys, "evaluate", "--dataset", "coco", *options, "--resume")[:2] == (0, printed)


def test_command_options_reach_the_evaluation(capsys, small, tmp_path):
    boxes = [{"image_id": 2, "category_id": 1, "bbox": [5, 5, 70, 100], "score": 0.9}] * 2
    boxes.append({"image_id": 4, "category_id": 1, "bbox": [5, 5, 0, 100], "score": 0.9})
    boxes.append({"image_id": 4, "category_id": 1, "bbox": [5, 5, 50, 100], "score": 0.1})
    detections = tmp_path / "boxes.json"
    detections.write_text(json.dumps(boxes))
    options = ("--detections", detections, "--no-flip-test", "--decode", "argmax", "--dtype", "bfloat16")
    options += ("--quantize", "int4", "--group-size", 4)
    output = tmp_path / "out"
    status, printed, said = evaluate_small(capsys, small, output, *options, "--soft-nms", "--min-score", 0.5)
    assert status == 0
    assert "2 boxes in 1 images, 2 results" in printed
    assert "not as published: weights int4, groups of 4, not floating point" in printed
    assert "1 boxes without area" in said
    settings = json.loads((output / "metrics.json").read_text())["settings"]
    assert (settings["flip_test"], settings["decode"], settings["dtype"]) == (False, "argmax", "bfloat16")
    assert (settings["oks_nms"], settings["detections"].split()[0]) == ("soft", "boxes.json")


def test_broken_images_end_the_command_with_1(capsys, small, tmp_path):
    folder = tmp_path / "small"
    shutil.copytree(small, folder)
    (folder / "1.jpg").write_bytes(b"no image")
    status, printed, said = evaluate_small(capsys, folder, tmp_path / "out", "--ground-truth-boxes", "--limit", 8)
    assert status == 1
    assert "16 boxes in 8 images, 14 results" in printed
    assert "1.jpg" in said
    assert "1 images with 2 boxes failed and count as missed" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "expected either --detections FILE.json or --ground-truth-boxes"),
        (("--ground-truth-boxes", "--detections", "boxes.json"), "expected either --detections"),
        (("--ground-truth-boxes", "--dataset", "lsp"), "no dataset named 'lsp' to evaluate; expected one of coco"),
        (("--ground-truth-boxes", "--dataset", "ochuman", "--images", "nowhere"), "nowhere: expected the folder"),
        (("--ground-truth-boxes", "--annotations", "nothing.json"), "nothing.json"),
        (("--ground-truth-boxes", "--dataset", "mpii", "--images", "nowhere"), "mpii: PCKh needs the sizes of heads"),
        (("--ground-truth-boxes", "--dataset", "mpii", "--soft-nms"), "oks_nms: expected none for mpii"),
        (("--ground-truth-boxes", "--dataset", "ap10k"), "no dataset 'ap10k' in this model; it knows coco"),
        (("--ground-truth-boxes", "--max-batch", "3"), "max_batch: expected a power of two"),
        (("--ground-truth-boxes", "--devices", "99"), "--devices: expected at most"),
        (("--ground-truth-boxes", "--group-size", "4"), "--group-size: expected it with --quantize int4"),
        (("--ground-truth-boxes", "--resume", "--overwrite"), "expected --resume or --overwrite, got both"),
    ],
)
def test_command_reports_a_mistake_in_one_line(capsys, small, tmp_path, options, message):
    status, _, said = evaluate_small(capsys, small, tmp_path / "out", *options)
    assert status == 1
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
