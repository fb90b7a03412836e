"""Random squares of images for training, made on the host; boxes move with their pixels.

    image   of any size
      its longer side becomes `scale` x size, its aspect changes a little
      somewhere in the square, or cut by its sides; zeros fill the rest, as for inference
      colours
      mirroring

Boxes are x1, y1, x2, y2 in pixels, and the corner of an image is (0, 0): a mirrored x is size - x.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageAugmentation:
    """How images are varied.

    Attributes:
        scale: the smallest and the largest length of the image's longer side, in sides of the square.
        aspect: maximum change of the aspect, as a fraction.
        stretched_aspects: width / height of stretched images, one of these at random.
        flip: probability that a square is mirrored.
        brightness: maximum distance from 1 of the factor on pixel values.
        shift: maximum number that is added to pixel values.
        saturation: the smallest and the largest factor on the distance of a colour from its grey.
        saturation_probability: probability of such a factor.
        min_visible: a person of whose box less than this fraction is in the square is ignored.
        min_width, min_height: of a box in pixels of the square; smaller people are ignored.

    Raises:
        ValueError: for a number out of range.
    """

    scale: tuple[float, float] = (0.55, 1.35)
    aspect: float = 0.1
    stretched_aspects: tuple[float, ...] = (4 / 3, 4 / 3, 3 / 4, 1.0, 3 / 2)
    flip: float = 0.5
    brightness: float = 0.3
    shift: float = 20.0
    saturation: tuple[float, float] = (0.3, 1.5)
    saturation_probability: float = 0.3
    min_visible: float = 0.25
    min_width: float = 3.0
    min_height: float = 5.0

    def __post_init__(self) -> None:
        for name in ("flip", "saturation_probability", "min_visible"):
            self._check(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        for name in ("aspect", "brightness"):
            self._check(name, 0 <= getattr(self, name) < 1, "a number from 0 to less than 1")
        for name in ("shift", "min_width", "min_height"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        self._check("scale", 0 < self.scale[0] <= self.scale[1] < math.inf, "two numbers, 0 < smallest <= largest")
        smallest, largest = self.saturation
        self._check("saturation", 0 <= smallest <= largest < math.inf, "two numbers, 0 <= smallest <= largest")
        aspects = self.stretched_aspects
        self._check("stretched_aspects", bool(aspects) and all(0 < a < math.inf for a in aspects), "positive numbers")

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ValueError(f"ImageAugmentation: {name}: expected {expected}, got {getattr(self, name)}")


class LabelledImage(NamedTuple):
    """An image and its boxes, x1, y1, x2, y2 in its pixels.

    Attributes:
        image: RGB.
        people: the boxes of people.
        ignored: regions in which a detection is neither right nor wrong.
        stretched: whether the image was resized without keeping its aspect.
    """

    image: UInt8[np.ndarray, "height width 3"]
    people: Float32[np.ndarray, "people 4"]
    ignored: Float32[np.ndarray, "ignored 4"]
    stretched: bool = False


def augment_image(
    labelled: LabelledImage, size: int, augmentation: ImageAugmentation, rng: np.random.Generator
) -> LabelledImage:
    """A random square of an image.

    Args:
        labelled: the image.
        size: height and width of the square.
        augmentation: how the image is varied.
        rng: all random numbers come from it.
    """
    height, width = labelled.image.shape[:2]
    aspect = rng.choice(augmentation.stretched_aspects) if labelled.stretched else width / height
    aspect *= math.exp(rng.uniform(-1, 1) * math.log1p(augmentation.aspect))
    longer = size * rng.uniform(*augmentation.scale)
    columns, rows = max(1, round(longer * min(1, aspect))), max(1, round(longer / max(1, aspect)))
    left, top = (_random_place(length, size, rng) for length in (columns, rows))
    # The part of the square that shows the image.
    x1, y1, x2, y2 = max(0, left), max(0, top), min(size, left + columns), min(size, top + rows)
    across, down = columns / width, rows / height
    source = ((x1 - left) / across, (y1 - top) / down, (x2 - left) / across, (y2 - top) / down)
    # Rounding must not lead outside the image.
    source = tuple(min(at, side) for at, side in zip(source, (width, height) * 2, strict=True))
    part = Image.fromarray(labelled.image).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR, box=source)
    square = np.zeros((size, size, 3), np.uint8)
    square[y1:y2, x1:x2] = _vary_colours(np.asarray(part), augmentation, rng)

    scale, offset = np.tile([across, down], 2), np.tile([left, top], 2)
    low, high = np.tile([x1, y1], 2), np.tile([x2, y2], 2)
    people, ignored = (boxes * scale + offset for boxes in (labelled.people, labelled.ignored))
    clipped = np.clip(people, low, high)
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = np.prod(sides, axis=1) >= augmentation.min_visible * np.prod(people[:, 2:] - people[:, :2], axis=1)
    counted = visible & (sides[:, 0] >= augmentation.min_width) & (sides[:, 1] >= augmentation.min_height)
    ignored = np.concatenate([np.clip(ignored, low, high), clipped[~counted]])
    ignored = ignored[np.prod(ignored[:, 2:] - ignored[:, :2], axis=1) > 0]
    people = clipped[counted]
    augmented = LabelledImage(square, people.astype(np.float32), ignored.astype(np.float32))
    return mirror(augmented) if rng.random() < augmentation.flip else augmented


def mirror(labelled: LabelledImage) -> LabelledImage:
    """The image and its boxes with left and right exchanged."""
    image = np.ascontiguousarray(labelled.image[:, ::-1])
    people, ignored = (_mirror_boxes(boxes, image.shape[1]) for boxes in (labelled.people, labelled.ignored))
    return labelled._replace(image=image, people=people, ignored=ignored)


def _random_place(length: int, size: int, rng: np.random.Generator) -> int:
    """The first pixel of an image in a square: anywhere inside, or such that it covers the square."""
    return int(rng.integers(min(0, size - length), max(0, size - length), endpoint=True))


def _vary_colours(
    image: UInt8[np.ndarray, "height width 3"], augmentation: ImageAugmentation, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    factor = 1 + rng.uniform(-1, 1) * augmentation.brightness
    pixels = image.astype(np.float32) * np.float32(factor) + np.float32(rng.uniform(-1, 1) * augmentation.shift)
    if rng.random() < augmentation.saturation_probability:
        grey = pixels.mean(axis=-1, keepdims=True)
        pixels = grey + (pixels - grey) * np.float32(rng.uniform(*augmentation.saturation))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _mirror_boxes(boxes: Float32[np.ndarray, "n 4"], width: int) -> Float32[np.ndarray, "n 4"]:
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=-1)
