"""The person finder's losses: equal to NumPy's, finite, and blind to padding and ignored regions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.boxes import reference_assignment, reference_losses
from tests.tolerances import LOSSES
from vitpose_jax.finder.modeling import FinderOutput, decode_boxes, make_cells
from vitpose_jax.training.detection.assignment import CELLS_PER_PERSON, assign_cells
from vitpose_jax.training.detection.losses import detection_losses

SIZE, BINS, COUNT = 64, 11, 8
CENTRES, STRIDES = make_cells(SIZE, SIZE)
# The numbers of people and of ignored regions in three images.
PEOPLE, IGNORED = (4, 0, 2), (0, 1, 2)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides, at = rng.uniform(6, 50, (count, 2)), rng.uniform(0, 1, (count, 2))
    corner = at * (SIZE - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def random_case(seed: int):
    """Logits, distances and the arguments of the loss for three images."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (3, len(CENTRES), 1)).astype(np.float32)
    distances = rng.normal(0, 2, (3, len(CENTRES), 4, BINS)).astype(np.float32)
    boxes = np.zeros((3, COUNT, 4), np.float32)
    is_person, is_ignored = np.zeros((2, 3, COUNT), bool)
    for image, (people, ignored) in enumerate(zip(PEOPLE, IGNORED, strict=True)):
        boxes[image, : people + ignored] = random_boxes(rng, people + ignored)
        is_person[image, :people] = True
        is_ignored[image, people : people + ignored] = True
    return logits, distances, boxes, is_person, is_ignored


@jax.jit
def losses(logits, distances, boxes, is_person, is_ignored):
    output = FinderOutput(logits, distances, decode_boxes(distances, CENTRES, STRIDES), ())
    return detection_losses(output, boxes, is_person, is_ignored, CENTRES, STRIDES)


@jax.jit
def gradients(logits, distances, *labels):
    return jax.grad(lambda *outputs: sum(losses(*outputs, *labels)), argnums=(0, 1))(logits, distances)


assign = jax.jit(assign_cells)


@pytest.mark.parametrize("seed", range(4))
def test_losses_equal_the_reference(seed):
    logits, distances, boxes, is_person, is_ignored = random_case(seed)
    expected = reference_losses(
        logits[..., 0],
        distances,
        np.asarray(decode_boxes(jnp.asarray(distances), CENTRES, STRIDES)),
        [row[mask] for row, mask in zip(boxes, is_person, strict=True)],
        [row[mask] for row, mask in zip(boxes, is_ignored, strict=True)],
        CENTRES,
        STRIDES,
    )
    np.testing.assert_allclose(losses(*random_case(seed)), expected, rtol=LOSSES)


@given(seed=st.integers(0, 10_000), count=st.integers(0, COUNT))
def test_the_best_ten_cells_inside_a_box_learn_its_person(seed, count):
    rng = np.random.default_rng(seed)
    people = np.zeros((COUNT, 4), np.float32)
    people[:count] = random_boxes(rng, count)
    scores = rng.uniform(0.01, 0.99, len(CENTRES)).astype(np.float32)
    distances = rng.normal(0, 2, (1, len(CENTRES), 4, BINS)).astype(np.float32)
    boxes = decode_boxes(jnp.asarray(distances), CENTRES, STRIDES)[0]
    owner, quality = map(np.asarray, assign(scores, boxes, CENTRES, people, np.arange(COUNT) < count))
    expected = reference_assignment(scores, np.asarray(boxes, np.float64), CENTRES, people[:count])
    assert set(np.flatnonzero(quality)) == set(expected)
    for cell, (person, value) in expected.items():
        assert owner[cell] == person
        np.testing.assert_allclose(quality[cell], value, rtol=LOSSES)
        assert (people[person, :2] < CENTRES[cell]).all() and (CENTRES[cell] < people[person, 2:]).all()
    assert ((quality >= 0) & (quality <= 1)).all()
    for person in range(count):
        assert (owner[quality > 0] == person).sum() <= CELLS_PER_PERSON


def test_a_person_without_a_cell_inside_learns_nothing():
    people = np.asarray([[1, 1, 3, 3]], np.float32)
    boxes = np.tile(people, (len(CENTRES), 1))
    _, quality = assign(np.ones(len(CENTRES), np.float32), boxes, CENTRES, people, np.asarray([True]))
    assert not np.any(quality)


def test_padding_changes_nothing():
    logits, distances, boxes, is_person, is_ignored = random_case(0)
    before = losses(logits, distances, boxes, is_person, is_ignored)
    unused = ~is_person & ~is_ignored
    boxes[unused] = random_boxes(np.random.default_rng(1), unused.sum())
    np.testing.assert_array_equal(losses(logits, distances, boxes, is_person, is_ignored), before)
    longer = [
        np.pad(array, ((0, 0), (0, 8)) + ((0, 0),) * (array.ndim - 2)) for array in (boxes, is_person, is_ignored)
    ]
    np.testing.assert_allclose(losses(logits, distances, *longer), before, rtol=LOSSES)


def test_cells_in_ignored_regions_do_not_count():
    """The second image has an ignored region and no people: what the network gives there changes nothing."""
    logits, distances, boxes, is_person, is_ignored = random_case(0)
    start, end = boxes[1, 0, :2], boxes[1, 0, 2:]
    inside = (start < CENTRES).all(axis=1) & (end > CENTRES).all(axis=1)
    assert 0 < inside.sum() < len(CENTRES)
    before, slopes = (f(logits, distances, boxes, is_person, is_ignored) for f in (losses, gradients))
    np.testing.assert_array_equal(slopes[0][1, inside], 0)
    assert np.all(slopes[0][1, ~inside] != 0)
    logits[1, inside] = 5
    np.testing.assert_array_equal(losses(logits, distances, boxes, is_person, is_ignored), before)
    logits[1, ~inside] = 5
    assert losses(logits, distances, boxes, is_person, is_ignored).score > before.score


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("people", [True, False])
def test_gradients_are_finite(scale, people):
    """Also of boxes without area, of sure scores and of a batch without people."""
    logits, distances, boxes, is_person, is_ignored = random_case(0)
    distances[:, ::2, :, 0] = 1e3
    for value in gradients(logits * scale, distances * scale, boxes, is_person & people, is_ignored):
        assert np.isfinite(value).all()
    assert np.isfinite(losses(logits * scale, distances * scale, boxes, is_person & people, is_ignored)).all()
