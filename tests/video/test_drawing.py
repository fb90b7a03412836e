import numpy as np
import pytest

from tests.support.walkers import people
from vitpose_jax import Poses, draw_poses
from vitpose_jax.draw import PEOPLE
from vitpose_jax.skeletons import COCO
from vitpose_jax.video.drawing import draw_tracks

IMAGE = np.zeros((240, 480, 3), np.uint8)


def two() -> Poses:
    boxes, keypoints, scores = people([(100, 20, 200), (350, 20, 200)])
    return Poses.create(keypoints, scores, boxes, COCO)


def has(image: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((image == colour).all(axis=-1).any())


def test_a_track_keeps_its_colour_in_another_row():
    one = draw_tracks(IMAGE, two(), np.asarray([1, 2]))
    other = draw_tracks(IMAGE, two(), np.asarray([2, 11]))
    assert one.shape == IMAGE.shape and one.dtype == np.uint8
    left, right = slice(0, 240), slice(240, 480)
    assert has(one[:, left], PEOPLE[0]) and has(one[:, right], PEOPLE[1])
    assert has(other[:, left], PEOPLE[1]) and has(other[:, right], PEOPLE[10 % 8])


def test_numbers_and_other_options():
    ids = np.asarray([1, 2])
    numbered, plain = (draw_tracks(IMAGE, two(), ids, numbers=numbers) for numbers in (True, False))
    assert (numbered != plain).any()
    sides = draw_tracks(IMAGE, two(), ids, colour_by="side", numbers=False)
    assert has(sides[:, :240], PEOPLE[0]) and has(sides[:, :240], PEOPLE[1])
    assert not draw_tracks(IMAGE, two(), ids, numbers=False, threshold=0.9).any()


def test_colours_of_people_are_one_for_each():
    with pytest.raises(ValueError, match="person_colours: expected one for each of 2 people, got 1"):
        draw_poses(IMAGE, two(), person_colours=[(1, 2, 3)])
