import numpy as np

from tests.support.images import random_image
from vitpose_jax.video.cuts import CutFinder


def scene(seed: int) -> np.ndarray:
    """A picture of large areas of colour."""
    areas = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.kron(areas, np.ones((16, 16, 1), np.uint8))


def test_a_new_scene_is_a_cut():
    finder = CutFinder()
    assert [finder(scene(seed)) for seed in (0, 0, 1, 1, 1, 2)] == [False, False, True, False, False, True]


def test_movement_light_and_noise_are_none():
    picture = scene(0)
    finder = CutFinder()
    assert not finder(picture)
    for shift in range(0, 60, 6):  # a camera that moves by 150 pixels of 640 in a second
        assert not finder(np.roll(picture, shift, axis=1))
    finder = CutFinder()
    for light in (1.0, 0.93, 0.86, 0.8):
        assert not finder((picture * light).astype(np.uint8))
    finder = CutFinder()
    noise = np.random.default_rng(0).normal(scale=8, size=(10, *random_image(0).shape))
    assert not any(finder((random_image(0) + one).clip(0, 255).astype(np.uint8)) for one in noise)


def test_another_size_is_none():
    finder = CutFinder()
    assert not finder(scene(0)) and not finder(scene(1)[:40])
