import numpy as np
import pytest

from tests.tolerances import FLOAT32
from vitpose_jax.video.smoothing import KeypointSmoother

BOXES = np.asarray([[0, 0, 100, 100]], np.float32)


def smooth(smoother: KeypointSmoother, path: np.ndarray, seconds: float = 0.04) -> np.ndarray:
    """One keypoint along a path (frames, 2)."""
    return np.stack(
        [smoother(n * seconds, [1], point[None, None].astype(np.float32), BOXES)[0, 0] for n, point in enumerate(path)]
    )


def reference(path: np.ndarray, seconds: float, *, min_cutoff: float, beta: float, speed_cutoff: float, size: float):
    """The paper's filter, one number after another, with the speed of both coordinates."""

    def alpha(cutoff: float) -> float:
        tau = 1 / (2 * np.pi * cutoff)
        return 1 / (1 + tau / seconds)

    x, dx, out = path[0], np.zeros(2), [path[0]]
    for value in path[1:]:
        dx = alpha(speed_cutoff) * (value - x) / seconds + (1 - alpha(speed_cutoff)) * dx
        a = alpha(min_cutoff + beta * np.hypot(*dx) / size)
        x = a * value + (1 - a) * x
        out.append(x)
    return np.stack(out)


def test_it_is_the_filter_of_the_paper():
    path = np.cumsum(np.random.default_rng(0).normal(size=(50, 2)), axis=0) * 5
    options = {"min_cutoff": 1.5, "beta": 3.0, "speed_cutoff": 1.0}
    expected = reference(path.astype(np.float32).astype(float), 0.04, **options, size=100)
    # In sizes of the person.
    np.testing.assert_allclose(smooth(KeypointSmoother(**options), path) / 100, expected / 100, atol=FLOAT32)


def test_jitter_shrinks_and_movement_does_not_lag():
    noise = np.random.default_rng(0).normal(size=(100, 2))
    assert smooth(KeypointSmoother(), noise)[20:].std() < 0.6 * noise[20:].std()
    moving = np.arange(100)[:, None] * np.asarray([8.0, 0.0])  # two sizes of the person a second
    assert np.abs(smooth(KeypointSmoother(), moving) - moving)[20:].max() < 2 * 8


def test_real_times_count():
    """The same movement at half the frames is filtered alike: not so with a weight for each frame."""
    times = np.arange(0, 2, 0.02)
    path = np.stack([50 * np.sin(2 * times), 0 * times], axis=-1)
    fine = smooth(KeypointSmoother(), path, 0.02)[::2]
    coarse = smooth(KeypointSmoother(), path[::2], 0.04)
    assert np.abs(fine - coarse).max() < 2.5


def test_each_track_and_keypoint_by_itself():
    smoother = KeypointSmoother()
    points = np.zeros((2, 3, 2), np.float32)
    boxes = np.repeat(BOXES, 2, axis=0)
    smoother(0.0, [1, 2], points, boxes)
    points[1, 2] = 10
    after = smoother(0.04, [1, 2], points, boxes)
    assert 0 < after[1, 2, 0] < 10 and np.count_nonzero(after) == 2
    # Another order of the rows, and a new track: it starts where it is.
    again = smoother(0.08, [2, 3], points[[1, 1]], boxes)
    assert after[1, 2, 0] < again[0, 2, 0] < 10 and again[1, 2, 0] == 10


def test_what_is_not_finite_starts_afresh():
    smoother = KeypointSmoother()
    path = np.asarray([[0, 0], [np.nan, np.nan], [50, 50], [50, 50]])
    np.testing.assert_array_equal(smooth(smoother, path), path)


def test_a_track_that_was_lost_starts_afresh():
    smoother = KeypointSmoother(max_gap=0.5)
    smoother(0.0, [1], np.zeros((1, 1, 2), np.float32), BOXES)
    np.testing.assert_array_equal(smoother(1.0, [1], np.full((1, 1, 2), 9, np.float32), BOXES), [[[9, 9]]])


@pytest.mark.parametrize("options", [{"min_cutoff": 0}, {"beta": -1}, {"speed_cutoff": np.inf}, {"max_gap": 0}])
def test_bad_values(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}: expected"):
        KeypointSmoother(**options)
