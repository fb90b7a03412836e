import json
import time

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.tolerances import LINES, LINES_MEAN
from vitpose_jax import draw as module
from vitpose_jax.draw import CENTRE, LEFT, RIGHT, draw_heatmaps, draw_poses
from vitpose_jax.pipeline.postprocess import decode_heatmaps
from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import AP10K, COCO, SKELETONS, WHOLEBODY

GROUND = 77
# A standing person, 100 pixels high, from the front: its right side is on the left of the image.
STANDING = np.array(
    [
        *[(50, 10), (53, 7), (47, 7), (57, 9), (43, 9), (65, 25), (35, 25), (72, 42), (28, 42)],
        *[(75, 58), (25, 58), (60, 58), (40, 58), (61, 77), (39, 77), (62, 97), (38, 97)],
    ],
    np.float32,
)


def canvas(height: int = 260, width: int = 260) -> np.ndarray:
    return np.full((height, width, 3), GROUND, np.uint8)


def standing(scale: float = 2, offset=(20.0, 20.0), scores=None) -> Poses:
    keypoints = STANDING * scale + np.array(offset)
    box = [*keypoints.min(axis=0), *np.ptp(keypoints, axis=0)]
    return Poses.create([keypoints], np.ones((1, 17)) if scores is None else [scores], [box], COCO)


def drawn(image: Image.Image) -> np.ndarray:
    """Which pixels differ from the background."""
    return (np.asarray(image) != GROUND).any(axis=-1)


def test_the_input_image_is_not_changed():
    image = canvas()
    out = draw_poses(image, standing())
    assert (image == GROUND).all()
    assert (out.mode, out.size) == ("RGB", (260, 260))
    assert drawn(out).any()
    pillow = Image.fromarray(image)
    np.testing.assert_array_equal(np.asarray(draw_poses(pillow, standing())), np.asarray(out))
    assert (np.asarray(pillow) == GROUND).all()


def test_joints_have_the_colour_of_their_side():
    out = np.asarray(draw_poses(canvas(), standing(), line_width=5))
    keypoints = standing().keypoints[0].astype(int)
    for name, (x, y) in zip(COCO.keypoints, keypoints, strict=True):
        if name.endswith(("wrist", "hip", "knee", "ankle")):
            assert tuple(out[y, x]) == (LEFT if name.startswith("left") else RIGHT), name


def test_edges_have_the_colour_of_their_side():
    out = np.asarray(draw_poses(canvas(), standing(), line_width=5))

    def between(a: str, b: str):
        x, y = (standing().keypoints[0][[COCO.keypoints.index(a), COCO.keypoints.index(b)]].mean(axis=0)).astype(int)
        return tuple(out[y, x])

    assert between("left_knee", "left_ankle") == LEFT
    assert between("right_knee", "right_ankle") == RIGHT
    assert between("left_hip", "right_hip") == between("left_shoulder", "right_shoulder") == CENTRE


@pytest.mark.parametrize("size", [40, 100, 250])
def test_pixels_far_from_the_skeleton_are_untouched(size):
    poses = standing(scale=size / 100)
    shown = drawn(draw_poses(canvas(320, 320), poses))
    rows, columns = np.nonzero(shown)
    a, b = (poses.keypoints[0][list(ends)] for ends in zip(*COCO.edges, strict=True))
    pixels = np.stack([columns, rows], axis=-1)[:, None].astype(float)
    along = (((pixels - a) * (b - a)).sum(-1) / np.maximum(((b - a) ** 2).sum(-1), 1e-9)).clip(0, 1)
    distance = np.linalg.norm(pixels - (a + along[..., None] * (b - a)), axis=-1).min(axis=1)
    assert distance.max() < 3 + 0.02 * size
    # Lines are thin: most of the person is still seen.
    assert shown.sum() < 0.3 * size * size


@pytest.mark.parametrize("width", [1, 2, 3.3, 4, 7])
@pytest.mark.parametrize("axis", [0, 1])
def test_lines_and_dots_are_centred_on_the_keypoints(width, axis):
    errors = []
    for place in np.arange(49, 51, 0.1):
        keypoints = np.full((1, 17, 2), np.nan)
        keypoints[0, [13, 15]] = [(place, 20), (place, 80)] if axis == 0 else [(80, place), (20, place)]
        poses = Poses.create(keypoints, np.ones((1, 17)), [[20, 20, 60, 60]], COCO)
        out = np.asarray(draw_poses(canvas(100, 100), poses, line_width=width)).astype(float)
        weight = np.abs(out - GROUND).sum(axis=-1)
        weight = weight if axis == 0 else weight.T
        for part in (weight[50], weight[12:29].sum(axis=0)):
            errors.append(np.average(np.arange(100), weights=part) - place)
    assert abs(np.mean(errors)) < LINES_MEAN
    assert np.abs(errors).max() < LINES


def test_low_scores_leave_out_keypoints_and_their_edges():
    scores = np.ones(17)
    scores[[7, 9]] = 0.29
    without_arm = np.asarray(draw_poses(canvas(), standing(scores=scores), line_width=3))
    full = np.asarray(draw_poses(canvas(), standing(), line_width=3))
    assert (without_arm != full).any(axis=-1)[:, 150:].any()  # the left arm is on the right
    x, y = standing().keypoints[0, 9].astype(int)
    assert tuple(without_arm[y, x]) == (GROUND,) * 3
    shown = draw_poses(canvas(), standing(scores=scores), line_width=3, threshold=0.2)
    np.testing.assert_array_equal(np.asarray(shown), full)
    assert not drawn(draw_poses(canvas(), standing(scores=scores * 0))).any()


def test_line_width_grows_with_the_person():
    pixels_per_height = [
        drawn(draw_poses(canvas(1200, 1200), standing(scale=s))).sum() / (100 * s) for s in (0.5, 2, 6)
    ]
    assert pixels_per_height[0] < pixels_per_height[1] < pixels_per_height[2]  # grows with the width of the lines
    wide = drawn(draw_poses(canvas(), standing(), line_width=8)).sum()
    assert wide > 2 * drawn(draw_poses(canvas(), standing(), line_width=2)).sum()
    with pytest.raises(ValueError, match="line_width: expected a positive number"):
        draw_poses(canvas(), standing(), line_width=0)


def test_a_box_of_the_whole_image_does_not_thicken_a_small_person():
    poses = standing(scale=0.5)
    whole = Poses.create(poses.keypoints, poses.scores, [[0, 0, 2000, 2000]], COCO)
    image = canvas(2000, 2000)
    assert drawn(draw_poses(image, whole)).sum() < 1.6 * drawn(draw_poses(image, poses)).sum()


def test_boxes_are_drawn_at_their_edges():
    poses = standing(scores=np.zeros(17))
    shown = drawn(draw_poses(canvas(), poses, boxes=True))
    x, y, width, height = poses.boxes[0].round().astype(int)
    assert shown[y : y + height, x].all()
    assert shown[y, x : x + width].all()
    assert shown[y : y + height, x + width].all()
    assert not shown[y + 10 : y + height - 10, x + 10 : x + width - 10].any()


def box_pixels(box) -> np.ndarray:
    """Which pixels change when only the box is drawn."""
    poses = Poses.create([STANDING], np.zeros((1, 17)), [box], COCO)
    return drawn(draw_poses(canvas(), poses, boxes=True))


@pytest.mark.parametrize(
    "box",
    [[-50, -50, 1000, 1000], [-1e9, -1e9, 3e9, 3e9], [5000, 5000, 3, 3], [265, 20, 30, 30], [np.nan] * 4],
    ids=str,
)
def test_boxes_outside_the_image_draw_nothing(box):
    assert not box_pixels(box).any()


def test_a_box_that_leaves_the_image_draws_its_edges_inside():
    shown = box_pixels([-20, 100, 100, 50])
    assert shown[100:150, 80].all() and shown[100, :80].all() and shown[150, :80].all()
    assert shown[95:156, :86].sum() == shown.sum()
    assert not shown[105:146, :76].any()


def test_a_box_of_negative_size_draws_its_corner():
    shown = box_pixels([10, 10, -4, 0])
    assert shown[10, 10]
    assert shown[9:13, 9:13].sum() == shown.sum()


def test_faces_are_dots_and_hands_fine():
    rng = np.random.default_rng(0)
    poses = Poses.create(rng.uniform(20, 240, (1, 133, 2)), np.ones((1, 133)), [[0, 0, 260, 260]], WHOLEBODY)

    def area(part: slice) -> int:
        scores = np.zeros((1, 133))
        scores[:, part] = 1
        only = Poses.create(poses.keypoints, scores, poses.boxes, WHOLEBODY)
        return drawn(draw_poses(canvas(), only)).sum()

    assert 0 < area(slice(23, 91)) < 68 * 25
    assert area(slice(91, 112)) < 2.5 * area(slice(0, 17))


def test_several_skeletons_are_drawn_in_one_call():
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(20, 120, (2, 133, 2)) + [[[0, 0]], [[120, 120]]]
    poses = Poses.create(keypoints, np.ones((2, 133)), np.full((2, 4), 100.0), (AP10K, WHOLEBODY), [0, 1])
    both = drawn(draw_poses(canvas(), poses))
    assert both[:120, :120].any()
    np.testing.assert_array_equal(both, drawn(draw_poses(draw_poses(canvas(), poses[0]), poses[1])))


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS.keys())
def test_every_skeleton_has_two_sides(skeleton):
    style = module._style(skeleton)
    assert style.colours.count(LEFT) == style.colours.count(RIGHT) > 0
    for left, right in skeleton.flip_pairs:
        if not skeleton.keypoints[left].startswith("face-"):
            assert {style.colours[left], style.colours[right]} == {LEFT, RIGHT}


def test_no_people_draw_nothing():
    assert not drawn(draw_poses(canvas(), standing()[:0])).any()


POINT = st.one_of(st.floats(-400, 400), st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e9, 1e6]))


@hypothesis.given(
    points=st.lists(st.tuples(POINT, POINT), min_size=17, max_size=17),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    width=st.sampled_from([None, 0.1, 3, 40]),
)
def test_any_keypoints_draw_on_any_canvas(points, size, width):
    poses = Poses.create([points], np.ones((1, 17)), [[0, 0, 50, 50]], COCO)
    assert draw_poses(canvas(*size), poses, line_width=width, boxes=True).size == size[::-1]


def test_a_line_that_leaves_the_image_keeps_its_direction():
    keypoints = np.full((1, 17, 2), np.nan)
    keypoints[0, 13], keypoints[0, 15] = (10, 10), (110, 110)
    poses = Poses.create(keypoints, np.ones((1, 17)), [[0, 0, 100, 100]], COCO)
    shown = drawn(draw_poses(canvas(80, 80), poses))
    assert shown[np.arange(10, 80), np.arange(10, 80)].all()


def cpu_seconds(function) -> float:
    """The least processor time of five calls, which other processes on the machine do not count in."""
    seconds = []
    for _ in range(5):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)


def test_each_person_costs_far_less_than_the_whole_image():
    """300 people cost 3.8 times as much as enlarging and reducing the image on a quiet machine, and 31 times on a busy
    one, whose caches others use. Doing that for each person would cost 300 times.
    """
    rng = np.random.default_rng(0)
    keypoints = STANDING + rng.uniform(0, [1800, 960], (300, 1, 2))
    poses = Poses.create(keypoints, np.ones((300, 17)), np.full((300, 4), 100.0), COCO)
    image = Image.fromarray(canvas(1080, 1920))
    enlarging = cpu_seconds(lambda: image.resize((3840, 2160), Image.Resampling.NEAREST).reduce(2))
    assert cpu_seconds(lambda: draw_poses(image, poses)) < 100 * enlarging
    assert drawn(draw_poses(image, poses)).mean() > 0.02


def test_annotated_people_are_drawn_on_photographs(sample_folder):
    labels = json.loads((sample_folder / "person_keypoints.json").read_text())
    files = {image["id"]: image["file_name"] for image in labels["images"]}
    for image_id in sorted(files):
        people = [person for person in labels["annotations"] if person["image_id"] == image_id]
        triples = np.array([person["keypoints"] for person in people], float).reshape(-1, 17, 3)
        boxes = np.array([person["bbox"] for person in people], float).reshape(-1, 4)
        poses = Poses.create(triples[:, :, :2], triples[:, :, 2] > 0, boxes, COCO)
        path = sample_folder / "images" / files[image_id]
        changed = np.asarray(draw_poses(path, poses)) != np.asarray(Image.open(path).convert("RGB"))
        assert changed.any() == (triples[:, :, 2] > 0).any()
        assert changed.any(axis=-1).mean() < 0.2


def colours_at(out: Image.Image, poses: Poses) -> list[tuple[int, ...]]:
    return [tuple(np.asarray(out)[y, x]) for x, y in poses.keypoints[0].astype(int)]


def test_keypoints_and_edges_have_the_colours_that_are_given():
    poses = standing()
    colours = [(10 * index, 255 - 10 * index, 7) for index in range(17)]
    edges = [(200, index, 0) for index in range(len(COCO.edges))]
    out = draw_poses(canvas(), poses, line_width=5, keypoint_colours=colours, edge_colours=edges)
    assert colours_at(out, poses) == colours
    a, b = COCO.edges[0]
    x, y = poses.keypoints[0, [a, b]].mean(axis=0).astype(int)
    assert tuple(np.asarray(out)[y, x]) == edges[0]
    for name, arguments in (
        ("keypoint_colours: expected 17", {"keypoint_colours": colours[:16]}),
        ("edge_colours: expected 19", {"keypoint_colours": colours, "edge_colours": edges[:3]}),
        ("edge_colours: expected keypoint_colours too", {"edge_colours": edges}),
        ("labels: expected one for each of 1", {"labels": ["a", "b"]}),
        ("radius: expected 0 or more", {"radius": -1}),
    ):
        with pytest.raises(ValueError, match=name):
            draw_poses(canvas(), poses, **arguments)


def test_colours_by_keypoint_are_all_different():
    out = draw_poses(canvas(520, 520), standing(4), line_width=5, colour_by="keypoint")
    assert len(set(colours_at(out, standing(4)))) == 17


def test_dots_have_the_radius_that_is_given():
    poses = standing(4)
    wide, none = (drawn(draw_poses(canvas(520, 520), poses, line_width=2, radius=radius)) for radius in (9, 0))
    x, y = poses.keypoints[0, 9].astype(int)
    assert wide[y, x - 8 : x + 9].all() and not wide[y, x + 13 :].any()
    assert not none[y - 1 : y + 2, x - 9 : x - 3].any() and none.sum() < wide.sum() / 2


def test_low_scores_fade():
    poses = standing(2, scores=np.linspace(0.4, 1, 17))
    drawings = (draw_poses(canvas(), poses, line_width=5, fade=fade) for fade in (False, True))
    opaque, faded = (np.asarray(drawing).astype(float) for drawing in drawings)
    change = np.abs(faded - GROUND).sum() / np.abs(opaque - GROUND).sum()
    assert 0.4 < change < 0.9
    x, y = poses.keypoints[0, 0].astype(int)  # its score is 0.4
    assert np.abs(faded[y, x] - GROUND - 0.4 * (opaque[y, x] - GROUND)).max() <= 1  # both are whole numbers
    sure = standing(2, scores=np.full(17, 3.0))
    np.testing.assert_array_equal(draw_poses(canvas(), sure, fade=True), draw_poses(canvas(), sure))


def test_labels_stand_above_the_people():
    plain, labelled = (np.asarray(draw_poses(canvas(), standing(), labels=names)) for names in (None, ["Eileen"]))
    rows, columns = np.nonzero((plain != labelled).any(axis=-1))
    top, left = standing().keypoints[0].min(axis=0)[::-1]
    assert len(rows) > 100 and rows.min() >= 0 and rows.max() <= top + 2 and columns.min() >= left - 2


def test_a_heatmap_lies_where_its_crop_was_cut():
    maps = np.zeros((2, 64, 48), np.float32)
    maps[0, 20, 30], maps[1, 50, 10] = 0.8, 0.4
    boxes = np.asarray([[40, 30, 120, 160], [80, 60, 60, 120]], np.float32)
    out = np.asarray(draw_heatmaps(canvas(), maps, boxes)).astype(int)
    expected, _ = decode_heatmaps(jnp.asarray(maps[..., None]), boxes, decode="argmax")
    change = np.abs(out - GROUND).sum(axis=-1)
    for x, y in np.asarray(expected)[:, 0].round().astype(int):
        near = change[y - 8 : y + 9, x - 8 : x + 9]
        rows, columns = np.nonzero(near > 0)
        assert near[8, 8] == near.max() > 50
        assert abs(rows.mean() - 8) < 1 and abs(columns.mean() - 8) < 1
        change[y - 8 : y + 9, x - 8 : x + 9] = 0
    assert not change.any()
    with pytest.raises(ValueError, match="maps: expected one map"):
        draw_heatmaps(canvas(), maps[:1], boxes)
    with pytest.raises(ValueError, match="opacity: expected a number from 0 to 1"):
        draw_heatmaps(canvas(), maps, boxes, opacity=2)
    nothing = draw_heatmaps(canvas(), -maps, boxes)
    assert not drawn(nothing).any() and not drawn(draw_heatmaps(canvas(), maps[:0], boxes[:0])).any()
