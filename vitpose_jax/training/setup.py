"""From the settings of a training run to everything its loop needs: data, model, devices, checkpoints.

check_output         the output folder is free, or holds this run
choose_mesh          devices
load_eval_dataset    checked to be complete enough for its metrics
open_loader          batches of this process
start                the first state and the compiled micro-step
  load_teacher         for distillation
  create_model         pretrained or random parameters
  init_state, make_train_step     step.py
Checkpoints          the last state, if there is one

A `DetectionTrainConfig` has parts of its own in detection/: its batches, its model and its micro-step.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from vitpose_jax import convert, from_pretrained
from vitpose_jax.datasets.dataset import Dataset, read_dataset
from vitpose_jax.datasets.sizes import check_sizes
from vitpose_jax.evaluation.scoring import check_scorable
from vitpose_jax.storage.atomic import remove_leftovers, write_whole
from vitpose_jax.training.checkpoints import Checkpoints
from vitpose_jax.training.config import (
    AnyTrainConfig,
    EvaluationConfig,
    TrainConfig,
    differing_settings,
    read_config,
)
from vitpose_jax.training.data import Loader, TrainingBatch, make_loader
from vitpose_jax.training.detection.config import DetectionTrainConfig
from vitpose_jax.training.detection.data import BoxBatch, BoxSource, make_box_loader
from vitpose_jax.training.detection.models import create_finder
from vitpose_jax.training.detection.step import make_detection_step
from vitpose_jax.training.distill import Teacher, make_teacher, with_token
from vitpose_jax.training.initialize import initialize
from vitpose_jax.training.lora import open_base, with_adapters
from vitpose_jax.training.optim import OptimConfig
from vitpose_jax.training.people import PersonSource
from vitpose_jax.training.reports import METRICS, truncate_metrics
from vitpose_jax.training.run_config import CheckpointConfig, RunConfig
from vitpose_jax.training.sharding import make_mesh
from vitpose_jax.training.signals import delayed_signals
from vitpose_jax.training.step import TrainState, TrainStep, init_state, make_train_step
from vitpose_jax.vitpose.modeling import VitPose

CONFIG, CHECKPOINTS = "config.json", "checkpoints"

_log = logging.getLogger("vitpose_jax")


@dataclasses.dataclass(kw_only=True)
class Run:
    """A training run, ready for its loop. The last three fields change in the loop.

    Attributes:
        config: its settings.
        output: its folder.
        mesh: the devices; None for one device.
        loader: batches of this process.
        eval_dataset: the dataset to evaluate on; None for no evaluation.
        checkpoints: in the output folder.
        train_step: the compiled micro-step.
        accumulate: micro-steps in a step.
        total_steps: steps in the whole run.
        evaluate_every, save_every: steps between two evaluations, and between two checkpoints.
        state: the present state.
        micro_step: number of batches so far; equal to `state.micro_step`, without waiting for the device.
        best: all metrics of the best model so far; None before the first evaluation.
    """

    config: AnyTrainConfig
    output: pathlib.Path
    mesh: Mesh | None
    loader: Loader[Any]
    eval_dataset: Dataset | None
    checkpoints: Checkpoints
    train_step: TrainStep
    accumulate: int
    total_steps: int
    evaluate_every: int
    save_every: int
    state: TrainState
    micro_step: int = 0
    best: dict[str, float] | None = None


@contextlib.contextmanager
def prepare(config: AnyTrainConfig, *, resume: bool) -> Iterator[Run]:
    """A run at its start, or at its last checkpoint. Its loader and checkpoints are closed at the end of the `with`.

    Raises:
        ValueError: as in `fit`.
    """
    output = pathlib.Path(config.output)
    check_output(config, resume=resume)
    if jax.process_index() == 0:
        remove_leftovers(output)
    mesh = choose_mesh(config)
    eval_dataset = None if isinstance(config, DetectionTrainConfig) else load_eval_dataset(config)
    with contextlib.closing(open_loader(config)) as loader:
        accumulate = config.optim.accumulate
        steps_per_epoch = max(1, loader.micro_steps_per_epoch // accumulate)
        # `TrainConfig` has either steps or epochs.
        total_steps = config.steps or max(1, round(cast(float, config.epochs) * steps_per_epoch))
        state, train_step = start(config, config.optim_for(total_steps), mesh)
        with contextlib.ExitStack() as stack:
            with delayed_signals():
                checkpoints = stack.enter_context(Checkpoints(output / CHECKPOINTS))
                restored = None if checkpoints.last is None else checkpoints.restore(state)
            run = Run(
                config=config,
                output=output,
                mesh=mesh,
                loader=loader,
                eval_dataset=eval_dataset,
                checkpoints=checkpoints,
                train_step=train_step,
                accumulate=accumulate,
                total_steps=total_steps,
                evaluate_every=_steps_between(getattr(config, "evaluation", None), steps_per_epoch, default_epochs=10),
                save_every=_steps_between(config.checkpoint, steps_per_epoch, default_epochs=1),
                state=state,
            )
            if restored is not None:
                run.state, loader_state, note = restored
                loader.set_state(loader_state)
                run.micro_step, run.best = int(run.state.micro_step), note["best"]
            del state, restored
            if jax.process_index() == 0:
                truncate_metrics(output / METRICS, run.micro_step // accumulate)
                write_whole(output / CONFIG, (json.dumps(config.to_dict(), indent=1) + "\n").encode())
            yield run


def check_output(config: AnyTrainConfig, *, resume: bool) -> None:
    """Check that the output folder is free or holds the run to resume, and that the model can be written.

    Raises:
        ValueError: if the folder holds a run and `resume` is False; if the run has other settings, naming them; if
            `huggingface` is set for a model that transformers does not have; if adapters have no ViTPose to belong to.
    """
    if isinstance(config, TrainConfig) and config.huggingface:
        # Before training, not after it.
        convert.check_writable(config.model, "huggingface")
    if isinstance(config, TrainConfig) and config.lora is not None and config.init is not None:
        open_base(config.init)
    path = pathlib.Path(config.output) / CONFIG
    if not path.exists():
        return
    if not resume:
        raise ValueError(f"{config.output}: already holds a training run; resume it or choose another folder")
    names = differing_settings(read_config(path), config)
    if names:
        raise ValueError(f"{path}: expected the settings of this run to resume it, got others for {', '.join(names)}")


def choose_mesh(config: RunConfig) -> Mesh | None:
    """The mesh of all devices; None for one device.

    Raises:
        ValueError: if the settings do not fit the number of devices.
    """
    count = len(jax.devices())
    if count == 1 and (config.mesh.fsdp != 1 or config.mesh.data not in (None, 1)):
        raise ValueError(f"mesh: expected 1 x 1 with one device, got {config.mesh.data} x {config.mesh.fsdp}")
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp) if count > 1 else None
    if config.batch_size % count:
        raise ValueError(f"batch_size: expected a multiple of the {count} devices, got {config.batch_size}")
    return mesh


def load_teacher(config: TrainConfig, mesh: Mesh | None) -> Teacher | None:
    """The teacher of `config.distillation`; None without one."""
    distillation = config.distillation
    if distillation is None or distillation.teacher is None:
        return None
    model = from_pretrained(distillation.teacher, dtype=jnp.dtype(config.precision))
    return make_teacher(model, config.model, weight=distillation.weight, mesh=mesh, source=distillation.teacher)


def load_eval_dataset(config: TrainConfig) -> Dataset | None:
    """The dataset of `config.evaluation`; None without one.

    Raises:
        ValueError: as in `read_dataset` and `check_scorable`; if images are missing or have another size than
            annotated.
    """
    evaluation = config.evaluation
    if evaluation is None:
        return None
    dataset = read_dataset(
        config.protocol(evaluation.dataset),
        evaluation.annotations,
        evaluation.images,
        detections=evaluation.detections,
        head_boxes=evaluation.head_boxes,
    )
    check_scorable(dataset)
    # Here each missing image would lower the metric that chooses the best model.
    paths = [sample.path for sample in dataset.samples[: evaluation.limit]]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ValueError(
            f"evaluation: expected {len(paths)} images in {evaluation.images}, {len(missing)} are missing: {missing[0]}"
            + (", ..." if len(missing) > 1 else "")
        )
    check_sizes((sample.path, sample.size) for sample in dataset.samples[: evaluation.limit])
    return dataset


def start(config: AnyTrainConfig, optim_config: OptimConfig, mesh: Mesh | None) -> tuple[TrainState, TrainStep]:
    """The state before the first micro-step, and the compiled micro-step."""
    if isinstance(config, DetectionTrainConfig):
        graphdef, optimizer, state = init_state(create_finder(config), optim_config, mesh)
        return state, make_detection_step(config.model, graphdef, optimizer, optim_config=optim_config, mesh=mesh)
    teacher = load_teacher(config, mesh)
    graphdef, optimizer, state = init_state(create_model(config), optim_config, mesh)
    train_step = make_train_step(
        config.model,
        graphdef,
        optimizer,
        optim_config=optim_config,
        augmentation=config.augmentation,
        loss=config.loss,
        sigma=config.sigma,
        remat=config.remat,
        mesh=mesh,
        teacher=teacher,
    )
    return state, train_step


def open_loader(config: AnyTrainConfig) -> Loader[TrainingBatch] | Loader[BoxBatch]:
    """The batches of this process, from all datasets of `config.data`."""
    options = {
        "batch_size": config.batch_size // jax.process_count(),
        "seed": config.seed,
        "num_threads": config.loader.threads,
        "num_workers": config.loader.workers,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    if isinstance(config, DetectionTrainConfig):
        boxes = [
            BoxSource(entry.annotations, image_paths(entry.images), category_id=entry.category_id)
            for entry in config.data
        ]
        return make_box_loader(boxes, size=config.model.image_size, augmentation=config.augmentation, **options)
    warn_about_mirroring(config)
    people = [
        PersonSource.read(
            config.protocol(entry.dataset),
            entry.annotations,
            image_paths(entry.images),
            size=config.model.image_size,
            augmentation=config.augmentation,
            weights=entry.weights,
            min_keypoints=entry.min_keypoints,
            cache=entry.cache,
            skip_broken=entry.skip_broken,
        )
        for entry in config.data
    ]
    # `TrainConfig` has a ratio for all datasets or for none.
    ratios = [entry.ratio for entry in config.data if entry.ratio is not None]
    return make_loader(people, config=config.model, ratios=ratios or None, **options)


def warn_about_mirroring(config: TrainConfig) -> None:
    """Log a warning for each skeleton whose crops are not mirrored because it has no flip pairs."""
    if not config.augmentation.flip:
        return
    for name in dict.fromkeys(entry.dataset for entry in config.data):
        skeleton = config.protocol(name).skeleton
        if skeleton.num_keypoints > 1 and not skeleton.flip_pairs:
            _log.warning(
                "the crops of %s are not mirrored: the skeleton %r has no flip pairs, and the names of its keypoints "
                "show none; give flip_pairs, or augmentation.flip = 0.0",
                name,
                skeleton.name,
            )


def image_paths(images: str | tuple[str, ...]) -> str | list[str]:
    """A folder or a pattern as it is, several archives as a list."""
    return images if isinstance(images, str) else list(images)


def create_model(config: TrainConfig) -> VitPose:
    """The model before the first step: from `config.init` or random, with the knowledge token of distillation.

    With `config.lora` it has adapters.
    """
    dtypes = {"dtype": jnp.dtype(config.precision), "param_dtype": jnp.float32}
    rngs = nnx.Rngs(config.seed)
    if config.init is None:
        model = VitPose(config.model, **dtypes, rngs=rngs)
    else:
        model = initialize(config.model, config.init, **dtypes, rngs=rngs)
    if config.distillation is not None and config.distillation.token is not None:
        model = with_token(model, config.distillation.token)
    return model if config.lora is None else with_adapters(model, config.lora, rngs=rngs)


def _steps_between(
    part: EvaluationConfig | CheckpointConfig | None, steps_per_epoch: int, *, default_epochs: int
) -> int:
    if part is not None and part.every_steps is not None:
        return part.every_steps
    epochs = default_epochs if part is None or part.every_epochs is None else part.every_epochs
    return max(1, round(epochs * steps_per_epoch))
