"""Boxes from files: the output of a detector, or a data set's annotations.

Three layouts are understood, all with boxes x y w h in pixels:

* COCO results: a list of {"image_id", "bbox", "score", "category_id"};
* COCO annotations: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "bbox", ...}]};
* a plain table: {"photo.jpg": [[x, y, w, h], ...]}.
"""

import json
import pathlib
from typing import Any, NamedTuple


class Detections(NamedTuple):
    """The boxes of one image.

    Attributes:
        image_id: the number or name under which results of the image are written.
        boxes: rows of x y w h in pixels, not checked; None for the whole image.
        scores: of the detector, one a box; None where there are none.
    """

    image_id: int | str
    boxes: list[list[float]] | None
    scores: list[float] | None = None


def image_id_of(path: pathlib.Path) -> int | str:
    """COCO's habit: the number in the file's name; otherwise the name without its ending."""
    return int(path.stem) if path.stem.isdecimal() else path.stem


class DetectionFile:
    """A file of boxes for many images.

    Args:
        path: the file.
        category: keep only boxes of this `category_id`; None keeps all.
        min_score: drop boxes below it.

    Raises:
        ValueError: where the file is not JSON or not in one of the layouts.
        OSError: where it cannot be read.
    """

    def __init__(self, path: pathlib.Path, *, category: int | None = None, min_score: float = 0.0):
        self._path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected JSON: {error}") from error
        self._ids: dict[str, int | str] = {}
        if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
            self._ids = {pathlib.PurePath(image["file_name"]).name: image["id"] for image in content["images"]}
            content = [entry for entry in content["annotations"] if not entry.get("iscrowd")]
        elif isinstance(content, dict):
            self._ids = {pathlib.PurePath(name).name: name for name in content}
            content = [{"image_id": name, "bbox": box} for name, boxes in content.items() for box in boxes]
        self._entries: dict[str, list[tuple[Any, float]]] = {}
        if not isinstance(content, list):
            raise ValueError(f"{path}: expected a list or an object, got {type(content).__name__}")
        for index, entry in enumerate(content):
            if not isinstance(entry, dict) or not {"image_id", "bbox"} <= entry.keys():
                raise ValueError(f"{path}: entry {index} has no image_id and bbox: {str(entry)[:80]}")
            score = float(entry.get("score", 1.0))
            if score >= min_score and category in (None, entry.get("category_id", category)):
                self._entries.setdefault(str(entry["image_id"]), []).append((entry["bbox"], score))

    def __getitem__(self, image: pathlib.Path) -> Detections:
        """The boxes of an image; none where the file names none."""
        image_id = self._ids.get(image.name, image_id_of(image))
        for key in (str(image_id), image.name, image.stem):
            if key in self._entries:
                boxes, scores = zip(*self._entries[key], strict=True)
                return Detections(image_id, list(boxes), list(scores))
        return Detections(image_id, [], [])


def parse_box(text: str) -> list[float]:
    """Four numbers from "x,y,w,h".

    Raises:
        ValueError: for anything else.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise ValueError(f"--boxes: expected a file or x,y,w,h, got {text!r}")
    return numbers
