"""Ctrl-C: everything stops at once, no thread hangs, nothing half-written is left."""

import _thread
import os
import pathlib
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from tests.support import programs
from tests.support.models import TINY, random_model
from vitpose_jax import VitPoseConfig, checkpoint, cli


def interrupt(process: subprocess.Popen) -> tuple[int, str]:
    """Send the signal; the exit status and what stood on standard error."""
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, errors


def test_an_interrupted_stream_ends_without_a_traceback():
    command = programs.command("stream_for_ever")
    with subprocess.Popen(
        command, env=programs.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "under way\n"
        status, errors = interrupt(process)
    assert status != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.slow
def test_the_command_line_leaves_whole_files(tmp_path):
    checkpoint.save(random_model(VitPoseConfig(**TINY)), tmp_path / "model")
    for number in range(2000):
        Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / f"{number:04}.png")
    output = tmp_path / "poses"
    options = ("--model", tmp_path / "model", "--output", output)
    command = programs.command("command_line", "predict", tmp_path / "*.png", *options)
    with subprocess.Popen(
        command, env=programs.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not list(output.glob("*.json")):
            if process.poll() is not None:
                pytest.fail(process.stderr.read())
            # Not busy: the program needs the cores.
            time.sleep(0.01)
        status, errors = interrupt(process)
    assert status == 130
    assert "Traceback" not in errors
    done = sorted(output.iterdir())
    assert 0 < len(done) < 2000
    assert all(pathlib.Path(path).suffix in (".json", ".jsonl") and os.path.getsize(path) for path in done)


class Callback:
    """Ended by Python, which drops what its end raises."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def drop_a_signal() -> None:
    Callback()
    time.sleep(10)


def test_a_signal_that_was_dropped_is_sent_again():
    """Python drops exceptions in callbacks, and JAX turns some into errors of its own."""

    def turn() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:
            raise ValueError("while checking equality") from None

    for function in (drop_a_signal, turn):
        with pytest.raises(SystemExit) as ending, cli._ending_on_signals():
            function()
        assert ending.value.code == 143


def test_a_signal_that_comes_while_one_is_sent_again_is_not_lost(monkeypatch):
    """A busy machine sends the second signal before Python has left the hook that asked for it."""
    start, delays = _thread.start_new_thread, iter([0.1])

    def start_slowly(*arguments):
        start(*arguments)
        time.sleep(next(delays, 0))

    monkeypatch.setattr(_thread, "start_new_thread", start_slowly)
    with pytest.raises(SystemExit) as ending, cli._ending_on_signals():
        drop_a_signal()
    assert ending.value.code == 143 and next(delays, None) is None
