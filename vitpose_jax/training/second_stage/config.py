"""The settings of `task = "second_stage"`."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from vitpose_jax.finder.config import SecondStageConfig
from vitpose_jax.training.detection.config import BoxDataConfig

# Fields of the configuration that are not settings.
_GIVEN = (
    *("hidden_size", "num_layers", "num_heads", "layer_norm_eps", "image_mean", "image_std"),
    *("first_weight", "second_weight", "bias", "rest_weight", "rest_bias"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondStageTrainConfig:
    """The settings.

    Attributes:
        task: what is trained.
        output: folder for the finder; it must not hold one yet.
        init: the finder, which may have a second stage already.
        backbone: the pose model, a source as for `from_pretrained`; its image is resized to `model.crop_size`.
        data: images with boxes.
        mirrored: learn from each image a second time, mirrored.
        model: sizes of the crops and of the head, how many boxes are looked at again, and how far they move. Sizes of
            the backbone come from the pose model, and weights from the calibration.
        boxes: how many of the finder's boxes are examples, in an image.
        least_score: boxes that the finder gives a lower score are no examples.
        near_boxes: how many boxes near each annotated one are examples.
        near_weight: how much such a box counts in the loss of the scores; one of the finder counts 1.
        most_boxes: examples in all. Each takes 4 bytes for each number of its tokens: all tokens are copied once.
        trained_blocks: how many of the backbone's last blocks are trained; 0 for none. Its last norm is always trained.
        epochs, batch_size, weight_decay: of the training.
        learning_rate: of the head.
        backbone_learning_rate: of the backbone's blocks and norm.
        dropout: of the head's features.
        held_out: one image of so many is kept for the calibration.
        precision: dtype of the backbone's computation.
        int8: write kernels as int8.
        seed: seed of all random numbers.

    Raises:
        ValueError: for settings out of range, listing all of them with what was expected and what came.
    """

    task: Literal["second_stage"] = "second_stage"
    output: str
    init: str = "person-finder"
    backbone: str = "vitpose-small-open"
    data: tuple[BoxDataConfig, ...]
    model: SecondStageConfig = dataclasses.field(default_factory=SecondStageConfig)
    mirrored: bool = False
    boxes: int = 30
    least_score: float = 0.05
    near_boxes: int = 2
    near_weight: float = 0.5
    most_boxes: int = 100_000
    trained_blocks: int = 0
    epochs: int = 14
    batch_size: int = 256
    learning_rate: float = 1e-3
    backbone_learning_rate: float = 1e-4
    weight_decay: float = 0.05
    dropout: float = 0.3
    held_out: int = 10
    precision: Literal["float32", "bfloat16"] = "float32"
    int8: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if not self.data:
            yield "data: expected one dataset or more, got none"
        if self.seed < 0:
            yield f"seed: expected 0 or more, got {self.seed}"
        if not self.output:
            yield "output: expected a folder, got nothing"
        own = dataclasses.asdict(SecondStageConfig())
        for name in _GIVEN:
            if getattr(self.model, name) != own[name]:
                yield f"model.{name}: expected none: it comes from the backbone or the calibration"
        for name in ("boxes", "most_boxes", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                yield f"{name}: expected at least 1, got {getattr(self, name)}"
        for name in ("near_boxes", "trained_blocks"):
            if getattr(self, name) < 0:
                yield f"{name}: expected at least 0, got {getattr(self, name)}"
        if self.held_out < 2:
            yield f"held_out: expected at least 2, got {self.held_out}"
        for name in ("learning_rate", "backbone_learning_rate"):
            if not 0 < getattr(self, name) < 1:
                yield f"{name}: expected a number between 0 and 1, got {getattr(self, name)}"
        for name in ("least_score", "near_weight", "weight_decay", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}: expected a number from 0 to less than 1, got {getattr(self, name)}"
