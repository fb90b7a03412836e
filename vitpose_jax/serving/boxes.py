"""Boxes as people have them: rows of numbers in one of four formats, or the detections of another library.

"xywh"     left, top, width, height in pixels; this project's own
"xyxy"     left, top, right, bottom in pixels: torchvision, supervision, Ultralytics
"cxcywh"   centre and size in pixels
"yolo"     centre and size in fractions of the image
"""

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from jaxtyping import Float

from vitpose_jax.pipeline.regions import check_boxes
from vitpose_jax.pixels.arrays import on_host

BoxFormat: TypeAlias = Literal["xywh", "xyxy", "cxcywh", "yolo"]

# Fractions of the image may leave 0 to 1 by this: a box may begin outside the image.
OUTSIDE = 1.0


class GivenBoxes(NamedTuple):
    """Boxes of one image.

    Attributes:
        boxes: float32 x y w h in pixels of the image, or in fractions of it.
        scores: of the detector that found them; None if there are none.
        relative: the boxes are in fractions of the image.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"] | None = None
    relative: bool = False


def check_box_format(box_format: str) -> None:
    """Check the name of a format of boxes.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    if box_format not in get_args(BoxFormat):
        raise ValueError(f"box_format: expected one of {', '.join(get_args(BoxFormat))}, got {box_format!r}")


def read_boxes(boxes: Any, box_format: BoxFormat = "xywh", *, name: str = "boxes") -> GivenBoxes:
    """The boxes of one image, checked.

    Args:
        boxes: rows of four numbers (n, 4), also in one more list or axis, (1, n, 4); this project's `Detections`; or
            any object with the attribute `xyxy`, and perhaps `confidence` or `conf`, as supervision's `Detections`
            and Ultralytics' `Boxes`: these say their format themselves.
        box_format: of rows of numbers.
        name: of the argument, for errors.

    Raises:
        ValueError: for another shape, and for a box that is not finite, has no area or lies beyond every image. The
            message names the box.
        TypeError: if they are not numbers.
    """
    check_box_format(box_format)
    boxes = unwrap(boxes)
    if is_detections(boxes):
        if hasattr(boxes, "xyxy"):
            array, box_format = _to_array(boxes.xyxy, name, "xyxy"), "xyxy"
            scores = getattr(boxes, "confidence", getattr(boxes, "conf", None))
        else:
            array, box_format, scores = _to_array(boxes.boxes, name, "xywh"), "xywh", boxes.scores
    else:
        array, scores = _to_array(boxes, name, box_format), None
    _check_order(array, box_format, name)
    array = check_boxes(_to_xywh(array, box_format), name=name)
    if scores is not None:
        scores = np.asarray(on_host(scores), np.float32)
        if scores.shape != (len(array),) or not np.isfinite(scores).all():
            raise ValueError(f"{name}: expected {len(array)} finite scores of the detector, got {scores.tolist()}")
    return GivenBoxes(array, scores, relative=box_format == "yolo")


def is_detections(boxes: object) -> bool:
    """Whether these are the detections of one image: an object with boxes, and no rows of numbers."""
    return hasattr(boxes, "xyxy") or (hasattr(boxes, "boxes") and hasattr(boxes, "scores"))


def unwrap(boxes: Any) -> Any:
    """What boxes of one image mean that came in one more list or axis: `[boxes]`, or an array (1, n, 4)."""
    if isinstance(boxes, list | tuple) and len(boxes) == 1:
        (inner,) = boxes
        nested = isinstance(inner, list | tuple) and all(isinstance(row, list | tuple) for row in inner)
        if inner is None or isinstance(inner, str) or nested or is_detections(inner) or _axes(inner) > 1:
            return inner
        # A list of rows that are arrays.
        return inner if isinstance(inner, list | tuple) and any(_axes(row) == 1 for row in inner) else boxes
    return boxes[0] if _axes(boxes) == 3 and len(boxes) == 1 else boxes


def _axes(value: object) -> int:
    return getattr(value, "ndim", 0)


def _to_array(boxes: Any, name: str, box_format: BoxFormat) -> Float[np.ndarray, "n 4"]:
    order = _ORDERS[box_format]
    try:
        array = np.asarray(on_host(boxes), np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}: expected n rows of four numbers {order}, got {str(boxes)[:80]}") from error
    if array.shape == (0,):
        return array.reshape(0, 4)
    if array.shape == (4,):
        raise ValueError(f"{name}: expected shape (n, 4), {order}, got (4,); give one box as [box]")
    if array.ndim == 3 and array.shape[2] == 4:
        raise ValueError(
            f"{name}: expected shape (n, 4), {order}, of one image, got {array.shape}; "
            f"for {len(array)} images give a list of images"
        )
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{name}: expected shape (n, 4), {order}, got {array.shape}")
    return array


_ORDERS: dict[str, str] = {
    "xywh": "x y w h",
    "xyxy": "x1 y1 x2 y2",
    "cxcywh": "centre x, centre y, w h",
    "yolo": "centre x, centre y, w h in fractions of the image",
}


def _check_order(array: Float[np.ndarray, "n 4"], box_format: BoxFormat, name: str) -> None:
    """Check what `check_boxes` does not see after the conversion."""
    if box_format == "xyxy":
        for index in np.flatnonzero((array[:, 2:] <= array[:, :2]).any(axis=1)):
            raise ValueError(
                f"{name}: box {index} has no area; expected x2 > x1 and y2 > y1, got {array[index].tolist()}; "
                'boxes x y w h are box_format="xywh"'
            )
    if box_format == "yolo":
        for index in np.flatnonzero(((array < -OUTSIDE) | (array > 1 + OUTSIDE)).any(axis=1)):
            raise ValueError(
                f"{name}: box {index}: expected fractions of the image, 0 to 1, got {array[index].tolist()}; "
                'boxes in pixels are box_format="cxcywh"'
            )


def _to_xywh(array: Float[np.ndarray, "n 4"], box_format: BoxFormat) -> Float[np.ndarray, "n 4"]:
    first, second = array[:, :2], array[:, 2:]
    if box_format == "xyxy":
        second = second - first
    elif box_format != "xywh":
        first = first - second / 2
    return np.concatenate([first, second], axis=1)
