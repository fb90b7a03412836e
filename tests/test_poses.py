import builtins
import json
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import supervision

from tests.tolerances import FIVE_DECIMALS, FLOAT32, PLACES
from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import AIC, AP10K, COCO, COCO25, MPII, SKELETONS, WHOLEBODY


def sample(n: int, *skeletons, seed: int = 0) -> Poses:
    """Random poses whose rows take the skeletons in turn."""
    rng = np.random.default_rng(seed)
    k = max(skeleton.num_keypoints for skeleton in skeletons)
    index = np.arange(n) % len(skeletons)
    return Poses.create(
        rng.uniform(-20, 640, (n, k, 2)), rng.uniform(0, 1.1, (n, k)), rng.uniform(1, 300, (n, 4)), skeletons, index
    )


def xyc(flat: list[float]) -> np.ndarray:
    return np.array(flat).reshape(-1, 3)


# Building and selecting


def test_create_checks_and_copies():
    keypoints, scores = np.zeros((2, 17, 2)), np.ones((2, 17))
    poses = Poses.create(keypoints, scores, [[0, 0, 10, 20]] * 2, COCO)
    keypoints += 1
    assert not poses.keypoints.any()
    assert poses.keypoints.dtype == poses.scores.dtype == poses.boxes.dtype == np.float32
    assert poses.skeleton is COCO
    assert poses.skeleton_index.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": np.zeros((2, 16, 2))}, r"keypoints: expected shape \(2, 17, 2\), got \(2, 16, 2\)"),
        ({"scores": np.zeros((3, 17))}, r"scores: expected shape \(2, 17\), got \(3, 17\)"),
        ({"boxes": [1, 2]}, r"boxes: expected shape \(2, 4\), got \(2,\)"),
        ({"skeleton_index": [0]}, r"skeleton_index: expected shape \(2,\), got \(1,\)"),
        ({"skeleton_index": [0, 1]}, r"skeleton_index: expected 0 to 0, got \[0, 1\]"),
        ({"skeletons": ()}, "skeletons: expected one or more"),
    ],
)
def test_create_names_what_is_wrong(changes, message):
    fields = {
        "keypoints": np.zeros((2, 17, 2)),
        "scores": np.zeros((2, 17)),
        "boxes": np.zeros((2, 4)),
        "skeletons": COCO,
    }
    with pytest.raises(ValueError, match=message):
        Poses.create(**fields | changes)


def test_mixed_skeletons_blank_the_slots_a_row_does_not_have():
    poses = sample(4, COCO, WHOLEBODY)
    assert poses.keypoints.shape == (4, 133, 2)
    assert np.isnan(poses.keypoints[::2, 17:]).all()
    assert not poses.scores[::2, 17:].any()
    assert np.isfinite(poses.keypoints[1::2]).all()
    assert np.isfinite(poses.keypoints[:, :17]).all()
    with pytest.raises(ValueError, match="rows of one skeleton, got 2 of coco, wholebody"):
        _ = poses.skeleton


def test_selecting_drops_skeletons_and_slots():
    poses = sample(5, COCO, WHOLEBODY, AIC)
    people = poses[poses.skeleton_index == 0]
    assert (len(people), people.skeletons, people.keypoints.shape) == (2, (COCO,), (2, 17, 2))
    np.testing.assert_array_equal(people.boxes, poses.boxes[[0, 3]])
    rest = poses[1:3]
    assert rest.skeletons == (WHOLEBODY, AIC)
    assert rest.skeleton_index.tolist() == [0, 1]
    assert rest.keypoints.shape[1] == 133
    assert poses[[2]].skeleton is AIC
    assert poses[2].keypoints.shape == (1, 14, 2)


def test_rows_by_number_slice_mask_and_list():
    poses = sample(4, COCO)
    for rows in (slice(1, None, 2), np.array([False, True, False, True]), [1, 3], np.array([1, -1])):
        np.testing.assert_array_equal(poses[rows].keypoints, poses.keypoints[[1, 3]])
    np.testing.assert_array_equal(poses[-1].keypoints, poses.keypoints[3:])
    assert len(poses[[]]) == len(poses[:0]) == 0
    for wrong in (4, -5, [0, 4], np.ones(3, bool), None):
        with pytest.raises(IndexError):
            poses[wrong]


def test_iteration_gives_each_row_with_its_own_skeleton():
    poses = sample(5, COCO, AP10K, MPII)
    rows = list(poses)
    assert [len(row) for row in rows] == [1] * 5
    assert [row.skeleton.name for row in rows] == ["coco", "ap10k", "mpii", "coco", "ap10k"]
    assert [row.keypoints.shape[1] for row in rows] == [17, 17, 16, 17, 17]
    np.testing.assert_array_equal(np.concatenate([row.boxes for row in rows]), poses.boxes)


def test_poses_are_a_pytree():
    poses = sample(3, COCO, WHOLEBODY)
    assert len(jax.tree.leaves(poses)) == 4
    moved = jax.jit(lambda poses: poses)(poses)
    assert isinstance(moved.keypoints, jax.Array)
    assert moved.skeletons == poses.skeletons
    assert json.dumps(moved.to_dict()) == json.dumps(poses.to_dict())
    assert moved[jnp.array([False, True, False])].skeleton is WHOLEBODY
    assert [len(row) for row in moved] == [1, 1, 1]


# Formats


def test_to_dict_gives_names_boxes_and_none_for_nan():
    poses = Poses.create(np.full((1, 17, 2), [1.25, np.nan]), np.full((1, 17), 0.5), [[1, 2, 3, 4]], COCO)
    (pose,) = poses.to_dict()["poses"]
    assert pose["skeleton"] == "coco"
    assert pose["box"] == [1, 2, 3, 4]
    assert pose["keypoints"][0] == {"name": "nose", "x": 1.25, "y": None, "score": 0.5}
    assert [keypoint["name"] for keypoint in pose["keypoints"]] == list(COCO.keypoints)


def test_to_dict_lists_only_the_keypoints_a_row_has():
    people = sample(4, COCO, WHOLEBODY).to_dict()["poses"]
    assert [len(person["keypoints"]) for person in people] == [17, 133, 17, 133]


def test_to_coco_gives_flat_keypoints_boxes_and_scores():
    poses = sample(2, COCO)
    first, second = poses.to_coco(139, box_scores=[0.5, 1], category_id=7)
    assert (first["image_id"], first["category_id"]) == (139, 7)
    np.testing.assert_allclose(xyc(first["keypoints"])[:, :2], poses.keypoints[0], rtol=0, atol=FIVE_DECIMALS)
    np.testing.assert_allclose(xyc(first["keypoints"])[:, 2], poses.scores[0], rtol=0, atol=FIVE_DECIMALS)
    np.testing.assert_allclose(second["bbox"], poses.boxes[1], rtol=0, atol=FIVE_DECIMALS)
    assert first["score"] == pytest.approx(0.5 * poses.scores[0].mean())
    assert second["score"] == pytest.approx(poses.scores[1].mean())


def test_to_coco_scores_each_row_by_its_own_keypoints():
    poses = sample(2, COCO, WHOLEBODY)
    first, second = poses.to_coco(1)
    assert first["score"] == pytest.approx(poses.scores[0, :17].mean())
    assert (len(first["keypoints"]), len(second["keypoints"])) == (51, 399)


@pytest.mark.parametrize("box_scores", [[1], [[1, 1]], [1, np.nan]])
def test_to_coco_refuses_other_box_scores(box_scores):
    with pytest.raises(ValueError, match="box_scores: expected 2 finite numbers"):
        sample(2, COCO).to_coco(1, box_scores)


def test_openpose_of_coco_has_a_neck_and_another_order():
    poses = sample(2, COCO)
    result = poses.to_openpose(image_size=(480, 640))
    assert (result["version"], result["canvas_height"], result["canvas_width"]) == (1.3, 480, 640)
    assert "canvas_width" not in poses.to_openpose()
    person = result["people"][1]
    assert person["person_id"] == [-1]
    assert person["face_keypoints_2d"] == person["hand_left_keypoints_2d"] == person["pose_keypoints_3d"] == []
    body = xyc(person["pose_keypoints_2d"])
    # Nose, neck, right arm, left arm, right leg, left leg, eyes, ears; the neck stands in the second place.
    order = [0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    np.testing.assert_allclose(np.delete(body, 1, 0)[:, :2], poses.keypoints[1, order], rtol=0, atol=FIVE_DECIMALS)
    np.testing.assert_allclose(
        np.delete(body, 1, 0)[:, 2], poses.scores[1, order].clip(max=1), rtol=0, atol=FIVE_DECIMALS
    )
    np.testing.assert_allclose(body[1, :2], poses.keypoints[1, 5:7].mean(axis=0), rtol=0, atol=PLACES)
    assert body[1, 2] == pytest.approx(min(1, *poses.scores[1, 5:7]), abs=FIVE_DECIMALS)


def test_openpose_has_zeros_for_points_not_found():
    poses = sample(1, COCO)
    keypoints, scores = poses.keypoints.copy(), poses.scores.copy()
    keypoints[0, 0], scores[0, 5], scores[0, 15] = np.nan, -0.1, 1.5
    body = xyc(Poses.create(keypoints, scores, poses.boxes, COCO).to_openpose()["people"][0]["pose_keypoints_2d"])
    assert not body[[0, 1, 5]].any()  # the nose, the left shoulder and so the neck
    assert body[13, 2] == 1


@pytest.mark.parametrize("skeleton", [COCO25, WHOLEBODY])
def test_openpose_is_body_25_for_skeletons_with_feet(skeleton):
    poses = sample(1, skeleton)
    body = xyc(poses.to_openpose()["people"][0]["pose_keypoints_2d"])
    names = "nose ? right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist ? right_hip right_knee"
    names += " right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear left_big_toe"
    names += " left_small_toe left_heel right_big_toe right_small_toe right_heel"
    assert len(body) == 25
    for point, name in zip(body, names.split(), strict=True):
        if name != "?":
            np.testing.assert_allclose(
                point[:2], poses.keypoints[0, skeleton.keypoints.index(name)], rtol=0, atol=FIVE_DECIMALS
            )
    hips = [skeleton.keypoints.index(f"{side}_hip") for side in ("left", "right")]
    np.testing.assert_allclose(body[8, :2], poses.keypoints[0, hips].mean(axis=0), rtol=0, atol=PLACES)


def test_openpose_has_face_and_hands_of_wholebody():
    poses = sample(1, WHOLEBODY)
    (person,) = poses.to_openpose()["people"]
    face, left, right = (xyc(person[f"{part}_keypoints_2d"])[:, :2] for part in ("face", "hand_left", "hand_right"))
    # 68 points and the pupils, right and left.
    np.testing.assert_allclose(face, poses.keypoints[0, [*range(23, 91), 2, 1]], rtol=0, atol=FIVE_DECIMALS)
    np.testing.assert_allclose(left, poses.keypoints[0, 91:112], rtol=0, atol=FIVE_DECIMALS)
    np.testing.assert_allclose(right, poses.keypoints[0, 112:], rtol=0, atol=FIVE_DECIMALS)


def test_openpose_refuses_other_skeletons():
    for skeleton in (AIC, AP10K):
        with pytest.raises(ValueError, match=f"'{skeleton.name}' lacks keypoints of COCO; supported are coco, coco25"):
            sample(1, skeleton).to_openpose()


def test_to_supervision_fills_every_field():
    poses = sample(3, COCO, WHOLEBODY)
    key_points = poses.to_supervision()
    assert isinstance(key_points, supervision.KeyPoints)
    assert len(key_points) == 3
    np.testing.assert_array_equal(key_points.xy[1], poses.keypoints[1])
    np.testing.assert_array_equal(key_points.keypoint_confidence, poses.scores)
    np.testing.assert_array_equal(key_points.visible, np.isfinite(poses.keypoints[..., 0]))
    assert not key_points.xy[0, 17:].any()
    assert key_points.class_id.tolist() == [0, 1, 0]
    assert key_points.data["class_name"].tolist() == ["coco", "wholebody", "coco"]
    means = [poses[row].scores[0].mean() for row in range(3)]
    np.testing.assert_allclose(key_points.detection_confidence, means, rtol=FLOAT32)
    np.testing.assert_array_equal(key_points.data["xyxy"][:, 2:], poses.boxes[:, :2] + poses.boxes[:, 2:])
    spread = COCO.sigmas[0] ** 2 * poses.boxes[0, 2] * poses.boxes[0, 3]
    np.testing.assert_allclose(key_points.data["covariance"][0, 0], spread * np.eye(2), rtol=FLOAT32)
    boxed = Poses.create(
        poses.keypoints, poses.scores, poses.boxes, poses.skeletons, poses.skeleton_index, [0.9, 0.8, 0.7]
    )
    np.testing.assert_array_equal(boxed.to_supervision().detection_confidence, boxed.box_scores)


def drawn(annotator, key_points) -> np.ndarray:
    return annotator.annotate(np.zeros((480, 640, 3), np.uint8), key_points)


def test_supervision_draws_poses_with_the_edges_of_their_skeletons():
    assert COCO.edges_from_one[0] == tuple(index + 1 for index in COCO.edges[0])
    mixed = sample(4, COCO, AP10K)
    assert mixed.edges_from_one == {0: COCO.edges_from_one, 1: AP10K.edges_from_one}
    together = drawn(supervision.EdgeAnnotator(edges=mixed.edges_from_one), mixed.to_supervision())
    one_by_one = np.zeros_like(together)
    for pose in mixed:
        edges = supervision.EdgeAnnotator(edges=pose.edges_from_one)
        one_by_one = edges.annotate(one_by_one, pose.to_supervision())
    np.testing.assert_array_equal(together, one_by_one)
    # Both skeletons have 17 keypoints: by their number alone, an animal would be drawn as a person.
    animal = mixed[1]
    edges = supervision.EdgeAnnotator(edges=animal.edges_from_one)
    assert (drawn(edges, animal.to_supervision()) != drawn(supervision.EdgeAnnotator(), animal.to_supervision())).any()
    empty = mixed[:0]
    assert not drawn(supervision.EdgeAnnotator(edges=empty.edges_from_one), empty.to_supervision()).any()


@pytest.mark.parametrize(
    "name",
    ["VertexAnnotator", "VertexEllipseAreaAnnotator", "VertexEllipseOutlineAnnotator", "VertexEllipseHaloAnnotator"],
)
def test_supervision_draws_vertices_and_ellipses(name):
    for poses in (sample(3, COCO), sample(4, COCO, AP10K)):
        assert drawn(getattr(supervision, name)(), poses.to_supervision()).any()


def test_track_ids_go_to_supervision_and_colour_its_drawings():
    poses = sample(3, COCO)
    key_points = poses.to_supervision(track_ids=np.asarray([7, 2, 9]))
    assert key_points.data["tracker_id"].tolist() == [7, 2, 9]
    assert key_points[[2, 0]].data["tracker_id"].tolist() == [9, 7]
    detections = key_points.as_detections()
    detections.tracker_id = detections.data["tracker_id"]
    boxes = supervision.BoxAnnotator(color_lookup=supervision.ColorLookup.TRACK)
    scene = boxes.annotate(np.zeros((480, 640, 3), np.uint8), detections[:1])
    assert supervision.ColorPalette.DEFAULT.by_idx(7).as_bgr() in {
        tuple(colour) for colour in scene.reshape(-1, 3).tolist()
    }
    assert poses[:0].to_supervision(track_ids=[]).data["tracker_id"].shape == (0,)
    assert "tracker_id" not in poses.to_supervision().data
    for wrong in ([1, 2], [1.5, 2.0, 3.0]):
        with pytest.raises(ValueError, match="track_ids: expected 3 whole numbers, got"):
            poses.to_supervision(track_ids=wrong)


def test_supervision_suppresses_and_boxes_poses():
    poses = sample(2, COCO)
    twice = Poses.create(
        np.concatenate([poses.keypoints + [[[0]], [[2000]]], poses.keypoints[:1] + 1]),
        np.concatenate([poses.scores, poses.scores[:1]]),
        np.concatenate([poses.boxes, poses.boxes[:1]]),
        COCO,
        box_scores=[0.9, 0.8, 0.3],
    )
    key_points = twice.to_supervision()
    if hasattr(key_points, "with_nms"):
        left = key_points.with_nms(threshold=0.9)
        np.testing.assert_array_equal(left.detection_confidence, twice.box_scores[:2])
    detections = key_points.as_detections()
    np.testing.assert_array_equal(detections.xyxy[:, :2], twice.keypoints.min(axis=1))
    np.testing.assert_array_equal(detections.confidence, twice.box_scores)


# Tables


def test_a_keypoint_by_its_name():
    poses = sample(4, COCO, AP10K, WHOLEBODY)
    noses = poses["nose"]
    np.testing.assert_array_equal(noses[[0, 2, 3]], poses.keypoints[[0, 2, 3], 0])
    assert np.isnan(noses[1]).all()
    np.testing.assert_array_equal(poses["Root of tail"][1], poses.keypoints[1, 4])
    assert np.isnan(poses["Root of tail"][[0, 2, 3]]).all()
    assert poses[:0]["nose"].shape == (0, 2)
    with pytest.raises(KeyError, match="no keypoint 'noze'; expected one of nose, left_eye"):
        poses["noze"]


def test_tables_of_pandas():
    poses = sample(3, COCO, WHOLEBODY)
    long = poses.to_pandas()
    assert list(long.columns) == ["pose", "skeleton", "keypoint", "x", "y", "score"]
    assert len(long) == 17 + 133 + 17
    nose = long[(long.pose == 2) & (long.keypoint == "nose")].iloc[0]
    np.testing.assert_array_equal([nose.x, nose.y], poses["nose"][2])
    wide = poses.to_pandas("wide")
    assert len(wide) == 3 and len(wide.columns) == 6 + 3 * 133
    np.testing.assert_array_equal(wide[["nose_x", "nose_y"]], poses["nose"])
    np.testing.assert_array_equal(wide[["box_x", "box_y", "box_width", "box_height"]], poses.boxes)
    assert wide["box_score"].isna().all() and wide["face-0_x"].isna().tolist() == [True, False, True]
    for layout in ("long", "wide"):
        assert len(poses[:0].to_pandas(layout)) == 0


def test_without_pandas_the_error_says_what_to_install(monkeypatch, unchecked):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "vitpose-jax\[pandas\]"'):
        sample(1, COCO).to_pandas()
    with pytest.raises(ValueError, match="layout: expected 'long' or 'wide', got 'tall'"):
        sample(1, COCO).to_pandas("tall")


def test_without_supervision_the_error_says_what_to_install(monkeypatch):
    imported = builtins.__import__

    def without_supervision(name, *args, **kwargs):
        if name == "supervision":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_supervision)
    with pytest.raises(ImportError, match=r'pip install "vitpose-jax\[supervision\]"'):
        sample(1, COCO).to_supervision()


@pytest.mark.parametrize("skeletons", [(skeleton,) for skeleton in SKELETONS.values()] + [(COCO, AP10K, WHOLEBODY)])
def test_no_people_export_as_empty_lists(skeletons):
    poses = sample(0, *skeletons)
    assert len(poses) == 0
    assert list(poses) == []
    assert poses.keypoints.shape == (0, max(skeleton.num_keypoints for skeleton in skeletons), 2)
    assert poses.to_dict() == {"poses": []}
    assert poses.to_coco(1) == poses.to_coco(1, box_scores=[]) == []
    assert poses.to_openpose() == {"version": 1.3, "people": []}
    assert len(poses[:]) == 0


ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True)


@hypothesis.given(st.lists(ANY_FLOAT, min_size=55, max_size=55))
def test_exports_are_json_whatever_the_numbers(numbers):
    numbers = np.array(numbers, np.float32)
    poses = Poses.create(numbers[None, :34].reshape(1, 17, 2), numbers[None, 34:51], numbers[None, 51:], COCO)
    for export in (poses.to_dict(), poses.to_coco(1), poses.to_openpose((480, 640))):
        assert json.loads(json.dumps(export, allow_nan=False)) == export
    confidences = xyc(poses.to_openpose()["people"][0]["pose_keypoints_2d"])[:, 2]
    assert ((confidences >= 0) & (confidences <= 1)).all()


def test_covariances_go_where_the_rows_go():
    covariances = np.arange(3 * 133 * 4, dtype=np.float32).reshape(3, 133, 2, 2)
    plain = sample(3, COCO, WHOLEBODY)
    assert plain.covariances is None and plain[1:].covariances is None
    parts = (plain.keypoints, plain.scores, plain.boxes, plain.skeletons, plain.skeleton_index, None)
    poses = Poses.create(*parts, covariances)
    assert np.isnan(poses.covariances[0, 17:]).all()
    np.testing.assert_array_equal(poses[[2]].covariances, covariances[2:, :17])
    key_points = poses.to_supervision()
    np.testing.assert_array_equal(key_points.data["covariance"], poses.covariances)
    with pytest.raises(ValueError, match=r"covariances: expected shape \(3, 133, 2, 2\), got \(3, 17, 2, 2\)"):
        Poses.create(*parts, covariances[:, :17])


def test_keypoints_are_visible_from_a_score_on():
    poses = Poses.create(np.zeros((1, 17, 2)), [np.linspace(0, 1, 17)], [[0, 0, 1, 1]], COCO)
    assert poses.visible(0.5).sum() == 9 and poses.visible().sum() == 12
    mixed = sample(3, COCO, WHOLEBODY)
    assert not mixed.visible(-1)[0, 17:].any()
