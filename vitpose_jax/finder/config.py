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
MOST_SECOND_STAGE_BOXES = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondStageConfig:
    """How the best boxes are judged again (second_stage.py).

    Attributes:
        num_boxes: how many of them, in an image.
        crop_size: height and width of a crop in pixels, multiples of 16.
        padding: factor on the sides of a box.
        hidden_size, num_layers, num_heads, layer_norm_eps: of the backbone, as in `VitPoseConfig`.
        token_features: how many numbers of each token the head keeps.
        hidden_features: of the head.
        image_mean, image_std: of the channels R, G and B, for pixel values from 0 to 1.
        first_weight, second_weight, bias: a box's logit is the sum of both stages' logits, times these, and the bias.
        rest_weight, rest_bias: the same for boxes that got no second stage.
        box_weight: how far a box moves as the second stage says: 0 not at all, 1 all the way.

    Raises:
        ValueError: if a field has a wrong value; one line that names each field with expected and got.
    """

    num_boxes: int = 16
    crop_size: tuple[int, int] = (128, 96)
    padding: float = 1.25
    hidden_size: int = 384
    num_layers: int = 12
    num_heads: int = 6
    layer_norm_eps: float = 1e-6
    token_features: int = 64
    hidden_features: int = 256
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    first_weight: float = 1.0
    second_weight: float = 0.5
    bias: float = 0.0
    rest_weight: float = 1.0
    rest_bias: float = 0.0
    box_weight: float = 0.3

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("SecondStageConfig: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        counts = ("num_boxes", "hidden_size", "num_layers", "num_heads", "token_features", "hidden_features")
        for name in counts:
            if not is_count(getattr(self, name)):
                yield f"{name}: expected a positive whole number, got {shorten(getattr(self, name))}"
                return
        size = self.crop_size
        if not isinstance(size, tuple) or len(size) != 2 or not all(is_count(side) and side % 16 == 0 for side in size):
            yield f"crop_size: expected two multiples of 16, got {shorten(size)}"
        if self.num_boxes > MOST_SECOND_STAGE_BOXES:
            yield f"num_boxes: expected at most {MOST_SECOND_STAGE_BOXES}, got {self.num_boxes}"
        if self.hidden_size % self.num_heads:
            yield f"hidden_size: expected a multiple of num_heads {self.num_heads}, got {self.hidden_size}"
        for name in ("first_weight", "second_weight", "bias", "rest_weight", "rest_bias"):
            if not is_number(getattr(self, name)):
                yield f"{name}: expected a number, got {shorten(getattr(self, name))}"
        for name, low, high in (("padding", 1, 4), ("box_weight", 0, 1), ("layer_norm_eps", 0, 1)):
            if not is_number(getattr(self, name)) or not low <= getattr(self, name) <= high:
                yield f"{name}: expected a number from {low} to {high}, got {shorten(getattr(self, name))}"
        problem = normalization_problem(self.image_mean, self.image_std, 3)
        if problem:
            yield problem

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SecondStageConfig:
        """From numbers, strings and lists; the inverse of `dataclasses.asdict`.

        Raises:
            ValueError: for unknown or missing fields, or wrong values.
        """
        return cls(**_parse_fields(cls, values))


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
        second_stage: how the best boxes are judged again; None for a finder without it. Only with one label.

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
    second_stage: SecondStageConfig | None = None

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
        if self.second_stage is not None and len(self.labels) != 1:
            yield f"second_stage: expected one label with it, got {len(self.labels)}"
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
        values = _plain(dataclasses.asdict(self))
        return values if self.second_stage is not None else {k: v for k, v in values.items() if k != "second_stage"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FinderConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: for unknown or missing fields, or wrong values.
        """
        values = {"second_stage": None, **values}  # finders without one do not name it
        fields = _parse_fields(cls, values)
        stage = fields["second_stage"]
        if stage is not None:
            if not isinstance(stage, Mapping):
                raise ValueError(f"FinderConfig: second_stage: expected an object, got {shorten(stage)}")
            fields["second_stage"] = SecondStageConfig.from_dict(stage)
        return cls(**fields)


def _parse_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    expected = {field.name for field in dataclasses.fields(cls)}
    if set(values) != expected:
        missing, unknown = sorted(expected - set(values)), sorted(set(values) - expected)
        raise ValueError(f"{cls.__name__}: missing fields {missing}, unknown fields [{join(map(repr, unknown))}]")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """With lists in the place of tuples, as JSON has them."""
    kinds = {tuple: list, dict: _plain}
    return {name: kinds.get(type(value), lambda x: x)(value) for name, value in values.items()}
