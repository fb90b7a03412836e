"""A stream of frames without end, to be interrupted once it has said that it is under way."""

import itertools
import signal
import time
from collections.abc import Iterator

import numpy as np
from flax import nnx

from vitpose_jax import PoseEstimator, VitPose, VitPoseConfig

# A shell has what it starts in the background ignore Ctrl-C, and so would this program there.
signal.signal(signal.SIGINT, signal.default_int_handler)

config = VitPoseConfig(image_size=(32, 32), hidden_size=16, num_layers=1, num_heads=2, decoder="simple")
estimator = PoseEstimator(VitPose(config, rngs=nnx.Rngs(0)))


def frames() -> Iterator[tuple[np.ndarray, list[list[float]]]]:
    for _ in itertools.count():
        time.sleep(0.01)
        yield np.zeros((64, 64, 3), np.uint8), [[0, 0, 60, 60]]


for number, _ in enumerate(estimator.stream(frames())):
    if number == 20:
        print("under way", flush=True)
