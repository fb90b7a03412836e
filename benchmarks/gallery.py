"""Draws docs/gallery.jpg and docs/gallery_wrong.jpg: people that the bundled model gets right, and wrong.

    python benchmarks/gallery.py DATA/coco_val

DATA/coco_val is a folder with COCO val2017's `person_keypoints.json` and `images/`. The licences of these photographs
allow redistribution; docs/gallery.md names each.
"""

import argparse
import json
import pathlib

from PIL import Image
from tables import ROOT

from vitpose_jax import PoseEstimator, draw_poses

# The id of an image, and the index of one of its annotated people.
RIGHT = (
    (785, 0),
    (8021, 2),
    (1000, 3),
    (1000, 4),
    (1000, 0),
    (214753, 0),
    (214753, 1),
    (329323, 1),
    (1000, 10),
    (434204, 0),
    (183709, 0),
    (2473, 1),
)
WRONG = ((872, 0), (165518, 0), (1000, 9), (2473, 0))
TILE, COLUMNS = (240, 320), 6


def tile(estimator: PoseEstimator, folder: pathlib.Path, document: dict, image_id: int, index: int) -> Image.Image:
    """A person with a margin around the box, as large as fits into the tile."""
    name = next(image["file_name"] for image in document["images"] if image["id"] == image_id)
    people = [a for a in document["annotations"] if a["image_id"] == image_id and a["num_keypoints"]]
    x, y, width, height = people[index]["bbox"]
    path = folder / "images" / name
    drawn = draw_poses(path, estimator(path, [people[index]["bbox"]], flip_test=True), threshold=0.2)
    margin = 0.12 * max(width, height)
    left, top = max(0, int(x - margin)), max(0, int(y - margin))
    right, bottom = min(drawn.width, int(x + width + margin)), min(drawn.height, int(y + height + margin))
    part = drawn.crop((left, top, right, bottom))
    scale = min(TILE[0] / part.width, TILE[1] / part.height)
    part = part.resize((round(scale * part.width), round(scale * part.height)), Image.Resampling.LANCZOS)
    result = Image.new("RGB", TILE, "white")
    result.paste(part, ((TILE[0] - part.width) // 2, (TILE[1] - part.height) // 2))
    return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=pathlib.Path, help="with person_keypoints.json and images/")
    return options


def main() -> None:
    """Draw both pictures."""
    folder = parser().parse_args().folder
    document = json.loads((folder / "person_keypoints.json").read_text())
    estimator = PoseEstimator.from_pretrained()
    for name, people in {"gallery": RIGHT, "gallery_wrong": WRONG}.items():
        columns = min(COLUMNS, len(people))
        rows = -(-len(people) // columns)
        sheet = Image.new("RGB", (columns * (TILE[0] + 8), rows * (TILE[1] + 8)), "white")
        for place, (image_id, index) in enumerate(people):
            corner = (place % columns) * (TILE[0] + 8) + 4, (place // columns) * (TILE[1] + 8) + 4
            sheet.paste(tile(estimator, folder, document, image_id, index), corner)
        sheet.save(ROOT / "docs" / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main()
