"""Draws poses, boxes and heatmaps on an image, with Pillow only.

Each person is drawn on an enlarged copy of its part of the image. Then the copy is averaged back to the original size:
edges become smooth, and pixels without any drawing stay exactly as they were.
"""

import colorsys
import functools
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from vitpose_jax.images import ImageLike, load_image
from vitpose_jax.pipeline.regions import BOX_PADDING, boxes_to_regions, check_boxes, crop_to_image
from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import Skeleton

Colour: TypeAlias = tuple[int, int, int]
ColourBy: TypeAlias = Literal["side", "person", "keypoint"]

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
# From low to high values of a heatmap.
HEAT: tuple[Colour, ...] = ((40, 20, 120), (170, 40, 140), (250, 110, 60), (255, 240, 130))

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
    radius: float | int | None = None,
    colour_by: ColourBy | None = None,
    keypoint_colours: Sequence[Colour] | None = None,
    edge_colours: Sequence[Colour] | None = None,
    fade: bool = False,
    labels: Sequence[str] | None = None,
    person_colours: Sequence[Colour] | None = None,
) -> Image.Image:
    """Draw poses on a copy of an image: left sides orange, right sides blue, everything else green.

    Four or more people have a colour each instead.

    Args:
        image: the image of the poses, anything that `load_image` reads.
        poses: in pixels of that image. Each row can have its own skeleton, and keypoints can lie outside the image.
        threshold: keypoints with a lower score are not drawn, nor are lines to them.
        boxes: whether to draw the boxes too.
        line_width: in pixels; None means a width that fits the size of each person.
        radius: of the dots on the keypoints, in pixels; None means a radius that fits the lines, 0 means no dots.
        colour_by: "side" of the body, "person", or "keypoint", all round the colour wheel; None means by person from
            four people on.
        keypoint_colours, edge_colours: red, green and blue from 0 to 255, one for each keypoint and each edge of the
            skeleton, instead of `colour_by`. Without edge_colours, an edge has the colour of its second keypoint.
        fade: draw a keypoint the fainter, the lower its score, and an edge as the fainter of its ends; a score of 1 or
            more is opaque.
        labels: a text for each person, written above it.
        person_colours: of each person where people have colours of their own; None for those of `PEOPLE` in turn.

    Returns:
        An RGB image.

    Raises:
        ValueError: for a line width or radius that is not positive, an unknown `colour_by`, or a number of colours or
            labels that does not fit.
        ValueError, TypeError, FileNotFoundError: from `load_image`.
    """
    if line_width is not None and not line_width > 0:
        raise ValueError(f"line_width: expected a positive number of pixels, got {line_width}")
    if radius is not None and not radius >= 0:
        raise ValueError(f"radius: expected 0 or more pixels, got {radius}")
    if colour_by not in ("side", "person", "keypoint", None):
        raise ValueError(f"colour_by: expected 'side', 'person', 'keypoint' or None, got {colour_by!r}")
    if labels is not None and len(labels) != len(poses):
        raise ValueError(f"labels: expected one for each of {len(poses)} people, got {len(labels)}")
    if person_colours is not None and len(person_colours) != len(poses):
        raise ValueError(f"person_colours: expected one for each of {len(poses)} people, got {len(person_colours)}")
    if edge_colours is not None and keypoint_colours is None:
        raise ValueError("edge_colours: expected keypoint_colours too, got none")
    colour_by = colour_by or ("person" if len(poses) >= MANY_PEOPLE else "side")
    canvas = Image.fromarray(load_image(image))
    for index, (skeleton, keypoints, scores, box) in enumerate(poses.rows()):
        # Keypoints farther away than one image size are not drawn: lines to them would be all but invisible.
        near = (np.abs(keypoints - np.array(canvas.size) / 2) <= 1.5 * max(canvas.size)).all(axis=-1)
        visible = near & (scores >= threshold)
        if boxes and np.isfinite(box).all():
            _draw_box(canvas, box, line_width)
        if visible.any():
            if keypoint_colours is None:
                person = PEOPLE[index % len(PEOPLE)] if person_colours is None else _rgb(person_colours[index])
                style = _style(skeleton, person if colour_by == "person" else None, colour_by)
            else:
                style = _own_style(skeleton, keypoint_colours, edge_colours)
            width = line_width or _line_width(keypoints[visible], box)
            opacity = np.clip(scores, 0, 1) if fade else np.ones_like(scores)
            _draw_person(canvas, skeleton, style, keypoints, visible, width, radius, opacity)
    # Above all lines.
    for (_, keypoints, scores, _), text in zip(poses.rows(), () if labels is None else labels, strict=False):
        visible = np.isfinite(keypoints).all(axis=-1) & (scores >= threshold)
        if visible.any():
            _draw_label(canvas, keypoints[visible].min(axis=0), text)
    return canvas


def draw_heatmaps(
    image: ImageLike,
    maps: ArrayLike,
    boxes: ArrayLike,
    *,
    size: tuple[int, int] = (256, 192),
    padding: float = BOX_PADDING,
    opacity: float | int = 0.6,
) -> Image.Image:
    """Lay what the network says of each crop over a copy of an image: heatmaps, or attention.

    Args:
        image: anything that `load_image` reads.
        maps: (n, height, width), one for each box, such as `heatmaps.max(axis=-1)`, or the attention of one token to
            all patches, with one row for each row of patches. The largest value of all is drawn brightest; 0 and below
            is not drawn.
        boxes: (n, 4), x, y, width, height in pixels of that image, as the crops were cut.
        size: height and width of the crops in pixels; only their ratio counts.
        padding: of the boxes, as the crops were cut.
        opacity: of the brightest place, from 0 to 1.

    Returns:
        An RGB image.

    Raises:
        ValueError: if the numbers of maps and boxes differ, or for an opacity outside 0 to 1.
        ValueError, TypeError, FileNotFoundError: from `load_image`.
    """
    maps, boxes = np.asarray(maps, np.float32), check_boxes(boxes)
    if maps.ndim != 3 or len(maps) != len(boxes):
        raise ValueError(f"maps: expected one map (height, width) for each of {len(boxes)} boxes, got {maps.shape}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected a number from 0 to 1, got {opacity}")
    canvas = Image.fromarray(load_image(image))
    if not len(maps) or not maps.max() > 0:
        return canvas
    height, width = maps.shape[1:]
    ends = jnp.asarray([[[0, 0], [width - 1, height - 1]]], jnp.float32)
    heat = np.zeros((canvas.height, canvas.width), np.float32)
    # Box by box: JAX compiles for each shape, and each image has another number of people.
    for values, box in zip(maps, boxes[:, None], strict=True):
        # Where the middles of the map's first and last pixel are in the image.
        region = boxes_to_regions(box, size, padding=padding)
        ((first, last),) = np.asarray(crop_to_image(ends, region, (height, width)))
        step = (last - first) / (np.maximum([width - 1, height - 1], 1))
        a, e = (1 / step).tolist()
        # Pillow counts from the corner of the first pixel.
        c, f = (0.5 - (first + 0.5) / step).tolist()
        bounds = (a, 0.0, c, 0.0, e, f)
        moved = Image.fromarray(values).transform(
            canvas.size, Image.Transform.AFFINE, bounds, Image.Resampling.BILINEAR
        )
        heat = np.maximum(heat, np.asarray(moved))
    heat = np.clip(heat / maps.max(), 0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(heat, stops, channel) for channel in zip(*HEAT, strict=True)], axis=-1)
    alpha = Image.fromarray((255 * opacity * np.sqrt(heat)).round().astype(np.uint8))
    return Image.composite(Image.fromarray(colours.round().astype(np.uint8)), canvas, alpha)


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
    # The highest-scoring last, on top of the others.
    for box, name, score in reversed(list(zip(boxes, names, scores, strict=True))):
        _draw_box(canvas, box, line_width)
        _draw_label(canvas, box[:2], f"{name} {score:.2f}", above=False)
    return canvas


def _draw_label(canvas: Image.Image, corner: Float[np.ndarray, "2"], text: str, *, above: bool = True) -> None:
    pen = ImageDraw.Draw(canvas)
    left, top, right, bottom = pen.textbbox((0, 0), text)
    x, y = corner - np.asarray([0, 1.5 * bottom if above else 0])
    place = np.clip([x, y], 0, np.maximum(np.array(canvas.size) - [right, bottom], 0)).tolist()
    pen.rectangle((place[0] + left - 1, place[1] + top - 1, place[0] + right + 1, place[1] + bottom + 1), fill=OUTLINE)
    pen.text(tuple(place), text, fill=RIM)


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
    radius: float | int | None,
    opacity: Float[np.ndarray, " k"],
) -> None:
    margin = max(2 * width, 1.3 * (radius or 0)) + 2
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
    mask = None if (opacity == 1).all() else Image.new("L", large.size)
    pen = _Pen(large if mask is None else large.copy(), mask)
    dot = 0.95 * width if radius is None else radius
    _draw_skeleton(pen, skeleton, style, points, visible, width * enlargement, dot * enlargement, opacity)
    if mask is not None:
        large.paste(pen.image, mask=mask)
    canvas.paste(large.reduce(enlargement), region)


class _Pen:
    """Draws on an image, and how opaque everything is on a mask."""

    def __init__(self, image: Image.Image, mask: Image.Image | None):
        self.image = image
        self._pen, self._mask = ImageDraw.Draw(image), None if mask is None else ImageDraw.Draw(mask)

    def line(self, ends: tuple[tuple[int, int], tuple[int, int]], colour: Colour, width: int, opacity: float) -> None:
        self._pen.line(ends, fill=colour, width=width)
        if self._mask:
            self._mask.line(ends, fill=round(255 * opacity), width=width)

    def circle(self, middle: tuple[int, int], radius: int, colour: Colour, opacity: float) -> None:
        self._pen.circle(middle, radius, fill=colour)
        if self._mask:
            self._mask.circle(middle, radius, fill=round(255 * opacity))


def _draw_skeleton(
    pen: _Pen,
    skeleton: Skeleton,
    style: "Style",
    points: Float[np.ndarray, "k 2"],
    visible: Bool[np.ndarray, " k"],
    width: float | int,
    radius: float | int,
    opacity: Float[np.ndarray, " k"],
) -> None:
    # Pillow draws on whole pixels, and only lines of odd width are centred.
    pixels = {index: (int(x), int(y)) for index, (x, y) in enumerate(np.rint(points)) if visible[index]}
    edges = [
        ((pixels[a], pixels[b]), colour, 2 * round((width * fraction - 1) / 2) + 1, float(min(opacity[a], opacity[b])))
        for (a, b), colour, fraction in zip(skeleton.edges, style.edge_colours, style.edge_widths, strict=True)
        if visible[a] and visible[b]
    ]
    dots = [
        (pixel, style.colours[index], style.widths[index], float(opacity[index])) for index, pixel in pixels.items()
    ]
    if radius == 0:
        dots = []
    # First the dark outlines of everything, then the colours.
    for line, _, edge_width, strength in edges:
        pen.line(line, OUTLINE, edge_width + 2 * max(1, round(edge_width / 4)), strength)
    for pixel, _, fraction, strength in dots:
        pen.circle(pixel, round(1.26 * radius * fraction), OUTLINE, strength)
    for line, colour, edge_width, strength in edges:
        pen.line(line, colour, edge_width, strength)
    for pixel, colour, fraction, strength in dots:
        if fraction == 1:
            pen.circle(pixel, round(radius), RIM, strength)
        pen.circle(pixel, round((0.63 if fraction == 1 else 0.95 * fraction) * radius), colour, strength)


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
def _style(skeleton: Skeleton, person: Colour | None = None, colour_by: ColourBy = "side") -> Style:
    if colour_by == "keypoint":
        return _own_style(skeleton, colour_wheel(skeleton.num_keypoints), None)
    colours = tuple(
        person or (LEFT if _LEFT.search(name) else RIGHT if _RIGHT.search(name) else CENTRE)
        for name in skeleton.keypoints
    )

    def edge_colour(a: int, b: int) -> Colour:
        sides = {colours[a], colours[b]} - {CENTRE}
        return sides.pop() if len(sides) == 1 else CENTRE

    return _with_widths(skeleton, colours, tuple(edge_colour(a, b) for a, b in skeleton.edges))


def _own_style(skeleton: Skeleton, keypoints: Sequence[Colour], edges: Sequence[Colour] | None) -> Style:
    for name, given, count in (
        ("keypoint_colours", keypoints, skeleton.num_keypoints),
        ("edge_colours", edges, len(skeleton.edges)),
    ):
        if given is not None and len(given) != count:
            raise ValueError(f"{name}: expected {count} for the skeleton {skeleton.name!r}, got {len(given)}")
    colours = tuple(_rgb(colour) for colour in keypoints)
    lines = [colours[b] for _, b in skeleton.edges] if edges is None else map(_rgb, edges)
    return _with_widths(skeleton, colours, tuple(lines))


def _with_widths(skeleton: Skeleton, colours: tuple[Colour, ...], edge_colours: tuple[Colour, ...]) -> Style:
    widths = tuple(FINE_FRACTION if _FINE.search(name) else 1.0 for name in skeleton.keypoints)
    edge_widths = tuple(min(widths[a], widths[b]) for a, b in skeleton.edges)
    return Style(colours=colours, widths=widths, edge_colours=edge_colours, edge_widths=edge_widths)


def _rgb(colour: Colour) -> Colour:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


def colour_wheel(count: int) -> tuple[Colour, ...]:
    """Bright colours all round the colour wheel."""
    turns = (colorsys.hsv_to_rgb(index / max(count, 1), 0.75, 1.0) for index in range(count))
    return tuple(_rgb((round(255 * r), round(255 * g), round(255 * b))) for r, g, b in turns)
