"""The detector: resizing as Pillow's, objects as transformers', and its options."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.rt_detr.modeling_rt_detr import RTDetrObjectDetectionOutput

from tests.support.images import random_image
from tests.support.reference_rtdetr import LABELS, SIZE, save, tiny_detector
from tests.tolerances import BOXES, DETECTOR, FLOAT32, ROUNDED_ONCE
from vitpose_jax.convert.detectors import load_detector
from vitpose_jax.detections import ANIMALS, COCO_CATEGORIES, Detections, choose_classes
from vitpose_jax.detector import Detector
from vitpose_jax.pipeline.packing import pack_images, unpack_image
from vitpose_jax.pipeline.resize import resize, resize_matrix, side_bucket
from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.postprocess import find_objects
from vitpose_jax.rtdetr.preprocess import prepare

jitted_resize = jax.jit(resize)


def pad_image(image: np.ndarray) -> np.ndarray:
    """An image with black below and to the right, up to `side_bucket` of its sides."""
    (height, width, _), (rows, columns) = image.shape, map(side_bucket, image.shape[:2])
    return np.pad(image, ((0, rows - height), (0, columns - width), (0, 0)))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    down, across = (resize_matrix(old, new) for old, new in zip(image.shape[:2], size, strict=True))
    return np.asarray(jitted_resize(pad_image(image), down, across))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# Before the network


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 500),
    seed=st.integers(0, 9),
    size=st.sampled_from([(64, 96), (320, 32)]),
)
@settings(max_examples=25)
def test_pixels_are_those_of_pillow(height, width, seed, size):
    image = noise(height, width, seed)
    # Width first, as Pillow up to 12 always does. Pillow 13 resizes the height first for some shapes.
    wide = Image.fromarray(image).resize((size[1], height), Image.Resampling.BILINEAR)
    expected = np.asarray(wide.resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized(image, size), expected)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (427, 640), (1080, 1920), (640, 640), (37, 1500)])
def test_prepared_images_equal_the_reference_processor(height, width):
    image = noise(height, width)
    reference = RTDetrImageProcessorPil()
    config = DetectorConfig()
    ours = np.asarray(prepare(resized(image, config.image_size), config))
    theirs = reference(images=Image.fromarray(image), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert ours.dtype == theirs.dtype == np.float32
    # The same pixel values; the reference scales them in double precision.
    np.testing.assert_array_equal(np.rint(255 * ours), np.rint(255 * theirs))
    np.testing.assert_allclose(ours, theirs, rtol=ROUNDED_ONCE)


def test_normalised_images_equal_the_reference_processor():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    reference = RTDetrImageProcessorPil(
        size={"height": 64, "width": 32}, do_normalize=True, image_mean=mean, image_std=std, rescale_factor=0.01
    )
    config = DetectorConfig(
        image_size=(64, 32), image_mean=mean, image_std=std, rescale_factor=0.01, num_queries=5, labels=LABELS
    )
    image = noise(64, 32)
    expected = reference(images=Image.fromarray(image), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(prepare(resized(image, (64, 32)), config), expected, rtol=FLOAT32, atol=FLOAT32)


def test_side_buckets_are_few_and_add_little_padding():
    assert side_bucket(1) == side_bucket(256) == 256
    sides = {side_bucket(side) for side in range(1, 8193)}
    assert len(sides) <= 1 + 4 * 5
    assert all(side <= side_bucket(side) < max(257, 1.26 * side) for side in range(1, 8193))


def test_unpacking_pads_an_image_to_its_bucket():
    images = [noise(5, 7), noise(300, 20, 1), noise(1, 1, 2)]
    row, shapes = pack_images(images, 10000)
    for image, shape in zip(images, shapes, strict=True):
        size = tuple(map(side_bucket, image.shape[:2]))
        np.testing.assert_array_equal(unpack_image(jnp.asarray(row), jnp.asarray(shape), size), pad_image(image))


# After the network


@pytest.mark.parametrize("queries", [7, 300])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9, 0.9999])
def test_objects_are_those_of_the_reference(queries, threshold):
    rng = np.random.default_rng(queries)
    logits = rng.normal(size=(3, queries, 80)).astype(np.float32) * np.float32(1.5)
    boxes = rng.uniform(0, 1, (3, queries, 4)).astype(np.float32)
    sizes = [(480, 640), (1000, 31), (1, 5000)]
    theirs = RTDetrImageProcessorPil().post_process_object_detection(
        RTDetrObjectDetectionOutput(logits=torch.from_numpy(logits), pred_boxes=torch.from_numpy(boxes)),
        threshold=threshold,
        target_sizes=sizes,
    )
    wanted = np.ones(80, bool)
    ours = jax.jit(find_objects, static_argnums=4)(logits, boxes, np.asarray(sizes, np.float32), wanted, queries)
    for image, result in enumerate(theirs):
        kept = np.asarray(ours.scores[image]) > threshold
        corner, extent = np.split(np.asarray(ours.boxes[image])[kept], 2, axis=1)
        assert len(corner) == len(result["boxes"])
        np.testing.assert_array_equal(ours.class_ids[image][kept], result["labels"])
        np.testing.assert_allclose(ours.scores[image][kept], result["scores"], rtol=FLOAT32)
        np.testing.assert_allclose(np.concatenate([corner, corner + extent], 1), result["boxes"], rtol=0, atol=BOXES)


def test_unwanted_classes_take_no_places():
    logits = np.full((1, 4, 3), 5, np.float32)
    logits[0, :, 0] = [-1, -2, -3, -4]
    boxes = np.full((1, 4, 4), 0.5, np.float32)
    found = find_objects(
        jnp.asarray(logits), jnp.asarray(boxes), np.ones((1, 2), np.float32), np.asarray([True, False, False]), 4
    )
    np.testing.assert_array_equal(found.class_ids, 0)
    np.testing.assert_allclose(found.scores[0], 1 / (1 + np.exp([1, 2, 3, 4])), rtol=FLOAT32)


def test_classes_are_chosen_by_name_or_group():
    classes = ("person", "zebra", "kite", "bird")
    for labels, expected in (
        ("person", [1, 0, 0, 0]),
        (["person", "kite"], [1, 0, 1, 0]),
        ("animals", [0, 1, 0, 1]),
        (("animals", "person"), [1, 1, 0, 1]),
        ("all", [1, 1, 1, 1]),
    ):
        np.testing.assert_array_equal(choose_classes(labels, classes), np.asarray(expected, bool))
    with pytest.raises(ValueError, match=r"knows no 'dog'.+person, zebra, kite, bird"):
        choose_classes(["person", "dog"], classes)
    with pytest.raises(ValueError, match="got none"):
        choose_classes([], classes)
    with pytest.raises(ValueError, match="knows no 'animals'"):
        choose_classes("animals", ("person",))
    assert len(COCO_CATEGORIES) == 80 and (COCO_CATEGORIES[0], COCO_CATEGORIES[-1]) == (1, 90) and len(ANIMALS) == 10


def test_class_numbers_raise(unchecked):
    with pytest.raises(TypeError, match="expected names, got 0"):
        choose_classes([0], ("person",))


def test_detections_export_names_and_categories():
    found = Detections(
        boxes=np.asarray([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32),
        scores=np.asarray([0.75, 0.5], np.float32),
        class_ids=np.asarray([0, 4], np.int32),
        classes=LABELS,
    )
    assert found.names == ("person", "teddy bear") and len(found) == 2
    assert (
        found[1].names == ("teddy bear",)
        and len(found[[]]) == 0
        and found[found.scores > 0.6].scores.tolist() == [0.75]
    )
    assert found.to_dict()["detections"][1] == {"label": "teddy bear", "score": 0.5, "box": [5, 6, 7, 8]}
    assert found.to_coco(17)[1] == {"image_id": 17, "category_id": 5, "bbox": [5, 6, 7, 8], "score": 0.5}
    coco = Detections(
        boxes=found.boxes, scores=found.scores, class_ids=np.asarray([0, 79]), classes=tuple(map(str, range(80)))
    )
    assert [entry["category_id"] for entry in coco.to_coco("x")] == [1, 90]


# All of it


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return save(tiny_detector(2), tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def detector(folder) -> Detector:
    return Detector.from_pretrained(folder, labels="all", threshold=0, max_batch=2)


def test_detections_of_an_image_equal_transformers(folder, detector):
    from transformers import AutoModelForObjectDetection

    reference, processor = (
        AutoModelForObjectDetection.from_pretrained(folder),
        RTDetrImageProcessorPil.from_pretrained(folder),
    )
    image = random_image()
    with torch.no_grad():
        outputs = reference(**processor(images=Image.fromarray(image), return_tensors="pt"))
    (theirs,) = processor.post_process_object_detection(outputs, threshold=0.2, target_sizes=[image.shape[:2]])
    ours = detector(image, threshold=0.2)
    assert len(ours) == len(theirs["scores"]) > 5
    np.testing.assert_allclose(ours.scores, theirs["scores"], rtol=0, atol=DETECTOR)
    # Objects that score alike may come in another order: each has its like.
    corners = np.concatenate([ours.boxes[:, :2], ours.boxes[:, :2] + ours.boxes[:, 2:]], axis=1)
    expected = np.column_stack([theirs["labels"], theirs["boxes"]])
    for row in np.column_stack([ours.class_ids, corners]):
        assert np.abs(expected - row).max(axis=1).min() < BOXES


@pytest.mark.slow
def test_lists_of_images_of_many_sizes_in_few_programs(folder):
    detector = Detector.from_pretrained(folder, labels="all", threshold=0.2, max_batch=2)
    images = [random_image(seed, 90 + 7 * seed, 200 - 9 * seed) for seed in range(5)]
    together = detector(images)
    compiled = detector.num_compiled
    alone = [detector(image) for image in images]
    for one, other in zip(together, alone, strict=True):
        assert len(one) == len(other) > 0
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=DETECTOR)
        np.testing.assert_allclose(np.sort(one.boxes, 0), np.sort(other.boxes, 0), rtol=0, atol=BOXES)
    assert compiled == detector.num_compiled == 2
    assert detector([]) == []


def test_options_limit_the_number_and_classes_of_detections(detector):
    image = random_image()
    everything = detector(image)
    # As many as there are queries, though each could be five things.
    assert len(everything) == 30 and np.all(np.diff(everything.scores) <= 0)
    assert len(detector(image, max_detections=4)) == 4
    np.testing.assert_array_equal(detector(image, max_detections=4).boxes, everything[:4].boxes)
    people = detector(image, labels=["person"])
    assert set(people.names) == {"person"} and len(people) == 30
    animals = detector(image, labels="animals")
    assert set(animals.names) <= {"dog", "zebra"}
    empty = detector(image, threshold=0.9999)
    assert len(empty) == 0 and empty.boxes.shape == (0, 4) and empty.names == () and empty.to_coco(1) == []


def test_paths_arrays_and_gray_images_give_the_same_boxes(detector, tmp_path):
    image = random_image()
    Image.fromarray(image).save(tmp_path / "image.png")
    expected = detector(image).boxes
    for source in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(image), jnp.asarray(image)):
        np.testing.assert_array_equal(detector(source).boxes, expected)
    (batched,) = detector(image[None, ..., ::-1], channel_order="bgr")
    (streamed,) = detector.stream([image[..., ::-1]], channel_order="bgr")
    for detections in (batched, streamed, detector((tmp_path / "image.png").read_bytes())):
        np.testing.assert_array_equal(detections.boxes, expected)
    gray = detector(image[:, :, 0])
    np.testing.assert_array_equal(detector(np.repeat(image[:, :, :1], 3, axis=2)).boxes, gray.boxes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 1.0}, ValueError, "threshold: expected a number from 0 to less than 1, got 1.0"),
        ({"threshold": float("nan")}, ValueError, "threshold"),
        ({"max_detections": 0}, ValueError, "max_detections: expected a positive whole number, got 0"),
        ({"labels": ["persn"]}, ValueError, "knows no 'persn'"),
    ],
)
def test_invalid_options_raise(detector, options, error, message):
    with pytest.raises(error, match=message):
        detector(random_image(), **options)
    with pytest.raises(error, match=message):
        Detector(detector.model, **options)


def test_invalid_images_and_batch_sizes_raise(detector, tmp_path):
    with pytest.raises(FileNotFoundError):
        detector(tmp_path / "none.png")
    with pytest.raises(TypeError, match="uint8"):
        detector(np.zeros((4, 4, 3), np.int32))
    with pytest.raises(ValueError, match="power of two"):
        Detector(detector.model, max_batch=3)


def test_half_precision_gives_single_precision_boxes(folder):
    model = load_detector(folder, dtype=jnp.bfloat16)
    found = Detector(model, labels="all", threshold=0)(random_image())
    assert found.boxes.dtype == found.scores.dtype == np.float32 and np.isfinite(found.boxes).all()
    assert model.config.image_size == SIZE
