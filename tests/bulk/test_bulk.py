"""`predict_files` and `detect_files` from Python: summaries, messages, and models that are loaded only when needed."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.support.images import random_image
from tests.support.models import TINY, random_model
from tests.support.reference_rtdetr import save, tiny_detector
from tests.tolerances import PLACES
from vitpose_jax import Detector, PoseEstimator, VitPoseConfig
from vitpose_jax.bulk import detect_files, predict_files

BOX = [[10, 10, 50, 80]]


@pytest.fixture(scope="module")
def estimator():
    return PoseEstimator(random_model(VitPoseConfig(**TINY)), max_batch=4)


@pytest.fixture
def folder(tmp_path):
    """Two images, and a file that is none."""
    images = tmp_path / "images"
    images.mkdir()
    for number in (1, 2):
        Image.fromarray(random_image(number)).save(images / f"{number}.png")
    (images / "3.png").write_bytes(b"no image")
    return images


def test_predict_files_returns_what_it_did(estimator, folder, tmp_path):
    messages, poses = [], {}
    summary = predict_files(
        estimator, [folder], tmp_path / "out", boxes=BOX, report=messages.append, on_poses=poses.__setitem__
    )
    first, second, broken = sorted(folder.iterdir())
    assert summary.images == [first, second, broken] and summary.written == [first, second] and summary.skipped == []
    assert list(summary.failed) == [broken] and "expected an image" in summary.failed[broken]
    # The file is named once.
    assert len(messages) == 1 and messages[0].count("3.png") == 1
    assert list(poses) == [first, second]
    document = json.loads((tmp_path / "out" / "1.json").read_text())
    np.testing.assert_array_equal(document["poses"][0]["box"], BOX[0])


def test_predict_files_loads_no_model_where_nothing_is_to_do(estimator, folder, tmp_path):
    (folder / "3.png").unlink()
    loaded = []

    def load():
        loaded.append(True)
        return estimator

    def run(**options):
        return predict_files(load, [folder], tmp_path / "out", boxes=BOX, report=lambda _: None, **options)

    assert len(run().written) == 2 and len(loaded) == 1
    assert len(run().skipped) == 2 and len(loaded) == 1
    assert len(run(overwrite=True).written) == 2 and len(loaded) == 2


def test_predict_files_reads_a_file_of_boxes(estimator, folder, tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"1.png": BOX * 2, "2.png": []}))
    predict_files(estimator, [folder / "1.png", folder / "2.png"], tmp_path / "out", boxes=path, format="coco")
    entries = json.loads((tmp_path / "out" / "keypoints.json").read_text())
    assert [entry["image_id"] for entry in entries] == ["1.png", "1.png"]


@pytest.mark.slow
def test_detect_files_returns_what_it_did(folder, tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()
    detector = Detector.from_pretrained(save(tiny_detector(2), hub), threshold=0.2, max_detections=3, max_batch=2)
    messages, counts = [], {}
    summary = detect_files(
        detector,
        [folder],
        tmp_path / "out",
        report=messages.append,
        on_detections=lambda path, detections: counts.__setitem__(path.name, len(detections)),
    )
    assert [path.name for path in summary.written] == ["1.png", "2.png"] == list(counts)
    assert [path.name for path in summary.failed] == ["3.png"] and messages[0].count("3.png") == 1
    entries = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(entries) == sum(counts.values()) > 0
    # Only the image that failed is tried again.
    again = detect_files(detector, [folder], tmp_path / "out", report=messages.append)
    assert [path.name for path in again.skipped] == ["1.png", "2.png"] and not again.written
    detector.max_detections = 2
    with pytest.raises(ValueError, match="max_detections was 3, now 2"):
        detect_files(detector, [folder], tmp_path / "out")
    detect_files(detector, [folder / "1.png"], tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out" / "detections.images.json").read_text()) == ["1.png"]


def test_predict_files_writes_yolo(estimator, folder, tmp_path):
    def run():
        return predict_files(estimator, [folder / "1.png"], tmp_path / "out", boxes=BOX, format="yolo")

    assert len(run().written) == 1
    (line,) = (tmp_path / "out" / "1.txt").read_text().splitlines()
    height, width = random_image(1).shape[:2]
    box = np.asarray(line.split()[1:5], float) * [width, height, width, height]
    np.testing.assert_allclose(box, [35, 50, 50, 80], rtol=0, atol=PLACES)
    assert len(line.split()) == 5 + 3 * 17
    assert len(run().skipped) == 1
