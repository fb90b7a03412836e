"""Crops against SciPy (through transformers) and OpenCV, and the geometry on its own."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import VitPoseImageProcessorPil
from transformers.models.vitpose.image_processing_pil_vitpose import box_to_center_and_scale

from tests.support.reference_opencv import three_point_matrix, udp_matrix
from tests.tolerances import BLOCK, CROP_OUTLIERS, FLOAT32, KEYPOINTS, POSITIONS
from vitpose_jax.pipeline import preprocess
from vitpose_jax.pipeline.packing import pack_images
from vitpose_jax.pipeline.regions import boxes_to_regions, check_boxes, crop_to_image
from vitpose_jax.vitpose.config import IMAGENET_MEAN, IMAGENET_STD

SIZE = (256, 192)


def random_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Boxes from one pixel to twice the image, many of them partly or wholly outside."""
    corner = rng.uniform([-0.4 * width, -0.4 * height], [1.1 * width, 1.1 * height], (count, 2))
    extent = np.exp(rng.uniform(0, np.log([2 * width, 2 * height]), (count, 2)))
    return np.concatenate([corner, extent], axis=1).astype(np.float32)


def pixel_values(crops: np.ndarray) -> np.ndarray:
    """Undo the normalisation."""
    return np.round((np.asarray(crops) * IMAGENET_STD + IMAGENET_MEAN) * 255)


def cropped(image: np.ndarray, boxes: np.ndarray, **options) -> np.ndarray:
    """What `crop_boxes` gives, of an image in a longer pixel buffer: compiled once for images of all sizes."""
    images = pack_images([image], 640 * 640).select(np.zeros(len(boxes), int))
    return np.asarray(_crop(images, boxes, **options))


@functools.partial(jax.jit, static_argnames=("udp", "border"))
def _crop(images, boxes, rotation=None, **options):
    places = boxes_to_regions(boxes)._replace(rotation=rotation)
    return preprocess.normalize(preprocess.crop_regions(images, places, **options))


def test_crops_equal_the_reference_processor(photographs):
    rng = np.random.default_rng(0)
    processor = VitPoseImageProcessorPil()
    differences = []
    for image in photographs:
        boxes = random_boxes(rng, 24, *image.shape[:2])
        reference = processor(Image.fromarray(image), boxes=[boxes.tolist()], return_tensors="np")["pixel_values"]
        reference = np.asarray(reference).transpose(0, 2, 3, 1)
        ours = cropped(image, boxes)
        assert ours.shape == (24, *SIZE, 3)
        assert ours.dtype == np.float32
        differences.append(np.abs(pixel_values(ours) - pixel_values(reference)))
    differences = np.concatenate(differences)
    assert (differences > 1).mean() < CROP_OUTLIERS
    # All but one in a thousand are equal outright: this is the same function, not a similar one.
    assert (differences > 0).mean() < CROP_OUTLIERS


def test_normalised_values_equal_the_reference_processor(photographs):
    image, box = photographs[0], [[100.0, 80.0, 120.0, 200.0]]
    reference = VitPoseImageProcessorPil()(Image.fromarray(image), boxes=[box], return_tensors="np")["pixel_values"]
    ours = np.asarray(preprocess.crop_boxes(image, np.array(box)))
    close = np.abs(ours - np.asarray(reference).transpose(0, 2, 3, 1)) < BLOCK
    assert close.mean() > 1 - CROP_OUTLIERS


@pytest.mark.parametrize(("udp", "matrix"), [(True, udp_matrix), (False, three_point_matrix)])
@pytest.mark.parametrize("turned", [False, True])
def test_crops_equal_opencv(photographs, udp, matrix, turned):
    rng = np.random.default_rng(1)
    differences = []
    for image in photographs[:6]:
        boxes = random_boxes(rng, 8, *image.shape[:2])
        angles = rng.uniform(-80, 80, 8).astype(np.float32) * turned
        crops = cropped(image, boxes, udp=udp, rotation=angles, border="opencv")
        centers, scales = (np.asarray(a, np.float64) for a in boxes_to_regions(boxes)[:2])
        for crop, angle, center, scale in zip(crops, angles, centers, scales, strict=True):
            forward = matrix(float(angle), center, scale, SIZE)
            reference = cv2.warpAffine(image, forward, SIZE[::-1], flags=cv2.INTER_LINEAR)
            differences.append(np.abs(pixel_values(crop) - reference))
    differences = np.stack(differences)
    assert (differences > 1).mean() < CROP_OUTLIERS
    if int(cv2.__version__.split(".")[0]) >= 5:
        # Before version 5, OpenCV rounded coordinates to 1/32 of a pixel.
        assert (differences > 0).mean() < CROP_OUTLIERS


def test_borders_differ_where_they_should():
    image = np.full((32, 24, 3), 200, np.uint8)
    # Not padded and of the crop's aspect, half a pixel larger than the image on every side.
    box = np.array([[-0.5, -0.5, 24.0, 32.0]])
    scipy, opencv = (
        pixel_values(preprocess.crop_boxes(image, box, (32, 24), padding=1.0, border=b))[0, :, :, 0]
        for b in ("scipy", "opencv")
    )
    assert scipy[0].max() == 0 and scipy[:, 0].max() == 0
    assert opencv[0, 12] == 100 and opencv[16, 0] == 100 and opencv[0, 0] == 50
    np.testing.assert_array_equal(scipy[1:-1, 1:-1], 200)


def test_many_images_in_one_pixel_buffer(photographs):
    images = photographs[:3]
    boxes = np.array([[20.0, 30, 100, 150], [0, 0, 300, 200], [50, 60, 70, 80]], np.float32)
    packed = preprocess.crop_regions(pack_images(images, length=4**10), boxes_to_regions(boxes))
    for crop, image, box in zip(packed, images, boxes, strict=True):
        alone = preprocess.crop_boxes(image, box[None])[0]
        assert (pixel_values(preprocess.normalize(crop)) != pixel_values(alone)).mean() < CROP_OUTLIERS


boxes_strategy = st.tuples(
    st.floats(-2000, 4000, width=32),
    st.floats(-2000, 4000, width=32),
    st.floats(1, 4000, width=32),
    st.floats(1, 4000, width=32),
)


@given(box=boxes_strategy, size=st.sampled_from([(256, 192), (384, 288), (64, 64), (100, 150)]))
def test_center_and_scale_equal_the_reference(box, size):
    center, scale, _ = boxes_to_regions(np.array([box], np.float32), size)
    expected_center, expected_scale = box_to_center_and_scale(box, image_width=size[1], image_height=size[0])
    np.testing.assert_allclose(center[0], expected_center, rtol=FLOAT32)
    np.testing.assert_allclose(scale[0], expected_scale * 200, rtol=FLOAT32)


@given(box=boxes_strategy, angle=st.floats(-180, 180), udp=st.booleans())
def test_a_box_is_inside_its_crop_whatever_the_turn_of_the_map(box, angle, udp):
    region = boxes_to_regions(np.array([box], np.float32), SIZE)
    center, scale, _ = region
    turned_region = region._replace(rotation=jnp.asarray([angle], jnp.float32))
    corners = jnp.asarray([[[0.0, 0], [191, 0], [0, 255], [191, 255], [95.5, 127.5]]])
    turned = np.asarray(crop_to_image(corners, turned_region, SIZE, udp=udp))[0]
    if udp:
        # The crop's middle pixel is the box's centre; its corners are those of the turned region.
        np.testing.assert_allclose(turned[4], center[0], rtol=FLOAT32, atol=POSITIONS)
        # Measured about the origin, where positions are exact.
        about_origin = crop_to_image(corners, turned_region._replace(center=jnp.zeros((1, 2))), SIZE, udp=udp)[0]
        diagonal = np.linalg.norm(about_origin[3] - about_origin[0])
        np.testing.assert_allclose(diagonal, np.linalg.norm(scale[0]), rtol=FLOAT32)
    upright = np.asarray(crop_to_image(corners, region, SIZE, udp=udp))[0]
    if udp:
        assert upright[0, 0] <= box[0] + KEYPOINTS and upright[0, 1] <= box[1] + KEYPOINTS
        assert upright[3, 0] >= box[0] + box[2] - KEYPOINTS and upright[3, 1] >= box[1] + box[3] - KEYPOINTS
    # Distances from the centre survive the turn.
    np.testing.assert_allclose(
        np.linalg.norm(turned - center[0], axis=1), np.linalg.norm(upright - center[0], axis=1), rtol=0, atol=KEYPOINTS
    )


def test_no_boxes_give_no_crops():
    assert preprocess.crop_boxes(np.zeros((8, 8, 3), np.uint8), np.zeros((0, 4))).shape == (0, *SIZE, 3)
    assert check_boxes([]).shape == (0, 4)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 1, 1], [0, 0, float("nan"), 1]], "box 1 is not finite"),
        ([[0, 0, float("inf"), 1]], "box 0 is not finite"),
        ([[0, 0, 1, 1], [5, 5, 0, 3]], "box 1 has no area"),
        ([[0, 0, -4, 3]], "box 0 has no area"),
        ([[0, 0, 1e-60, 3]], "box 0 has no area"),
        ([[0, 0, 1e300, 3]], "box 0 is more than"),
        (np.zeros((3, 0)), r"got \(3, 0\)"),
        ([0, 0, 4, 3], r"expected shape \(n, 4\), x y w h, got \(4,\)"),
        ([[0, 0, 4]], r"got \(1, 3\)"),
    ],
)
def test_bad_boxes_are_named(boxes, message):
    with pytest.raises(ValueError, match=message):
        check_boxes(boxes)


def test_boxes_that_are_not_numbers_raise():
    with pytest.raises(TypeError, match="four numbers x y w h"):
        check_boxes("0,0,1,1")


def test_an_unknown_border_raises():
    with pytest.raises(ValueError, match=r"expected one of scipy, opencv, got 'wrap'"):
        preprocess.check_border("wrap")
