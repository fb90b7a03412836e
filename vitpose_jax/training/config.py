"""TrainConfig: everything a training is decided by, read from a TOML file and from `key=value` on the command line.

A file names what differs from the defaults; what it names must exist. docs/training.md shows one.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import pathlib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from vitpose_jax.datasets.protocols import PROTOCOLS, Protocol
from vitpose_jax.skeletons import SKELETONS, Skeleton, canonical_name, flip_pairs_from_names
from vitpose_jax.training.augment import Augmentation
from vitpose_jax.training.optim import OptimConfig
from vitpose_jax.vitpose.config import PRESETS, VitPoseConfig

# What may change between the parts of one training.
MAY_CHANGE = ("output", "epochs", "steps", "mesh", "loader", "evaluation", "checkpoint", "log", "huggingface")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data set to train on.

    Attributes:
        dataset: a data set of evaluation/protocols.py, or a skeleton of the file.
        annotations: its file.
        images: the folder of the images, or .zip archives: one, a pattern or several.
        ratio: its share of the batches; for all data sets or for none, and then by their number of people.
        weights: how much labels count, by the beginning of the file's name (a regular expression).
        min_keypoints: leave out people with fewer labelled keypoints.
        cache: "memory" keeps decoded images.
        skip_broken: put another person in the place of one whose image cannot be read.
    """

    dataset: str
    annotations: str
    images: str | tuple[str, ...]
    ratio: float | None = None
    weights: dict[str, float] | None = None
    min_keypoints: int = 1
    cache: Literal["memory"] | None = None
    skip_broken: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the model is measured while it is trained.

    Attributes:
        dataset, annotations, images: as in `DataConfig`; images lie in a folder.
        detections: a detector's boxes; None for the annotated ones.
        head_boxes: MPII's `mpii_gt_val.mat`.
        every_epochs, every_steps: how often; one of them. And once more at the end.
        metric: which number decides what is best; None for "AP", or "PCKh@0.5".
        flip_test: average with the mirrored image.
        limit: only the first so many images that have boxes.
        max_batch: most boxes computed at once, a power of two.
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
class MeshConfig:
    """Devices, see sharding.py: `fsdp` of them share one state; `data` None for all there are."""

    data: int | None = None
    fsdp: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Threads that make batches, in each of so many processes of their own; 0 for threads of this one."""

    threads: int = 4
    workers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often the state is saved, one of them; also with every evaluation and at the end."""

    every_epochs: float | None = None
    every_steps: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Steps between two lines of metrics; and whether TensorBoard gets them, too (needs tensorboardX)."""

    every_steps: int = 50
    tensorboard: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Learning from a trained model, see distill.py; `teacher`, `token` or both.

    Attributes:
        teacher: whose heatmaps are to be met: whatever `from_pretrained` reads.
        weight: of their mean squared difference in the loss.
        token: a model that has learnt a knowledge token; it is taken over and stays as it is. `model.knowledge_token`
            is its width.
    """

    teacher: str | None = None
    weight: float = 1.0
    token: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training.

    Attributes:
        output: folder for checkpoints, metrics and the best model.
        data: what is trained on.
        model: "preset" and fields of `VitPoseConfig`; "skeletons" are names, of `SKELETONS` or of `skeletons` below.
        skeletons: one's own, each with fields of `Skeleton`; flip pairs are found by name where none are given.
        init: what the backbone starts from, and the heads where they fit: a file, a folder or a Hub id; None for
            random numbers.
        epochs, steps: how long, one of them. A step is one update.
        batch_size: people in a batch, of all devices and processes together.
        optim: fields of `OptimConfig`; the others are those of the preset of the model.
        augmentation: fields of `Augmentation`.
        loss: "mse", or "ohkm" for the worst 8 keypoints of each person.
        distillation: from which trained models it learns besides; None for none.
        sigma: of the targets in heatmap pixels; None for 2 at 64 rows, and so in proportion.
        precision: in which the network computes; parameters are float32.
        remat: less memory for a third more computation.
        seed: of everything random.
        mesh, loader, evaluation, checkpoint, log: see their classes; evaluation None for none.
        huggingface: write the best model for transformers, too.

    Raises:
        ValueError: naming the key, what was expected and what came.
    """

    output: str
    data: tuple[DataConfig, ...]
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    skeletons: tuple[dict[str, Any], ...] = ()
    init: str | None = None
    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 64
    optim: dict[str, Any] = dataclasses.field(default_factory=dict)
    augmentation: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss: Literal["mse", "ohkm"] = "mse"
    distillation: DistillationConfig | None = None
    sigma: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    loader: LoaderConfig = LoaderConfig()
    evaluation: EvaluationConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    huggingface: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"expected one of epochs and steps, got epochs {self.epochs}, steps {self.steps}")
        for name in ("epochs", "steps", "batch_size", "sigma"):
            _positive(name, getattr(self, name))
        _positive("log.every_steps", self.log.every_steps)
        for name in ("evaluation", "checkpoint"):
            part = getattr(self, name)
            if part is not None:
                if part.every_epochs is not None and part.every_steps is not None:
                    raise ValueError(f"{name}: expected one of every_epochs and every_steps, got both")
                _positive(f"{name}.every_epochs", part.every_epochs)
                _positive(f"{name}.every_steps", part.every_steps)
        if self.distillation is not None:
            if self.distillation.teacher is None and self.distillation.token is None:
                raise ValueError("distillation: expected a teacher, a token or both, got none")
            _positive("distillation.weight", self.distillation.weight)
            if self.distillation.token is not None and not self.vitpose.knowledge_token:
                raise ValueError("distillation.token: expected its width as model.knowledge_token, got none")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        if not self.data:
            raise ValueError("data: expected one data set or more, got none")
        given = [entry.ratio is not None for entry in self.data]
        if any(given) and not all(given):
            raise ValueError("data: expected a ratio for all data sets or for none")
        for entry in (*self.data, *([self.evaluation] if self.evaluation else [])):
            self.vitpose.skeleton(self.protocol(entry.dataset).skeleton.name)

    @functools.cached_property
    def own_skeletons(self) -> dict[str, Skeleton]:
        """Those of the file, by name."""
        found = {}
        for number, values in enumerate(self.skeletons):
            _known(values, [field.name for field in dataclasses.fields(Skeleton)], f"skeletons.{number}.")
            names = tuple(values.get("keypoints", ()))
            skeleton = Skeleton.from_dict({"flip_pairs": flip_pairs_from_names(names), **values})
            found[skeleton.name] = skeleton
        return found

    @functools.cached_property
    def vitpose(self) -> VitPoseConfig:
        """The model."""
        hints = typing.get_type_hints(VitPoseConfig)
        _known(self.model, ["preset", *hints], "model.")
        changes = {
            name: _convert(value, hints[name], f"model.{name}")
            for name, value in self.model.items()
            if name not in ("preset", "skeletons")
        }
        if "skeletons" in self.model:
            names = _convert(self.model["skeletons"], tuple[str, ...], "model.skeletons")
            changes["skeletons"] = tuple(self._skeleton(name) for name in names)
        if "preset" not in self.model:
            return VitPoseConfig(**changes)
        return VitPoseConfig.preset(self.model["preset"], **changes)

    def _skeleton(self, name: str) -> Skeleton:
        known = {**SKELETONS, **self.own_skeletons}
        key = name if name in known else canonical_name(name)
        if key not in known:
            raise ValueError(f"model.skeletons: no skeleton named {name!r}; expected one of {', '.join(known)}")
        return known[key]

    def protocol(self, dataset: str) -> Protocol:
        """How a data set is read and measured; one's own: as COCO is, in annotated boxes."""
        if dataset in self.own_skeletons:
            skeleton = self.own_skeletons[dataset]
            return Protocol(name=dataset, skeleton=skeleton, decode="udp", boxes="annotations", category=None)
        key = canonical_name(dataset)
        if key not in PROTOCOLS:
            known = ", ".join([*PROTOCOLS, *self.own_skeletons])
            raise ValueError(f"dataset: no data set named {dataset!r}; expected one of {known}")
        return PROTOCOLS[key]

    def optim_config(self, total_steps: int) -> OptimConfig:
        """How parameters are updated in a training of so many updates."""
        hints = typing.get_type_hints(OptimConfig)
        _known(self.optim, [name for name in hints if name != "total_steps"], "optim.")
        changes = {name: _convert(value, hints[name], f"optim.{name}") for name, value in self.optim.items()}
        if self.distillation is not None and self.distillation.token is not None:
            changes["frozen"] = (*changes.get("frozen", ()), "knowledge_token")
        if self.model.get("preset") in PRESETS:
            return OptimConfig.preset(self.model["preset"], total_steps=total_steps, **changes)
        return OptimConfig(total_steps=total_steps, **changes)

    @functools.cached_property
    def augment(self) -> Augmentation:
        """How crops are varied."""
        hints = typing.get_type_hints(Augmentation)
        _known(self.augmentation, list(hints), "augmentation.")
        return Augmentation(
            **{name: _convert(value, hints[name], f"augmentation.{name}") for name, value in self.augmentation.items()}
        )

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists, ready for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def _positive(name: str, value: int | float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{name}: expected a positive number, got {value}")


def read_config(path: str | pathlib.Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """The training that a file describes.

    Args:
        path: a .toml file, or the config.json that a training writes.
        overrides: "key=value" each, with a dot between keys of nested tables and numbers for places in lists
            ("data.0.ratio=2"); values as in TOML, where bare words are strings.

    Raises:
        ValueError: naming the file, or the override, and the key: for what is unknown, of another type or missing.
        OSError: for a file that cannot be read.
    """
    path = pathlib.Path(path)
    try:
        content = path.read_text(encoding="utf-8")
        values = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    for override in overrides:
        _override(values, override)
    try:
        return from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """A training from nested tables; the inverse of `TrainConfig.to_dict`.

    Raises:
        ValueError: naming the key, for what is unknown (with the nearest that is known), missing or of another type.
    """
    config = _build(TrainConfig, values, "")
    # What other classes know about their fields they say now, not when the data has been read.
    config.optim_config(1)
    _ = config.augment
    return config


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys in which two trainings (`to_dict`) differ that may not differ where one goes on with the other."""
    return [name for name in new if name not in MAY_CHANGE and old.get(name) != new[name]]


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override}: expected key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else _item(place, parent, override)
    if isinstance(place, list):
        _item(place, last, override)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ValueError(f"{override}: expected a table at {'.'.join(parents)}, got {place!r}")


def _item(place: Any, index: str, override: str) -> Any:
    if not isinstance(place, list) or not index.isdigit() or int(index) >= len(place):
        raise ValueError(f"{override}: expected a table, or a place in a list of tables, at {index}")
    return place[int(index)]


def _known(values: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    names = list(names)
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
            raise ValueError(f"unknown key {where}{name}; {hint}")


def _build(kind: type, values: Any, where: str) -> Any:
    """A dataclass from a table."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where.rstrip('.')}: expected a table, got {values!r}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    _known(values, fields, where)
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"missing key {where}{missing[0]}")
    return kind(**{name: _convert(value, hints[name], f"{where}{name}") for name, value in values.items()})


def _convert(value: Any, hint: Any, where: str) -> Any:
    """A value of TOML or JSON as a type says, or an error."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        for argument in arguments:
            if argument is not type(None) and _fits(value, argument):
                return _convert(value, argument, where)
    elif origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{where}: expected one of {', '.join(map(str, arguments))}, got {value!r}")
    elif dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{where}.")
    elif _fits(value, hint):
        if origin is tuple:
            inner = arguments[:1] * len(value) if arguments[-1:] == (Ellipsis,) else arguments
            if len(inner) != len(value):
                raise ValueError(f"{where}: expected {len(inner)} values, got {value!r}")
            return tuple(
                _convert(item, kind, f"{where}.{number}")
                for number, (item, kind) in enumerate(zip(value, inner, strict=True))
            )
        if origin is dict:
            return {name: _convert(item, arguments[1], f"{where}.{name}") for name, item in value.items()}
        return hint(value) if hint is float else value
    raise ValueError(f"{where}: expected {_describe(hint)}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as one looks without going inside it."""
    kind = typing.get_origin(hint) or hint
    if kind is Literal:
        return value in typing.get_args(hint)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is tuple:
        return isinstance(value, list | tuple)
    if kind is dict or dataclasses.is_dataclass(kind):
        return isinstance(value, Mapping)
    return isinstance(value, kind)


def _describe(hint: Any) -> str:
    kind = typing.get_origin(hint) or hint
    if kind in (types.UnionType, typing.Union):
        return " or ".join(_describe(part) for part in typing.get_args(hint) if part is not type(None))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", tuple: "a list"}
    return names.get(kind, "a table")
