"""The command line, run as a user runs it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.support import programs
from tests.support.cli import run
from tests.support.images import random_image
from tests.support.models import TINY, random_model
from tests.tolerances import HELP_SECONDS
from vitpose_jax import PoseEstimator, VitPoseConfig, checkpoint, draw_poses, load_image

BOX = "20,10,60,90"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    checkpoint.save(random_model(VitPoseConfig(**TINY)), folder)
    return str(folder)


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (7, 12, 30):
        Image.fromarray(random_image(number)).save(folder / f"{number:06}.jpg")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_one_image_prints_and_draws(capsys, model, images, tmp_path):
    out = tmp_path / "out"
    image = images / "000007.jpg"
    status, printed, said = run(capsys, "predict", image, "--model", model, "--boxes", BOX, "--output", out, "--draw")
    assert (status, said) == (0, "")
    assert printed.count("\n") == 1 + 17 + 1
    assert "nose" in printed
    document = json.loads((out / "000007.json").read_text())
    assert document["image"] == "000007.jpg"
    (pose,) = document["poses"]
    assert pose["box"] == [20, 10, 60, 90]
    assert [keypoint["name"] for keypoint in pose["keypoints"]][:2] == ["nose", "left_eye"]
    with Image.open(out / "000007_poses.png") as drawing:
        assert drawing.size == (160, 120)
    assert sorted(path.name for path in out.iterdir()) == ["000007.json", "000007_poses.png", "settings.jsonl"]


def test_drawings_look_as_the_options_say(capsys, model, images, tmp_path):
    image, drawings = images / "000007.jpg", []
    options = ("--line-width", 2, "--radius", 4, "--colour-by", "keypoint", "--numbers", "--fade", "--threshold", -9)
    for name, more in (("plain", ()), ("other", options)):
        arguments = ("--model", model, "--boxes", BOX, "--output", tmp_path / name, "--draw", *more)
        assert run(capsys, "predict", image, *arguments)[0] == 0
        drawings.append(load_image(tmp_path / name / "000007_poses.png"))
    poses = PoseEstimator.from_pretrained(model)(image, [[float(number) for number in BOX.split(",")]])
    style = {"line_width": 2, "radius": 4, "colour_by": "keypoint", "fade": True}
    expected = draw_poses(image, poses, threshold=-9, labels=["0"], **style)
    np.testing.assert_array_equal(drawings[1], expected)
    assert (drawings[0] != drawings[1]).any()
    status, _, said = run(capsys, "predict", image, *arguments, "--overwrite", "--line-width", -1)
    assert status != 0 and said == "vitpose-jax: error: line_width: expected a positive number of pixels, got -1.0\n"


def test_the_whole_image_is_one_box(capsys, model, images, tmp_path):
    options = ("--model", model, "--output", tmp_path, "--whole-image")
    status, _, said = run(capsys, "predict", images / "000007.jpg", *options)
    assert (status, said) == (0, "")
    assert json.loads((tmp_path / "000007.json").read_text())["poses"][0]["box"] == [0, 0, 160, 120]


def test_without_boxes_the_bundled_finder_finds_no_people_in_noise(capsys, model, images, tmp_path):
    status, printed, said = run(capsys, "predict", images / "000007.jpg", "--model", model, "--output", tmp_path)
    assert status == 0 and printed == f"1 of 1 images done: {tmp_path}\n"
    assert "people are found by the bundled finder" in said
    assert json.loads((tmp_path / "000007.json").read_text())["poses"] == []


@pytest.mark.parametrize("named", ["folder", "pattern"])
def test_a_coco_file_of_detections_gives_boxes_and_coco_results(capsys, model, images, tmp_path, named):
    boxes = tmp_path / "boxes.json"
    entries = [
        {"image_id": 7, "bbox": [10, 10, 50, 80], "score": 0.9, "category_id": 1},
        {"image_id": 7, "bbox": [60, 10, 50, 80], "score": 0.2, "category_id": 1},
        {"image_id": 30, "bbox": [5, 5, 50, 80], "score": 0.8, "category_id": 18},
        {"image_id": 30, "bbox": [9, 9, 50, 80], "score": 0.7, "category_id": 1},
    ]
    boxes.write_text(json.dumps(entries))
    where = images if named == "folder" else images / "*.jpg"
    options = ("--boxes", boxes, "--category", 1, "--min-score", 0.5, "--format", "coco")
    status, printed, _ = run(capsys, "predict", where, "--model", model, "--output", tmp_path / "out", *options)
    assert status == 0
    assert "3 of 3 images done" in printed
    found = json.loads((tmp_path / "out" / "keypoints.json").read_text())
    assert [(entry["image_id"], entry["bbox"]) for entry in found] == [(7, [10, 10, 50, 80]), (30, [9, 9, 50, 80])]
    assert all(len(entry["keypoints"]) == 51 for entry in found)


@pytest.mark.parametrize("format", ["annotations", "table"])
def test_box_files_of_other_formats_are_read(capsys, model, images, tmp_path, format):
    content = {"000012.jpg": [[10, 10, 50, 80], [60, 10, 50, 80]]}
    if format == "annotations":
        annotations = [{"image_id": 5, "bbox": box, "category_id": 1} for box in content["000012.jpg"]]
        annotations.append({"image_id": 5, "bbox": [0, 0, 160, 120], "category_id": 1, "iscrowd": 1})
        content = {"images": [{"id": 5, "file_name": "val/000012.jpg"}], "annotations": annotations}
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(content))
    status, _, _ = run(capsys, "predict", images, "--model", model, "--boxes", boxes, "--output", tmp_path / "out")
    assert status == 0
    counts = [len(json.loads(path.read_text())["poses"]) for path in sorted((tmp_path / "out").glob("0*.json"))]
    assert counts == [0, 2, 0]


def test_openpose_files_are_written(capsys, model, images, tmp_path):
    options = ("--boxes", BOX, "--boxes", "30,20,50,70", "--format", "openpose")
    run(capsys, "predict", images / "000007.jpg", "--model", model, "--output", tmp_path, *options)
    document = json.loads((tmp_path / "000007_keypoints.json").read_text())
    assert len(document["people"]) == 2


@pytest.mark.parametrize("layout", ["json", "coco"])
def test_a_second_run_skips_what_is_done(capsys, model, images, tmp_path, layout):
    def predict(*more):
        options = ("--boxes", BOX, "--output", tmp_path / "out", "--format", layout, *more)
        return run(capsys, "predict", images, "--model", model, *options)

    first = images / "000007.jpg"
    run(capsys, "predict", first, "--model", model, "--boxes", BOX, "--output", tmp_path / "out", "--format", layout)
    _, printed, said = predict()
    assert "1 of 3 images are done already" in said
    assert "2 of 3 images done" in printed
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    _, printed, said = predict()
    assert (printed, "3 of 3 images are done already" in said) == ("", True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == files
    _, printed, said = predict("--overwrite")
    assert "3 of 3 images done" in printed
    if layout == "coco":
        assert len(json.loads((tmp_path / "out" / "keypoints.json").read_text())) == 3


def test_coco_results_of_other_images_stay(capsys, model, images, tmp_path):
    def predict(where, *more):
        options = ("--boxes", BOX, "--output", tmp_path / "out", "--format", "coco", *more)
        return run(capsys, "predict", where, "--model", model, *options)

    predict(images)
    assert predict(images / "000007.jpg", "--overwrite")[0] == 0
    found = json.loads((tmp_path / "out" / "keypoints.json").read_text())
    assert sorted(entry["image_id"] for entry in found) == [7, 12, 30]


def test_images_without_people_are_done_too(capsys, model, images, tmp_path):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"000007.jpg": [], "000012.jpg": [[10, 10, 50, 80]], "000030.jpg": []}))
    options = ("--model", model, "--boxes", boxes, "--output", tmp_path / "out", "--format", "coco")
    assert "3 of 3 images done" in run(capsys, "predict", images, *options)[1]
    assert "3 of 3 images are done already" in run(capsys, "predict", images, *options)[2]


def test_an_image_is_never_overwritten(capsys, model, images):
    image = images / "000007.jpg"
    image.rename(images / "000007_poses.png")
    before = (images / "000007_poses.png").read_bytes()
    # The drawing of 000007.png has the name of the other image; that of 000007_poses.png has another.
    Image.fromarray(random_image(7)).save(images / "000007.png")
    options = ("--model", model, "--boxes", BOX, "--output", images, "--draw")
    assert run(capsys, "predict", images / "000007_poses.png", *options)[0] == 0
    status, _, said = run(capsys, "predict", images / "000007.png", images / "000007_poses.png", *options)
    assert (status, "would overwrite" in said) == (1, True)
    assert (images / "000007_poses.png").read_bytes() == before


def test_boxes_go_to_their_own_image(capsys, model, images, tmp_path):
    """An image without annotations does not get those of the image whose number its name happens to be."""
    boxes = tmp_path / "boxes.json"
    names = [{"id": 7, "file_name": "000012.jpg"}, {"id": 12, "file_name": "000007.jpg"}]
    boxes.write_text(json.dumps({"images": names, "annotations": [{"image_id": 12, "bbox": [9, 9, 50, 80]}]}))
    run(capsys, "predict", images, "--model", model, "--boxes", boxes, "--output", tmp_path / "out")
    counts = [len(json.loads(path.read_text())["poses"]) for path in sorted((tmp_path / "out").glob("0*.json"))]
    assert counts == [1, 0, 0]
    boxes.write_text(json.dumps({"a/000007.jpg": [[1, 1, 9, 9]], "images/000007.jpg": [[2, 2, 9, 9], [3, 3, 9, 9]]}))
    options = ("--model", model, "--boxes", boxes, "--output", tmp_path / "other", "--overwrite")
    assert run(capsys, "predict", images / "000007.jpg", *options)[0] == 0
    assert len(json.loads((tmp_path / "other" / "000007.json").read_text())["poses"]) == 2
    boxes.write_text(json.dumps({"a/000007.jpg": [[1, 1, 9, 9]], "b/000007.jpg": [[2, 2, 9, 9]]}))
    status, _, said = run(capsys, "predict", images / "000007.jpg", *options)
    assert (status, "cannot tell which of a/000007.jpg, b/000007.jpg" in said) == (1, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 7, "bbox": [1, 1, 5, 5], "score": []}], "result 0: score: expected 1 numbers, got 0"),
        ([{"image_id": 7}], "no boxes for any of 1 image, such as 000007.jpg"),
        ([7], "this layout is not known; expected COCO results "),
        (7, "this layout is not known; expected COCO results "),
        ({"images": 3, "annotations": []}, "expected a list for 'images', got 3"),
        ({"images": [{"id": 1}], "annotations": []}, "image 1: expected the key 'file_name', got id"),
        ({"annotations": []}, "expected the key 'images', got annotations"),
        ({"000007.jpg": 5}, "this layout is not known; expected COCO results "),
        ({"000007.jpg": [[1, 2, 3]]}, "no usable box for any of 1 image: left out 1 box: "),
    ],
    ids=str,
)
def test_a_file_without_boxes_is_refused(capsys, model, images, tmp_path, content, message):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(content))
    options = ("--model", model, "--boxes", boxes, "--min-score", 0.1, "--output", tmp_path / "out")
    status, _, said = run(capsys, "predict", images / "000007.jpg", *options)
    assert status == 1
    assert f"{boxes}: {message}" in said
    assert "Traceback" not in said


def test_options_reach_the_estimator(capsys, model, images, tmp_path):
    def keypoints(*options):
        arguments = ("--model", model, "--boxes", BOX, "--output", tmp_path / "out", "--overwrite", *options)
        assert run(capsys, "predict", images / "000007.jpg", *arguments)[0] == 0
        (pose,) = json.loads((tmp_path / "out" / "000007.json").read_text())["poses"]
        return [(point["x"], point["y"]) for point in pose["keypoints"]]

    plain = keypoints()
    assert keypoints() == plain
    for options in (("--flip-test",), ("--decode", "argmax"), ("--decode", "quarter"), ("--dtype", "bfloat16")):
        assert keypoints(*options) != plain, options
    assert keypoints("--quantize", "int8") != plain != keypoints("--quantize", "int4", "--group-size", 8)
    settings = json.loads((tmp_path / "out" / "settings.jsonl").read_text())
    assert (settings["quantize"], settings["group_size"]) == ("int4", 8)


def test_a_broken_image_does_not_stop_the_others(capsys, model, images, tmp_path):
    (images / "000001.jpg").write_bytes((images / "000007.jpg").read_bytes()[:500])
    status, printed, said = run(
        capsys, "predict", images, "--model", model, "--boxes", BOX, "--output", tmp_path / "out"
    )
    assert status == 1
    assert "000001.jpg" in said
    assert "3 of 4 images done" in printed
    assert len(list((tmp_path / "out").glob("0*.json"))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.jpg",), "nowhere.jpg"),
        (("nothing-*.jpg",), "nothing-*.jpg: no images there"),
        (("IMAGE", "--boxes", "1,2,3"), "expected a file or x,y,w,h, got '1,2,3'"),
        (("IMAGE", "--boxes", "1,2,0,3"), "box 0 has no area"),
        (("IMAGE", "--boxes", "nan,1,2,3"), "--boxes: box 0 is not finite"),
        (("IMAGE", "--boxes", "IMAGE"), "expected JSON"),
        (("IMAGE", "--dataset", "ap10k"), "no dataset 'ap10k' in this model"),
        (("IMAGE", "--model", "no/such/folder"), "no/such/folder"),
        (("IMAGE", "--group-size", 8), "--group-size: expected it with --quantize int4, got --quantize nothing"),
        (("IMAGE", "--group-size", 8, "--quantize", "int8"), "--quantize int4, got --quantize int8"),
        (("IMAGE", "--quantize", "int4", "--whole-image"), "group_size: expected a divisor of the 24 inputs"),
    ],
)
def test_a_mistake_is_one_line(capsys, model, images, tmp_path, arguments, message):
    arguments = [str(images / "000007.jpg") if argument == "IMAGE" else argument for argument in arguments]
    status, _, said = run(capsys, "predict", "--model", model, "--output", tmp_path / "out", *arguments)
    assert status == 1
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("out/*"))


def test_same_names_in_two_folders_are_refused(capsys, model, images, tmp_path):
    Image.fromarray(random_image(1)).save(tmp_path / "000007.png")
    status, _, said = run(capsys, "predict", images, tmp_path / "000007.png", "--model", model)
    assert status == 1
    assert "would be named '000007'" in said


def test_init_info_and_convert_work_together(capsys, tmp_path):
    assert run(capsys, "init", "small-simple", tmp_path / "native")[0] == 0
    status, printed, _ = run(capsys, "info", tmp_path / "native")
    assert status == 0
    assert "21.72 M" in printed
    assert "coco (17)" in printed
    assert run(capsys, "convert", tmp_path / "native", tmp_path / "hub", "--to", "huggingface")[0] == 0
    assert "huggingface" in run(capsys, "info", tmp_path / "hub")[1]
    status, _, said = run(capsys, "convert", tmp_path / "native", tmp_path / "hub", "--to", "huggingface")
    assert status == 1
    assert "already holds" in said
    back = checkpoint.load(tmp_path / "native")
    assert np.isfinite(back.heads["coco"].conv.kernel[...]).all()
    status, _, said = run(capsys, "init", "tiny", tmp_path / "other")
    assert (status, "no preset named 'tiny'" in said) == (1, True)


def processor_seconds() -> float:
    """Of the programs that this process has waited for; what else the machine does is not in it."""
    times = os.times()
    return times.children_user + times.children_system


def test_help_is_quick_and_needs_no_jax():
    """Half a second of one core at most, as JAX alone takes longer to import; the quickest of three."""
    seconds = []
    for _ in range(3):
        start = processor_seconds()
        done = subprocess.run([sys.executable, "-m", "vitpose_jax.cli", "--help"], capture_output=True, text=True)
        seconds.append(processor_seconds() - start)
        assert done.returncode == 0
        assert "predict" in done.stdout
    assert min(seconds) < HELP_SECONDS
    command = programs.command("help_without_jax")
    subprocess.run(command, env=programs.environment(), check=True, capture_output=True)


def test_usage_errors_exit_with_2(capsys):
    assert run(capsys, "predict", "--format", "xml")[0] == 2
    assert run(capsys, "nonsense")[0] == 2
