"""The process that start.py times: `start_worker.py vitpose-jax|transformers FOLDER PEOPLE`.

Prints the seconds of each stage as JSON. It imports nothing heavy at the top, because imports are timed.
"""

import json
import resource
import sys
import time

import numpy as np


class Clock:
    """Seconds of each stage, by name."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self.start = time.perf_counter()

    def done(self, stage: str) -> None:
        """The stage ends here, and the next one begins."""
        now = time.perf_counter()
        self.stages[stage], self.start = now - self.start, now


def run_ours(folder: str, image: np.ndarray, boxes: np.ndarray, clock: Clock) -> None:
    """Import, load, and call twice."""
    from vitpose_jax import PoseEstimator

    clock.done("import_s")
    estimator = PoseEstimator.from_pretrained(folder)
    clock.done("load_s")
    estimator(image, boxes)
    clock.done("first_call_s")
    estimator(image, boxes)
    clock.done("second_call_s")


def run_transformers(folder: str, image: np.ndarray, boxes: np.ndarray, clock: Clock) -> None:
    """The same stages in transformers."""
    import torch
    from transformers import VitPoseForPoseEstimation, VitPoseImageProcessorPil

    clock.done("import_s")
    model, processor = VitPoseForPoseEstimation.from_pretrained(folder).eval(), VitPoseImageProcessorPil()
    clock.done("load_s")
    for stage in ("first_call_s", "second_call_s"):
        crops = processor(image, boxes=[boxes.tolist()], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            outputs = model(crops)
        processor.post_process_pose_estimation(outputs, boxes=[boxes.tolist()])
        clock.done(stage)


def main(program: str, folder: str, people: int) -> None:
    """Run one program and print its stages and its peak memory."""
    clock = Clock()
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    boxes = np.array([[40.0 * n, 20, 120, 300] for n in range(people)])
    run = {"vitpose-jax": run_ours, "transformers": run_transformers}[program]
    run(folder, image, boxes, clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**clock.stages, "peak_mb": peak}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
