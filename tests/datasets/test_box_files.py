"""Box files: their three formats, and which boxes belong to which image."""

import json
import pathlib

import pytest

from vitpose_jax.datasets import BoxFile, ImageBoxes
from vitpose_jax.datasets.box_files import image_id_of, parse_box


def box_file(folder: pathlib.Path, content: object, **options) -> BoxFile:
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return BoxFile(path, **options)


RESULTS = [
    {"image_id": 7, "bbox": [1, 2, 3, 4], "score": 0.9, "category_id": 18},
    {"image_id": 7, "bbox": [5, 6, 7, 8], "score": 0.2},
    {"image_id": "dog", "bbox": [9, 9, 9, 9]},
]


def test_results_are_found_by_number_or_name(tmp_path):
    boxes = box_file(tmp_path, RESULTS)
    assert boxes[pathlib.Path("a/000007.jpg")] == ImageBoxes(7, [[1, 2, 3, 4], [5, 6, 7, 8]], [0.9, 0.2], [18, 1])
    assert boxes[pathlib.Path("dog.png")] == ImageBoxes("dog", [[9, 9, 9, 9]], [1.0], [1])
    assert boxes[pathlib.Path("000008.jpg")] == ImageBoxes(8, [], [], [])
    assert pathlib.Path("dog.png") in boxes
    assert pathlib.Path("000008.jpg") not in boxes


def test_categories_and_low_scores_are_left_out(tmp_path):
    """Boxes without a category or a score stay."""
    image = pathlib.Path("7.jpg")
    assert box_file(tmp_path, RESULTS, category=1)[image].boxes == [[5, 6, 7, 8]]
    assert box_file(tmp_path, RESULTS, min_score=0.9)[image].boxes == [[1, 2, 3, 4]]
    assert box_file(tmp_path, RESULTS, min_score=0.9)[pathlib.Path("dog.jpg")].scores == [1.0]


def test_annotations_are_found_by_file_name(tmp_path):
    content = {
        "images": [{"id": 5, "file_name": "val/000012.jpg"}, {"id": 12, "file_name": "empty.jpg"}],
        "annotations": [
            {"image_id": 5, "bbox": [1, 2, 3, 4], "keypoints": "not read"},
            {"image_id": 5, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    }
    boxes = box_file(tmp_path, content)
    assert boxes[pathlib.Path("000012.jpg")] == ImageBoxes(5, [[1, 2, 3, 4]], [1.0], [1])
    assert boxes[pathlib.Path("empty.jpg")] == ImageBoxes(12, [], [], [])
    assert pathlib.Path("empty.jpg") in boxes
    assert pathlib.Path("000005.jpg") not in boxes


def test_the_folder_decides_between_equal_names(tmp_path):
    boxes = box_file(tmp_path, {"a/1.jpg": [[1, 1, 1, 1]], "images/1.jpg": [[2, 2, 2, 2]], "images/2.jpg": []})
    assert boxes[pathlib.Path("data/images/1.jpg")] == ImageBoxes("images/1.jpg", [[2, 2, 2, 2]], [1.0], [1])
    assert boxes[pathlib.Path("2.jpg")] == ImageBoxes("images/2.jpg", [], [], [])
    with pytest.raises(ValueError, match=r"boxes.json: cannot tell which of a/1.jpg, images/1.jpg is b/1.jpg"):
        boxes[pathlib.Path("b/1.jpg")]


def test_image_ids_are_numbers_or_names():
    assert image_id_of(pathlib.Path("val/000012.jpg")) == 12
    assert image_id_of(pathlib.Path("dog_3.jpg")) == "dog_3"


def test_a_box_is_four_numbers():
    assert parse_box("1,2.5,3,4") == [1, 2.5, 3, 4]
    for text in ("1,2,3", "1,2,3,x", ""):
        with pytest.raises(ValueError, match=f"--boxes: expected a file or x,y,w,h, got '{text}'"):
            parse_box(text)
