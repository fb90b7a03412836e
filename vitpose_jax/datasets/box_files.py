"""Boxes from files: the output of a detector, or a data set's annotations.

Three layouts are understood, all with boxes x y w h in pixels:

* COCO results: a list of {"image_id", "bbox", "score", "category_id"};
* COCO annotations: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "bbox", ...}]};
* a plain table: {"photo.jpg": [[x, y, w, h], ...]}.
"""

import json
import pathlib
from typing import Any, NamedTuple


class FileBoxes(NamedTuple):
    """The boxes of one image, from a file or the command line.

    Attributes:
        image_id: the number or name under which results of the image are written.
        boxes: rows of x y w h in pixels, not checked; None for those of a detector, or the whole image.
        scores: of the detector, one a box; None where there are none.
        category: `category_id` of the boxes; that of the first where they differ.
    """

    image_id: int | str
    boxes: list[list[float]] | None
    scores: list[float] | None = None
    category: int = 1


def image_id_of(path: pathlib.Path) -> int | str:
    """COCO's habit: the number in the file's name; otherwise the name without its ending."""
    return int(path.stem) if path.stem.isdecimal() else path.stem


class DetectionFile:
    """A file of boxes for many images.

    Args:
        path: the file.
        category: keep only boxes of this `category_id`; None keeps all.
        min_score: drop boxes below it; None keeps all.

    Raises:
        ValueError: where the file is not JSON or not in one of the layouts.
        OSError: where it cannot be read.
    """

    def __init__(self, path: pathlib.Path, *, category: int | None = None, min_score: float | None = None):
        self._path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected JSON: {error}") from error
        # For files that name their images: base name -> the whole names, as parts, and the images' ids.
        self._named: dict[str, list[tuple[tuple[str, ...], int | str]]] | None = None
        self._entries: dict[str, list[dict[str, Any]]] = {}
        try:
            for entry in self._read(content):
                low = min_score is not None and float(entry.get("score", 1.0)) < min_score
                if not low and category in (None, entry.get("category_id", category)):
                    self._entries.setdefault(str(entry["image_id"]), []).append(entry)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path}: expected COCO results, COCO annotations or a table of boxes; {type(error).__name__}: {error}"
            ) from error

    def _read(self, content: Any) -> list[dict[str, Any]]:
        if isinstance(content, list):
            return [{**entry, "bbox": entry["bbox"]} for entry in content]
        if {"images", "annotations"} & content.keys():
            names = {image["file_name"]: image["id"] for image in content["images"]}
            entries = [{**entry, "bbox": entry["bbox"]} for entry in content["annotations"] if not entry.get("iscrowd")]
        else:
            names = {name: name for name in content}
            entries = [{"image_id": name, "bbox": list(box)} for name, boxes in content.items() for box in boxes]
        self._named = {}
        for name, image_id in names.items():
            parts = pathlib.PurePath(name).parts
            self._named.setdefault(parts[-1], []).append((parts, image_id))
        return entries

    def __contains__(self, image: pathlib.Path) -> bool:
        """Whether the file says anything of an image, be it that there is nobody."""
        return self._id(image) is not None

    def __getitem__(self, image: pathlib.Path) -> FileBoxes:
        """The boxes of an image; none where the file names none.

        Raises:
            ValueError: where the file names several images so, in different folders, and none in this one's.
        """
        key = self._id(image)
        found = self._entries.get(str(key), [])
        image_id = found[0]["image_id"] if found else image_id_of(image) if key is None else key
        return FileBoxes(
            image_id,
            [entry["bbox"] for entry in found],
            [float(entry.get("score", 1.0)) for entry in found],
            found[0].get("category_id", 1) if found else 1,
        )

    def _id(self, image: pathlib.Path) -> int | str | None:
        if self._named is None:
            keys = (str(image_id_of(image)), image.name, image.stem)
            return next((key for key in keys if key in self._entries), None)
        candidates = self._named.get(image.name, [])
        same_place = [entry for entry in candidates if image.parts[-len(entry[0]) :] == entry[0]]
        chosen = max(same_place, key=lambda entry: len(entry[0]), default=None)
        if chosen is None and len(candidates) > 1:
            names = ", ".join("/".join(parts) for parts, _ in candidates)
            raise ValueError(f"{self._path}: cannot tell which of {names} is {image}")
        if chosen is None and candidates:
            chosen = candidates[0]
        return None if chosen is None else chosen[1]


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
