"""From the start of a fresh process to the first keypoints, and where the time goes; beside transformers.

    python benchmarks/start.py                    # base, 4 people
    python benchmarks/start.py --preset small

Each figure is the median of fresh processes, taken in turn: vitpose-jax compiling everything ("cold"), vitpose-jax
with JAX's persistent compilation cache filled by a run before ("cached"), and transformers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

PRESET = "base"
PEOPLE = 4
ROUNDS = 3

COMMON = """
import json, resource, sys, time
start = time.perf_counter()
stages = {}
def done(name):
    global start
    stages[name], start = time.perf_counter() - start, time.perf_counter()
import numpy as np
image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
boxes = np.array([[40.0 * n, 20, 120, 300] for n in range(PEOPLE)])
"""
OURS = """
from vitpose_jax import PoseEstimator
done("import")
estimator = PoseEstimator.from_pretrained(FOLDER)
done("load")
estimator(image, boxes)
done("first call")
estimator(image, boxes)
done("second call")
"""
THEIRS = """
import torch, transformers
from transformers import VitPoseForPoseEstimation, VitPoseImageProcessorPil
done("import")
model, processor = VitPoseForPoseEstimation.from_pretrained(FOLDER).eval(), VitPoseImageProcessorPil()
done("load")
def call():
    with torch.inference_mode():
        outputs = model(processor(image, boxes=[boxes.tolist()], return_tensors="pt")["pixel_values"])
    return processor.post_process_pose_estimation(outputs, boxes=[boxes.tolist()])
call()
done("first call")
call()
done("second call")
"""
REPORT = """
stages["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(stages))
"""


def run(code: str, folder: str, people: int, cache: str | None) -> dict[str, float]:
    """Stages of one fresh process, in seconds, and its peak memory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    if cache:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    program = (COMMON + code + REPORT).replace("PEOPLE", str(people)).replace("FOLDER", repr(folder))
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Write a model, run the processes in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default=PRESET)
    parser.add_argument("--people", type=int, default=PEOPLE)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hub, cache = os.path.join(folder, "hub"), os.path.join(folder, "cache")
        write = (
            "from flax import nnx; from vitpose_jax import VitPose, VitPoseConfig, convert;"
            f"config = VitPoseConfig.preset({options.preset!r}, layer_norm_eps=1e-12);"
            f"convert.write(VitPose(config, rngs=nnx.Rngs(0)), {hub!r}, to='huggingface')"
        )
        subprocess.run([sys.executable, "-c", write], check=True)
        run(OURS, hub, options.people, cache)  # fills the cache
        programs = {
            "vitpose-jax, cold": (OURS, None),
            "vitpose-jax, cached": (OURS, cache),
            "transformers": (THEIRS, None),
        }
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
        for _ in range(options.rounds):
            for name, (code, directory) in programs.items():
                rounds[name].append(run(code, hub, options.people, directory))
    stages = list(rounds["transformers"][0])
    print(f"{options.preset}, {options.people} people, seconds\n")
    print("| program | " + " | ".join(stages[:-1]) + " | start to first keypoints | peak, MB |")
    print("|---" * (len(stages) + 2) + "|")
    for name, results in rounds.items():
        medians = {stage: statistics.median(result[stage] for result in results) for stage in stages}
        first = sum(medians[stage] for stage in stages[:3])
        cells = [f"{medians[stage]:.2f}" for stage in stages[:-1]] + [f"{first:.2f}", f"{medians['peak MB']:.0f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
