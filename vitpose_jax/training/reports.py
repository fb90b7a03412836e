"""Reports of a training run: lines on standard output, metrics.jsonl, a progress bar, TensorBoard."""

import json
import pathlib
import sys
import time
from typing import Any

from tqdm import tqdm

from vitpose_jax.storage.atomic import write_whole
from vitpose_jax.training.config import AnyTrainConfig

METRICS = "metrics.jsonl"


class Log:
    """Writes metrics to standard output, metrics.jsonl and TensorBoard, with a bar on standard error. Use it in a
    `with`.

    Args:
        config: settings of the run.
        total_steps: number of steps in the whole run.
        accumulate: micro-steps in a step.
        progress: whether to show the bar.
        shown: whether to report at all: only the first of several processes does.
    """

    def __init__(self, config: AnyTrainConfig, total_steps: int, accumulate: int, *, progress: bool, shown: bool):
        self._config, self._total_steps, self._accumulate, self._shown = config, total_steps, accumulate, shown
        self._progress = progress
        self._samples = "people" if config.task == "pose" else "images"
        self._writer: Any = None

    def __enter__(self) -> "Log":
        output = pathlib.Path(self._config.output)
        self._bar = tqdm(total=self._total_steps, unit="step", disable=not self._progress, file=sys.stderr)
        self._file = (output / METRICS).open("a", encoding="utf-8") if self._shown else None
        if self._config.log.tensorboard and self._shown:
            try:
                from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]: optional
            except ImportError:
                raise ImportError("log.tensorboard needs tensorboardX: pip install tensorboardX") from None
            self._writer = SummaryWriter(str(output / "tensorboard"))
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        for opened in (self._file, self._writer):
            if opened is not None:
                opened.close()

    def start(self, step: int) -> None:
        """Start to measure the speed, after `step` steps."""
        self._bar.update(step)
        self._batches, self._since = 0, time.perf_counter()

    def micro_step(self, micro_step: int, metrics: dict[str, float]) -> None:
        """Report a finished micro-step, if it completes a step and `log.every_steps` says so.

        Args:
            micro_step: its index, from 0.
            metrics: as `make_train_step` returns them.
        """
        step, remaining = divmod(micro_step + 1, self._accumulate)
        self._batches += 1
        if remaining:
            return
        self._bar.update(1)
        if step % self._config.log.every_steps and step != self._total_steps:
            return
        now = time.perf_counter()
        speed = self._batches * self._config.batch_size / (now - self._since)
        self._batches, self._since = 0, now
        self._bar.set_postfix_str(f"loss {metrics['loss']:.3g}, {speed:.0f} {self._samples}/s")
        self.write({"step": step, **metrics, f"{self._samples}_per_second": round(speed, 1)})

    def write(self, values: dict[str, Any]) -> None:
        """Write one line: the metrics of a step, and "step"."""
        if self._file is None:
            return
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        metrics = {name: value for name, value in values.items() if name != "step"}
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, values["step"])
        line = "  ".join(f"{name.removeprefix('evaluation/')} {value:.4g}" for name, value in metrics.items())
        with self._bar.external_write_mode():
            print(f"step {values['step']}/{self._total_steps}  {line}", flush=True)


def truncate_metrics(path: pathlib.Path, step: int) -> None:
    """Remove the lines of later steps, which a resumed run repeats, and a line that was cut off.

    Args:
        path: a metrics.jsonl; nothing happens if it does not exist.
        step: the last step to keep.
    """
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        earlier = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_whole(path, "".join(earlier).encode())
