import numpy as np
import pytest

from tests.support.videos import write_video
from tests.support.walks import WalkerEstimator, crossing, picture
from vitpose_jax.video import KeypointSmoother, VideoReader, track
from vitpose_jax.video.reader import Frame


def test_each_frame_has_its_time_its_poses_and_their_ids():
    estimator = WalkerEstimator()
    frames = list(track(estimator, crossing(12)))
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == [number / 25 for number in range(12)]
    assert [frame.detected for frame in frames] == [number % 5 == 0 for number in range(12)]
    for number, frame in enumerate(frames):
        assert frame.track_ids.tolist() == [1, 2]
        assert np.abs(frame.poses["nose"][:, 0] - [60 + 8 * number, 400 - 8 * number]).max() <= 1
        assert frame.poses.box_scores.tolist() == pytest.approx([0.9, 0.9])
    assert estimator.calls == ["detect" if number % 5 == 0 else 2 for number in range(12)]


@pytest.mark.parametrize("every", [1, 2, 5])
def test_ids_through_a_crossing(every):
    for frame in track(WalkerEstimator(), crossing(40), every=every):
        by_id = dict(zip(frame.track_ids.tolist(), frame.poses["nose"][:, 0], strict=True))
        assert by_id.keys() <= {1, 2}
        for number, x in ((1, 60 + 8 * frame.index), (2, 400 - 8 * frame.index)):
            # Where one hides the other, it may have no pose for a moment.
            assert number not in by_id or abs(by_id[number] - x) <= 1
    assert frame.track_ids.tolist() == [1, 2]


def test_a_short_occlusion():
    def frames():
        for number in range(40):
            places = [] if 12 <= number < 24 else [(60 + 6 * number, 10, 200)]
            yield Frame(number, number / 25, picture(places))

    ids = [frame.track_ids.tolist() for frame in track(WalkerEstimator(), frames())]
    assert ids[:12] == [[1]] * 12 and ids[12:24] == [[]] * 12 and ids[25:] == [[1]] * 15


def test_a_new_scene_has_new_people():
    scenes = np.random.default_rng(0).integers(0, 256, (2, 17, 30, 3), np.uint8)

    def frames():
        for number in range(12):
            image = picture([(200, 10, 200)])
            image[70:] = np.kron(scenes[number // 7], np.ones((10, 16, 1), np.uint8))
            yield Frame(number, number / 25, image)

    result = list(track(WalkerEstimator(), frames()))
    assert [frame.track_ids.tolist() for frame in result] == [[1]] * 7 + [[2]] * 5
    assert [frame.index for frame in result if frame.detected] == [0, 5, 7, 10]


def test_smoothing_is_off_by_default():
    def frames():
        for number in range(10):
            yield Frame(number, number / 25, picture([(200 + 4 * (number % 2), 10, 200)]))

    plain = list(track(WalkerEstimator(), frames()))
    for smooth in (True, KeypointSmoother()):
        smoothed = list(track(WalkerEstimator(), frames(), smooth=smooth))
        spread = [np.ptp([frame.poses["nose"][0, 0] for frame in result[2:]]) for result in (plain, smoothed)]
        assert spread[1] < 0.5 * spread[0] == 2.0


def test_a_file_and_a_reader(tmp_path):
    path = write_video(tmp_path / "a.mp4", [frame.image for frame in crossing(6)], rate=25)
    with VideoReader(path) as reader:
        assert [frame.track_ids.tolist() for frame in track(WalkerEstimator(), reader)] == [[1, 2]] * 6
    assert [frame.track_ids.tolist() for frame in track(WalkerEstimator(), path)] == [[1, 2]] * 6


def test_frames_are_not_read_far_ahead():
    read = []

    def frames():
        for frame in crossing(10):
            read.append(frame.index)
            yield frame

    results = track(WalkerEstimator(), frames())
    next(results)
    assert read == [0]


def test_wrong_arguments(tmp_path):
    for every in (0, -1, 1.5):
        with pytest.raises((ValueError, TypeError), match="every"):
            track(WalkerEstimator(), crossing(), every=every)
    with pytest.raises(FileNotFoundError, match="no such file"):
        track(WalkerEstimator(), tmp_path / "missing.mp4")


@pytest.mark.parametrize("every", [1, 2])
def test_a_person_whom_the_detector_misses_is_followed(every):
    class Missing(WalkerEstimator):
        def __call__(self, images, boxes=None, **options):
            poses = super().__call__(images, boxes, **options)
            return poses[:1] if boxes is None and len(self.calls) > 3 else poses

    frames = list(track(Missing(), list(crossing(15)), every=every))
    assert [frame.track_ids.tolist() for frame in frames] == [[1, 2]] * 15
    for frame in frames:
        assert np.abs(frame.poses["nose"][:, 0] - [60 + 8 * frame.index, 400 - 8 * frame.index]).max() <= 1


def test_the_keypoints_before_smoothing_are_kept():
    plain, smoothed = (list(track(WalkerEstimator(), crossing(6), smooth=smooth)) for smooth in (False, True))
    for one, other in zip(plain, smoothed, strict=True):
        assert one.unsmoothed is None and other.unsmoothed is not None
        np.testing.assert_array_equal(other.unsmoothed, one.poses.keypoints)
