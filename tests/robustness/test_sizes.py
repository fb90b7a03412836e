"""The size of an image against its annotations: turned or resized images are errors, not wrong crops."""

import contextlib
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.support.models import smallest_model
from vitpose_jax import Detections, Detector, PoseEstimator
from vitpose_jax.datasets import read_dataset
from vitpose_jax.datasets.coco import read_annotations
from vitpose_jax.datasets.sizes import check_size, check_sizes
from vitpose_jax.evaluation import evaluate
from vitpose_jax.evaluation.detector_runner import find_boxes
from vitpose_jax.images import load_image, read_size
from vitpose_jax.training.detection.data import BoxSource
from vitpose_jax.training.people import PersonSource


def write(folder: pathlib.Path, kind: str) -> pathlib.Path:
    """One annotated person in an image of 96 x 128 pixels that was then turned or resized; returns the annotations."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 96, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    if kind == "turned":
        exif[0x0112] = 6
    elif kind == "half":
        image = image.resize((48, 64))
    elif kind == "upside down":
        exif[0x0112] = 3
    elif kind == "a pixel less":
        image = image.crop((0, 0, 95, 127))
    image.save(folder / "a.png", exif=exif)
    keypoints = np.stack([np.linspace(30, 60, 17), np.linspace(30, 90, 17), np.full(17, 2)], axis=1)
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 128}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [20, 20, 50, 90],
                "area": 2000,
                "iscrowd": 0,
                "num_keypoints": 17,
                "keypoints": keypoints.ravel().tolist(),
            }
        ],
    }
    (folder / "a.json").write_text(json.dumps(document))
    return folder / "a.json"


DIFFERING = {
    "turned": r"a\.png: expected 96 x 128 pixels, as annotated, got 128 x 96; it was turned, perhaps by its EXIF",
    "half": r"a\.png: expected 96 x 128 pixels, as annotated, got 48 x 64; boxes and keypoints would lie in other pl",
}


@pytest.fixture(params=["upright", "upside down", "a pixel less", *DIFFERING])
def kind(request):
    return request.param


def expecting(kind: str):
    """No error, or the error of images whose sizes differ."""
    return pytest.raises(ValueError, match=DIFFERING[kind]) if kind in DIFFERING else contextlib.nullcontext()


def test_the_header_tells_the_size_as_it_is_read(tmp_path, kind):
    write(tmp_path, kind)
    height, width, _ = load_image(tmp_path / "a.png").shape
    assert read_size(tmp_path / "a.png") == (width, height)


def test_evaluation(tmp_path, kind):
    dataset = read_dataset("coco", write(tmp_path, kind), tmp_path)
    assert dataset.samples[0].size == (96, 128)
    with expecting(kind):
        assert evaluate(PoseEstimator(smallest_model()), dataset).counts["failed_images"] == 0


class SilentDetector(Detector):
    """Finds nothing, at once."""

    def __init__(self):
        pass

    def stream(self, images, **options):
        for _ in images:
            yield Detections(
                boxes=np.zeros((0, 4), np.float32),
                scores=np.zeros(0, np.float32),
                class_ids=np.zeros(0, int),
                classes=("person",),
            )


def test_evaluation_of_a_detector(tmp_path, kind):
    annotations = read_annotations(write(tmp_path, kind))
    with expecting(kind):
        assert find_boxes(SilentDetector(), annotations, tmp_path) == ([], [])


def test_training(tmp_path, kind):
    source = PersonSource.read("coco", write(tmp_path, kind), tmp_path)
    with expecting(kind):
        assert source[0].path == str(tmp_path / "a.png")


def test_training_of_a_detector(tmp_path, kind):
    source = BoxSource(write(tmp_path, kind), tmp_path)
    with expecting(kind):
        assert len(source[0].people) == 1


def test_many_images_give_one_error(tmp_path):
    for name in "abc":
        Image.new("RGB", (4, 5)).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    check_sizes([(paths[0], (4, 5)), (paths[1], None), (tmp_path / "absent.png", (1, 1))])
    with pytest.raises(ValueError, match=r"b\.png: expected 9 x 9 .* got 4 x 5.*\(1 other images also differ\)"):
        check_sizes([(paths[0], (4.4, 5.0)), (paths[1], (9, 9)), (paths[2], (9, 9.5))])
    check_size("a.png", None, (1, 1))
