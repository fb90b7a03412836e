"""TrainConfig: every setting of a training run, read from a TOML file and from `key=value` on the command line.

A file names what differs from the defaults. docs/guides/train.md shows one. Its `task` says what is trained: "pose" for
a `TrainConfig`, "detection" for a `DetectionTrainConfig` (detection/config.py), "second_stage" for a
`SecondStageTrainConfig` (detection/second_stage.py).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

from vitpose_jax.datasets.protocols import PROTOCOLS, Protocol, own_protocol
from vitpose_jax.sides import flip_pairs_from_names
from vitpose_jax.skeletons import SKELETONS, Skeleton, canonical_name
from vitpose_jax.storage.text import join, shorten
from vitpose_jax.training import toml
from vitpose_jax.training.augment import Augmentation
from vitpose_jax.training.detection.config import DETECTION_OPTIM, DetectionTrainConfig
from vitpose_jax.training.lora import ADAPTERS, LoraConfig
from vitpose_jax.training.name_rules import compile_pattern
from vitpose_jax.training.optim import PRESETS as OPTIM_PRESETS
from vitpose_jax.training.optim import OptimConfig, parameter_shapes
from vitpose_jax.training.run_config import RunConfig, interval_problems, not_positive
from vitpose_jax.training.second_stage.config import SecondStageTrainConfig
from vitpose_jax.vitpose.config import PRESETS, VitPoseConfig

TASKS = ("pose", "detection", "second_stage")

# Settings that may change when a run is resumed.
MAY_CHANGE = ("output", "epochs", "steps", "mesh", "loader", "evaluation", "checkpoint", "log", "huggingface")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A dataset to train on.

    Attributes:
        dataset: the name of a protocol (datasets/protocols.py), or of a skeleton of the file.
        annotations: the annotation file.
        images: the folder of the images; or .zip archives: one, a glob pattern or several.
        ratio: fraction of each batch, as any positive number. Set it for all datasets or for none; without ratios the
            fractions follow the number of people.
        weights: how much labels count, by a regular expression that matches the start of the image's file name;
            `name_rules.compile_pattern` says which expressions are allowed.
        min_keypoints: people with fewer labelled keypoints are left out.
        cache: "memory" keeps decoded images.
        skip_broken: if an image cannot be read, train on another person instead of raising an error.
    """

    dataset: str
    annotations: str
    images: str | tuple[str, ...]
    ratio: float | None = None
    weights: dict[str, float] | None = None
    min_keypoints: int = 1
    cache: Literal["memory"] | None = None
    skip_broken: bool = False

    def __post_init__(self) -> None:
        for pattern in self.weights or ():
            try:
                compile_pattern(pattern)
            except ValueError as error:
                raise ValueError(f"weights: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the model is evaluated during training.

    Attributes:
        dataset, annotations, images: as in `DataConfig`; images must be in a folder.
        detections: a detector's boxes; None for the annotated boxes.
        head_boxes: MPII's `mpii_gt_val.mat`.
        every_epochs, every_steps: how often; set at most one. Default: every 10 epochs. The last step is always
            evaluated.
        metric: the metric that decides which model is best; None for "AP" or "PCKh@0.5".
        flip_test: average the heatmaps with those of the mirrored image.
        limit: use only the first `limit` images that have boxes.
        max_batch: maximum number of boxes computed at once, a power of two.
    """

    dataset: str
    annotations: str
    images: str
    detections: str | None = None
    head_boxes: str | None = None
    every_epochs: float | None = None
    every_steps: int | None = None
    metric: str | None = None
    flip_test: bool = True
    limit: int | None = None
    max_batch: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Learning from a trained model (distill.py): `teacher`, `token` or both.

    Attributes:
        teacher: the model whose heatmaps the student learns: anything `from_pretrained` reads.
        weight: weight of the mean squared difference from the teacher's heatmaps in the loss.
        token: a model that has learnt a knowledge token. The student takes the token over and keeps it frozen;
            `model.knowledge_token` is its width.
    """

    teacher: str | None = None
    weight: float = 1.0
    token: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """The settings of a training of a pose model: those of `RunConfig` and these.

    Attributes:
        task: what is trained.
        data: the datasets to train on.
        model: the network. A file gives "preset" and the fields that differ; "skeletons" are names from `SKELETONS` or
            from `skeletons` below.
        skeletons: skeletons of the file. Without `flip_pairs`, keypoints are paired by name.
        init: source of the backbone, and of the heads if they fit: a file, a folder or a Hub id; None for random
            parameters.
        optim: the optimiser. In a file, defaults come from the model's preset.
        augmentation: how crops are varied.
        loss: "mse", or "ohkm" for the 8 keypoints with the largest error of each person.
        distillation: trained models to learn from; None for none.
        lora: train low-rank adapters instead of all parameters; `init` is the model that they belong to. None for all.
        sigma: standard deviation of the targets in heatmap pixels; None for 2 at 64 rows, in proportion at other sizes.
        remat: use less memory for about a third more computation.
        evaluation: see its class; None for none.
        huggingface: also write the best model for transformers.

    Raises:
        ValueError: for settings that contradict each other, listing all of them with what was expected and what came.
    """

    task: Literal["pose"] = "pose"
    data: tuple[DataConfig, ...]
    model: VitPoseConfig = dataclasses.field(default_factory=VitPoseConfig)
    skeletons: tuple[Skeleton, ...] = ()
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    loss: Literal["mse", "ohkm"] = "mse"
    distillation: DistillationConfig | None = None
    lora: LoraConfig | None = None
    sigma: float | None = None
    remat: bool = False
    evaluation: EvaluationConfig | None = None
    huggingface: bool = False

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        yield from not_positive("sigma", self.sigma)
        if self.evaluation is not None:
            yield from interval_problems("evaluation", self.evaluation)
            yield from self._evaluation_problems(self.evaluation)
        if self.distillation is not None:
            if self.distillation.teacher is None and self.distillation.token is None:
                yield "distillation: expected a teacher, a token or both, got none"
            yield from not_positive("distillation.weight", self.distillation.weight)
            if self.distillation.token is not None and not self.model.knowledge_token:
                yield "distillation.token: expected its width as model.knowledge_token, got none"
        if self.lora is not None:
            if self.init is None:
                yield "lora: expected a model that the adapters belong to as init, got none"
            if self.optim.trained:
                yield "optim.trained: expected lora.trained instead, beside [lora]"
            try:
                self.lora.choose(parameter_shapes(self.model))
            except ValueError as error:
                yield str(error)
        if not self.data:
            yield "data: expected one dataset or more, got none"
        if len({entry.ratio is None for entry in self.data}) > 1:
            yield "data: expected a ratio for all datasets or for none"
        for entry in (*self.data, *([self.evaluation] if self.evaluation else [])):
            try:
                self.model.skeleton(self.protocol(entry.dataset).skeleton.name)
            except ValueError as error:
                yield str(error)

    def _evaluation_problems(self, evaluation: EvaluationConfig) -> Iterator[str]:
        """What every evaluation of the run would fail on."""
        try:
            protocol = self.protocol(evaluation.dataset)
        except ValueError:
            return  # listed with the datasets
        skeleton = protocol.skeleton
        if evaluation.flip_test and skeleton.num_keypoints > 1 and not skeleton.flip_pairs:
            yield (
                f"evaluation.flip_test: the skeleton {skeleton.name!r} has no flip pairs, and the names of its "
                "keypoints show none; give flip_pairs, or set flip_test = false"
            )
        if protocol.metric != "pckh" and not skeleton.sigmas:
            yield (
                f"evaluation: the skeleton {skeleton.name!r} has no sigmas, which average precision needs; give one "
                f"for each of its {skeleton.num_keypoints} keypoints"
            )

    def protocol(self, dataset: str) -> Protocol:
        """How a dataset is read and evaluated. A dataset with a skeleton of the file: as COCO, in annotated boxes.

        Raises:
            ValueError: for an unknown name, listing the known ones.
        """
        own = {skeleton.name: skeleton for skeleton in self.skeletons}
        if dataset in own:
            return own_protocol(own[dataset])
        key = canonical_name(dataset)
        if key not in PROTOCOLS:
            raise ValueError(
                f"dataset: no dataset named {shorten(dataset)}; expected one of {join([*PROTOCOLS, *own])}"
            )
        return PROTOCOLS[key]

    def optim_for(self, total_steps: int) -> OptimConfig:
        """`optim` for a run of `total_steps` steps.

        A knowledge token that comes from another model is frozen. With `lora`, only adapters and `lora.trained` are
        trained.
        """
        optim = super().optim_for(total_steps)
        if self.lora is not None:
            optim = dataclasses.replace(optim, trained=(ADAPTERS, *self.lora.trained))
        if self.distillation is None or self.distillation.token is None:
            return optim
        return dataclasses.replace(optim, frozen=(*optim.frozen, "knowledge_token"))


AnyTrainConfig: TypeAlias = TrainConfig | DetectionTrainConfig


def read_config(path: str | pathlib.Path, overrides: Iterable[str] = ()) -> AnyTrainConfig | SecondStageTrainConfig:
    """The settings in a file.

    Args:
        path: a .toml file, or the config.json that a training run writes.
        overrides: "key=value" each. A dot leads into a table, or with an index into a list ("data.0.ratio=2"). Values
            are written as in TOML; bare words are strings.

    Raises:
        ValueError: naming the file and all problems (`from_dict`), or the override.
        OSError: if the file cannot be read.
    """
    values = toml.read_table(path)
    for override in overrides:
        toml.apply_override(values, override)
    try:
        return from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_dict(values: Mapping[str, Any]) -> AnyTrainConfig | SecondStageTrainConfig:
    """The settings in nested tables; the inverse of `to_dict`.

    Args:
        values: as in a file. "task" chooses the kind of the settings. "preset" of "model" fills in fields of "model"
            and "optim"; skeletons may be named.

    Raises:
        ValueError: listing all problems: unknown keys (with the nearest known one), missing keys, values of another
            type or out of range; for an unknown task, only that.
    """
    task = values.get("task", "pose")
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    problems: list[str] = []
    values = dict(values)
    if task == "second_stage":
        return toml.build(SecondStageTrainConfig, values, problems)
    if task == "detection":
        optim = _table(values, "optim", OptimConfig, problems)
        return toml.build(DetectionTrainConfig, {**values, "optim": {**DETECTION_OPTIM, **optim}}, problems)
    values["skeletons"] = own = _own_skeletons(values.get("skeletons", ()), problems)
    model = _table(values, "model", VitPoseConfig, problems, also=("preset",))
    optim = _table(values, "optim", OptimConfig, problems)
    if "preset" in model:
        preset = model.pop("preset")
        if not isinstance(preset, str) or preset not in PRESETS:
            problems.append(f"model: no preset named {shorten(preset)}; expected one of {', '.join(PRESETS)}")
        elif len(model) == len(dataclasses.fields(VitPoseConfig)):
            problems.append(
                f"model.preset: expected some fields to fill in, got {preset!r} beside all fields of a model"
            )
        else:
            model, optim = {**PRESETS[preset], **model}, {**OPTIM_PRESETS[preset], **optim}
    if isinstance(model.get("skeletons"), list | tuple):
        model["skeletons"] = _named_skeletons(model["skeletons"], own, problems)
    return toml.build(TrainConfig, {**values, "model": model, "optim": optim}, problems)


def differing_settings(old: AnyTrainConfig | SecondStageTrainConfig, new: AnyTrainConfig) -> list[str]:
    """Names of the settings that differ, but must not when a run is resumed: all but `MAY_CHANGE`."""
    if old.task != new.task:
        return ["task"]
    names = [field.name for field in dataclasses.fields(new) if field.name not in MAY_CHANGE]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def _table(
    values: Mapping[str, Any], name: str, kind: type, problems: list[str], also: Iterable[str] = ()
) -> dict[str, Any]:
    """The known keys of a nested table, which may be missing: fields of a dataclass, and a few more."""
    table = values.get(name, {})
    if not isinstance(table, Mapping):
        problems.append(f"{name}: expected a table, got {shorten(table)}")
        return {}
    names = [*also, *(field.name for field in dataclasses.fields(kind) if field.name != "total_steps")]
    problems += toml.unknown_keys(table, names, f"{name}.")
    return {key: value for key, value in table.items() if key in names}


def _own_skeletons(tables: Any, problems: list[str]) -> list[Skeleton]:
    """The skeletons of a file."""
    if not isinstance(tables, list | tuple):
        problems.append(f"skeletons: expected a list, got {shorten(tables)}")
        return []
    skeletons = []
    for index, table in enumerate(tables):
        names = table.get("keypoints") if isinstance(table, Mapping) else None
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            table = {"flip_pairs": flip_pairs_from_names(tuple(names)), **table}
        try:
            skeletons.append(toml.build(Skeleton, table, where=f"skeletons.{index}."))
        except ValueError as error:
            problems.append(str(error))
    return skeletons


def _named_skeletons(names: Iterable[Any], own: Iterable[Skeleton], problems: list[str]) -> list[Any]:
    """The skeletons of a model: a name becomes its skeleton; whatever else stays, for `toml.build`."""
    known = {**SKELETONS, **{skeleton.name: skeleton for skeleton in own}}
    skeletons = []
    for name in names:
        if not isinstance(name, str):
            skeletons.append(name)
        elif (key := name if name in known else canonical_name(name)) in known:
            skeletons.append(known[key])
        elif not problems:
            # Not if a skeleton of the file could not be read: it may be the one that is named.
            problems.append(f"model.skeletons: no skeleton named {shorten(name)}; expected one of {', '.join(known)}")
    return skeletons
