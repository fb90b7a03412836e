"""Workers that are forked after JAX was used, and one that is forked before. Argument: the folder of a model."""

import multiprocessing
import sys
import warnings

import numpy as np

from vitpose_jax import PoseEstimator, from_pretrained

FORK = multiprocessing.get_context("fork")
image, boxes = np.zeros((40, 30, 3), np.uint8), [[2, 2, 20, 30]]


def work(function, *arguments):
    """What a forked worker says."""
    ours, theirs = FORK.Pipe()

    def run():
        try:
            function(*arguments)
            theirs.send("done")
        except RuntimeError as error:
            theirs.send(str(error))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX's own, of forks
        process = FORK.Process(target=run)
        process.start()
    said = ours.recv() if ours.poll(60) else "hangs"
    process.kill()
    return said


def estimate(folder):
    PoseEstimator.from_pretrained(folder)(image, boxes)


folder = sys.argv[1]
print(work(estimate, folder))
estimator = PoseEstimator.from_pretrained(folder)
print(work(estimator, image, boxes))
print(work(lambda: list(estimator.stream([(image, boxes)]))))
print(work(estimate, folder))
print(work(from_pretrained, folder))
