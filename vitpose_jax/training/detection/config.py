"""DetectionTrainConfig: every setting of a training of the person finder. `task = "detection"` in a file chooses it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from vitpose_jax.finder.config import FinderConfig
from vitpose_jax.training.detection.augment import ImageAugmentation
from vitpose_jax.training.optim import OptimConfig
from vitpose_jax.training.run_config import RunConfig

# What a file's [optim] does not name. A finder has neither blocks nor stochastic depth.
DETECTION_OPTIM: dict[str, Any] = {
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "clip_norm": 5.0,
    "warmup_steps": 200,
    "schedule": "cosine",
    "layer_decay": 1.0,
    "drop_path": 0.0,
    "ema_decay": 0.999,
    "ema_warmup": True,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxDataConfig:
    """Images with boxes to train on.

    Attributes:
        annotations: COCO's JSON. Images without people are examples too. "iscrowd" boxes are ignored: what is found in
            them is neither right nor wrong. An image with "stretched" set gets a random aspect.
        images: the folder of the images; or .zip archives: one, a glob pattern or several.
        category_id: of people; boxes of other categories are left out.
    """

    annotations: str
    images: str | tuple[str, ...]
    category_id: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionTrainConfig(RunConfig):
    """The settings of a training of the person finder: those of `RunConfig` and these.

    Attributes:
        task: what is trained.
        data: the datasets to train on. Each image comes once in an epoch.
        model: the network, with one label. Training images are squares of `image_size`.
        init: "person-finder", or a folder or file that `Detector.from_pretrained` reads, of a network of the same
            shapes; None for random parameters.
        optim: the optimiser. In a file, defaults are those of `DETECTION_OPTIM`.
        augmentation: how images are varied.
        average_with_init: the weight of the initial parameters in the final ones, from 0 to less than 1: the trained
            network is averaged with the one it started from.
        export_dtype: dtype of the final parameters on disk.

    Raises:
        ValueError: for settings that contradict each other, listing all of them with what was expected and what came.
    """

    task: Literal["detection"] = "detection"
    data: tuple[BoxDataConfig, ...]
    model: FinderConfig = dataclasses.field(default_factory=FinderConfig)
    batch_size: int = 16
    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(**DETECTION_OPTIM))
    augmentation: ImageAugmentation = dataclasses.field(default_factory=ImageAugmentation)
    average_with_init: float = 0.0
    export_dtype: Literal["float32", "float16"] = "float32"

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if not self.data:
            yield "data: expected one dataset or more, got none"
        if len(self.model.labels) != 1:
            yield f"model.labels: expected one label, got {', '.join(self.model.labels)}"
        if self.model.second_stage is not None:
            yield 'model.second_stage: expected none; task = "second_stage" trains one'
        for name, value in (("layer_decay", 1.0), ("drop_path", 0.0)):
            if getattr(self.optim, name) != value:
                yield f"optim.{name}: expected {value} for a finder, got {getattr(self.optim, name)}"
        if not 0 <= self.average_with_init < 1:
            yield f"average_with_init: expected a number from 0 to less than 1, got {self.average_with_init}"
        if self.average_with_init and self.init is None:
            yield "average_with_init: expected init, the network to average with, got none"
