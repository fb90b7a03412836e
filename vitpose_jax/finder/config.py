"""FinderConfig: the fields that define the shapes and the arithmetic of the person finder, and no others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from vitpose_jax.storage.text import join, shorten
from vitpose_jax.vitpose.config import is_count, is_number, normalization_problem

# Each stage but the first halves height and width; the stem halves them twice.
STRIDES = (8, 16, 32)
STAGES = 4

# Limits on what no tensor tells: the memory of a photograph grows with the square of both.
LARGEST_IMAGE = 8192
MOST_CANDIDATES = 10_000
MOST_SCALES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinderConfig:
    """A NanoDet-g (github.com/RangiLyu/nanodet): a plain convolutional backbone, three feature maps, one head for each.

    Attributes:
        image_size: the longer side of the network's input, in pixels: a multiple of 128.
        scales: the network looks at the image once at each of these scales of the input, each more than 0 and at most
            1. Large people are found best at a small one.
        stem_features: channels after the stem.
        widths, depths: channels and number of blocks of each of the four stages.
        hidden_size: channels of the feature maps that the heads read.
        num_bins: the distance from a cell to a side of its box is an expectation over 0 to num_bins - 1 strides.
        labels: names of the classes.
        image_mean, image_std: of the channels R, G and B, for pixel values 0 to 255.
        num_candidates: the highest-scoring cells that non-maximum suppression looks at.
        nms_iou: of two boxes of one class with a higher intersection over union, the one with the lower score is
            dropped.
        max_objects: the largest number of objects in an image.
        score_threshold: default threshold of a `Detector`.

    Raises:
        ValueError: if a field has a wrong value; one line that names each field with expected and got.
    """

    image_size: int = 640
    scales: tuple[float, ...] = (1.0, 0.6)
    stem_features: int = 32
    widths: tuple[int, ...] = (32, 64, 128, 256)
    depths: tuple[int, ...] = (1, 2, 2, 3)
    hidden_size: int = 128
    num_bins: int = 11
    labels: tuple[str, ...] = ("person",)
    image_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    image_std: tuple[float, ...] = (58.395, 57.12, 57.375)
    num_candidates: int = 600
    nms_iou: float = 0.6
    max_objects: int = 100
    score_threshold: float = 0.4

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("FinderConfig: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        for name in ("image_size", "stem_features", "hidden_size", "num_bins", "num_candidates", "max_objects"):
            if not is_count(getattr(self, name)):
                yield f"{name}: expected a positive whole number, got {shorten(getattr(self, name))}"
                return
        for name in ("widths", "depths"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != STAGES or not all(map(is_count, value)):
                yield f"{name}: expected {STAGES} positive whole numbers, got {shorten(value)}"
                return
        if not isinstance(self.labels, tuple) or not all(isinstance(label, str) for label in self.labels):
            yield f"labels: expected texts, got {shorten(self.labels)}"
            return
        if self.image_size % 128 or self.image_size > LARGEST_IMAGE:
            yield f"image_size: expected a multiple of 128 up to {LARGEST_IMAGE}, got {self.image_size}"
        if (
            not isinstance(self.scales, tuple)
            or not 0 < len(self.scales) <= MOST_SCALES
            or not all(is_number(scale) and 0 < scale <= 1 for scale in self.scales)
        ):
            yield f"scales: expected 1 to {MOST_SCALES} numbers from above 0 to 1, got {shorten(self.scales)}"
        if self.num_candidates > MOST_CANDIDATES:
            yield f"num_candidates: expected at most {MOST_CANDIDATES}, got {self.num_candidates}"
        if any(width % 2 for width in self.widths):
            yield f"widths: expected even numbers, got {self.widths}"
        if self.num_bins < 2:
            yield f"num_bins: expected at least 2, got {self.num_bins}"
        if not self.labels or len(set(self.labels)) != len(self.labels):
            yield f"labels: expected one or more distinct names, got {shorten(self.labels)}"
        problem = normalization_problem(self.image_mean, self.image_std, 3)
        if problem:
            yield problem
        if self.max_objects > self.num_candidates:
            yield f"max_objects: expected at most num_candidates {self.num_candidates}, got {self.max_objects}"
        for name in ("nms_iou", "score_threshold"):
            if not is_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                yield f"{name}: expected a number from 0 to less than 1, got {shorten(getattr(self, name))}"

    def replace(self, **changes: Any) -> FinderConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists, ready for JSON."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FinderConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: for unknown or missing fields, or wrong values.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(values) != expected:
            missing, unknown = sorted(expected - set(values)), sorted(set(values) - expected)
            raise ValueError(f"FinderConfig: missing fields {missing}, unknown fields [{join(map(repr, unknown))}]")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)
