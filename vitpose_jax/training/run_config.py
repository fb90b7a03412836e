"""RunConfig: the settings that all trainings have, whatever they train."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Literal

from vitpose_jax.training.optim import OptimConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The devices (sharding.py): `data` groups of `fsdp` devices; each group holds one state. None for all devices."""

    data: int | None = None
    fsdp: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Batches are made by `threads` threads in each of `workers` processes; 0 workers for threads of this process."""

    threads: int = 4
    workers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often the state is saved; set at most one, default every epoch. Evaluations and the last step also save."""

    every_epochs: float | None = None
    every_steps: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Number of steps between two lines of metrics, and whether TensorBoard files are written (needs tensorboardX)."""

    every_steps: int = 50
    tensorboard: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings that all trainings have. A step is one update of the parameters; a micro-step is one batch.

    Attributes:
        output: folder for checkpoints, metrics and the model.
        init: source of the parameters before the first step; None for random ones.
        epochs, steps: length of the run; set one.
        batch_size: samples in a batch, over all devices and processes: people, or images for detection.
        optim: the optimiser; `total_steps` stays None here (`optim_for`).
        precision: dtype of the network's computation; parameters are float32.
        seed: seed of all random numbers.
        mesh, loader, checkpoint, log: see their classes.

    Raises:
        ValueError: for settings that contradict each other, listing all of them with what was expected and what came.
    """

    output: str
    init: str | None = None
    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 64
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    loader: LoaderConfig = LoaderConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if (self.epochs is None) == (self.steps is None):
            yield f"expected one of epochs and steps, got epochs {self.epochs}, steps {self.steps}"
        for name in ("epochs", "steps", "batch_size"):
            yield from not_positive(name, getattr(self, name))
        yield from not_positive("log.every_steps", self.log.every_steps)
        yield from interval_problems("checkpoint", self.checkpoint)
        if self.seed < 0:
            yield f"seed: expected 0 or more, got {self.seed}"
        if self.optim.total_steps is not None:
            yield f"optim.total_steps: expected None, as steps or epochs decide it, got {self.optim.total_steps}"

    def optim_for(self, total_steps: int) -> OptimConfig:
        """`optim` for a run of `total_steps` steps."""
        return dataclasses.replace(self.optim, total_steps=total_steps)

    def to_dict(self) -> dict[str, Any]:
        """All fields as numbers, strings, lists and tables, ready for JSON; presets are written out."""
        values = dataclasses.asdict(self)
        del values["optim"]["total_steps"]
        return json.loads(json.dumps(values))


def not_positive(name: str, value: int | float | None) -> Iterator[str]:
    """A problem if a number is there and not above 0."""
    if value is not None and not value > 0:
        yield f"{name}: expected a positive number, got {value}"


def interval_problems(name: str, part: Any) -> Iterator[str]:
    """Problems of a part with `every_epochs` and `every_steps`."""
    if part.every_epochs is not None and part.every_steps is not None:
        yield f"{name}: expected one of every_epochs and every_steps, got both"
    yield from not_positive(f"{name}.every_epochs", part.every_epochs)
    yield from not_positive(f"{name}.every_steps", part.every_steps)
