"""Datasets read from disk: the published sample files, and small ones made here."""

import json
import pathlib
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from tests.support.datasets import SAMPLES, read_sample
from tests.tolerances import CROP_OUTLIERS, FLOAT32, FLOAT64
from vitpose_jax.datasets import PROTOCOLS, get_protocol, read_dataset
from vitpose_jax.datasets.annotations import clip_box
from vitpose_jax.datasets.image_files import find_image
from vitpose_jax.datasets.protocols import own_protocol
from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.preprocess import crop_regions
from vitpose_jax.pipeline.regions import boxes_to_regions


def write(folder: pathlib.Path, name: str, content: object) -> pathlib.Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def person(number: int = 1, **changes: Any) -> dict[str, Any]:
    """An annotation of COCO's."""
    entry = {
        "id": number,
        "image_id": 7,
        "category_id": 1,
        "iscrowd": 0,
        "area": 500.0,
        "bbox": [10, 20, 30, 40],
        "num_keypoints": 17,
        "keypoints": [value for index in range(17) for value in (11 + index, 21 + index, 1 + index % 2)],
        **changes,
    }
    return {key: value for key, value in entry.items() if value is not None}


def coco(*people: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a/7.jpg", "width": 100, "height": 80},
            {"id": 9, "file_name": "9.jpg", "width": 100, "height": 80},
        ],
        "annotations": list(people),
        "categories": [{"id": 1, "name": "person"}],
    }


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_files_of_every_dataset_are_read(data, name):
    _, _, images, people, count = SAMPLES[name]
    dataset = read_sample(data, name)
    assert dataset.protocol is PROTOCOLS[name]
    assert (len(dataset.samples), dataset.num_boxes) == (images, people)
    for sample in dataset.samples:
        assert sample.path.is_file()
        assert sample.boxes is sample.people.boxes
        assert sample.people.keypoints.shape == (len(sample.boxes), count, 2)
        assert set(np.unique(sample.people.visible)) <= {0, 1, 2}
        assert (sample.people.visible > 0).any(axis=1).all()
        assert (sample.people.areas > 0).all()
        # Most labelled keypoints are inside the box.
        low, high = sample.boxes[:, None, :2], (sample.boxes[:, :2] + sample.boxes[:, 2:])[:, None]
        inside = ((sample.people.keypoints >= low - 5) & (sample.people.keypoints <= high + 5)).all(axis=-1)
        assert inside[sample.people.visible > 0].mean() > 0.8


def test_coco_people_equal_the_annotations_of_the_file(data):
    content = json.loads((data / "coco_val" / "person_keypoints.json").read_text())
    entries = {entry["id"]: entry for entry in content["annotations"]}
    dataset = read_dataset("COCO", data / "coco_val" / "person_keypoints.json", data / "coco_val" / "images")
    ids = [number for sample in dataset.samples for number in sample.people.annotation_ids.tolist()]
    assert sorted(ids) == sorted(number for number, entry in entries.items() if entry["num_keypoints"] > 0)
    for sample in dataset.samples:
        for row, number in enumerate(sample.people.annotation_ids.tolist()):
            entry = entries[number]
            expected = np.reshape(entry["keypoints"], (17, 3))
            assert entry["image_id"] == sample.image_id
            np.testing.assert_array_equal(sample.people.keypoints[row], expected[:, :2])
            np.testing.assert_array_equal(sample.people.visible[row], expected[:, 2])
            assert sample.people.areas[row] == entry["area"]
            # One pixel less, as in the original.
            np.testing.assert_array_equal(sample.boxes[row, :2], entry["bbox"][:2])
            assert (sample.boxes[row, 2:] <= np.subtract(entry["bbox"][2:], 1) + FLOAT64).all()


def test_wholebody_keypoints_join_five_fields_in_order(data):
    content = json.loads((data / "mmpose_samples" / SAMPLES["wholebody"][0]).read_text())
    entry = next(entry for entry in content["annotations"] if entry["num_keypoints"])
    people = read_sample(data, "wholebody").samples[0].people
    skeleton = get_protocol("coco-wholebody").skeleton
    for name, field, place in (
        ("nose", "keypoints", 0),
        ("left_big_toe", "foot_kpts", 0),
        ("face-67", "face_kpts", 67),
        ("left_pinky_finger4", "lefthand_kpts", 20),
        ("right_hand_root", "righthand_kpts", 0),
    ):
        expected = entry[field][3 * place : 3 * place + 3]
        index = skeleton.keypoints.index(name)
        assert [*people.keypoints[0, index], people.visible[0, index]] == expected


def test_animals_keep_their_categories(data):
    samples = read_sample(data, "ap10k").samples
    assert [(sample.image_id, sample.category_ids.tolist()) for sample in samples] == [(37516, [26]), (4, [1])]


def test_without_annotated_areas_the_box_gives_the_area(data):
    people = read_sample(data, "aic").samples[0].people
    entry = json.loads((data / "mmpose_samples" / SAMPLES["aic"][0]).read_text())["annotations"][0]
    row = people.annotation_ids.tolist().index(entry["id"])
    assert people.areas[row] == pytest.approx(0.53 * entry["bbox"][2] * entry["bbox"][3])


def test_detections_replace_the_annotated_boxes(data):
    path = data / "mmpose_samples" / "coco" / "test_coco_det_AP_H_56.json"
    dataset = read_sample(data, "coco", detections=path)
    content = json.loads(path.read_text())
    assert dataset.num_boxes == len(content) == 118
    for sample in dataset.samples:
        mine = [entry for entry in content if entry["image_id"] == sample.image_id]
        np.testing.assert_array_equal(sample.boxes, [entry["bbox"] for entry in mine])
        np.testing.assert_array_equal(sample.scores, [entry["score"] for entry in mine])
    sure = read_sample(data, "coco", detections=path, min_score=0.5)
    assert sure.num_boxes == sum(entry["score"] >= 0.5 for entry in content)
    crowd = data / "mmpose_samples" / "crowdpose" / "test_crowdpose_det_AP_40.json"
    assert read_sample(data, "crowdpose", detections=crowd).num_boxes == 6


def test_detections_of_other_categories_or_without_area_are_left_out(tmp_path):
    detection = {"image_id": 7, "category_id": 1, "bbox": [-5, 2, 30, 30], "score": 0.5}
    content = [detection, {**detection, "category_id": 18}, {**detection, "bbox": [1, 1, 0, 5]}]
    boxes = write(tmp_path, "boxes.json", content)
    dataset = read_dataset("coco", write(tmp_path, "coco.json", coco(person())), tmp_path, detections=boxes)
    assert (dataset.num_boxes, dataset.skipped_boxes, dataset.num_images) == (1, 1, 2)
    (sample,) = dataset.samples
    assert sample.boxes.tolist() == [[-5, 2, 30, 30]]
    assert sample.people.annotation_ids.tolist() == [1]


@pytest.mark.parametrize(
    "left_out",
    [
        {"iscrowd": 1},
        {"num_keypoints": 0},
        {"keypoints": [0] * 51, "num_keypoints": None},
        {"keypoints": None},
        {"area": 0},
        {"bbox": [10, 20, 1, 40]},
        {"bbox": [100, 20, 30, 40]},
    ],
    ids=str,
)
def test_crowds_and_unlabelled_people_are_left_out(tmp_path, left_out):
    path = write(tmp_path, "coco.json", coco(person(1, **left_out), person(2)))
    (sample,) = read_dataset("coco", path, tmp_path).samples
    assert sample.people.annotation_ids.tolist() == [2]
    assert sample.path == tmp_path / "a" / "7.jpg"


@given(st.lists(st.floats(-300, 300), min_size=4, max_size=4), st.integers(1, 200), st.integers(1, 200))
def test_annotated_boxes_are_cut_at_the_edges_of_the_image(box, width, height):
    clipped = clip_box(np.array(box), width, height)
    x1, y1 = max(0, box[0]), max(0, box[1])
    x2, y2 = min(width - 1, x1 + max(0, box[2] - 1)), min(height - 1, y1 + max(0, box[3] - 1))
    if x2 > x1 and y2 > y1:
        np.testing.assert_array_equal(clipped, [x1, y1, x2 - x1, y2 - y1])
        assert (clipped[:2] + clipped[2:] <= [width - 1 + FLOAT64, height - 1 + FLOAT64]).all()
    else:
        assert clipped is None


def original_mpii_region(entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Centre and size in pixels, in the words of the original."""
    center, scale = np.array(entry["center"]), np.array([entry["scale"]] * 2)
    center[1] = center[1] + 15 * scale[1]
    return center - 1, scale * 1.25 * 200


def test_mpii_regions_and_crops_equal_the_original(data):
    dataset = read_sample(data, "mpii")
    entries = {
        entry["image"]: entry for entry in json.loads((data / "mmpose_samples" / "mpii/test_mpii.json").read_text())
    }
    for sample in dataset.samples:
        entry = entries[sample.path.name]
        regions = boxes_to_regions(sample.boxes, stretch=True)
        center, scale, _ = regions
        expected_center, expected_scale = original_mpii_region(entry)
        np.testing.assert_allclose(center[0], expected_center, rtol=FLOAT32)
        np.testing.assert_allclose(scale[0], expected_scale, rtol=FLOAT32)
        np.testing.assert_array_equal(sample.people.keypoints[0], np.array(entry["joints"]) - 1)
        np.testing.assert_array_equal(sample.people.visible[0], entry["joints_vis"])
    # The crop against OpenCV: both edges of the square lie at the edges of the crop, which is no square.
    image = cv2.imread(str(sample.path))[..., ::-1]
    corner, (width, height) = expected_center - expected_scale / 2, (192, 256)
    x_step, y_step = (width - 1) / expected_scale[0], (height - 1) / expected_scale[1]
    matrix = np.array([[x_step, 0, -corner[0] * x_step], [0, y_step, -corner[1] * y_step]])
    reference = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR).astype(np.float32)
    shapes = np.array([[0, *image.shape[:2]]], np.int32)
    images = PackedImages(jnp.asarray(image).reshape(-1, 3), jnp.asarray(shapes))
    ours = crop_regions(images, regions, (height, width), border="opencv")
    differences = np.abs(np.asarray(ours)[0] - reference)
    assert differences.mean() < 1
    if int(cv2.__version__.split(".")[0]) >= 5:
        # Before version 5, OpenCV rounded coordinates to 1/32 of a pixel.
        assert (differences > 0).mean() < CROP_OUTLIERS


def test_mpii_people_are_grouped_by_image(tmp_path):
    entry = {"image": "3.jpg", "center": [50, 60], "scale": 0.2, "joints": [[9, 9]] * 16, "joints_vis": [1] * 16}
    content = [entry, {**entry, "image": "x.jpg", "center": [-1, 5]}, {**entry, "center": [70, 60]}]
    first, second = read_dataset("mpii", write(tmp_path, "mpii.json", content), tmp_path).samples
    assert (first.image_id, second.image_id) == (3, "x")
    assert first.people.annotation_ids.tolist() == [0, 2]
    np.testing.assert_array_equal(first.boxes, [[29, 42, 40, 40], [49, 42, 40, 40]])
    np.testing.assert_array_equal(second.boxes, [[-22, -16, 40, 40]])


def test_mpii_ground_truth_gives_head_sizes_and_keypoints(data, tmp_path):
    rng = np.random.default_rng(0)
    joints, missing, heads = rng.uniform(1, 99, (16, 2, 5)), rng.integers(0, 2, (16, 5)), rng.uniform(1, 99, (2, 2, 5))
    savemat(tmp_path / "gt.mat", {"pos_gt_src": joints, "jnt_missing": missing, "headboxes_src": heads})
    for sample in read_sample(data, "mpii", head_boxes=tmp_path / "gt.mat").samples:
        (number,) = sample.people.annotation_ids
        np.testing.assert_allclose(sample.people.keypoints[0], joints[..., number] - 1)
        np.testing.assert_array_equal(sample.people.visible[0], 1 - missing[:, number])
        expected = 0.6 * np.linalg.norm(heads[1, :, number] - heads[0, :, number])
        assert sample.people.head_sizes[0] == pytest.approx(expected)
    savemat(tmp_path / "gt.mat", {"pos_gt_src": joints[..., :4], "jnt_missing": missing, "headboxes_src": heads})
    with pytest.raises(ValueError, match=r"gt.mat: expected pos_gt_src of shape \(16, 2, 5\) for 5 people"):
        read_sample(data, "mpii", head_boxes=tmp_path / "gt.mat")
    (tmp_path / "gt.mat").write_text("not MATLAB" * 50)
    with pytest.raises(ValueError, match=r"gt.mat: expected a MATLAB file"):
        read_sample(data, "mpii", head_boxes=tmp_path / "gt.mat")


def test_first_keeps_the_first_images(data):
    dataset = read_sample(data, "coco").first(2)
    assert len(dataset.samples) == dataset.num_images == 2
    assert dataset.image_ids == tuple(sample.image_id for sample in dataset.samples)
    with pytest.raises(ValueError, match="expected at least 1 image"):
        dataset.first(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected an object with 'images', got"),
        ({"images": []}, "expected the key 'annotations', got images"),
        ({"images": {}, "annotations": []}, "expected a list for 'images'"),
        ({"images": [{"file_name": "7.jpg"}], "annotations": []}, r"images\[0\]: expected the key 'id'"),
        ({"images": [{"id": 7, "file_name": "7.jpg"}], "annotations": []}, "image 7: expected the key 'width'"),
        ({**coco(), "images": coco()["images"] * 2}, "image 7: expected each id once"),
        (coco(person(image_id=8)), "annotation 1: no image has the id 8"),
        (coco(person(image_id=[7])), "annotation 1: expected an id for 'image_id'"),
        (coco(person(id=None)), r"annotations\[0\]: expected the key 'id'"),
        (coco(person(bbox=None)), "annotation 1: expected the key 'bbox'"),
        (coco(person(area=None)), "annotation 1: expected the key 'area'"),
        (coco(person(bbox=[1, 2, 3])), "annotation 1: bbox: expected 4 numbers, got 3"),
        (coco(person(bbox=[1, 2, 3, float("nan")])), "annotation 1: bbox: expected finite numbers"),
        (coco(person(keypoints=[1] * 48)), "annotation 1: keypoints: expected 51 numbers, got 48"),
        (coco(person(keypoints=["a"] * 51)), "annotation 1: keypoints: expected numbers"),
    ],
)
def test_errors_name_the_bad_annotation(tmp_path, content, message):
    path = write(tmp_path, "coco.json", content)
    with pytest.raises(ValueError, match=message) as error:
        read_dataset("coco", path, tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list of results, got dict"),
        (
            [{"category_id": 1, "image_id": 7, "score": 1}],
            "result 0: expected the key 'bbox', got image_id, category_id, score",
        ),
        ([{"category_id": 1, "image_id": 8, "score": 1, "bbox": [1, 1, 5, 5]}], "result 0: no image with the id 8"),
        (
            [{"category_id": 1, "image_id": 7, "score": None, "bbox": [1, 1, 5, 5]}],
            "result 0: expected the key 'score', got image_id, category_id, bbox",
        ),
    ],
)
def test_errors_name_the_bad_detection(tmp_path, content, message):
    path, boxes = write(tmp_path, "coco.json", coco(person())), write(tmp_path, "boxes.json", content)
    with pytest.raises(ValueError, match=message) as error:
        read_dataset("coco", path, tmp_path, detections=boxes)
    assert str(boxes) in str(error.value)


def test_errors_name_the_bad_file_or_argument(tmp_path):
    path = write(tmp_path, "mpii.json", [{"image": "1.jpg", "center": [1, 2], "scale": 1, "joints": [[1, 2]] * 15}])
    with pytest.raises(ValueError, match=r"mpii.json: person 0: joints: expected 32 numbers, got 30"):
        read_dataset("mpii", path, tmp_path)
    with pytest.raises(ValueError, match="is evaluated in its annotated boxes"):
        read_dataset("mpii", path, tmp_path, detections=path)
    with pytest.raises(ValueError, match="no dataset named 'lsp' to evaluate; expected one of coco, wholebody"):
        read_dataset("lsp", path, tmp_path)
    with pytest.raises(ValueError, match="expected the folder of the images"):
        read_dataset("coco", path, tmp_path / "images")
    with pytest.raises(ValueError, match="head_boxes: expected with the dataset mpii alone"):
        read_dataset("coco", path, tmp_path, head_boxes=path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"mpii.json: expected JSON"):
        read_dataset("mpii", path, tmp_path)
    with pytest.raises(OSError, match=r"nothing\.json"):
        read_dataset("coco", tmp_path / "nothing.json", tmp_path)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("7.jpg", "7.jpg"),
        ("train/7.jpg", "train/7.jpg"),
        ("train/7.jpg", "7.jpg"),
        ("images/default/a/7.jpg", "a/7.jpg"),
        ("images/3f2a91c4-7.jpg", "3f2a91c4-7.jpg"),
        ("images/3f2a91c4-7.jpg", "7.jpg"),
        ("..\\..\\upload\\1\\3f2a91c4-7.jpg", "7.jpg"),
        ("/data/upload/1/3f2a91c4-a-7.jpg", "a-7.jpg"),
        ("data/local-files/?d=images/7.jpg", "7.jpg"),
    ],
)
def test_images_are_found_as_annotation_tools_name_them(tmp_path, name, stored):
    """CVAT writes the folders of its task, Label Studio folders and the prefix of an upload."""
    images = tmp_path / "photographs"
    (images / stored).parent.mkdir(parents=True)
    (images / stored).touch()
    content = coco(person())
    content["images"][0]["file_name"] = name
    (sample,) = read_dataset("coco", write(tmp_path, "export.json", content), images).samples
    assert sample.path == images / stored


def test_the_whole_name_of_an_image_comes_first(tmp_path):
    for name in ("7.jpg", "a/7.jpg", "b/a/7.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_image(tmp_path, "b/a/7.jpg") == tmp_path / "b/a/7.jpg"
    assert find_image(tmp_path, "x/a/7.jpg") == tmp_path / "a/7.jpg"
    assert find_image(tmp_path, "x/y/8.jpg") == tmp_path / "x/y/8.jpg"
    assert find_image(tmp_path, "../7.jpg") == tmp_path / "7.jpg"


def test_exports_of_annotation_tools_are_read(tmp_path):
    """CVAT: attributes, no num_keypoints; Label Studio: no skeleton, no supercategory, no area of its own."""
    cvat = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "year": ""},
        "images": [{"id": 1, "width": 100, "height": 80, "file_name": "7.jpg", "license": 0, "coco_url": ""}],
        "annotations": [
            person(image_id=1, num_keypoints=None, segmentation=[], attributes={"occluded": False, "rotation": 0.0})
        ],
        "categories": [{"id": 1, "name": "person", "supercategory": "", "keypoints": [], "skeleton": []}],
    }
    label_studio = {
        "images": [{"id": 0, "width": 100, "height": 80, "file_name": "images/3f2a91c4-7.jpg"}],
        "categories": [{"id": 0, "name": "person"}],
        "annotations": [
            person(0, image_id=0, category_id=0, num_keypoints=None, iscrowd=None, ignore=0, segmentation=[])
        ],
        "info": {"year": 2026, "url": ""},
    }
    protocol = own_protocol(get_protocol("coco").skeleton)
    for number, content in enumerate((cvat, label_studio)):
        path = write(tmp_path, f"{number}.json", content)
        (sample,) = read_dataset(protocol, path, tmp_path).samples
        assert sample.people.keypoints[0, 0].tolist() == [11, 21]
        assert (sample.people.visible[0] > 0).all()
