"""Files of boxes: every layout that people have, and one bad box that costs no other."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.support.cli import run
from tests.support.images import random_image
from tests.support.models import TINY, random_model
from tests.tolerances import FLOAT32
from vitpose_jax import VitPoseConfig, checkpoint
from vitpose_jax.datasets import BoxFile

A, B = [20, 20, 50, 90], [10, 10, 60, 100]
IMAGE = {"id": 7, "file_name": "a.png"}
pytestmark = pytest.mark.usefixtures("compiled_once")


def annotation(box, id_=1, **more) -> dict:
    return {"id": id_, "image_id": 7, "category_id": 1, "bbox": box, **more}


def result(box, **more) -> dict:
    return {"image_id": "a", "category_id": 1, "bbox": box, "score": 0.5, **more}


@pytest.fixture
def image(tmp_path) -> pathlib.Path:
    Image.fromarray(random_image(1, 128, 96)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def read(image: pathlib.Path, content: object, name: str = "boxes.json", **options) -> BoxFile:
    path = image.parent / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return BoxFile(path, **options)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([result(A), result(B)], [A, B]),
        ([result(A, score=None)], [A]),
        ([result(A, category_id=None)], [A]),
        ([result(A, image_id="a.png")], [A]),
        ({"images": [IMAGE], "annotations": [annotation(A)]}, [A]),
        ({"images": [IMAGE], "annotations": [annotation(A, image_id=7.0), annotation(B, 2, image_id="7")]}, [A, B]),
        ({"images": [IMAGE], "annotations": [annotation(A, iscrowd="0")]}, [A]),
        ({"images": [{"id": 7, "file_name": "images\\a.png"}], "annotations": [annotation(A)]}, [A]),
        ({"images": [{"id": 7, "file_name": "C:\\images\\a.png"}], "annotations": [annotation(A)]}, [A]),
        ({"a.png": [A, B]}, [A, B]),
        ({"a.png": A}, [A]),
        ([A, B], [A, B]),
        ({"image": "a.png", "poses": [{"skeleton": "coco", "box": A, "keypoints": []}]}, [A]),
        ({"detections": [{"label": "person", "score": 0.9, "box": A}]}, [A]),
    ],
)
def test_layouts(image, content, expected):
    boxes = read(image, content)
    assert boxes[image].boxes == expected
    assert boxes.notes == boxes.check([image]) == []


def test_yolo(image):
    """Fractions of the image, one file for each image."""
    boxes = read(image, "0 0.5 0.5 0.25 0.5\n1 0.25 0.75 0.5 0.25 0.875\n\n", "a.txt")
    wanted = [[36, 32, 24, 64], [0, 80, 48, 32]]
    np.testing.assert_allclose(boxes[image].boxes, wanted, rtol=FLOAT32)
    assert boxes[image].scores == [1.0, 0.875] and boxes[image].categories == [1, 2]
    assert BoxFile(image.parent)[image] == boxes[image]
    for line in ("0 1 2 3", "person 0.5 0.5 0.2 0.2", "0 48 64 20 30", "0.5 0.5 0.5 0.1 0.1"):
        with pytest.raises(ValueError, match=r"a\.txt:1: expected "):
            read(image, line, "a.txt")


def test_yolo_is_in_the_image_as_it_is_read(image):
    """An image that its EXIF turns is 96 pixels wide, not 128."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_image(1, 96, 128)).save(image.with_name("b.jpg"), exif=exif)
    boxes = read(image, "0 0.5 0.5 0.25 0.5", "b.txt")
    np.testing.assert_allclose(boxes[image.with_name("b.jpg")].boxes, [[36, 32, 24, 64]], rtol=FLOAT32)


@pytest.mark.parametrize(
    "content",
    [
        {"predictions": [{"x": 45, "y": 65, "width": 50, "height": 90}], "image": {"width": 96, "height": 128}},
        {"a.png593": {"filename": "a.png", "size": 593, "regions": []}},
        {"shapes": [], "imagePath": "a.png"},
        {"a.png": [{"x": 1}]},
        {"a.png": 3},
        [A, result(B)],
        [1, 2, 3],
        3,
        None,
        "text",
    ],
)
def test_other_layouts_are_refused(image, content):
    with pytest.raises(ValueError, match=r"boxes\.json: this layout is not known; expected COCO results") as error:
        read(image, json.dumps(content))
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("content", ["[" * 100000, "9" * 5000, "{", ""])
def test_files_that_are_no_json_are_refused(image, content):
    with pytest.raises(ValueError, match=r"boxes\.json: expected JSON"):
        read(image, content)


def test_other_mistakes_name_the_file(image):
    for content, message in (
        ({"": [[1, 2, 3, 4]]}, "expected the name of an image file, got ''"),
        ('[{"image_id": "a", "bbox": [1, 2, 30, 40], "score": 1e400}]', "score: expected finite numbers, got inf"),
        (f'[{{"image_id": "a", "bbox": [1, 2, 30, 40], "score": {"9" * 400}}}]', "score: expected numbers, got 9999"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read(image, content)
        assert "boxes.json" in str(error.value)


@pytest.mark.parametrize(
    "bad", [[0, 0, 0, 0], [1, 2, -3, 4], None, [1, 2, 3], [1, 2, None, 4], "1 2 3 4", [1e30, 0, 1, 1]]
)
def test_one_bad_box_costs_no_other(image, bad):
    for content in (
        {"images": [IMAGE], "annotations": [annotation(bad), annotation(B, 2)]},
        [result(bad), result(B)],
        {"image": "a.png", "poses": [{"box": bad}, {"box": B}]},
    ):
        boxes = read(image, content)
        assert boxes[image].boxes == [B]
        (note,) = boxes.check([image])
        assert "boxes.json: left out 1 box: " in note
    del content["poses"][0]["box"]
    assert read(image, content)[image].boxes == [B]


def test_what_is_left_out_is_counted(image):
    content = {
        "images": [IMAGE, {"id": 8, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
        "annotations": [
            annotation(A),
            annotation(B, 2, image_id=8),
            annotation(B, 3, image_id=9),
            annotation(B, 4, iscrowd=1),
        ],
    }
    boxes = read(image, content)
    assert boxes[image].boxes == [A, B]
    messages = boxes.check([image, image.with_name("c.png")])
    assert [message.replace(f"{image.parent}/", "") for message in messages] == [
        "boxes.json: left out 1 crowd (iscrowd)",
        "boxes.json: 1 file name of several images; their boxes are joined",
        "1 of 2 images have no boxes in boxes.json",
        "boxes.json: 1 of 3 boxes are of images not in this run",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"b.png": [A]}, "no boxes for any of 1 image, such as a.png; the file has boxes of b.png"),
        ([result(A, image_id=99)], "no boxes for any of 1 image, such as a.png; the file has boxes of 99"),
        ({"a.png": [[0, 0, 0, 0]]}, "no usable box for any of 1 image: left out 1 box: "),
        ({"images": [IMAGE], "annotations": [annotation(A, iscrowd=1)]}, "no usable box .* left out 1 crowd"),
    ],
)
def test_a_file_that_does_nothing_for_a_run_is_an_error(image, content, message):
    with pytest.raises(ValueError, match=message):
        read(image, content).check([image])


def test_images_without_people_are_no_error(image):
    assert read(image, {"a.png": []}).check([image]) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    checkpoint.save(random_model(VitPoseConfig(**TINY)), folder)
    return folder


def test_the_command_line_tells_what_was_left_out(capsys, image, model, tmp_path):
    def predict(content, *more):
        read(image, {"a.png": []})
        (image.parent / "boxes.json").write_text(json.dumps(content))
        options = ("--model", model, "--boxes", image.parent / "boxes.json", "--output", tmp_path / "out", *more)
        return run(capsys, "predict", image, *options)

    mixed = [annotation(A, category_id=62), annotation(B, 2), annotation([0, 0, 0, 0], 3)]
    status, _, said = predict({"images": [IMAGE], "annotations": mixed}, "--format", "coco")
    assert status == 0 and said.count("left out 1 box") == 1
    entries = json.loads((tmp_path / "out" / "keypoints.json").read_text())
    assert [entry["category_id"] for entry in entries] == [62, 1]
    status, _, said = predict({"b.png": [A]}, "--overwrite")
    assert status == 1 and said.count("\n") == 1 and "no boxes for any of 1 image" in said


def test_images_of_another_size_than_the_file_says_are_named(capsys, image, model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_image(1, 128, 96)).save(image.with_name("turned.jpg"), exif=exif)
    Image.fromarray(random_image(1, 64, 48)).save(image.with_name("half.png"))
    names = ("a.png", "turned.jpg", "half.png")
    content = {
        "images": [{"id": id_, "file_name": name, "width": 96, "height": 128} for id_, name in enumerate(names)],
        "annotations": [{"id": id_, "image_id": id_, "category_id": 1, "bbox": [5, 5, 30, 50]} for id_ in range(3)],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    options = ("--model", model, "--boxes", tmp_path / "boxes.json", "--output", tmp_path / "out")
    status, _, said = run(capsys, "predict", *(image.with_name(name) for name in names), *options)
    assert status == 0
    assert "warning: " in said and "turned.jpg: expected 96 x 128 pixels, as annotated, got 128 x 96" in said
    assert "boxes and keypoints would lie in other places" in said and "(1 other images also differ)" in said


def test_the_results_of_predict_are_boxes(capsys, image, model, tmp_path):
    options = ("--model", model, "--boxes", "20,20,50,90", "--output", tmp_path / "first")
    assert run(capsys, "predict", image, *options)[0] == 0
    options = ("--model", model, "--boxes", tmp_path / "first" / "a.json", "--output", tmp_path / "second")
    assert run(capsys, "predict", image, *options)[0] == 0
    first, second = (json.loads((tmp_path / name / "a.json").read_text()) for name in ("first", "second"))
    assert first == second
