"""Values of annotation files that mean something plain, and those that do not: one error with the file's name."""

import copy
import json
import logging
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.images import random_image
from vitpose_jax.datasets import read_dataset
from vitpose_jax.datasets.coco import read_annotations, read_results
from vitpose_jax.datasets.fields import read_json

KEYPOINTS = [number for index in range(17) for number in (30 + index, 40 + 2 * index, 2)]
PERSON = {
    "id": 1,
    "image_id": 1,
    "category_id": 1,
    "bbox": [20, 20, 50, 90],
    "area": 2000,
    "iscrowd": 0,
    "num_keypoints": 17,
    "keypoints": KEYPOINTS,
}
DOCUMENT = {
    "images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 128}],
    "categories": [{"id": 1, "name": "person"}],
    "annotations": [PERSON],
}


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    Image.fromarray(random_image(1, 128, 96)).save(tmp_path / "a.png")
    return tmp_path


def read(folder: pathlib.Path, document: object, text: str | None = None):
    path = folder / "annotations.json"
    path.write_text(json.dumps(document) if text is None else text)
    return read_dataset("coco", path, folder)


def changed(part: str, **values) -> dict:
    """The document with other values in its image, its category or its annotation."""
    document = copy.deepcopy(DOCUMENT)
    document[part][0] |= values
    return document


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("annotations", {"id": "1"}),
        ("annotations", {"id": 1.0}),
        ("annotations", {"image_id": "1"}),
        ("annotations", {"image_id": 1.0}),
        ("annotations", {"category_id": "1"}),
        ("annotations", {"category_id": 1.0}),
        ("annotations", {"iscrowd": "0"}),
        ("annotations", {"iscrowd": False}),
        ("annotations", {"iscrowd": None}),
        ("annotations", {"score": None}),
        ("annotations", {"area": "2000"}),
        ("annotations", {"bbox": ["20", "20", "50", "90"]}),
        ("images", {"id": 1.0}),
        ("images", {"width": 96.0, "height": "128"}),
        ("categories", {"id": "1"}),
    ],
)
def test_values_are_taken_for_what_they_plainly_mean(folder, part, values):
    (sample,) = read(folder, changed(part, **values)).samples
    assert sample.image_id == 1
    assert sample.people.annotation_ids.tolist() == sample.people.category_ids.tolist() == [1]
    np.testing.assert_array_equal(sample.people.boxes, [[20, 20, 49, 89]])
    assert sample.people.areas.tolist() == [2000]


def test_ids_of_images_may_be_texts_in_one_place_only(folder):
    (sample,) = read(folder, changed("images", id="1")).samples
    assert sample.image_id == "1" and len(sample.people) == 1
    entries = read_results([{"image_id": "139"}, {"image_id": 7}, {"image_id": "a"}], "r", image_ids=[139, "7"])
    assert [entry.image_id for entry in entries] == [139, "7", "a"]


@pytest.mark.parametrize("nothing", ["NaN", "null", "Infinity"])
def test_keypoints_that_are_not_labelled_are_not_looked_at(folder, nothing):
    text = json.dumps(DOCUMENT).replace("[30, 40, 2,", f"[{nothing}, {nothing}, 0,")
    (sample,) = read(folder, None, text).samples
    np.testing.assert_array_equal(sample.people.keypoints[0, 0], [0, 0])
    assert sample.people.visible[0].tolist() == [0] + [2] * 16


def test_three_missing_numbers_are_no_keypoint(folder):
    text = json.dumps(DOCUMENT).replace("[30, 40, 2,", "[null, null, null,")
    (sample,) = read(folder, None, text).samples
    assert sample.people.visible[0].tolist() == [0] + [2] * 16


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_read(folder, encoding):
    path = folder / "annotations.json"
    path.write_bytes(json.dumps(DOCUMENT).encode(encoding))
    assert len(read_dataset("coco", path, folder).samples) == 1


HUGE = int("9" * 400)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("annotations", {"id": "one"}, "expected an integer for 'id', got 'one'"),
        ("annotations", {"id": 1.5}, "expected an integer for 'id', got 1.5"),
        ("annotations", {"id": True}, "expected an integer for 'id', got True"),
        ("annotations", {"id": 10**30}, "expected an integer for 'id', got 1000000"),
        ("annotations", {"id": [1]}, r"expected an integer for 'id', got \[1\]"),
        ("annotations", {"category_id": "person"}, "expected an integer for 'category_id', got 'person'"),
        ("annotations", {"category_id": None}, "expected the key 'category_id'"),
        ("annotations", {"image_id": None}, "expected an id for 'image_id', got None"),
        ("annotations", {"image_id": "2"}, "no image has the id '2'"),
        ("annotations", {"image_id": {}}, "expected an id for 'image_id', got {}"),
        ("annotations", {"iscrowd": "maybe"}, "iscrowd: expected 0 or 1, got 'maybe'"),
        ("annotations", {"iscrowd": [0]}, r"iscrowd: expected 0 or 1, got \[0\]"),
        ("annotations", {"bbox": None}, "expected the key 'bbox'"),
        ("annotations", {"bbox": "20 20 50 90"}, "bbox: expected numbers, got '20 20 50 90'"),
        ("annotations", {"area": float("nan")}, "area: expected finite numbers"),
        ("annotations", {"area": HUGE}, "area: expected numbers, got 9999"),
        ("annotations", {"score": float("inf")}, "score: expected finite numbers"),
        ("annotations", {"keypoints": [float("nan"), 1, 2] * 17}, "keypoints: expected finite numbers"),
        ("annotations", {"num_keypoints": "many"}, "num_keypoints: expected numbers, got 'many'"),
        ("images", {"id": None}, "expected an id for 'id', got None"),
        ("images", {"id": float("nan")}, "expected an id for 'id', got nan"),
        ("images", {"width": HUGE}, "width: expected numbers, got 9999"),
        ("images", {"width": {}}, "width: expected numbers, got {}"),
        ("images", {"file_name": ""}, "expected a file name for 'file_name', got ''"),
        ("images", {"file_name": "."}, "expected a file name for 'file_name', got '.'"),
        ("categories", {"id": None}, "expected an integer for 'id', got None"),
    ],
)
def test_other_values_are_one_error_with_the_name_of_the_file(folder, part, values, message):
    with pytest.raises(ValueError, match=message) as error:
        read(folder, changed(part, **values))
    assert str(error.value).startswith(str(folder / "annotations.json"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("content", ["[", "[" * 100000, '{"images": 1}', "3", "null", '"x"', "9" * 5000, "1e400", ""])
def test_files_that_are_no_annotations_are_one_error(folder, content):
    with pytest.raises(ValueError, match=r"annotations\.json: "):
        read(folder, None, content)


def test_categories_that_are_no_list_are_an_error(folder):
    with pytest.raises(ValueError, match=r"annotations\.json: expected a list for 'categories', got 'x'"):
        read(folder, {**DOCUMENT, "categories": "x"})


def test_people_left_out_for_their_area_are_counted(folder, caplog):
    document = copy.deepcopy(DOCUMENT)
    document["annotations"].append({**PERSON, "id": 2, "area": 0})
    with caplog.at_level(logging.WARNING):
        assert read(folder, document).num_boxes == 1
    assert "left out 1 of 2 people whose area is 0" in caplog.text
    caplog.clear()
    read(folder, DOCUMENT)
    assert caplog.text == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(HUGE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(["images", "annotations", "categories"]), st.data())
def test_any_value_anywhere_is_read_or_named(part, data):
    document = copy.deepcopy(DOCUMENT)
    if data.draw(st.booleans()):
        document[part] = data.draw(JSON)
    else:
        key = data.draw(st.sampled_from(sorted(document[part][0])))
        document[part][0][key] = data.draw(JSON)
    try:
        read_annotations(document, 17)
    except ValueError as error:
        message = str(error)
    else:
        message = "annotations: "
    assert message.startswith("annotations: ")


def test_json_nested_deeply_names_the_file(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100000)
    with pytest.raises(ValueError, match=r"deep\.json: expected JSON that is nested less deeply"):
        read_json(path)
