"""Boxes from files: the results of a detector, or the annotations of a dataset.

Three formats are read, all with boxes x y w h in pixels:

* COCO results: [{"image_id", "bbox", "score", "category_id"}];
* COCO annotations: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "bbox", ...}]};
* a plain table: {"photo.jpg": [[x, y, w, h], ...]}.
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from vitpose_jax.datasets.coco import CocoObject, read_annotations, read_results, require
from vitpose_jax.datasets.fields import read_json, shorten, to_numbers


class ImageBoxes(NamedTuple):
    """The boxes of one image, from a file or the command line.

    Attributes:
        image_id: the number or name under which the image's results are written.
        boxes: rows of x y w h in pixels; None: a detector finds them.
        scores: the detector's, one for each box; None if unknown.
        category: `category_id` of the first box.
    """

    image_id: int | str
    boxes: list[list[float]] | None
    scores: list[float] | None = None
    category: int = 1


def image_id_of(path: pathlib.Path) -> int | str:
    """COCO's convention: the number that is the file's name; otherwise the name without its suffix."""
    return int(path.stem) if path.stem.isdecimal() else path.stem


class BoxFile:
    """A file with the boxes of many images.

    Args:
        path: the file.
        category: keep only boxes of this `category_id`, and boxes without one; None keeps all.
        min_score: keep only boxes with at least this score; boxes without one have score 1. None keeps all.

    Raises:
        ValueError: naming the file and the entry, if the file is not in one of the three formats, or a box is not
            four finite numbers.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: pathlib.Path, *, category: int | None = None, min_score: float | None = None):
        self.path, self.category, self.min_score = path, category, min_score
        file_names, objects = _read(path)
        # For files that name their images: base name -> (the parts of the whole name, the image's id).
        self._named: dict[str, list[tuple[tuple[str, ...], int | str]]] | None = None
        if file_names is not None:
            self._named = {}
            for name, image_id in file_names.items():
                parts = pathlib.PurePath(name).parts
                self._named.setdefault(parts[-1], []).append((parts, image_id))
        self._objects: dict[str, list[CocoObject]] = {}
        for entry in objects:
            require(entry, "bbox")
            if min_score is not None and _score(entry) < min_score:
                continue
            if category is None or entry.category_id in (None, category):
                self._objects.setdefault(str(entry.image_id), []).append(entry)

    def __contains__(self, image: pathlib.Path) -> bool:
        """True if the file lists the image, even with no boxes."""
        return self._image_id(image) is not None

    def __getitem__(self, image: pathlib.Path) -> ImageBoxes:
        """The boxes of an image; no boxes if the file does not list it.

        Raises:
            ValueError: if the file lists several images of this name, and none of them in the image's folder.
        """
        image_id = self._image_id(image)
        entries = self._objects.get(str(image_id), [])
        if entries:
            image_id = entries[0].image_id
        elif image_id is None:
            image_id = image_id_of(image)
        category = entries[0].category_id if entries else None
        return ImageBoxes(
            image_id,
            [require(entry, "bbox").tolist() for entry in entries],
            [_score(entry) for entry in entries],
            1 if category is None else category,
        )

    def _image_id(self, image: pathlib.Path) -> int | str | None:
        """The id of an image in the file; None if the file does not list it."""
        if self._named is None:
            keys = (str(image_id_of(image)), image.name, image.stem)
            return next((key for key in keys if key in self._objects), None)
        candidates = self._named.get(image.name, [])
        same_place = [parts_id for parts_id in candidates if image.parts[-len(parts_id[0]) :] == parts_id[0]]
        if same_place:
            return max(same_place, key=lambda parts_id: len(parts_id[0]))[1]
        if len(candidates) > 1:
            names = ", ".join("/".join(parts) for parts, _ in candidates)
            raise ValueError(f"{self.path}: cannot tell which of {names} is {image}")
        return candidates[0][1] if candidates else None


def _read(path: pathlib.Path) -> tuple[dict[str, int | str] | None, list[CocoObject]]:
    """The images' ids by file name, or None if the file has no names; and the objects without crowds."""
    content = read_json(path)
    if isinstance(content, list):
        return None, read_results(content, str(path))
    formats = "COCO results, COCO annotations or a table of boxes"
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected {formats}, got {shorten(content)}")
    if {"images", "annotations"} & content.keys():
        annotations = read_annotations(content, name=str(path))
        names = {require(image, "file_name"): image.id for image in annotations.images.values()}
        return names, [entry for entry in annotations.objects if not entry.iscrowd]
    objects = []
    for name, boxes in content.items():
        if not isinstance(boxes, list):
            raise ValueError(f"{path}: expected {formats}, got {shorten(boxes)} for {name!r}")
        for index, box in enumerate(boxes):
            where = f"{path}: {name}: box {index}"
            objects.append(CocoObject(where=where, image_id=name, bbox=to_numbers(box, (4,), where)))
    return {name: name for name in content}, objects


def _score(entry: CocoObject) -> float:
    return 1.0 if entry.score is None else entry.score


def parse_box(text: str) -> list[float]:
    """Four numbers from "x,y,w,h".

    Raises:
        ValueError: for any other text.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 4:
        raise ValueError(f"--boxes: expected a file or x,y,w,h, got {text!r}")
    return values
