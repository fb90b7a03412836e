"""The reader of COCO's JSON: what it returns, and errors that name the file and the entry."""

import json

import numpy as np
import pytest

from vitpose_jax.datasets.coco import WHOLEBODY_KEYPOINTS, CocoObject, read_annotations, read_results, require


def annotations() -> dict:
    return {
        "images": [{"id": 7, "file_name": "7.jpg", "width": 100, "height": 80}, {"id": "b", "crowdIndex": 0.25}],
        "annotations": [
            {
                "id": 3,
                "image_id": 7,
                "category_id": 1,
                "bbox": [1, 2, 3, 4],
                "area": 5,
                "keypoints": [1, 2, 2, 4, 5, 1],
            },
            {"id": 4, "image_id": "b", "iscrowd": 1, "area": None, "keypoints": [], "num_keypoints": 0},
        ],
        "categories": [{"id": 1}, {"id": 9}],
    }


def test_annotations_are_read_with_cocos_names():
    content = annotations()
    read = read_annotations(content, 2)
    assert content == annotations()  # not changed
    assert (read.name, read.category_ids, read.num_keypoints) == ("annotations", {1, 9}, 2)
    first, second = read.images.values()
    assert first._replace(where="") == ("", 7, "7.jpg", 100.0, 80.0, None, False)
    assert second._replace(where="") == ("", "b", None, None, None, 0.25, False)
    person, crowd = read.objects
    assert (person.id, person.image_id, person.category_id, person.area, person.iscrowd) == (3, 7, 1, 5.0, False)
    np.testing.assert_array_equal(person.bbox, [1, 2, 3, 4])
    np.testing.assert_array_equal(person.keypoints, [[1, 2, 2], [4, 5, 1]])
    assert crowd[1:] == ("b", 4, None, None, None, None, None, 0, True)


def test_a_file_and_its_content_are_read_alike(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(annotations()))
    from_file, from_dict = read_annotations(path, 2), read_annotations(annotations(), 2, name=str(path))
    assert from_file.name == from_dict.name == str(path)
    assert from_file.images == from_dict.images
    assert repr(from_file.objects) == repr(from_dict.objects)


def test_keypoints_are_skipped_unless_their_number_is_given():
    assert [entry.keypoints for entry in read_annotations(annotations()).objects] == [None, None]


def test_keypoints_of_several_fields_are_joined():
    entry = {"image_id": 1, "foot_kpts": [4, 5, 6], "keypoints": [[1, 2, 3]], "face_kpts": None}
    (result,) = read_results([entry], "results", 2, fields=WHOLEBODY_KEYPOINTS)
    np.testing.assert_array_equal(result.keypoints, [[1, 2, 3], [4, 5, 6]])


def test_numpy_values_are_read():
    entry = {"image_id": np.int64(1), "category_id": np.int32(2), "score": np.float32(0.5), "bbox": np.ones(4)}
    (result,) = read_results([entry], "results")
    assert (result.image_id, result.category_id, result.score) == (1, 2, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": None}, r"annotation 3: expected an id for 'image_id', got None"),
        ({"id": "three"}, r"annotations\[0\]: expected an integer for 'id', got 'three'"),
        ({"category_id": "person"}, "annotation 3: expected an integer for 'category_id', got 'person'"),
        ({"bbox": [1, 2, 3]}, "annotation 3: bbox: expected 4 numbers, got 3"),
        ({"area": "large"}, "annotation 3: area: expected numbers, got 'large'"),
        ({"area": 10**400}, "annotation 3: area: expected numbers, got 1000"),
        ({"keypoints": [1, 2, 2]}, "annotation 3: keypoints: expected 6 numbers, got 3"),
        ({"keypoints": [[1, 2], [3]]}, r"annotation 3: keypoints: expected numbers, got \[\[1, 2\], \[3\]\]"),
        ({"num_keypoints": float("inf")}, "annotation 3: num_keypoints: expected finite numbers, got inf"),
    ],
)
def test_errors_name_the_annotation_and_the_field(changes, message):
    content = annotations()
    content["annotations"][0] |= changes
    with pytest.raises(ValueError, match=f"^val.json: {message}"):
        read_annotations(content, 2, name="val.json")


def test_require_lists_the_values_that_an_entry_has():
    entry = CocoObject(where="val.json: annotation 3", image_id=7, bbox=np.zeros(4), score=0.0)
    assert (require(entry, "image_id"), require(entry, "score")) == (7, 0.0)
    with pytest.raises(
        ValueError, match=r"^val.json: annotation 3: expected the key 'area', got image_id, bbox, score$"
    ):
        require(entry, "area")
