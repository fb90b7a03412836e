"""The loop of training: batches, steps, measuring, saving; and going on where it was cut short.

    output/
      config.json      the training, as it was read
      metrics.jsonl    one line for each report and each evaluation
      checkpoints/     the last state, and that of the best model (checkpoints.py)
      best/            the best model, or `last/` where nobody measures; a native folder for `from_pretrained`
      tensorboard/     where asked for

While a step is computed, the next batch is read and the metrics of the step before are looked at: an error in them is
found one step late, and never saved.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import threading
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vitpose_jax import checkpoint, convert, from_pretrained
from vitpose_jax.datasets.dataset import Dataset, read_dataset
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.evaluation.runner import evaluate
from vitpose_jax.evaluation.scoring import check_scorable
from vitpose_jax.storage import parameters
from vitpose_jax.storage.atomic import write_whole
from vitpose_jax.storage.tensors import CONFIG_FILE, read_json
from vitpose_jax.training.checkpoints import Checkpoints
from vitpose_jax.training.config import TrainConfig, changed
from vitpose_jax.training.data import Loader, make_loader
from vitpose_jax.training.distill import Teacher, make_teacher, with_token
from vitpose_jax.training.initialize import initialize
from vitpose_jax.training.people import PersonSource
from vitpose_jax.training.reports import METRICS, Log, cut
from vitpose_jax.training.sharding import make_mesh, put_batch, to_host
from vitpose_jax.training.step import TrainState, init_state, make_train_step
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose

CONFIG, CHECKPOINTS = "config.json", "checkpoints"


class DivergenceError(ValueError):
    """The loss, or a gradient, is not finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a training came to.

    Attributes:
        step: updates made, those of earlier parts of the training included.
        finished: False where it was interrupted.
        model: folder of the best model, or of the last where nobody measured; None where there is none yet.
        best: all metrics of the best model; None where nobody measured.
        checkpoint: folder of the last checkpoint.
    """

    step: int
    finished: bool
    model: pathlib.Path | None
    best: dict[str, float] | None
    checkpoint: pathlib.Path | None


def fit(config: TrainConfig, *, resume: bool = False, progress: bool = False) -> FitResult:
    """Train.

    With `jax.distributed` initialised every process calls this alike, with an output folder that all share.
    Ctrl-C, or the signal to terminate, ends the training after the present step; its state is saved.

    Args:
        config: all about it.
        resume: go on with the training in the output folder, where there is one.
        progress: a bar on standard error.

    Raises:
        ValueError: where the output folder holds a training and `resume` is not set, or that is another one; for
            data, models and devices that do not fit.
        DivergenceError: where the loss is not finite; naming the step, and the last checkpoint, which stays.
    """
    output = pathlib.Path(config.output)
    _prepare(config, output, resume=resume)
    accumulate = config.optim_config(1).accumulate
    processes, first = jax.process_count(), jax.process_index() == 0
    mesh = None
    if len(jax.devices()) > 1:
        mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    elif config.mesh.fsdp != 1 or config.mesh.data not in (None, 1):
        raise ValueError(f"mesh: expected 1 x 1 with one device, got {config.mesh.data} x {config.mesh.fsdp}")
    if config.batch_size % len(jax.devices()):
        raise ValueError(
            f"batch_size: expected a multiple of the {len(jax.devices())} devices, got {config.batch_size}"
        )

    with contextlib.ExitStack() as stack:
        teacher = _teacher(config, mesh)
        measured = _measured(config)
        loader = stack.enter_context(contextlib.closing(_loader(config)))
        per_epoch = max(1, loader.steps_per_epoch // accumulate)
        total = config.steps or max(1, round(config.epochs * per_epoch))
        optim_config = config.optim_config(total)
        model = _model(config)
        graphdef, optimizer, state = init_state(model, optim_config, mesh)
        evaluate_every = _every(config.evaluation, per_epoch, default=10)
        save_every = _every(config.checkpoint, per_epoch, default=1)
        run = make_train_step(
            config.vitpose,
            graphdef,
            optimizer,
            optim_config=optim_config,
            augmentation=config.augment,
            loss=config.loss,
            sigma=config.sigma,
            remat=config.remat,
            mesh=mesh,
            teacher=teacher,
        )
        checkpoints = stack.enter_context(Checkpoints(output / CHECKPOINTS))
        best: dict[str, float] | None = None
        if checkpoints.last is not None:
            state, position, note = checkpoints.restore(state)
            loader.set_state(position)
            best = note["best"]
        if first:
            cut(output / METRICS, int(state.step) // accumulate)
            write_whole(output / CONFIG, (json.dumps(config.to_dict(), indent=1) + "\n").encode())
        log = stack.enter_context(Log(config, total, accumulate, progress=progress and first, shown=first))
        log.start(int(state.step))
        stopped = stack.enter_context(_signals())
        key = jax.random.key(config.seed)

        def save(value: float | None = None) -> None:
            checkpoints.save(state, loader.get_state(), {"best": best}, value=value)

        def check(step: int, metrics: dict[str, Any]) -> None:
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(values[name])]
            if bad:
                checkpoints.wait()
                last = checkpoints.last
                kept = "no checkpoint was saved yet" if last is None else f"the last checkpoint, of batch {last}, stays"
                raise DivergenceError(
                    f"step {step // accumulate + 1} of {total}: {bad[0]} is {values[bad[0]]}; {kept} "
                    f"in {output / CHECKPOINTS}. A lower learning rate or gradient clipping may help"
                )
            log.step(step, values)

        pending: tuple[int, dict[str, Any]] | None = None
        step = int(state.step)
        while step < total * accumulate:
            batch = next(loader)
            state, metrics = run(state, batch if mesh is None else put_batch(batch, mesh), key)
            if pending is not None:
                check(*pending)
            pending, step = (step, metrics), step + 1
            update, whole = divmod(step, accumulate)
            if whole:
                continue
            ends, stop = update == total, _agreed(stopped, processes)
            if not (ends or stop or update % save_every == 0 or (measured and update % evaluate_every == 0)):
                continue
            check(*pending)
            pending = None
            value = None
            if measured and (ends or update % evaluate_every == 0):
                found = _evaluate(config, measured, state)
                value = _value(config, found)
                log.write({"step": update, **{f"evaluation/{name}": number for name, number in found.items()}})
                if best is None or value > _value(config, best):
                    best = found
                    _export(config, state, output / "best", first)
            elif ends and not measured:
                _export(config, state, output / "last", first)
            save(value)
            if stop:
                break
        checkpoints.wait()
        last = checkpoints.last
        folder = output / ("best" if measured else "last")
        return FitResult(
            step=step // accumulate,
            finished=step == total * accumulate,
            model=folder if (folder / CONFIG_FILE).exists() else None,
            best=best,
            checkpoint=None if last is None else output / CHECKPOINTS / str(last),
        )


def _prepare(config: TrainConfig, output: pathlib.Path, *, resume: bool) -> None:
    """See that the output folder is free, or holds the training to go on with; and that all of it can be written."""
    if config.huggingface:
        # Now, and not when the best model has been found.
        convert.check_writable(config.vitpose, "huggingface")
    held = output / CONFIG
    if not held.exists():
        return
    if not resume:
        raise ValueError(f"{output}: already holds a training; resume it or choose another folder")
    differing = changed(read_json(held), config.to_dict())
    if differing:
        raise ValueError(f"{held}: expected the same training to resume, got others of {', '.join(differing)}")


def _measured(config: TrainConfig) -> Dataset | None:
    """The data set of the evaluation, once it is known that it can be measured."""
    asked = config.evaluation
    if asked is None:
        return None
    dataset = read_dataset(
        config.protocol(asked.dataset),
        asked.annotations,
        asked.images,
        detections=asked.detections,
        head_boxes=asked.head_boxes,
    )
    check_scorable(dataset)
    if dataset.protocol.metric != "pckh" and not dataset.protocol.skeleton.sigmas:
        raise ValueError(f"evaluation: {dataset.protocol.name}: average precision needs sigmas in its skeleton")
    return dataset


def _loader(config: TrainConfig) -> Loader:
    """The batches of this process."""
    sources = [
        PersonSource.read(
            config.protocol(entry.dataset),
            entry.annotations,
            entry.images if isinstance(entry.images, str) else list(entry.images),
            size=config.vitpose.image_size,
            augmentation=config.augment,
            weights=entry.weights,
            min_keypoints=entry.min_keypoints,
            cache=entry.cache,
            skip_broken=entry.skip_broken,
        )
        for entry in config.data
    ]
    ratios = [entry.ratio for entry in config.data]
    return make_loader(
        sources,
        batch_size=config.batch_size // jax.process_count(),
        seed=config.seed,
        config=config.vitpose,
        ratios=None if None in ratios else ratios,
        num_threads=config.loader.threads,
        num_workers=config.loader.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _model(config: TrainConfig) -> VitPose:
    options: dict[str, Any] = {"dtype": jnp.dtype(config.precision), "param_dtype": jnp.float32}
    rngs = nnx.Rngs(config.seed)
    if config.init is None:
        model = VitPose(config.vitpose, **options, rngs=rngs)
    else:
        model = initialize(config.vitpose, config.init, **options, rngs=rngs)
    asked = config.distillation
    return model if asked is None or asked.token is None else with_token(model, asked.token)


def _teacher(config: TrainConfig, mesh: Mesh | None) -> Teacher | None:
    asked = config.distillation
    if asked is None or asked.teacher is None:
        return None
    model = from_pretrained(asked.teacher, dtype=jnp.dtype(config.precision))
    return make_teacher(model, config.vitpose, weight=asked.weight, mesh=mesh, source=asked.teacher)


def _every(part: Any, per_epoch: int, *, default: int) -> int:
    """Updates between two."""
    if part is not None and part.every_steps is not None:
        return part.every_steps
    epochs = default if part is None or part.every_epochs is None else part.every_epochs
    return max(1, round(epochs * per_epoch))


def trained_model(config: TrainConfig, state: TrainState) -> VitPose:
    """The model that a state holds, ready to predict: its averaged parameters where there are some.

    In several processes all call alike, and each has it whole.
    """
    tensors = to_host((state.trained if state.ema is None else state.ema) | state.rest)
    abstract = abstract_vitpose(config.vitpose, dtype=jnp.dtype(config.precision), param_dtype=jnp.float32)
    return parameters.fill(abstract, tensors, source="the state of the training")


def _evaluate(config: TrainConfig, dataset: Dataset, state: TrainState) -> dict[str, float]:
    asked = config.evaluation
    devices = jax.local_devices()
    # The estimator shares batches out among powers of two.
    devices = devices[: min(1 << (len(devices).bit_length() - 1), asked.max_batch)]
    estimator = PoseEstimator(
        trained_model(config, state),
        max_batch=asked.max_batch,
        border="opencv",
        stretch=dataset.protocol.stretch,
        devices=devices if len(devices) > 1 else None,
    )
    metrics = evaluate(estimator, dataset, flip_test=asked.flip_test, limit=asked.limit).metrics
    return {name: float(value) for name, value in metrics.items()}


def _value(config: TrainConfig, metrics: dict[str, float]) -> float:
    """The number that decides what is best; one that could not be measured is worse than any."""
    name = config.evaluation.metric or next((name for name in ("AP", "PCKh@0.5") if name in metrics), None)
    if name not in metrics:
        raise ValueError(f"evaluation.metric: expected one of {', '.join(metrics)}, got {name!r}")
    return -math.inf if math.isnan(metrics[name]) else metrics[name]


def _export(config: TrainConfig, state: TrainState, folder: pathlib.Path, first: bool) -> None:
    model = trained_model(config, state)
    if first:
        checkpoint.save(model, folder, overwrite=True)
        if config.huggingface:
            convert.write(model, folder.with_name(f"{folder.name}-huggingface"), to="huggingface", overwrite=True)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Signals that came; the second Ctrl-C is not caught any more. Nothing is caught outside the main thread."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, frame: types.FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agreed(stopped: list[int], processes: int) -> bool:
    """Whether any process was asked to stop; all find the same."""
    if processes == 1:
        return bool(stopped)
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray([bool(stopped)]))))
