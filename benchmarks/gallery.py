"""Draws the gallery in docs/: whole photographs without boxes, and people that the bundled model gets right, and wrong.

    python benchmarks/gallery.py DATA/coco_val

DATA/coco_val is a folder with COCO val2017's `person_keypoints.json` and `images/`. The licences of these photographs
allow redistribution; docs/gallery.md names each.
"""

import argparse
import json
import pathlib

from PIL import Image
from reports import ROOT

from vitpose_jax import PoseEstimator, draw_poses

# Whole photographs: a crowd, children, backs, sports, a stage, fog.
WHOLE = (329323, 8690, 183709, 2153, 456496, 8021, 7511, 165518)
WHOLE_TILE, WHOLE_COLUMNS = (360, 300), 4
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


def tile(estimator: PoseEstimator, path: pathlib.Path, document: dict, image_id: int, index: int) -> Image.Image:
    """A person with a margin around the box, as large as fits into the tile."""
    people = [a for a in document["annotations"] if a["image_id"] == image_id and a["num_keypoints"]]
    x, y, width, height = people[index]["bbox"]
    drawn = draw_poses(path, estimator(path, [people[index]["bbox"]], flip_test=True), threshold=0.2)
    margin = 0.12 * max(width, height)
    left, top = max(0, int(x - margin)), max(0, int(y - margin))
    right, bottom = min(drawn.width, int(x + width + margin)), min(drawn.height, int(y + height + margin))
    return fit(drawn.crop((left, top, right, bottom)), TILE)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image in the middle of a white tile, as large as fits."""
    scale = min(size[0] / image.width, size[1] / image.height)
    image = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.LANCZOS)
    result = Image.new("RGB", size, "white")
    result.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return result


def sheet(tiles: list[Image.Image], columns: int) -> Image.Image:
    """Tiles in rows."""
    width, height = tiles[0].width + 8, tiles[0].height + 8
    result = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for place, each in enumerate(tiles):
        result.paste(each, ((place % columns) * width + 4, (place // columns) * height + 4))
    return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=pathlib.Path, help="with person_keypoints.json and images/")
    return options


def main() -> None:
    """Draw all pictures."""
    folder = parser().parse_args().folder
    document = json.loads((folder / "person_keypoints.json").read_text())
    names = {image["id"]: folder / "images" / image["file_name"] for image in document["images"]}
    estimator = PoseEstimator.from_pretrained()
    pictures = {
        "gallery_whole": sheet(
            [fit(draw_poses(names[i], estimator(names[i], flip_test=True)), WHOLE_TILE) for i in WHOLE], WHOLE_COLUMNS
        )
    }
    for name, people in {"gallery": RIGHT, "gallery_wrong": WRONG}.items():
        tiles = [tile(estimator, names[image_id], document, image_id, index) for image_id, index in people]
        pictures[name] = sheet(tiles, min(COLUMNS, len(tiles)))
    for name, picture in pictures.items():
        picture.save(ROOT / "docs" / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main()
