"""Poses and boxes drawn on an image, with Pillow alone.

Every person is drawn on an enlarged copy of the part of the image it covers, which is then averaged back: edges come
out smooth, and a pixel on which nothing was drawn comes out as it was.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from vitpose_jax.images import ImageLike, load_image
from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import Skeleton

Colour: TypeAlias = tuple[int, int, int]

# Told apart by the colour-blind too, on light and on dark grounds.
LEFT, RIGHT, CENTRE = (255, 146, 43), (51, 154, 255), (140, 233, 110)
OUTLINE, RIM = (20, 20, 28), (255, 255, 255)

# The width of a line, as a share of the person's size and in pixels.
LINE_SHARE, LINE_MIN, LINE_MAX = 0.011, 1.0, 10.0
# Faces and hands are drawn finer: they are that much smaller than the body they belong to.
FINE_SHARE = 0.3
# A person is enlarged until its lines are so wide, within bounds and up to so many pixels.
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
) -> Image.Image:
    """A copy of an image with poses drawn on it: left sides orange, right sides blue, the rest green.

    Args:
        image: as for `load_image`; the one the poses were found in.
        poses: in pixels of that image. Skeletons may differ from row to row; keypoints may lie outside.
        threshold: keypoints with a lower score are left out, and so are the lines to them.
        boxes: also draw the boxes.
        line_width: in pixels; None scales it with each person.

    Returns:
        An RGB image.

    Raises:
        ValueError: for a line width that is not positive, and as `load_image`, which raises other errors as well.
    """
    if line_width is not None and not line_width > 0:
        raise ValueError(f"line_width: expected a positive number of pixels, got {line_width}")
    canvas = Image.fromarray(load_image(image))
    for skeleton, keypoints, scores, box in poses.rows():
        # Further out than the image is large, nothing of a line would be seen.
        reach = max(canvas.size)
        near = (np.abs(keypoints - np.array(canvas.size) / 2) <= 1.5 * reach).all(axis=-1)
        shown = near & (scores >= threshold)
        if boxes and np.isfinite(box).all():
            _draw_box(canvas, box, line_width)
        if shown.any():
            _draw_person(canvas, skeleton, keypoints, shown, line_width or _line_width(keypoints[shown], box))
    return canvas


def draw_boxes(
    image: ImageLike,
    boxes: Float[np.ndarray, "n 4"],
    names: Sequence[str],
    scores: Float[np.ndarray, " n"],
    *,
    line_width: float | int | None = None,
) -> Image.Image:
    """A copy of an image with boxes drawn on it, each with its name and score.

    Args:
        image: as for `load_image`; the one the boxes are of.
        boxes: x, y, width, height in pixels of that image.
        names, scores: one for each box.
        line_width: in pixels; None scales it with each box.

    Returns:
        An RGB image.

    Raises:
        ValueError: where names or scores are not as many as the boxes, and as `load_image`.
    """
    if not len(boxes) == len(names) == len(scores):
        raise ValueError(f"expected {len(boxes)} names and scores, got {len(names)} and {len(scores)}")
    canvas = Image.fromarray(load_image(image))
    pen = ImageDraw.Draw(canvas)
    # The surest last, on top of the others.
    for box, name, score in reversed(list(zip(boxes, names, scores, strict=True))):
        _draw_box(canvas, box, line_width)
        corner = tuple(np.clip(box[:2], 0, np.array(canvas.size) - 1).tolist())
        text = f"{name} {score:.2f}"
        pen.rectangle(pen.textbbox(corner, text), fill=OUTLINE)
        pen.text(corner, text, fill=RIM)
    return canvas


def _line_width(keypoints: Float[np.ndarray, "shown 2"], box: Float[np.ndarray, "4"]) -> float:
    # The box tells a person's size where much of the person is hidden, the keypoints where the box is far too
    # large: it may be the whole image.
    extent = float(np.ptp(keypoints, axis=0).max())
    size = min(2 * extent, float(np.nan_to_num(box[2:]).max()))
    return min(max(LINE_SHARE * size, LINE_MIN), LINE_MAX)


def _draw_person(
    canvas: Image.Image,
    skeleton: Skeleton,
    keypoints: Float[np.ndarray, "k 2"],
    shown: Bool[np.ndarray, " k"],
    width: float | int,
) -> None:
    margin = 2 * width + 2
    low = np.maximum(np.floor(keypoints[shown].min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(keypoints[shown].max(axis=0) + margin), canvas.size).astype(int)
    if (low >= high).any():
        return
    region = (*low.tolist(), *high.tolist())
    columns, rows = (high - low).tolist()
    enlargement = min(max(round(SMOOTH_WIDTH / width), ENLARGEMENTS[0]), ENLARGEMENTS[1])
    enlargement = min(enlargement, max(int((MAX_PIXELS / (columns * rows)) ** 0.5), 1))
    large = canvas.crop(region).resize((columns * enlargement, rows * enlargement), Image.Resampling.NEAREST)
    # Pixel centres lie at integers, in the image and in its enlargement.
    points = (keypoints - low + 0.5) * enlargement - 0.5
    _draw_skeleton(ImageDraw.Draw(large), skeleton, points, shown, width * enlargement)
    canvas.paste(large.reduce(enlargement), region)


def _draw_skeleton(
    pen: ImageDraw.ImageDraw,
    skeleton: Skeleton,
    points: Float[np.ndarray, "k 2"],
    shown: Bool[np.ndarray, " k"],
    width: float | int,
) -> None:
    # Pillow draws on whole pixels, and centres lines of odd width alone.
    style = _style(skeleton)
    places = [tuple(place) for place in np.rint(points[shown]).astype(int).tolist()]
    places = dict(zip(np.flatnonzero(shown).tolist(), places, strict=True))
    edges = [
        ((places[a], places[b]), colour, 2 * round((width * share - 1) / 2) + 1)
        for (a, b), colour, share in zip(skeleton.edges, style.edge_colours, style.edge_shares, strict=True)
        if shown[a] and shown[b]
    ]
    dots = [(place, style.colours[index], style.shares[index]) for index, place in places.items()]
    for line, _, wide in edges:
        pen.line(line, fill=OUTLINE, width=wide + 2 * max(1, round(wide / 4)))
    for place, _, share in dots:
        pen.circle(place, round(1.2 * width * share), fill=OUTLINE)
    for line, colour, wide in edges:
        pen.line(line, fill=colour, width=wide)
    for place, colour, share in dots:
        if share == 1:
            pen.circle(place, round(0.95 * width), fill=RIM)
        pen.circle(place, round((0.6 if share == 1 else 0.9 * share) * width), fill=colour)


def _draw_box(canvas: Image.Image, box: Float[np.ndarray, "4"], line_width: float | int | None) -> None:
    x, y, width, height = box.tolist()
    thick = max(1, round((line_width or min(max(LINE_SHARE * max(width, height), LINE_MIN), LINE_MAX)) / 2))
    pen = ImageDraw.Draw(canvas)
    # The dark line lies around the white one. Corners out of the image by much are drawn as by a little.
    low = np.clip([x, y], -8 * thick, canvas.size)
    high = np.clip([x + width, y + height], low, np.array(canvas.size) + 8 * thick)
    for colour, grow in ((OUTLINE, 1), (RIM, 0)):
        pen.rectangle((*(low - grow).tolist(), *(high + grow).tolist()), outline=colour, width=thick + 2 * grow)


class Style(NamedTuple):
    """How a skeleton is drawn: colours, and shares of the full width, of its keypoints and of its edges."""

    colours: tuple[Colour, ...]
    shares: tuple[float, ...]
    edge_colours: tuple[Colour, ...]
    edge_shares: tuple[float, ...]


@functools.lru_cache(maxsize=64)
def _style(skeleton: Skeleton) -> Style:
    colours = tuple(
        LEFT if _LEFT.search(name) else RIGHT if _RIGHT.search(name) else CENTRE for name in skeleton.keypoints
    )
    shares = tuple(FINE_SHARE if _FINE.search(name) else 1.0 for name in skeleton.keypoints)

    def edge_colour(a: int, b: int) -> Colour:
        sides = {colours[a], colours[b]} - {CENTRE}
        return sides.pop() if len(sides) == 1 else CENTRE

    return Style(
        colours=colours,
        shares=shares,
        edge_colours=tuple(edge_colour(a, b) for a, b in skeleton.edges),
        edge_shares=tuple(min(shares[a], shares[b]) for a, b in skeleton.edges),
    )
