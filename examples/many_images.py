"""A folder of images, of any number: `stream` reads, computes and returns at the same time, in bounded memory.

    python examples/many_images.py FOLDER

Writes poses.jsonl, one line for each image, in the order of the file names.
"""

import json
import pathlib
import sys

from vitpose_jax import ItemError, PoseEstimator
from vitpose_jax.bundled import DEMO_IMAGE

FOLDER = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO_IMAGE.parent
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
OUTPUT = "poses.jsonl"

paths = sorted(path for path in FOLDER.iterdir() if path.suffix.lower() in SUFFIXES)
estimator = PoseEstimator.from_pretrained()

# Pairs of an image and its boxes. None: a detector finds the people.
items = ((path, None) for path in paths)

with open(OUTPUT, "w", encoding="utf-8") as file:
    # errors="return" gives an ItemError in the place of an image that cannot be read, and continues.
    for path, poses in zip(paths, estimator.stream(items, errors="return"), strict=True):
        if isinstance(poses, ItemError):
            print(f"{path.name}: {poses}")
            continue
        file.write(json.dumps({"image": path.name, **poses.to_dict()}) + "\n")
        print(f"{path.name}: {len(poses)} people")
print(f"{OUTPUT}: {estimator.num_compiled} programs were compiled for {len(paths)} images")
