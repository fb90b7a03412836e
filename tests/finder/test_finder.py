"""The person finder: its network equals NanoDet-g in PyTorch, suppression equals OpenCV's, its files come back."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from tests.support.reference_finder import random_weights, run
from tests.tolerances import BLOCK, BOXES, DETECTOR
from vitpose_jax.convert.detectors import load_detector, write_finder
from vitpose_jax.finder.config import FinderConfig
from vitpose_jax.finder.modeling import PersonFinder
from vitpose_jax.finder.postprocess import box_iou, same_object, suppress
from vitpose_jax.finder.preprocess import input_size, prepare, resized_size, shrink
from vitpose_jax.storage import parameters

CONFIG = FinderConfig()


@pytest.fixture(scope="module")
def weights():
    return random_weights(CONFIG)


@pytest.fixture(scope="module")
def finder(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("nanodet") / "nanodet.safetensors"
    save_file(weights, path)
    return load_detector(path)


def test_network_equals_pytorch(weights, finder):
    images = np.random.default_rng(1).normal(size=(2, 96, 160, 3)).astype(np.float32)
    logits, boxes, feature_maps = run(weights, CONFIG, images)
    with jax.default_matmul_precision("highest"):
        output = jax.jit(finder)(jnp.asarray(images))
    assert logits.std() > 0.1 and np.ptp(boxes[..., 2] - boxes[..., 0]) > 10
    for ours, theirs in zip(output.feature_maps, feature_maps, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=DETECTOR * np.abs(theirs).max())
    np.testing.assert_allclose(output.logits, logits, rtol=0, atol=DETECTOR * np.abs(logits).max())
    np.testing.assert_allclose(output.boxes, boxes, rtol=0, atol=BOXES)


def test_images_of_a_wrong_size_are_refused(finder):
    for shape in ((1, 100, 96, 3), (1, 96, 96, 4)):
        with pytest.raises(ValueError, match=r"multiples of 32, got \(1, "):
            finder(jnp.zeros(shape))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 40), threshold=st.sampled_from([0.3, 0.5, 0.65]))
def test_suppression_equals_opencv(seed, count, threshold):
    rng = np.random.default_rng(seed)
    # Few positions, so that many boxes overlap, in chains too.
    corner, sides = rng.uniform(0, 60, (count, 2)), rng.uniform(10, 50, (count, 2))
    scores = np.sort(rng.uniform(0.1, 1, count))[::-1]
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    close = np.abs(box_iou(jnp.asarray(boxes), jnp.asarray(boxes)) - threshold) < 1e-4
    kept = np.asarray(suppress(box_iou(*[jnp.asarray(boxes)] * 2) > threshold, jnp.zeros(count, jnp.int32)))
    expected = cv2.dnn.NMSBoxes(np.concatenate([corner, sides], axis=1).tolist(), scores.tolist(), 0.0, threshold)
    if not close.any():  # where an overlap is on the threshold, rounding decides
        assert np.flatnonzero(kept).tolist() == sorted(np.asarray(expected).tolist())


def test_boxes_of_other_classes_are_not_suppressed():
    boxes = jnp.asarray([[0, 0, 10, 10]] * 3, jnp.float32)
    assert suppress(same_object(boxes, 0.5), jnp.asarray([0, 1, 0])).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("box", "same"),
    [
        ((0, 0, 100, 70), False),  # the lower part, too small
        ((5, 0, 95, 110), True),  # the upper half
        ((0, 0, 130, 200), True),  # much in common
        ((60, 0, 160, 200), False),  # beside
        ((-20, 0, 80, 110), False),  # half of another, farther left
    ],
)
def test_a_part_of_a_person_is_the_same_person(box, same):
    boxes = jnp.asarray([(0, 0, 100, 200), box], jnp.float32)
    assert same_object(boxes, 0.6).tolist() == [[True, same], [same, True]]


@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_images_keep_their_aspect_and_inputs_hold_them(height, width):
    rows, columns = resized_size(height, width, CONFIG)
    assert max(rows, columns) == 640 and min(rows, columns) >= 1
    assert abs(rows / columns * width - height) <= max(height, width) / min(rows, columns)
    sides = input_size([(rows, columns), (128, 640)], CONFIG)
    assert sides == (128 * -(-max(rows, 128) // 128), 640)


def test_white_and_black_are_normalised():
    ends = np.asarray([[0, 0, 0], [255, 255, 255]], np.uint8)
    expected = (ends - np.asarray([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375]
    np.testing.assert_allclose(prepare(ends, CONFIG), expected, rtol=0, atol=BLOCK)


def test_the_second_look_is_at_the_image_as_pillow_shrinks_it():
    image = np.random.default_rng(0).uniform(size=(250, 320)).astype(np.float32)
    ours = np.asarray(shrink(jnp.asarray(image)[None, :, :, None], 0.6))[0, :, :, 0]
    theirs = Image.fromarray(image).resize((192, 150), Image.Resampling.BILINEAR)
    assert ours.shape == (160, 192) and not ours[150:].any()
    np.testing.assert_allclose(ours[:150], theirs, rtol=0, atol=BLOCK)


@pytest.mark.parametrize("int8", [False, True])
def test_a_folder_comes_back(finder, tmp_path, int8):
    write_finder(finder, tmp_path / "finder", int8=int8)
    again = load_detector(tmp_path / "finder")
    assert isinstance(again, PersonFinder) and again.config == finder.config
    for name, tensor in parameters.flatten(finder).items():
        rounding = np.abs(tensor).max() / 254 if int8 and name.endswith("kernel") else 0
        assert np.abs(parameters.flatten(again)[name] - tensor).max() <= rounding + BLOCK * bool(rounding), name
    with pytest.raises(ValueError, match="already holds"):
        write_finder(finder, tmp_path / "finder")


def test_bad_configurations_and_files_are_refused(weights, tmp_path):
    for fields, message in (
        ({"image_size": 500}, "image_size: expected a multiple of 128 up to 8192, got 500"),
        ({"widths": (32, 64)}, "widths: expected 4 positive whole numbers"),
        ({"widths": (31, 64, 128, 256)}, "widths: expected even numbers"),
        ({"labels": ()}, "labels: expected one or more"),
        ({"nms_iou": 1.5}, "nms_iou: expected a number from 0 to less than 1, got 1.5"),
        ({"max_objects": 1000}, "max_objects: expected at most num_candidates 600, got 1000"),
        ({"scales": (1.0, 0.0)}, r"scales: expected 1 to 8 numbers from above 0 to 1, got \(1.0, 0.0\)"),
        ({"scales": ()}, "scales: expected 1 to 8 numbers"),
        ({"num_bins": 1}, "num_bins: expected at least 2"),
        ({"depths": (1, 0, 2, 3)}, "depths: expected 4 positive whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            CONFIG.replace(**fields)
    with pytest.raises(ValueError, match=r"missing fields \['image_size'\], unknown fields \['size'\]"):
        FinderConfig.from_dict({"size": 1, **{k: v for k, v in CONFIG.to_dict().items() if k != "image_size"}})
    assert FinderConfig.from_dict(CONFIG.to_dict()) == CONFIG
    broken = {name: value for name, value in weights.items() if name != "stage2.in.bias"}
    save_file({**broken, "more": np.zeros(3, np.float32)}, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"2 problems\n  unexpected more.*\n  missing stage2\.in\.bias"):
        load_detector(tmp_path / "broken.safetensors")


@pytest.mark.slow
def test_random_parameters_and_half_precision_give_finite_boxes():
    finder = PersonFinder(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    output = finder(jnp.zeros((1, 64, 64, 3)))
    assert output.logits.dtype == output.boxes.dtype == jnp.float32
    assert output.feature_maps[0].dtype == jnp.bfloat16
    assert np.isfinite(output.boxes).all() and output.boxes.shape == (1, 64 + 16 + 4, 4)


def test_resized_pixels_are_those_of_pillow(finder):
    from vitpose_jax.detector import Detector
    from vitpose_jax.pipeline.resize import resize, resize_matrix, side_bucket

    image = np.random.default_rng(0).integers(0, 256, (300, 700, 3), np.uint8)
    rows, columns = resized_size(300, 700, CONFIG)
    size = input_size([(rows, columns)], CONFIG)
    padded = np.pad(image, ((0, side_bucket(300) - 300), (0, side_bucket(700) - 700), (0, 0)))
    pixels = np.asarray(resize(padded, *map(resize_matrix, (300, 700), (rows, columns), size)))
    wide = Image.fromarray(image).resize((columns, 300), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels[:rows, :columns], wide.resize((columns, rows), Image.Resampling.BILINEAR))
    assert size == (384, 640) and not pixels[rows:].any() and not pixels[:, columns:].any()
    detections = Detector(finder, threshold=0.0)(image)
    assert len(detections) <= CONFIG.max_objects and (detections.boxes[:, 2:] > 0).all()
    assert (detections.boxes[:, :2] >= 0).all()
    assert (detections.boxes[:, :2] + detections.boxes[:, 2:] <= np.asarray([700, 300]) + BOXES).all()
