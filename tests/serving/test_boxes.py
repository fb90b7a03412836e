"""Boxes as people have them: formats, one list too many, detections of other libraries."""

from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.tolerances import FLOAT32
from vitpose_jax import Detections
from vitpose_jax.serving.boxes import read_boxes, unwrap

BOXES = [[10, 20, 50, 80], [0, 0, 30, 40]]
XYXY = [[10, 20, 60, 100], [0, 0, 30, 40]]


@pytest.mark.parametrize(
    "boxes",
    [
        BOXES,
        [BOXES],
        (BOXES,),
        np.asarray(BOXES),
        np.asarray([BOXES]),
        [np.asarray(BOXES)],
        [np.asarray(row) for row in BOXES],
        [[np.asarray(row) for row in BOXES]],
        jnp.asarray([BOXES]),
        torch.tensor(BOXES),
        torch.tensor([BOXES]).bfloat16(),
        [torch.tensor(BOXES)],
    ],
)
def test_one_list_or_axis_too_many_is_taken_for_what_it_means(boxes):
    result = read_boxes(boxes)
    np.testing.assert_array_equal(result.boxes, BOXES)
    assert result.boxes.dtype == np.float32
    assert result.scores is None and not result.relative


def test_no_boxes_and_other_single_entries():
    for nothing in ([], [[]], np.zeros((0, 4)), np.zeros((1, 0, 4)), [np.zeros((0, 4))]):
        assert read_boxes(nothing).boxes.shape == (0, 4)
    assert unwrap(["image"]) == "image"
    assert unwrap([None]) is None
    np.testing.assert_array_equal(read_boxes([[1, 2, 3, 4]]).boxes, [[1, 2, 3, 4]])


@hypothesis.given(
    st.lists(st.tuples(*[st.integers(-2000, 2000)] * 2, *[st.integers(1, 2000)] * 2), max_size=5),
    st.integers(1, 4000),
    st.integers(1, 4000),
)
def test_every_format_gives_the_same_boxes(rows, width, height):
    boxes = np.asarray(rows, np.float64).reshape(-1, 4)
    corner, size = boxes[:, :2], boxes[:, 2:]
    xyxy = np.concatenate([corner, corner + size], axis=1)
    centred = np.concatenate([corner + size / 2, size], axis=1)
    np.testing.assert_array_equal(read_boxes(xyxy, "xyxy").boxes, boxes)
    np.testing.assert_array_equal(read_boxes(centred, "cxcywh").boxes, boxes)
    side = np.asarray([width, height] * 2)
    fractions = centred / side
    hypothesis.assume(np.abs(fractions).max(initial=0) <= 1)
    result = read_boxes(fractions, "yolo")
    assert result.relative
    np.testing.assert_allclose(result.boxes, boxes / side, rtol=FLOAT32, atol=FLOAT32)


def test_detections_say_their_format_and_bring_their_scores():
    scores = [0.9, 0.5]
    own = Detections(
        boxes=np.asarray(BOXES, np.float32),
        scores=np.asarray(scores, np.float32),
        class_ids=np.zeros(2, int),
        classes=("person",),
    )
    supervision = SimpleNamespace(xyxy=np.asarray(XYXY, np.float32), confidence=np.asarray(scores))
    ultralytics = SimpleNamespace(xyxy=torch.tensor(XYXY), conf=torch.tensor(scores))
    for detections in (own, supervision, ultralytics, [own], [supervision]):
        result = read_boxes(detections)
        np.testing.assert_array_equal(result.boxes, BOXES)
        np.testing.assert_array_equal(result.scores, np.asarray(scores, np.float32))
    assert read_boxes(SimpleNamespace(xyxy=np.asarray(XYXY), confidence=None)).scores is None
    for wrong in ([0.9], [0.9, np.nan]):
        with pytest.raises(ValueError, match="expected 2 finite scores of the detector"):
            read_boxes(SimpleNamespace(xyxy=np.asarray(XYXY), confidence=np.asarray(wrong)))


@pytest.mark.parametrize(
    ("boxes", "box_format", "message"),
    [
        ([1, 2, 3, 4], "xywh", r"expected shape \(n, 4\), x y w h, got \(4,\); give one box as \[box\]"),
        (np.ones((3, 2, 4)), "xywh", r"of one image, got \(3, 2, 4\); for 3 images give a list of images"),
        ([[1, 2, 3]], "cxcywh", r"expected shape \(n, 4\), centre x, centre y, w h, got \(1, 3\)"),
        ([[10, 20, 5, 30]], "xyxy", 'box 0 has no area; expected x2 > x1 .* boxes x y w h are box_format="xywh"'),
        ([[10, 20, 0, 30]], "xywh", "box 0 has no area"),
        ([[0.5, 0.5, 0, 0.1]], "yolo", "box 0 has no area"),
        ([[10, 20, 5, 30]], "yolo", 'expected fractions of the image, 0 to 1, got .* are box_format="cxcywh"'),
        ([[np.nan, 0, 1, 1]], "yolo", "box 0 is not finite"),
        ([[np.nan, 0, 1, 1]], "xyxy", "box 0 is not finite"),
    ],
)
def test_what_is_refused_names_the_fix(boxes, box_format, message):
    with pytest.raises(ValueError, match=message):
        read_boxes(boxes, box_format)


def test_an_unknown_format_lists_the_known_ones(unchecked):
    with pytest.raises(ValueError, match="box_format: expected one of xywh, xyxy, cxcywh, yolo, got 'xywhn'"):
        read_boxes(BOXES, "xywhn")
