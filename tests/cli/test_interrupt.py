"""Ctrl-C: everything stops at once, no thread hangs, nothing half-written is left."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.support.models import TINY, random_model
from vitpose_jax import VitPoseConfig, checkpoint

# A shell has what it starts in the background ignore Ctrl-C, and so would these tests' programs there.
HEARING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
COMMAND_LINE = f"{HEARING}from vitpose_jax.cli import main; main()"
PROGRAM = f"""{HEARING}
import itertools, time
import numpy as np
from flax import nnx
from vitpose_jax import PoseEstimator, VitPose, VitPoseConfig

config = VitPoseConfig(image_size=(32, 32), hidden_size=16, num_layers=1, num_heads=2, decoder="simple")
estimator = PoseEstimator(VitPose(config, rngs=nnx.Rngs(0)))

def frames():
    for _ in itertools.count():
        time.sleep(0.01)
        yield np.zeros((64, 64, 3), np.uint8), [[0, 0, 60, 60]]

for number, _ in enumerate(estimator.stream(frames())):
    if number == 20:
        print("under way", flush=True)
"""


def interrupt(process: subprocess.Popen) -> tuple[int, str]:
    """Send the signal; the exit status and what stood on standard error."""
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, errors


def test_a_stream():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "under way\n"
        status, errors = interrupt(process)
    assert status != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_the_command_line_leaves_whole_files(tmp_path):
    run = [sys.executable, "-c", COMMAND_LINE]
    checkpoint.save(random_model(VitPoseConfig(**TINY)), tmp_path / "model")
    for number in range(2000):
        Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / f"{number:04}.png")
    output = tmp_path / "poses"
    command = [*run, "predict", str(tmp_path / "*.png"), "--model", str(tmp_path / "model"), "--output", str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(output.glob("*.json")):
            if process.poll() is not None:
                pytest.fail(process.stderr.read())
        status, errors = interrupt(process)
    assert status == 130
    assert "Traceback" not in errors
    done = sorted(output.iterdir())
    assert 0 < len(done) < 2000
    assert all(pathlib.Path(path).suffix == ".json" and os.path.getsize(path) for path in done)
