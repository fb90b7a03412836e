"""What a training says while it runs: lines, metrics.jsonl, a bar, TensorBoard."""

import json
import pathlib
import sys
import time
from typing import Any

from tqdm import tqdm

from vitpose_jax.storage.atomic import write_whole
from vitpose_jax.training.config import TrainConfig

METRICS = "metrics.jsonl"


class Log:
    """Lines on standard output, metrics.jsonl, a bar on standard error, TensorBoard; used in a `with`.

    Args:
        config: of the training.
        total: updates in all.
        accumulate: steps of an update.
        progress: whether there is a bar.
        shown: whether anything is reported: by the first of several processes.
    """

    def __init__(self, config: TrainConfig, total: int, accumulate: int, *, progress: bool, shown: bool):
        self._config, self._total, self._accumulate, self._shown = config, total, accumulate, shown
        self._progress = progress
        self._writer: Any = None

    def __enter__(self) -> "Log":
        output = pathlib.Path(self._config.output)
        self._bar = tqdm(total=self._total, unit="step", disable=not self._progress, file=sys.stderr)
        self._file = (output / METRICS).open("a", encoding="utf-8") if self._shown else None
        if self._config.log.tensorboard and self._shown:
            try:
                from tensorboardX import SummaryWriter
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
        """From here on people are counted."""
        self._bar.update(step // self._accumulate)
        self._steps, self._since = 0, time.perf_counter()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of a step that is done; some of them are reported."""
        update, part = divmod(step + 1, self._accumulate)
        self._steps += 1
        if part:
            return
        self._bar.update(1)
        if update % self._config.log.every_steps and update != self._total:
            return
        now = time.perf_counter()
        speed = self._steps * self._config.batch_size / (now - self._since)
        self._steps, self._since = 0, now
        self._bar.set_postfix_str(f"loss {metrics['loss']:.3g}, {speed:.0f} people/s")
        self.write({"step": update, **metrics, "people_per_second": round(speed, 1)})

    def write(self, values: dict[str, Any]) -> None:
        """One line of numbers of a step."""
        if not self._shown:
            return
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        names = {name: value for name, value in values.items() if name != "step"}
        if self._writer is not None:
            for name, value in names.items():
                self._writer.add_scalar(name, value, values["step"])
        line = "  ".join(f"{name.removeprefix('evaluation/')} {value:.4g}" for name, value in names.items())
        with self._bar.external_write_mode():
            print(f"step {values['step']}/{self._total}  {line}", flush=True)


def cut(path: pathlib.Path, step: int) -> None:
    """Drop the lines of what comes after a step: it is done again."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_whole(path, "".join(kept).encode())
