"""The training loop: micro-steps, evaluations, checkpoints; a run can be interrupted and resumed.

    output/
      config.json      the settings, presets written out
      metrics.jsonl    one line for each report and each evaluation
      checkpoints/     the last state, and that of the best model (checkpoints.py)
      best/            the best model, in the native format, or its adapters with [lora] (`from_pretrained`)
      last/            the final model, if there is no [evaluation]; a person finder for `Detector.from_pretrained`
      tensorboard/     with log.tensorboard

While the device computes a micro-step, the host reads the next batch and checks the metrics of the previous one. So an
invalid loss is noticed one micro-step late; its state is never saved.
"""

import dataclasses
import logging
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitpose_jax import checkpoint, convert
from vitpose_jax.convert.detectors import write_finder
from vitpose_jax.datasets.dataset import Dataset
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.evaluation.runner import evaluate
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE
from vitpose_jax.training.config import AnyTrainConfig, EvaluationConfig, TrainConfig
from vitpose_jax.training.detection.config import DetectionTrainConfig
from vitpose_jax.training.detection.models import trained_finder
from vitpose_jax.training.lora import merge_adapters, save_adapters
from vitpose_jax.training.optim import parameter_shapes
from vitpose_jax.training.reports import Log
from vitpose_jax.training.second_stage.config import SecondStageTrainConfig
from vitpose_jax.training.setup import CHECKPOINTS, Run, prepare
from vitpose_jax.training.sharding import put_batch, to_host
from vitpose_jax.training.signals import caught_signals
from vitpose_jax.training.step import TrainState
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose

_log = logging.getLogger("vitpose_jax")


class DivergenceError(ValueError):
    """The loss or the norm of the gradients is NaN or infinite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitResult:
    """The result of a training run.

    Attributes:
        step: number of updates, including those before a resume.
        finished: False if the run was interrupted.
        model: folder of the best model, or of the final one without [evaluation]; None if there is none yet.
        best: all metrics of the best model; None before the first evaluation.
        checkpoint: folder of the last checkpoint; None if there is none yet.
    """

    step: int
    finished: bool
    model: pathlib.Path | None
    best: dict[str, float] | None
    checkpoint: pathlib.Path | None


def fit(config: AnyTrainConfig | SecondStageTrainConfig, *, resume: bool = False, progress: bool = False) -> FitResult:
    """Train a model.

    Ctrl-C, or a signal to terminate, ends the run after the current step and saves its state. With `jax.distributed`
    every process makes the same call, with an output folder that all of them share.

    Args:
        config: settings of the run.
        resume: continue the run in the output folder, if there is one.
        progress: show a bar on standard error.

    Raises:
        ValueError: if the output folder holds a run and `resume` is False, or a run with other settings; for data,
            models and devices that do not fit the settings.
        DivergenceError: if the loss is not finite, naming the step and the last checkpoint.
    """
    if isinstance(config, SecondStageTrainConfig):
        raise ValueError('task: "second_stage" is trained by `fit_second_stage`')
    first = jax.process_index() == 0
    with (
        prepare(config, resume=resume) as run,
        Log(config, run.total_steps, run.accumulate, progress=progress and first, shown=first) as log,
        caught_signals() as signals,
    ):
        log.start(run.micro_step // run.accumulate)
        _train(run, log, signals)
        run.checkpoints.wait()
        last = run.checkpoints.last
        folder = run.output / ("last" if run.eval_dataset is None else "best")
        return FitResult(
            step=run.micro_step // run.accumulate,
            finished=run.micro_step == run.total_steps * run.accumulate,
            model=folder if (folder / CONFIG_FILE).exists() else None,
            best=run.best,
            checkpoint=None if last is None else run.output / CHECKPOINTS / str(last),
        )


def _train(run: Run, log: Log, signals: list[int]) -> None:
    """Train to the last step, or until a signal comes."""
    key = jax.random.key(run.config.seed)
    pending: tuple[int, dict[str, Any]] | None = None
    while run.micro_step < run.total_steps * run.accumulate:
        batch = next(run.loader)
        run.state, metrics = run.train_step(run.state, batch if run.mesh is None else put_batch(batch, run.mesh), key)
        if pending is not None:
            _report(run, log, *pending)
        pending = run.micro_step, metrics
        run.micro_step += 1
        step, remaining = divmod(run.micro_step, run.accumulate)
        if remaining:
            continue
        last, interrupted = step == run.total_steps, _any_process(bool(signals))
        evaluates = run.eval_dataset is not None and (last or step % run.evaluate_every == 0)
        if last or interrupted or evaluates or step % run.save_every == 0:
            _report(run, log, *pending)
            pending = None
            value = _evaluate(run, log, step) if evaluates else None
            if last and run.eval_dataset is None:
                _export(run, "last")
            run.checkpoints.save(run.state, run.loader.get_state(), {"best": run.best}, value=value)
        if interrupted:
            return


def _report(run: Run, log: Log, micro_step: int, metrics: dict[str, Any]) -> None:
    """Log the metrics of a micro-step (its index, from 0) once it is computed.

    Raises:
        DivergenceError: if the loss or the norm of the gradients is not finite.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(values[name]):
            run.checkpoints.wait()
            last = run.checkpoints.last
            where = "there is no checkpoint yet"
            if last is not None:
                where = (
                    f"the last checkpoint, of step {last // run.accumulate}, is {run.output / CHECKPOINTS / str(last)}"
                )
            raise DivergenceError(
                f"step {micro_step // run.accumulate + 1} of {run.total_steps}: {name} is {values[name]}; {where}. "
                "A lower learning rate or gradient clipping may help"
            )
    log.micro_step(micro_step, values)


def _evaluate(run: Run, log: Log, step: int) -> float | None:
    """Evaluate the model, write it if it is the best so far, and return the metric that decides.

    None without [evaluation].
    """
    config, dataset = run.config, run.eval_dataset
    if isinstance(config, DetectionTrainConfig) or config.evaluation is None or dataset is None:
        return None
    evaluation = config.evaluation
    metrics = evaluate_state(config, evaluation, dataset, run.state)
    value = _value(evaluation, metrics)
    log.write({"step": step, **{f"evaluation/{name}": number for name, number in metrics.items()}})
    if run.best is None or value > _value(evaluation, run.best):
        run.best = metrics
        _export(run, "best")
    return value


def _value(evaluation: EvaluationConfig, metrics: dict[str, float]) -> float:
    """The metric that decides which model is best, higher is better; NaN counts as worst."""
    name = evaluation.metric or next((name for name in ("AP", "PCKh@0.5") if name in metrics), None)
    if name not in metrics:
        raise ValueError(f"evaluation.metric: expected one of {', '.join(metrics)}, got {name!r}")
    return -math.inf if math.isnan(metrics[name]) else metrics[name]


def _export(run: Run, name: str) -> None:
    """Write the model to a folder of the output, and for transformers if `huggingface` is set."""
    if isinstance(run.config, DetectionTrainConfig):
        finder = trained_finder(run.config, run.state)
        if jax.process_index() == 0:
            write_finder(finder, run.output / name, overwrite=True)
        return
    model = _model_of(run.config, run.state)
    if jax.process_index() == 0:
        if run.config.lora is not None and run.config.init is not None:
            save_adapters(model, run.config.init, run.output / name, overwrite=True)
        else:
            checkpoint.save(model, run.output / name, overwrite=True)
        if run.config.huggingface:
            convert.write(merge_adapters(model), run.output / f"{name}-huggingface", to="huggingface", overwrite=True)


def trained_model(config: TrainConfig, state: TrainState) -> VitPose:
    """The model of a state, ready to predict: with averaged parameters if `ema_decay` is set, with adapters merged.

    All processes make the same call; each gets the whole model.
    """
    return merge_adapters(_model_of(config, state))


def _model_of(config: TrainConfig, state: TrainState) -> VitPose:
    """As `trained_model`, with adapters as they are."""
    tensors = to_host((state.trained if state.ema is None else state.ema) | state.rest)
    lora, quantization = None, None
    if config.lora is not None:
        lora, quantization = config.lora.choose(parameter_shapes(config.model)), config.lora.quantization
    abstract = abstract_vitpose(
        config.model,
        dtype=jnp.dtype(config.precision),
        param_dtype=jnp.float32,
        quantization=quantization,
        lora=lora,
    )
    return parameters.fill(abstract, tensors, source="the state of the training")


def evaluate_state(
    config: TrainConfig, evaluation: EvaluationConfig, dataset: Dataset, state: TrainState
) -> dict[str, float]:
    """The metrics of a state's model on a dataset, as `evaluation` says; on the devices of this process.

    Raises:
        ValueError: if every image fails.
    """
    devices = jax.local_devices()
    # The estimator splits batches over a power of two of devices.
    devices = devices[: min(1 << (len(devices).bit_length() - 1), evaluation.max_batch)]
    estimator = PoseEstimator(
        _model_of(config, state),
        max_batch=evaluation.max_batch,
        border="opencv",
        stretch=dataset.protocol.stretch,
        devices=devices if len(devices) > 1 else None,
    )
    result = evaluate(estimator, dataset, flip_test=evaluation.flip_test, limit=evaluation.limit)
    if result.failures:
        image, reason = result.failures[0]
        message = f"evaluation: {len(result.failures)} images failed: {image}: {reason}"
        if len(result.failures) == result.counts["images_with_boxes"]:
            raise ValueError(message)
        _log.warning("%s; their people count as missed", message)
    return {name: float(value) for name, value in result.metrics.items()}


def _any_process(value: bool) -> bool:
    """Whether the value is True in any process; the same answer in all of them."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray([value]))))
