"""Draws poses and boxes on an image, with Pillow only.

Each person is drawn on an enlarged copy of its part of the image. Then the copy is averaged back to the original size:
edges become smooth, and pixels without any drawing stay exactly as they were.
"""

import functools
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from vitpose_jax.images import ImageLike, load_image
from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import Skeleton

Colour: TypeAlias = tuple[int, int, int]

# Colour-blind people can tell these colours apart too, on light and on dark backgrounds.
LEFT, RIGHT, CENTRE = (255, 146, 43), (51, 154, 255), (140, 233, 110)
# One for each person where there are many, in turn.
PEOPLE: tuple[Colour, ...] = (
    (255, 146, 43),
    (51, 154, 255),
    (140, 233, 110),
    (247, 103, 173),
    (252, 220, 74),
    (145, 118, 255),
    (72, 219, 209),
    (255, 107, 107),
)
# From this number of people on, each has a colour of its own.
MANY_PEOPLE = 4
OUTLINE, RIM = (20, 20, 28), (255, 255, 255)

# Line width as a fraction of the person's size, and its limits in pixels.
LINE_FRACTION, LINE_MIN, LINE_MAX = 0.011, 1.0, 10.0
# Faces and hands are much smaller than the body, so their lines and dots have this fraction of the width.
FINE_FRACTION = 0.3
# Each person is enlarged until its lines are SMOOTH_WIDTH pixels wide (limits: ENLARGEMENTS, MAX_PIXELS).
SMOOTH_WIDTH, ENLARGEMENTS, MAX_PIXELS = 9, (2, 4), 16_000_000

_LEFT, _RIGHT = (re.compile(rf"(^|[_\s-])({side})(?=$|[_\s-])", re.IGNORECASE) for side in ("left|l", "right|r"))
_FINE = re.compile(r"face|hand|thumb|finger", re.IGNORECASE)


def draw_poses(
    image: ImageLike,
    poses: Poses,
    *,
    threshold: float | int = 0.3,
    boxes: bool = False,
    line_width: float | int | None = None,
    colour_by: Literal["side", "person"] | None = None,
) -> Image.Image:
    """Draw poses on a copy of an image: left sides orange, right sides blue, everything else green.

    Four or more people have a colour each instead.

    Args:
        image: the image of the poses, anything that `load_image` reads.
        poses: in pixels of that image. Each row can have its own skeleton, and keypoints can lie outside the image.
        threshold: keypoints with a lower score are not drawn, nor are lines to them.
        boxes: whether to draw the boxes too.
        line_width: in pixels; None means a width that fits the size of each person.
        colour_by: "side" of the body, or "person"; None means by person from four people on.

    Returns:
        An RGB image.

    Raises:
        ValueError: for a line width that is not positive, or an unknown `colour_by`.
        ValueError, TypeError, FileNotFoundError: from `load_image`.
    """
    if line_width is not None and not line_width > 0:
        raise ValueError(f"line_width: expected a positive number of pixels, got {line_width}")
    if colour_by not in ("side", "person", None):
        raise ValueError(f"colour_by: expected 'side', 'person' or None, got {colour_by!r}")
    by_person = colour_by == "person" or (colour_by is None and len(poses) >= MANY_PEOPLE)
    canvas = Image.fromarray(load_image(image))
    for index, (skeleton, keypoints, scores, box) in enumerate(poses.rows()):
        # Keypoints farther away than one image size are not drawn: lines to them would be all but invisible.
        near = (np.abs(keypoints - np.array(canvas.size) / 2) <= 1.5 * max(canvas.size)).all(axis=-1)
        visible = near & (scores >= threshold)
        if boxes and np.isfinite(box).all():
            _draw_box(canvas, box, line_width)
        if visible.any():
            style = _style(skeleton, PEOPLE[index % len(PEOPLE)] if by_person else None)
            width = line_width or _line_width(keypoints[visible], box)
            _draw_person(canvas, skeleton, style, keypoints, visible, width)
    return canvas


def draw_boxes(
    image: ImageLike,
    boxes: Float[np.ndarray, "n 4"],
    names: Sequence[str],
    scores: Float[np.ndarray, " n"],
    *,
    line_width: float | int | None = None,
) -> Image.Image:
    """Draw boxes on a copy of an image, each with its name and score.

    Args:
        image: the image of the boxes, anything that `load_image` reads.
        boxes: x, y, width, height in pixels of that image, the highest-scoring first.
        names, scores: one for each box.
        line_width: in pixels; None means a width that fits the size of each box.

    Returns:
        An RGB image.

    Raises:
        ValueError: if the numbers of boxes, names and scores differ.
        ValueError, TypeError, FileNotFoundError: from `load_image`.
    """
    if not len(boxes) == len(names) == len(scores):
        raise ValueError(f"expected {len(boxes)} names and scores, got {len(names)} and {len(scores)}")
    canvas = Image.fromarray(load_image(image))
    pen = ImageDraw.Draw(canvas)
    # The highest-scoring last, on top of the others.
    for box, name, score in reversed(list(zip(boxes, names, scores, strict=True))):
        _draw_box(canvas, box, line_width)
        corner = tuple(np.clip(box[:2], 0, np.array(canvas.size) - 1).tolist())
        text = f"{name} {score:.2f}"
        pen.rectangle(pen.textbbox(corner, text), fill=OUTLINE)
        pen.text(corner, text, fill=RIM)
    return canvas


def _line_width(keypoints: Float[np.ndarray, "visible 2"], box: Float[np.ndarray, "4"]) -> float:
    # If much of a person is hidden, the box gives its size. If the box is far too large, such as the whole image, the
    # keypoints do.
    extent = float(np.ptp(keypoints, axis=0).max())
    size = min(2 * extent, float(np.nan_to_num(box[2:]).max()))
    return _scaled_width(size)


def _scaled_width(size: float) -> float:
    return min(max(LINE_FRACTION * size, LINE_MIN), LINE_MAX)


def _draw_person(
    canvas: Image.Image,
    skeleton: Skeleton,
    style: "Style",
    keypoints: Float[np.ndarray, "k 2"],
    visible: Bool[np.ndarray, " k"],
    width: float | int,
) -> None:
    margin = 2 * width + 2
    low = np.maximum(np.floor(keypoints[visible].min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(keypoints[visible].max(axis=0) + margin), canvas.size).astype(int)
    if (low >= high).any():
        return
    region = (*low.tolist(), *high.tolist())
    columns, rows = (high - low).tolist()
    enlargement = min(max(round(SMOOTH_WIDTH / width), ENLARGEMENTS[0]), ENLARGEMENTS[1])
    enlargement = min(enlargement, max(int((MAX_PIXELS / (columns * rows)) ** 0.5), 1))
    large = canvas.crop(region).resize((columns * enlargement, rows * enlargement), Image.Resampling.NEAREST)
    # Pixel centres are at integers, in the image and in its enlarged copy.
    points = (keypoints - low + 0.5) * enlargement - 0.5
    _draw_skeleton(ImageDraw.Draw(large), skeleton, style, points, visible, width * enlargement)
    canvas.paste(large.reduce(enlargement), region)


def _draw_skeleton(
    pen: ImageDraw.ImageDraw,
    skeleton: Skeleton,
    style: "Style",
    points: Float[np.ndarray, "k 2"],
    visible: Bool[np.ndarray, " k"],
    width: float | int,
) -> None:
    # Pillow draws on whole pixels, and only lines of odd width are centred.
    pixels = {index: (int(x), int(y)) for index, (x, y) in enumerate(np.rint(points)) if visible[index]}
    edges = [
        ((pixels[a], pixels[b]), colour, 2 * round((width * fraction - 1) / 2) + 1)
        for (a, b), colour, fraction in zip(skeleton.edges, style.edge_colours, style.edge_widths, strict=True)
        if visible[a] and visible[b]
    ]
    dots = [(pixel, style.colours[index], style.widths[index]) for index, pixel in pixels.items()]
    # First the dark outlines of everything, then the colours.
    for line, _, edge_width in edges:
        pen.line(line, fill=OUTLINE, width=edge_width + 2 * max(1, round(edge_width / 4)))
    for pixel, _, fraction in dots:
        pen.circle(pixel, round(1.2 * width * fraction), fill=OUTLINE)
    for line, colour, edge_width in edges:
        pen.line(line, fill=colour, width=edge_width)
    for pixel, colour, fraction in dots:
        if fraction == 1:
            pen.circle(pixel, round(0.95 * width), fill=RIM)
        pen.circle(pixel, round((0.6 if fraction == 1 else 0.9 * fraction) * width), fill=colour)


def _draw_box(canvas: Image.Image, box: Float[np.ndarray, "4"], line_width: float | int | None) -> None:
    x, y, width, height = box.tolist()
    stroke = max(1, round((line_width or _scaled_width(max(width, height))) / 2))
    pen = ImageDraw.Draw(canvas)
    # Corners far outside the image are moved near it: Pillow cannot draw at any distance.
    low = np.clip([x, y], -8 * stroke, np.array(canvas.size) + 8 * stroke)
    high = np.clip([x + width, y + height], low, np.array(canvas.size) + 8 * stroke)
    # A dark line, one pixel wider on both sides, with a white line on top.
    for colour, extra in ((OUTLINE, 1), (RIM, 0)):
        pen.rectangle((*(low - extra).tolist(), *(high + extra).tolist()), outline=colour, width=stroke + 2 * extra)


class Style(NamedTuple):
    """How a skeleton is drawn: colours of its keypoints and edges, and their widths as fractions of the line width."""

    colours: tuple[Colour, ...]
    widths: tuple[float, ...]
    edge_colours: tuple[Colour, ...]
    edge_widths: tuple[float, ...]


@functools.lru_cache(maxsize=64)
def _style(skeleton: Skeleton, person: Colour | None = None) -> Style:
    colours = tuple(
        person or (LEFT if _LEFT.search(name) else RIGHT if _RIGHT.search(name) else CENTRE)
        for name in skeleton.keypoints
    )
    widths = tuple(FINE_FRACTION if _FINE.search(name) else 1.0 for name in skeleton.keypoints)

    def edge_colour(a: int, b: int) -> Colour:
        sides = {colours[a], colours[b]} - {CENTRE}
        return sides.pop() if len(sides) == 1 else CENTRE

    return Style(
        colours=colours,
        widths=widths,
        edge_colours=tuple(edge_colour(a, b) for a, b in skeleton.edges),
        edge_widths=tuple(min(widths[a], widths[b]) for a, b in skeleton.edges),
    )
