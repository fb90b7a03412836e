"""The cost of an image by stage, on one core: what a plan for many machines is computed from.

    python benchmarks/stages.py                                   # base and the bundled model, 4 people in an image
    python benchmarks/stages.py --presets tiny --rounds 1         # shows that it runs

JPEG        reading a photograph of 640 x 480 from memory: Pillow decodes it
finder      the bundled person finder, on the decoded image
crops       cutting the people out
network     crops to heatmaps
decoding    heatmaps to keypoints
Parquet     rows of poses and their file, as `vitpose-jax bulk` writes them

Stages run in turn in one process, each to its end: in a real run reading overlaps with computing. XLA gets one thread
(NPROC). Times are of the processor, all threads together (time.process_time), so other programs on the machine count
little. "bytes" is what a stage reads or writes for an image: the JPEG file; the decoded pixels; the rows of its people
in the Parquet file.
"""

import argparse
import io
import os
import time
from collections.abc import Callable

# One thread for XLA, read when JAX is loaded.
os.environ.setdefault("NPROC", "1")

import jax
import numpy as np
from common import arguments, report, vitpose_config
from flax import nnx
from PIL import Image
from scale_tables import stage_costs_table

from vitpose_jax import Detector, Poses, VitPose, crop_boxes, decode_heatmaps, from_pretrained, load_image
from vitpose_jax.bundled import DEFAULT_MODEL, DEMO_IMAGES
from vitpose_jax.distributed.table import Rows

BUNDLED = "bundled"
PRESETS = [BUNDLED, "base"]
PEOPLE = [4]
ROUNDS = 9
WIDTH, HEIGHT = 640, 480
# Images of a Parquet file.
FILE = 1000


def photograph() -> bytes:
    """The bundled photograph of people as a JPEG file of an ordinary size and quality."""
    largest = max(DEMO_IMAGES, key=os.path.getsize)
    content = io.BytesIO()
    Image.open(largest).convert("RGB").resize((WIDTH, HEIGHT)).save(content, "JPEG", quality=90)
    return content.getvalue()


def processor_seconds(program: Callable[[], object]) -> float:
    """Time of the processor of one call, in all threads."""
    start = time.process_time()
    jax.block_until_ready(program())
    return time.process_time() - start


def measure(preset: str, people: int, rounds: int) -> list[dict]:
    """A row for each stage."""
    bundled = preset == BUNDLED
    model = from_pretrained(DEFAULT_MODEL) if bundled else VitPose(vitpose_config(preset), rngs=nnx.Rngs(0))
    config = model.config
    content = photograph()
    image = load_image(content)
    detector = Detector.from_pretrained()
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 300, (people, 2)), rng.uniform(60, 200, (people, 2))], axis=1)
    boxes = boxes.astype(np.float32)
    crop = jax.jit(lambda image, boxes: crop_boxes(image, boxes, config.image_size))
    forward = jax.jit(lambda model, crops: model(crops, 0))
    decode = jax.jit(decode_heatmaps)
    crops = crop(image, boxes)
    heatmaps = forward(model, crops)
    keypoints, scores = map(np.asarray, decode(heatmaps, boxes))
    poses = Poses.create(keypoints, scores, boxes, config.skeletons[0], box_scores=np.ones(people))

    def write() -> bytes:
        rows = Rows(0)
        for number in range(FILE):
            rows.add(f"bucket/shards/000000.tar/{number:09d}.jpg", (WIDTH, HEIGHT), poses)
        return rows.encode()

    # Real coordinates do not repeat, and hardly compress.
    noise = Rows(0)
    for number in range(FILE):
        changed = Poses.create(
            keypoints + rng.normal(0, 20, keypoints.shape),
            rng.uniform(0, 1, scores.shape),
            boxes + rng.normal(0, 9, boxes.shape),
            config.skeletons[0],
            box_scores=rng.uniform(0, 1, people),
        )
        noise.add(f"bucket/shards/000000.tar/{number:09d}.jpg", (WIDTH, HEIGHT), changed)
    programs = {
        "JPEG": lambda: load_image(content),
        "finder": lambda: detector(image),
        "crops": lambda: crop(image, boxes),
        "network": lambda: forward(model, crops),
        "decoding": lambda: decode(heatmaps, boxes),
        "Parquet": write,
    }
    sizes = {"JPEG": len(content), "crops": image.nbytes, "Parquet": len(noise.encode()) / FILE}
    for program in programs.values():
        jax.block_until_ready(program())
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            times[name].append(processor_seconds(program))
    rows = []
    for name, values in times.items():
        low, median, high = (1e3 * np.quantile(values, [0.1, 0.5, 0.9]) / (FILE if name == "Parquet" else 1)).tolist()
        row = {"preset": preset, "people": people, "stage": name, "ms": median, "low_ms": low, "high_ms": high}
        rows.append(row | {"bytes": float(sizes.get(name, 0))})
    return rows


def parser() -> argparse.ArgumentParser:
    """The options."""
    return arguments(__doc__, presets=PRESETS, people=PEOPLE, rounds=ROUNDS)


def main() -> None:
    """Measure, and report the table of the rows."""
    options = parser().parse_args()
    rows = [
        row
        for preset in options.presets
        for people in options.people
        for row in measure(preset, people, options.rounds)
    ]
    report(stage_costs_table(rows), rows, options)


if __name__ == "__main__":
    main()
