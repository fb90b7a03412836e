"""Requests of many threads: each gets its own answer, those that wait go in together, errors stay with their own."""

import concurrent.futures
import threading

import numpy as np
import pytest

from tests.support.images import random_boxes, random_image
from tests.support.models import smallest_model
from tests.support.slow_estimator import Slow
from tests.tolerances import HEATMAPS
from vitpose_jax import PoseEstimator
from vitpose_jax.web.batcher import Batcher, BusyError


@pytest.fixture
def slow():
    estimator = Slow()
    yield estimator
    estimator.may_go_on.set()


def test_each_thread_gets_the_poses_of_its_own_image():
    estimator = PoseEstimator(smallest_model())
    batcher = Batcher(estimator)
    images = [random_image(seed) for seed in range(6)]
    boxes = [random_boxes(seed, 1 + seed % 3) for seed in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(batcher, images, boxes))
    batcher.close()
    assert 1 <= batcher.calls <= 6
    for poses, image, box in zip(found, images, boxes, strict=True):
        expected = estimator(image, box)
        np.testing.assert_array_equal(poses.boxes, expected.boxes)
        np.testing.assert_allclose(poses.scores, expected.scores, rtol=0, atol=HEATMAPS)


def test_those_that_wait_go_in_together_if_their_options_are_equal(slow):
    batcher = Batcher(slow, max_images=3)
    first = batcher.submit("first")
    assert slow.started.wait(20)
    waiting = [batcher.submit(str(number), flip_test=number == 2) for number in range(6)]
    assert batcher.waiting == 6
    slow.may_go_on.set()
    assert [request.result(20) for request in [first, *waiting]] == ["first", *"012345"]
    assert slow.groups == [(1, False), (3, False), (1, True), (2, False)]
    batcher.close()


def test_an_error_stays_with_its_own_request(slow):
    slow.may_go_on.set()
    batcher = Batcher(slow)
    with pytest.raises(ValueError, match="broken"):
        batcher("broken")
    with pytest.raises(MemoryError, match="no memory"):
        batcher("fatal")
    assert batcher.submit("fine").result(20) == "fine"
    batcher.close()


def test_a_request_that_breaks_the_estimator_does_not_break_its_neighbours(slow):
    batcher = Batcher(slow)
    first = batcher.submit("first")
    assert slow.started.wait(20)
    before, fatal, after = (batcher.submit(name) for name in ("before", "fatal", "after"))
    slow.may_go_on.set()
    assert (first.result(20), before.result(20), after.result(20)) == ("first", "before", "after")
    with pytest.raises(MemoryError, match="no memory"):
        fatal.result(20)
    assert [count for count, _ in slow.groups] == [1, 3, 1, 1]
    batcher.close()


def test_too_many_requests_and_those_after_the_end_are_refused(slow):
    batcher = Batcher(slow, max_waiting=2)
    first = batcher.submit("first")
    assert slow.started.wait(20)
    cancelled, waiting = batcher.submit("a"), batcher.submit("b")
    with pytest.raises(BusyError, match="2 requests are waiting already"):
        batcher.submit("c")
    assert cancelled.cancel()
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with pytest.raises(BusyError, match="shutting down"):
        waiting.result(20)
    slow.may_go_on.set()
    closing.join(20)
    assert first.result(0) == "first" and not closing.is_alive()
    with pytest.raises(BusyError, match="shutting down"):
        batcher("d")


def test_numbers_below_one_raise(slow):
    for name in ("max_images", "max_waiting"):
        with pytest.raises(ValueError, match=f"{name}: expected 1 or more, got 0"):
            Batcher(slow, **{name: 0})


def test_requests_without_boxes_find_people(sample_folder):
    batcher = Batcher(PoseEstimator.from_pretrained())
    path = sorted((sample_folder / "images").iterdir())[0]
    poses = batcher(path.read_bytes())
    assert np.asarray(poses.keypoints).shape[1:] == (17, 2)
    batcher.close()
