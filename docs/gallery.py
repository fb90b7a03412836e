"""Draws docs/gallery.jpg and docs/gallery_wrong.jpg: people the bundled model gets right, and people it gets wrong.

    python docs/gallery.py DATA/coco_val

The photographs are of COCO val2017, under licences that let them be passed on; docs/gallery.md names each.
"""

import json
import pathlib
import sys

from PIL import Image

from vitpose_jax import PoseEstimator
from vitpose_jax.draw import draw_poses

# Image, and which of its annotated people.
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


def tile(estimator: PoseEstimator, folder: pathlib.Path, document: dict, image_id: int, number: int) -> Image.Image:
    """A person, with a margin around the box, as large as fits."""
    name = next(image["file_name"] for image in document["images"] if image["id"] == image_id)
    people = [a for a in document["annotations"] if a["image_id"] == image_id and a["num_keypoints"]]
    x, y, width, height = people[number]["bbox"]
    path = folder / "images" / name
    drawn = draw_poses(path, estimator(path, [people[number]["bbox"]], flip_test=True), threshold=0.2)
    margin = 0.12 * max(width, height)
    left, top = max(0, int(x - margin)), max(0, int(y - margin))
    right, bottom = min(drawn.width, int(x + width + margin)), min(drawn.height, int(y + height + margin))
    part = drawn.crop((left, top, right, bottom))
    scale = min(TILE[0] / part.width, TILE[1] / part.height)
    part = part.resize((round(scale * part.width), round(scale * part.height)), Image.Resampling.LANCZOS)
    result = Image.new("RGB", TILE, "white")
    result.paste(part, ((TILE[0] - part.width) // 2, (TILE[1] - part.height) // 2))
    return result


def main(folder: pathlib.Path) -> None:
    """Write both sheets."""
    document = json.loads((folder / "person_keypoints.json").read_text())
    estimator = PoseEstimator.from_pretrained()
    for name, people in {"gallery": RIGHT, "gallery_wrong": WRONG}.items():
        columns = min(COLUMNS, len(people))
        rows = -(-len(people) // columns)
        sheet = Image.new("RGB", (columns * (TILE[0] + 8), rows * (TILE[1] + 8)), "white")
        for place, (image_id, number) in enumerate(people):
            at = (place % columns) * (TILE[0] + 8) + 4, (place // columns) * (TILE[1] + 8) + 4
            sheet.paste(tile(estimator, folder, document, image_id, number), at)
        sheet.save(f"docs/{name}.jpg", quality=85)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
