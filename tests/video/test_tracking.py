import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.walkers import People, people
from vitpose_jax.overlaps import box_overlaps
from vitpose_jax.skeletons import COCO
from vitpose_jax.video.matching import assign
from vitpose_jax.video.tracking import Tracker
from vitpose_jax.video.tracks import Track, is_person, next_box


def run(frames: list[People], *, seconds: float = 0.04, **options) -> list[list[int]]:
    """The ids of each frame, all of them with detections."""
    tracker = Tracker(COCO.sigmas, **options)
    return [
        tracker.associate(number * seconds, *frame, np.full(len(frame.boxes), 0.9)).tolist()
        for number, frame in enumerate(frames)
    ]


def test_ids_count_from_one_and_stay():
    frames = [people([(100 + 2 * n, 50, 200), (400 - 2 * n, 60, 180)], 0.01, n) for n in range(30)]
    assert run(frames) == [[1, 2]] * 30


def test_the_order_of_rows_does_not_matter():
    tracker = Tracker(COCO.sigmas)
    for number in range(10):
        frame = people([(100 + 3 * number, 50, 200), (400, 60, 180)])
        order = np.asarray([[0, 1], [1, 0]][number % 2])
        ids = tracker.associate(number * 0.04, *(array[order] for array in frame), [0.9, 0.9])
        assert ids[np.argsort(order)].tolist() == [1, 2]


def test_two_people_who_cross_keep_their_ids():
    """Both walk 200 pixels a second; where they meet, the detector sees one of them only."""
    frames, expected = [], []
    for number in range(60):
        left, right = 100 + 8.0 * number, 580 - 8.0 * number
        places, ids = [(left, 50, 200), (right, 80, 170)], [1, 2]
        if abs(left - right) < 40:
            places, ids = places[:1], [1]
        frames.append(people(places, 0.01, number))
        expected.append(ids)
    assert run(frames) == expected


@pytest.mark.parametrize("gone", [5, 12, 25])
def test_a_short_occlusion_keeps_the_id(gone):
    """A person walks behind something for up to a second, at 100 pixels a second."""
    frames = [people([] if 20 <= n < 20 + gone else [(100 + 4 * n, 50, 200)], 0.01, n) for n in range(60)]
    ids = run(frames)
    assert [row for row in ids if row] == [[1]] * (60 - gone)


def test_after_a_long_absence_the_number_is_new():
    frames = [people([] if 20 <= n < 70 else [(100 + n, 50, 200)]) for n in range(80)]
    ids = run(frames)
    assert ids[0] == [1] and ids[-1] == [2]


def test_a_box_beside_everyone_gets_no_id():
    boxes, keypoints, scores = people([(100, 50, 200), (400, 60, 180)])
    scores[1] = 0.1
    assert Tracker(COCO.sigmas).associate(0.0, boxes, keypoints, scores, [0.9, 0.5]).tolist() == [1, 0]


def test_two_boxes_on_one_person_are_one_track():
    boxes, keypoints, scores = people([(100, 50, 200), (101, 51, 200), (400, 60, 180)])
    assert Tracker(COCO.sigmas).associate(0.0, boxes, keypoints, scores, [0.9, 0.9, 0.9]).tolist().count(0) == 1


def test_poses_tell_people_apart_whose_boxes_agree():
    """Two people on one spot, one upright and one bent: boxes say nothing, and come in another order."""
    upright = people([(200, 50, 200)])
    bent = upright.keypoints.copy()
    bent[:, :5] += (60, 70)
    bent[:, 5:11] += (40, 40)
    boxes = np.repeat(upright.boxes, 2, axis=0)
    scores = np.repeat(upright.scores, 2, axis=0)
    poses = np.concatenate([upright.keypoints, bent])
    tracker, boxes_only = Tracker(COCO.sigmas), Tracker(COCO.sigmas, pose_weight=0)
    for one in (tracker, boxes_only):
        assert one.associate(0.0, boxes, poses, scores, [0.9, 0.9]).tolist() == [1, 2]
    assert tracker.associate(0.04, boxes, poses[::-1], scores, [0.9, 0.9]).tolist() == [2, 1]
    assert boxes_only.associate(0.04, boxes, poses[::-1], scores, [0.9, 0.9]).tolist() == [1, 2]


def test_between_detections_poses_keep_their_tracks():
    tracker = Tracker(COCO.sigmas)
    assert tracker.associate(0.0, *people([(100, 50, 200), (400, 60, 180)]), [0.9, 0.9]).tolist() == [1, 2]
    boxes = tracker.next_boxes()
    assert (box_overlaps(boxes, people([(100, 50, 200), (400, 60, 180)]).boxes).diagonal() > 0.6).all()
    _, keypoints, scores = people([(104, 50, 200), (396, 60, 180)])
    assert tracker.follow(0.04, boxes, keypoints, scores).tolist() == [1, 2]
    # The second one is gone: nothing looks like a person there.
    scores = scores.copy()
    scores[1] = 0.05
    assert tracker.follow(0.08, tracker.next_boxes(), keypoints, scores).tolist() == [1, 0]
    assert len(tracker.next_boxes()) == 1 and tracker.num_ids == 2


def test_two_tracks_on_one_person_become_one():
    """Between detections a box slips from a hidden person to the one before."""
    tracker = Tracker(COCO.sigmas)
    tracker.associate(0.0, *people([(100, 50, 200), (160, 60, 180)]), [0.9, 0.9])
    _, keypoints, scores = people([(102, 50, 200), (102, 50, 200)])
    assert sorted(tracker.follow(0.04, tracker.next_boxes(), keypoints, scores).tolist())[0] == 0


def test_a_track_that_the_detector_misses_goes_on_in_its_own_box():
    tracker = Tracker(COCO.sigmas)
    both = people([(100, 50, 200), (400, 60, 180)])
    tracker.associate(0.0, *both, [0.9, 0.9])
    assert tracker.unmatched(0.2, both.boxes[:1]) == [1]
    own = [tracker.active[1]]
    boxes = np.concatenate([both.boxes[:1], tracker.next_boxes()[[1]]])
    ids = tracker.associate(0.2, boxes, both.keypoints, both.scores, [0.9], own)
    assert ids.tolist() == [1, 2]
    # Not for ever.
    for time in np.arange(0.4, 3, 0.2):
        ids = tracker.associate(float(time), boxes[:1], both.keypoints[:1], both.scores[:1], [0.9])
    assert ids.tolist() == [1] and tracker.unmatched(3.0, both.boxes[:1]) == []


def test_restored_tracks_go_on():
    frame = people([(100, 50, 200), (400, 60, 180)])
    tracker = Tracker(COCO.sigmas)
    tracker.restore(0.0, [7, 3], *frame, [0.9, 0.8], detected=True)
    assert tracker.associate(0.04, *frame, [0.9, 0.9]).tolist() == [7, 3]
    assert tracker.num_ids == 7


def test_empty_frames():
    tracker = Tracker(COCO.sigmas)
    assert tracker.associate(0.0, *people([]), []).tolist() == []
    assert tracker.next_boxes().shape == (0, 4)
    assert tracker.follow(0.1, tracker.next_boxes(), *people([])[1:]).tolist() == []


def test_without_sigmas_boxes_decide():
    tracker = Tracker()
    for number in range(5):
        frame = people([(100 + 3 * number, 50, 200), (400, 60, 180)])
        assert tracker.associate(number * 0.04, *frame, [0.9, 0.9]).tolist() == [1, 2]


@given(st.floats(0.2, 3), st.floats(-500, 500), st.floats(-500, 500))
def test_boxes_around_keypoints_move_and_scale_with_them(scale, x, y):
    (box,), (points,), (scores,) = people([(100, 50, 200)])
    one = next_box(Track(1, 0.0, 0.0, box.astype(float), points, scores, 0.9))
    moved = np.concatenate([box[:2] * scale + (x, y), box[2:] * scale]).astype(float)
    other = next_box(Track(1, 0.0, 0.0, moved, (points * scale + (x, y)).astype(np.float32), scores, 0.9))
    expected = np.concatenate([one[:2] * scale + (x, y), one[2:] * scale])
    assert box_overlaps(other[None], expected[None])[0, 0] > 0.999


def test_a_hidden_leg_shrinks_the_box_slowly():
    (box,), (points,), (scores,) = people([(100, 50, 200)])
    scores[11:] = 0
    after = next_box(Track(1, 0.0, 0.0, box.astype(float), points, scores, 0.9))
    assert after[3] >= 0.89 * box[3] and after[1] + after[3] > box[1] + 0.85 * box[3]


def test_pairs_below_the_limit_take_no_place():
    similarity = np.asarray([[0.6, 0.1], [0.5, 0.0]])
    rows, columns = assign(similarity, 0.3)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])


def test_overlaps():
    boxes = np.asarray([[0, 0, 10, 10], [5, 0, 10, 10], [20, 20, 0, 0]], np.float32)
    np.testing.assert_allclose(box_overlaps(boxes, boxes[:2]), [[1, 1 / 3], [1 / 3, 1], [0, 0]])


def test_who_is_a_person():
    assert is_person(np.asarray([0.9] * 9 + [0.0] * 8))
    assert not is_person(np.asarray([0.9] + [0.0] * 16))
    assert not is_person(np.asarray([np.nan, np.nan]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_gap": 0}, "max_gap: expected a positive number of seconds, got 0"),
        ({"pose_weight": 2}, "pose_weight: expected a number from 0 to 1, got 2"),
        ({"min_similarity": -1}, "min_similarity: expected"),
        ({"duplicate": 1.5}, "duplicate: expected"),
    ],
)
def test_limits_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Tracker(COCO.sigmas, **options)
