"""Augmentation: pixels and keypoints move together, like in the original, and with the documented probabilities."""

import dataclasses
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.reference_opencv import three_point_matrix, udp_matrix
from tests.tolerances import (
    CENTROIDS,
    CROP_OUTLIERS,
    FLOAT32,
    LIMIT,
    PIXEL_VALUES,
    PLACES,
    POSITIONS,
    STANDARD_DEVIATIONS,
)
from vitpose_jax.pipeline import preprocess
from vitpose_jax.pipeline.packing import PackedImages, pack_images
from vitpose_jax.pipeline.regions import Regions, boxes_to_regions, crop_to_image, image_to_crop
from vitpose_jax.skeletons import AP10K, COCO, DATASETS, MPII
from vitpose_jax.training.augment import Augmentation, augment_crops, augment_regions, skeleton_arrays
from vitpose_jax.vitpose.config import IMAGENET_MEAN, IMAGENET_STD

NONE = Augmentation.none()
# Everything that moves, all the time.
WILD = Augmentation(jitter_probability=1.0, rotation_probability=1.0, half_body=0.0)
SIZE = (96, 72)
# Most tests run op by op, on as many crops, so that every op is compiled once.
CROPS = 32


def pixel_values(crops) -> np.ndarray:
    return (np.asarray(crops) * IMAGENET_STD + IMAGENET_MEAN) * 255


def random_images(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*rng.integers(100, 180, 2), 3), np.uint8) for _ in range(count)]


def random_boxes(rng: np.random.Generator) -> np.ndarray:
    boxes = np.concatenate([rng.uniform(-20, 40, (CROPS, 2)), rng.uniform(10, 120, (CROPS, 2))], axis=1)
    return boxes.astype(np.float32)


def packed(images) -> PackedImages:
    return jax.tree.map(jnp.asarray, pack_images(images))


def blobs(keypoints: np.ndarray, height: int, width: int) -> np.ndarray:
    """One image with a bright spot at each keypoint: the first red, the second green, the third blue."""
    rows, columns = np.mgrid[:height, :width]
    squares = (columns[..., None] - keypoints[:, 0]) ** 2 + (rows[..., None] - keypoints[:, 1]) ** 2
    return np.round(255 * np.exp(-squares / (2 * 6.0**2))).astype(np.uint8)


@functools.cache
def spotted(seed: int):
    """The arguments of `augment_crops` for images with three spots and regions around them.

    The spots are the first three keypoints, of which the first two are a flip pair; the others are not visible.
    """
    rng = np.random.default_rng(seed)
    spots = rng.uniform([60, 60], [180, 240], (CROPS, 3, 2)).astype(np.float32)
    images = packed([blobs(points, 300, 240) for points in spots])
    boxes = np.concatenate([spots.min(axis=1) - 25, np.ptp(spots, axis=1) + 50], axis=1)
    keypoints = jnp.pad(jnp.asarray(spots), ((0, 0), (0, 14), (0, 0)))
    visible = jnp.tile(np.arange(17) < 3, (CROPS, 1))
    flip_indices = jnp.tile(jnp.asarray([1, 0, *range(2, 17)], jnp.int32), (CROPS, 1))
    arrays = (images, boxes_to_regions(boxes, SIZE), keypoints, visible)
    return arrays, {"flip_indices": flip_indices, "upper_body": jnp.zeros((CROPS, 17), bool), "size": SIZE}


def centroids(crops: np.ndarray) -> np.ndarray:
    """(n, 3, 2): the position of the spot of each colour."""
    values = np.maximum(pixel_values(crops), 0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    total = values.sum(axis=(1, 2))
    return np.stack([(values * axis[..., None]).sum(axis=(1, 2)) / total for axis in (columns, rows)], axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_keypoints_move_with_the_pixels(flip):
    arrays, settings = spotted(0)
    augmentation = dataclasses.replace(WILD, flip=flip, scale=0.2)
    udp = jnp.arange(CROPS) % 2 == 0
    crops, moved, visible = augment_crops(jax.random.key(1), *arrays, **settings, udp=udp, augmentation=augmentation)
    assert crops.shape == (CROPS, *SIZE, 3) and crops.dtype == moved.dtype == np.float32
    np.testing.assert_array_equal(visible, arrays[-1])
    moved = np.asarray(moved[:, :3])
    # In a mirrored crop the left keypoint is at the place of the right one.
    places = centroids(crops)[:, [1, 0, 2]] if flip else centroids(crops)
    inside = np.all((moved > 16) & (moved < np.array(SIZE[::-1]) - 17), axis=-1)
    assert inside.sum() > 40
    distances = np.linalg.norm(places - moved, axis=-1)
    for same_map in (True, False):
        assert distances[inside & (np.asarray(udp) == same_map)[:, None]].max() < CENTROIDS


@pytest.mark.parametrize(("udp", "matrix"), [(True, udp_matrix), (False, three_point_matrix)])
def test_a_flip_equals_mirroring_the_image_first(udp, matrix):
    """Computed as in the original: mirror image, keypoints and centre, then warp all three."""
    images = [cv2.GaussianBlur(image, (0, 0), 2) for image in random_images(1, CROPS)]
    rng = np.random.default_rng(2)
    keypoints = rng.uniform(0, 100, (CROPS, 17, 2)).astype(np.float32)
    visible = rng.random((CROPS, 17)) < 0.7
    regions = boxes_to_regions(random_boxes(rng), SIZE)
    arrays = {name: jnp.asarray(np.tile(row, (CROPS, 1))) for name, row in coco_arrays().items()}
    key, augmentation = jax.random.key(3), dataclasses.replace(WILD, flip=1.0)
    crops, moved, still_visible = augment_crops(
        *(key, packed(images), regions, jnp.asarray(keypoints), jnp.asarray(visible)),
        **(arrays | {"size": SIZE, "udp": udp, "augmentation": augmentation}),
    )
    (center, scale, rotation), _ = augment_regions(
        jax.random.split(key, 3)[0],
        *(regions, jnp.asarray(keypoints), jnp.asarray(visible)),
        upper_body=arrays["upper_body"],
        size=SIZE,
        augmentation=augmentation,
    )
    different = []
    for index, image in enumerate(images):
        width = image.shape[1]
        middle = np.asarray(center[index], np.float64) * [-1, 1] + [width - 1, 0]
        points = (keypoints[index] * [-1, 1] + [width - 1, 0])[list(COCO.flip_indices)]
        forward = matrix(-float(rotation[index]), middle, np.asarray(scale[index], np.float64), SIZE)
        expected = cv2.warpAffine(np.ascontiguousarray(image[:, ::-1]), forward, SIZE[::-1], flags=cv2.INTER_LINEAR)
        different.append(np.abs(np.round(pixel_values(crops[index])) - expected) > 1)
        np.testing.assert_allclose(moved[index], points @ forward[:, :2].T + forward[:, 2], rtol=0, atol=POSITIONS)
        np.testing.assert_array_equal(still_visible[index], visible[index][list(COCO.flip_indices)])
    assert np.mean(different) < CROP_OUTLIERS


def coco_arrays() -> dict[str, np.ndarray]:
    return dict(zip(("flip_indices", "upper_body"), (rows[0] for rows in skeleton_arrays([COCO])), strict=True))


@pytest.mark.parametrize(("udp", "border"), [(True, "opencv"), (False, "scipy")])
def test_augmentation_none_gives_the_crops_of_inference(udp, border):
    (image,) = random_images(4, 1)
    rng = np.random.default_rng(5)
    boxes = random_boxes(rng)
    regions = boxes_to_regions(boxes, SIZE)
    keypoints = jnp.asarray(rng.uniform(0, 100, (CROPS, 17, 2)), jnp.float32)
    arrays = {name: jnp.asarray(np.tile(row, (CROPS, 1))) for name, row in coco_arrays().items()}
    crops, moved, _ = augment_crops(
        *(
            jax.random.key(0),
            packed([image]).select(np.zeros(CROPS, int)),
            regions,
            keypoints,
            jnp.ones((CROPS, 17), bool),
        ),
        **arrays,
        size=SIZE,
        udp=udp,
        augmentation=NONE,
        border=border,
    )
    np.testing.assert_array_equal(crops, preprocess.crop_boxes(image, boxes, SIZE, udp=udp, border=border))
    back = crop_to_image(moved, regions, SIZE, udp=udp)
    np.testing.assert_allclose(back, keypoints, rtol=0, atol=POSITIONS)


def test_the_key_decides_and_one_program_serves_all_keys():
    arrays, settings = spotted(6)
    augmentation = dataclasses.replace(WILD, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, erasing=0.5)
    traces = []

    @jax.jit
    def run(key):
        traces.append(1)
        crops, moved, _ = augment_crops(key, *arrays, **settings, augmentation=augmentation)
        return crops, moved[:, :3]

    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    for ours, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(ours, same)
        assert (np.asarray(ours) != np.asarray(different)).any(axis=tuple(range(1, ours.ndim))).all()
    assert len(traces) == 1


N = 4000


def people(seed: int = 7):
    """Boxes of various shapes with the keypoints of COCO in them."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(0, 400, (N, 2)), rng.uniform(30, 300, (N, 2))], axis=1).astype(np.float32)
    keypoints = boxes[:, None, :2] + rng.random((N, 17, 2)).astype(np.float32) * boxes[:, None, 2:]
    return boxes, keypoints


def vary(augmentation: Augmentation, seed: int = 0, visible=None, extent=True, upper_body=None):
    boxes, keypoints = people()
    regions = boxes_to_regions(boxes)
    augmented, flip = augment_regions(
        jax.random.key(seed),
        regions,
        jnp.asarray(keypoints),
        jnp.ones((N, 17), bool) if visible is None else visible,
        upper_body=jnp.tile(coco_arrays()["upper_body"] if upper_body is None else upper_body, (N, 1)),
        extent=jnp.asarray(boxes[:, 2:]) if extent else None,
        augmentation=augmentation,
    )
    return boxes, *map(np.asarray, (regions.center, regions.scale, *augmented, flip))


def check_fraction(events: np.ndarray, expected: float) -> None:
    """The fraction of events is the expected one, within some standard deviations of a binomial distribution."""
    assert abs(events.mean() - expected) <= STANDARD_DEVIATIONS * np.sqrt(expected * (1 - expected) / events.size)


def test_jitter_shifts_the_centre_within_its_limits():
    boxes, center, scale, new_center, new_scale, rotation, flip = vary(
        dataclasses.replace(NONE, jitter=0.2, jitter_probability=0.3)
    )
    shift = (new_center - center) / boxes[:, 2:]
    moved = np.any(new_center != center, axis=1)
    check_fraction(moved, 0.3)
    assert np.abs(shift).max() < 0.2 + PLACES
    np.testing.assert_allclose(np.abs(shift[moved]).max(axis=0), 0.2, rtol=LIMIT)
    # Uniform numbers, with the standard errors of their mean and of their standard deviation.
    deviation = 0.2 / np.sqrt(3)
    mean_error, deviation_error = deviation / np.sqrt(moved.sum()), deviation / np.sqrt(5 * moved.sum())
    np.testing.assert_allclose(shift[moved].mean(axis=0), 0, atol=STANDARD_DEVIATIONS * mean_error)
    np.testing.assert_allclose(shift[moved].std(axis=0), deviation, rtol=0, atol=STANDARD_DEVIATIONS * deviation_error)
    np.testing.assert_array_equal(new_scale, scale)
    assert not rotation.any() and not flip.any()
    # Without the extent of the boxes, the unit is the region without its padding.
    _, center, scale, new_center, *_ = vary(dataclasses.replace(NONE, jitter=0.2, jitter_probability=1.0), extent=False)
    largest = np.abs((new_center - center) / scale).max(axis=0)
    np.testing.assert_allclose(largest, 0.2 / 1.25, rtol=LIMIT)


def test_flip_scale_and_rotation_have_the_documented_distributions():
    _, center, scale, new_center, new_scale, rotation, flip = vary(Augmentation(half_body=0.0, jitter=0.0))
    check_fraction(flip, 0.5)
    np.testing.assert_array_equal(new_center, center)
    factor = (new_scale / scale)[:, 0]
    np.testing.assert_allclose((new_scale / scale)[:, 1], factor, rtol=FLOAT32)
    # A normal number is clipped at one standard deviation on both sides.
    check_fraction(factor >= 1.5 * (1 - FLOAT32), 0.1587)
    check_fraction(factor <= 0.5 * (1 + FLOAT32), 0.1587)
    check_fraction(factor < 1.25, 0.6915)
    np.testing.assert_allclose([factor.min(), factor.max()], [0.5, 1.5], rtol=FLOAT32)
    check_fraction(rotation != 0, 0.6)
    turned = rotation[rotation != 0]
    check_fraction(np.abs(turned) <= 40, 0.6827)
    check_fraction(np.abs(turned) >= 80 * (1 - FLOAT32), 0.0455)
    check_fraction(turned > 0, 0.5)
    np.testing.assert_allclose(np.abs(turned).max(), 80, rtol=FLOAT32)
    # Correlations of independent numbers have the standard deviation 1 / sqrt(N).
    assert abs(np.corrcoef(flip, rotation != 0)[0, 1]) < STANDARD_DEVIATIONS / np.sqrt(N)


def test_half_bodies_are_the_region_of_their_keypoints():
    _, keypoints = people()
    upper = coco_arrays()["upper_body"]
    _, center, scale, new_center, new_scale, *_ = vary(dataclasses.replace(NONE, half_body=0.3))
    changed = np.any(new_center != center, axis=1)
    check_fraction(changed, 0.3)
    np.testing.assert_array_equal(new_scale[~changed], scale[~changed])
    middles = [keypoints[:, half].mean(axis=1) for half in (upper, ~upper)]
    is_upper, is_lower = (np.abs(new_center - middle).max(axis=1) < POSITIONS for middle in middles)
    np.testing.assert_array_equal(is_upper | is_lower, changed)
    # The fraction of normal numbers below 0.5, as in the original.
    check_fraction(is_upper[changed], 0.6915)
    for half, taken in ((upper, is_upper), (~upper, is_lower)):
        extent = np.ptp(keypoints[:, half], axis=1)
        width = 1.5 * np.maximum(extent[:, 0], extent[:, 1] * 0.75)
        np.testing.assert_allclose(new_scale[taken], np.stack([width, width / 0.75], -1)[taken], rtol=FLOAT32)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        # Eight keypoints are too few, nine are enough.
        (range(3, 11), None),
        (range(2, 11), range(2, 11)),
        # A half with two keypoints is never chosen over the other one.
        ([*range(9), 11, 12], range(9)),
        ([0, 1, *range(11, 17)], None),
    ],
)
def test_a_half_body_needs_nine_visible_keypoints(visible, expected):
    _, keypoints = people()
    mask = np.isin(np.arange(17), list(visible))
    _, center, _, new_center, *_ = vary(dataclasses.replace(NONE, half_body=1.0), visible=jnp.tile(mask, (N, 1)))
    if expected is None:
        np.testing.assert_array_equal(new_center, center)
    else:
        np.testing.assert_allclose(new_center, keypoints[:, list(expected)].mean(axis=1), rtol=0, atol=POSITIONS)


def test_a_half_body_without_a_half_changes_nothing():
    always = dataclasses.replace(NONE, half_body=1.0, half_body_keypoints=0)
    # The skeleton has no upper body.
    _, center, _, new_center, *_ = vary(always, upper_body=np.zeros(17, bool))
    np.testing.assert_array_equal(new_center, center)
    # One keypoint has no extent; two have one.
    for count in (0, 1, 2):
        mask = jnp.tile(np.arange(17) < count, (N, 1))
        _, center, _, new_center, new_scale, *_ = vary(always, visible=mask)
        assert np.isfinite(new_scale).all() and new_scale.min() > 0
        assert np.any(new_center != center, axis=1).all() == (count == 2)


def test_turning_one_augmentation_off_does_not_change_the_others():
    whole = vary(Augmentation(half_body=0.0, jitter=0.0))
    for name in ("scale", "rotation", "flip"):
        less = vary(Augmentation(half_body=0.0, jitter=0.0, **{name: 0.0}))
        changed = [not np.array_equal(a, b) for a, b in zip(whole[4:], less[4:], strict=True)]
        assert sum(changed) == 1


def test_skeleton_arrays_are_padded_to_the_longest_skeleton():
    flip_indices, upper_body = skeleton_arrays(DATASETS)
    assert flip_indices.shape == upper_body.shape == (6, 133)
    assert flip_indices.dtype == np.int32
    for row, skeleton in enumerate(DATASETS):
        count = skeleton.num_keypoints
        np.testing.assert_array_equal(flip_indices[row, :count], skeleton.flip_indices)
        np.testing.assert_array_equal(flip_indices[row, count:], np.arange(count, 133))
        np.testing.assert_array_equal(np.flatnonzero(upper_body[row]), skeleton.upper_body)
    assert skeleton_arrays([COCO, MPII], 20)[0].shape == (2, 20)
    with pytest.raises(ValueError, match="num_keypoints: expected at least 17, got 16"):
        skeleton_arrays([MPII, AP10K], 16)


GRAY, COLOR = (np.full((*SIZE, 3), levels, np.uint8) for levels in ([90, 90, 90], [120, 60, 80]))
NOISE = np.random.default_rng(8).integers(60, 190, (*SIZE, 3), np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])


def recolored(image, **changes):
    """Crops of one image, many times, normalised and as pixel values."""
    extent = jnp.tile(jnp.asarray([SIZE[::-1]], jnp.float32), (CROPS, 1))
    _, settings = spotted(0)
    crops, _, _ = augment_crops(
        *(jax.random.key(0), packed([image]).select(np.zeros(CROPS, int)), Regions(extent / 2, extent)),
        *(jnp.zeros((CROPS, 17, 2)), jnp.ones((CROPS, 17), bool)),
        **settings,
        udp=False,
        augmentation=dataclasses.replace(NONE, **changes),
    )
    return np.asarray(crops), pixel_values(crops)


def fills(factors: np.ndarray, spread: float) -> None:
    """Factors lie within 1 - spread to 1 + spread, and reach far to both sides."""
    assert np.abs(factors - 1).max() < spread + FLOAT32
    assert factors.min() < 1 - 0.8 * spread and factors.max() > 1 + 0.8 * spread


def test_brightness_multiplies_pixel_values():
    _, bright = recolored(GRAY, brightness=0.3)
    fills(bright.mean(axis=(1, 2, 3)) / 90, 0.3)
    _, bright = recolored(COLOR, brightness=0.3)
    np.testing.assert_allclose(bright / bright[..., :1], np.broadcast_to(COLOR / 120, bright.shape), rtol=FLOAT32)
    _, bright = recolored(np.full_like(GRAY, 250), brightness=0.3)
    np.testing.assert_allclose(bright.max(), 255, rtol=0, atol=PIXEL_VALUES)


def test_contrast_changes_about_the_mean_luma():
    np.testing.assert_allclose(
        recolored(GRAY, contrast=0.3)[1], np.broadcast_to(GRAY, (CROPS, *SIZE, 3)), rtol=0, atol=PIXEL_VALUES
    )
    _, noise = recolored(NOISE, contrast=0.3)
    np.testing.assert_allclose((noise @ LUMA).mean(axis=(1, 2)), (NOISE @ LUMA).mean(), rtol=0, atol=PIXEL_VALUES)
    fills(noise.std(axis=(1, 2, 3)) / NOISE.std(), 0.3)


def test_saturation_keeps_the_luma():
    np.testing.assert_allclose(
        recolored(GRAY, saturation=0.5)[1], np.broadcast_to(GRAY, (CROPS, *SIZE, 3)), rtol=0, atol=PIXEL_VALUES
    )
    _, color = recolored(COLOR, saturation=0.5)
    np.testing.assert_allclose(color @ LUMA, np.broadcast_to(COLOR @ LUMA, color.shape[:3]), rtol=0, atol=PIXEL_VALUES)
    fills(np.ptp(color, axis=-1)[:, 0, 0] / 60, 0.5)


def test_hue_rotates_colours_and_keeps_the_luma():
    np.testing.assert_allclose(
        recolored(GRAY, hue=0.5)[1], np.broadcast_to(GRAY, (CROPS, *SIZE, 3)), rtol=0, atol=PIXEL_VALUES
    )
    _, color = recolored(COLOR, hue=0.5)
    np.testing.assert_allclose(color @ LUMA, np.broadcast_to(COLOR @ LUMA, color.shape[:3]), rtol=0, atol=PIXEL_VALUES)
    # The vector of the two chroma channels keeps its length and rotates.
    chroma = np.array([[0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    old, new = COLOR[0, 0] @ chroma.T, color[:, 0, 0] @ chroma.T
    np.testing.assert_allclose(np.linalg.norm(new, axis=-1), np.linalg.norm(old), rtol=0, atol=PIXEL_VALUES)
    fills(1 + np.arctan2(new @ [-old[1], old[0]], new @ old) / np.pi, 1.0)


def test_erasing_fills_a_rectangle_inside_the_crop():
    crops, _ = recolored(COLOR, erasing=0.5, erased_area=(0.1, 0.2))
    erased = np.all(crops == 0, axis=-1)
    areas = erased.mean(axis=(1, 2))
    hit = areas > 0
    check_fraction(hit, 0.5)
    assert 0.09 < areas[hit].min() < 0.13 and 0.17 < areas[hit].max() < 0.21
    for mask in erased[hit]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": 1.5}, "flip: expected a probability from 0 to 1, got 1.5"),
        ({"half_body": float("nan")}, "half_body: expected a probability"),
        ({"jitter": -0.1}, "jitter: expected a number from 0 to 1"),
        ({"scale": 1.0}, "scale: expected a number from 0 to below 1, got 1.0"),
        ({"rotation": 181}, "rotation: expected degrees from 0 to 180, got 181"),
        ({"half_body_padding": 0}, "half_body_padding: expected a positive number"),
        ({"half_body_keypoints": -1}, "half_body_keypoints: expected 0 or more"),
        ({"hue": 0.6}, "hue: expected a number from 0 to 0.5"),
        ({"erased_area": (0.5, 0.2)}, r"erased_area: expected two numbers.*got \(0.5, 0.2\)"),
    ],
)
def test_augmentation_checks_its_ranges(changes, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**changes)


def test_augmentation_takes_upright_regions():
    arrays, settings = spotted(0)
    images, regions, *labels = arrays
    with pytest.raises(ValueError, match="regions: expected upright regions, got a rotation"):
        augment_crops(jax.random.key(0), images, regions._replace(rotation=np.zeros(CROPS)), *labels, **settings)


to_crop, to_image = (jax.jit(function, static_argnums=2) for function in (image_to_crop, crop_to_image))


@given(
    center=st.tuples(st.floats(-500, 1500), st.floats(-500, 1500)),
    width=st.floats(2, 2000),
    angle=st.floats(-180, 180),
    udp=st.booleans(),
)
def test_image_to_crop_is_the_inverse(center, width, angle, udp):
    rng = np.random.default_rng(9)
    points = jnp.asarray(rng.uniform(-50, 300, (1, 8, 2)), jnp.float32)
    scale, rotation = [[width, width / 0.75]], [angle]
    region = Regions(*(jnp.asarray(values, jnp.float32) for values in ([center], scale, rotation)))
    image = to_image(points, region, (256, 192), udp=jnp.asarray([udp]))
    back = to_crop(image, region, (256, 192), udp=jnp.asarray([udp]))
    # A pixel of the image has this many of the crop.
    enlargement = 192 / width
    np.testing.assert_allclose(back, points, rtol=0, atol=PLACES + PLACES * enlargement)


def test_each_crop_has_its_affine_map():
    (image,) = random_images(10, 1)
    boxes = random_boxes(np.random.default_rng(11))
    which = np.arange(CROPS) % 3 == 0
    mixed = np.asarray(preprocess.crop_boxes(image, boxes, SIZE, udp=jnp.asarray(which)))
    for udp in (True, False):
        alone = np.asarray(preprocess.crop_boxes(image, boxes, SIZE, udp=udp))
        assert (np.abs(mixed - alone)[which == udp] > FLOAT32).mean() < CROP_OUTLIERS
        assert (mixed[which != udp] != alone[which != udp]).any(axis=(1, 2, 3)).all()
