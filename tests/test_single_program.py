"""Detector and pose estimator together: in two programs, in one, and on the command line."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.support.cli import run
from tests.support.images import random_image
from tests.support.models import TINY, random_model
from tests.support.reference_rtdetr import save, tiny_detector
from tests.tolerances import BOXES, DETECTOR, KEYPOINTS, ROUNDED_PEAKS
from vitpose_jax import Detector, PoseEstimator, SingleProgramEstimator, VitPoseConfig, checkpoint
from vitpose_jax.draw import draw_boxes
from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import COCO, Skeleton

# A tiny detector knows nothing, so it is sure of nothing.
LOW = {"threshold": 0.2, "labels": ("person", "dog")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of a pose model and of a detector."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint.save(random_model(VitPoseConfig(**TINY)), folder / "pose")
    (folder / "detector").mkdir()
    return folder / "pose", save(tiny_detector(2), folder / "detector")


@pytest.fixture(scope="module")
def detector(folders):
    return Detector.from_pretrained(folders[1], **LOW, max_detections=5)


@pytest.fixture(scope="module")
def estimator(folders, detector):
    return PoseEstimator.from_pretrained(folders[0], max_batch=8, detector=detector)


def test_boxes_are_detected_where_none_are_given(estimator, detector):
    image = random_image()
    found, poses = detector(image), estimator(image, decode="argmax")
    assert len(poses) == len(found) == 5
    np.testing.assert_array_equal(poses.boxes, found.boxes)
    np.testing.assert_array_equal(poses.box_scores, found.scores)
    given = estimator(image, found.boxes, decode="argmax")
    np.testing.assert_allclose(poses.keypoints, given.keypoints, atol=BOXES)
    # Whose boxes they are can be seen.
    assert given.box_scores is None
    whole = estimator(image, "image")
    assert whole.box_scores is None and whole.boxes.tolist() == [[0, 0, 160, 120]]


def test_lists_and_streams_mix_given_and_detected_boxes(estimator):
    images = [random_image(seed) for seed in range(3)]
    boxes = [None, [[10, 10, 50, 60]], None]
    poses = estimator(images, boxes)
    assert [len(row) for row in poses] == [5, 1, 5]
    assert [row.box_scores is None for row in poses] == [False, True, False]
    streamed = list(estimator.stream(zip(images, boxes, strict=True)))
    for one, other in zip(poses, streamed, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=BOXES)
    assert all(row.box_scores is not None for row in estimator(images))


def test_the_detector_is_loaded_as_the_model_is(folders):
    estimator = PoseEstimator.from_pretrained(folders[0], detector=str(folders[1]), dtype=jnp.bfloat16)
    assert estimator.detector.model.dtype == jnp.bfloat16
    assert estimator.detector.labels == ("person",) and estimator.detector.threshold == 0.3


def test_an_image_without_people_gives_no_poses(estimator, detector):
    poses = PoseEstimator(estimator.model, detector=Detector(detector.model, threshold=0.99))(random_image())
    assert len(poses) == 0 and poses.boxes.shape == (0, 4) and poses.box_scores.shape == (0,)
    assert poses.to_dict() == {"poses": []} and poses.to_coco(1) == []


def test_scores_of_boxes_travel_with_poses():
    poses = Poses(
        keypoints=np.zeros((2, 17, 2), np.float32),
        scores=np.full((2, 17), 0.5, np.float32),
        boxes=np.ones((2, 4), np.float32),
        skeleton_index=np.zeros(2, np.int32),
        skeletons=(COCO,),
        box_scores=np.asarray([0.9, 0.4], np.float32),
    )
    assert poses[1].box_scores.tolist() == pytest.approx([0.4])
    assert [entry["box_score"] for entry in poses.to_dict()["poses"]] == [0.9, 0.4]
    assert [entry["score"] for entry in poses.to_coco(1)] == pytest.approx([0.45, 0.2])
    assert [entry["score"] for entry in poses.to_coco(1, box_scores=[1, 1])] == [0.5, 0.5]


def test_one_program_finds_what_two_find(estimator, detector):
    onestep = SingleProgramEstimator(estimator.model, detector, max_people=8)
    for image in (random_image(), random_image(1, 200, 90)):
        ours, expected = onestep(image, decode="argmax"), estimator(image, decode="argmax")
        assert len(ours) == len(expected) == 5
        np.testing.assert_allclose(ours.boxes, expected.boxes, atol=BOXES)
        np.testing.assert_allclose(ours.box_scores, expected.box_scores, rtol=0, atol=DETECTOR)
        # Of points before refinement some may jump, where a sample lies half-way between two pixel values.
        assert (np.abs(ours.keypoints - expected.keypoints).max(axis=-1) < KEYPOINTS).mean() > ROUNDED_PEAKS
        assert ours.skeleton == COCO
    assert onestep.num_compiled == 1
    empty = SingleProgramEstimator(estimator.model, Detector(detector.model, threshold=0.99), max_people=2)(
        random_image()
    )
    assert len(empty) == 0
    with pytest.raises(ValueError, match="max_people: expected 1 to 30"):
        SingleProgramEstimator(estimator.model, detector, max_people=31)


def test_a_flip_test_in_one_program_needs_flip_pairs(detector):
    skeleton = Skeleton(name="custom", keypoints=("a", "b"))
    single_program = SingleProgramEstimator(random_model(VitPoseConfig(**TINY, skeletons=(skeleton,))), detector)
    with pytest.raises(ValueError, match="'custom' has no flip pairs"):
        single_program(random_image(), flip_test=True)


# The command line


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (7, 12):
        Image.fromarray(random_image(number)).save(folder / f"{number:06}.png")
    return folder


def test_detect_and_predict_from_its_file(capsys, folders, images, tmp_path):
    pose, detector = folders
    out = tmp_path / "out"
    options = ("--detector", detector, "--threshold", 0.2, "--max-detections", 3, "--output", out, "--draw")
    status, printed, said = run(capsys, "detect", images, *options)
    assert (status, said) == (0, "") and "6 objects in 2 of 2 images" in printed
    entries = json.loads((out / "detections.json").read_text())
    assert [entry["image_id"] for entry in entries] == [7] * 3 + [12] * 3
    assert {entry["category_id"] for entry in entries} == {1}
    with Image.open(out / "000007_detections.png") as drawing:
        assert drawing.size == (160, 120) and np.abs(np.asarray(drawing).astype(int) - random_image(7)).max() > 100
    status, printed, _ = run(
        capsys, "predict", images, "--model", pose, "--boxes", out / "detections.json", "--output", tmp_path / "poses"
    )
    assert status == 0
    assert len(json.loads((tmp_path / "poses" / "000007.json").read_text())["poses"]) == 3
    status, _, said = run(capsys, "detect", images, *options)
    assert status == 0 and "2 of 2 images are done already" in said
    status, _, said = run(capsys, "detect", images, *options, "--threshold", 0.3)
    assert status == 1 and "min_score was 0.2, now 0.3" in said


@pytest.mark.slow
def test_predict_with_a_detector(capsys, folders, images, tmp_path):
    pose, detector = folders
    arguments = ("predict", images / "000007.png", "--model", pose, "--output", tmp_path)
    status, printed, said = run(capsys, *arguments, "--detector", detector, "--min-score", 0.25, "--label", "all")
    assert (status, said) == (0, "")
    people = json.loads((tmp_path / "000007.json").read_text())["poses"]
    assert people and all(person["box_score"] > 0.25 for person in people)
    assert printed.count("person ") == len(people) and f", score {people[0]['box_score']:.3f}" in printed
    for more, message in (
        (("--boxes", "1,2,3,4", "--detector", detector), "expected --boxes or --detector, got both"),
        (("--label", "dog", "--overwrite"), "knows no 'dog'"),
        (("--boxes", "1,2,3,4", "--label", "person"), "boxes are given"),
        (("--boxes", "1,2,3,4", "--whole-image"), "expected --boxes or --whole-image, got both"),
        (("--detector", detector, "--label", "cat", "--overwrite"), "knows no 'cat'"),
    ):
        status, _, said = run(capsys, *arguments, *more)
        assert status == 1 and message in said


def test_a_bad_image_does_not_stop_the_others(capsys, folders, images, tmp_path):
    (images / "000009.png").write_bytes(b"no image")
    options = ("--detector", folders[1], "--threshold", 0.99, "--output", tmp_path / "out")
    status, printed, said = run(capsys, "detect", images, *options)
    assert status == 1 and "000009.png" in said and "1 images failed" in said
    assert "0 objects in 2 of 3 images" in printed
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == []


def test_detected_boxes_are_drawn_at_their_edges():
    image = np.full((60, 80, 3), 90, np.uint8)
    boxes = np.asarray([[10, 20, 30, 25], [-50, -50, 500, 500]], np.float32)
    drawing = np.asarray(draw_boxes(image, boxes, ("person", "dog"), np.asarray([0.9, 0.4], np.float32), line_width=2))
    changed = (drawing != 90).any(axis=-1)
    # The edges of the first box, and nothing in it below its name; the second leaves the image on all sides.
    assert changed[44:47, 10:40].any(axis=0).all() and changed[20:45, 39:42].any(axis=1).all()
    assert not changed[36:43, 14:37].any()
    np.testing.assert_array_equal(draw_boxes(image, boxes[:0], (), np.zeros(0, np.float32)), image)
    with pytest.raises(ValueError, match="expected 2 names and scores, got 1 and 2"):
        draw_boxes(image, boxes, ("person",), np.zeros(2, np.float32))
