"""Boxes from files: the results of a detector, or the annotations of a dataset. box_layouts.py lists the layouts.

All boxes are x y w h in pixels.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitpose_jax.datasets.box_layouts import read_boxes
from vitpose_jax.datasets.coco import CocoImage, CocoObject, require
from vitpose_jax.images import read_size


class ImageBoxes(NamedTuple):
    """The boxes of one image, from a file or the command line.

    Attributes:
        image_id: the number or name under which the image's results are written.
        boxes: rows of x y w h in pixels; None: a detector finds them.
        scores: the detector's, one for each box; None if unknown.
        categories: `category_id` of each box; None if unknown.
    """

    image_id: int | str
    boxes: list[list[float]] | None
    scores: list[float] | None = None
    categories: list[int] | None = None


def image_id_of(path: pathlib.Path) -> int | str:
    """COCO's convention: the number that is the file's name; otherwise the name without its suffix."""
    return int(path.stem) if path.stem.isdecimal() else path.stem


class BoxFile:
    """A file with the boxes of many images, in one of the layouts of box_layouts.py; or a folder of YOLO's files.

    Boxes that cannot be used, without area or not four numbers, are left out; `notes` counts them.

    Args:
        path: the file.
        category: keep only boxes of this `category_id`, and boxes without one; None keeps all. YOLO's class 0 is
            category 1.
        min_score: keep only boxes with at least this score; boxes without one have score 1. None keeps all.

    Attributes:
        notes: what was left out, one line each.

    Raises:
        ValueError: naming the file and the entry, if the layout of the file is not known.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: pathlib.Path, *, category: int | None = None, min_score: float | None = None):
        self.path, self.category, self.min_score = path, category, min_score
        boxes = read_boxes(path)
        self._for_all, self._relative = boxes.for_all, boxes.relative
        self._skipped = boxes.skipped
        self.notes: list[str] = []
        if boxes.skipped:
            self.notes.append(f"{path}: left out {_count(len(boxes.skipped), 'box')}: {boxes.skipped[0]}")
        if boxes.crowds:
            self.notes.append(f"{path}: left out {_count(boxes.crowds, 'crowd')} (iscrowd)")
        # For files that name their images: last part of the name -> (all its parts, the images of that name).
        self._named: dict[str, dict[tuple[str, ...], list[CocoImage]]] | None = None
        if boxes.names is not None:
            self._named = {}
            for name, image in boxes.names:
                parts = pathlib.PurePosixPath(name).parts
                key = image_key(parts[-1], relative=self._relative)
                self._named.setdefault(key, {}).setdefault(parts, []).append(image)
            twice = sum(len(images) > 1 for places in self._named.values() for images in places.values())
            if twice:
                self.notes.append(f"{path}: {_count(twice, 'file name')} of several images; their boxes are joined")
        self._objects: dict[str, list[CocoObject]] = {}
        for entry in boxes.objects:
            if min_score is not None and _score(entry) < min_score:
                continue
            if category is None or entry.category_id in (None, category):
                self._objects.setdefault(str(entry.image_id), []).append(entry)

    def __contains__(self, image: pathlib.Path) -> bool:
        """True if the file lists the image, even with no boxes."""
        return self._for_all or bool(self._images(image))

    def __getitem__(self, image: pathlib.Path) -> ImageBoxes:
        """The boxes of an image; no boxes if the file does not list it.

        Raises:
            ValueError: if the file lists several images of this name, and none of them in the image's folder.
        """
        keys = [""] if self._for_all else self._images(image)
        entries = [entry for key in keys for entry in self._objects.get(str(key), [])]
        image_id = image_id_of(image)
        if keys and not self._for_all and not self._relative:
            image_id = entries[0].image_id if entries else keys[0]
        rows = np.asarray([require(entry, "bbox") for entry in entries], np.float64).reshape(-1, 4)
        if self._relative:
            width, height = read_size(image)
            rows = rows * (width, height, width, height)
        categories = [1 if entry.category_id is None else entry.category_id for entry in entries]
        return ImageBoxes(image_id, rows.tolist(), [_score(entry) for entry in entries], categories)

    def size(self, image: pathlib.Path) -> tuple[float, float] | None:
        """The width and height that the file gives for an image; None if it gives none."""
        for entry in self._entries(image):
            if entry.width is not None and entry.height is not None:
                return entry.width, entry.height
        return None

    def check(self, images: Sequence[pathlib.Path]) -> list[str]:
        """Compare the file with the images of a run.

        Returns:
            `notes`, and how many images have no boxes in the file, and how many of its boxes are of other images.

        Raises:
            ValueError: if the file has no box for any of the images, and does not say that they have none.
        """
        listed = [image for image in images if image in self]
        keys = {str(key) for image in listed for key in ([""] if self._for_all else self._images(image))}
        total = sum(map(len, self._objects.values()))
        used = sum(len(self._objects.get(key, [])) for key in keys)
        reasons = "; ".join(note.removeprefix(f"{self.path}: ") for note in self.notes)
        if not listed:
            names = sorted(self._objects) if self._named is None else sorted(self._named)
            more = ", ..." if len(names) > 3 else ""
            raise ValueError(
                f"{self.path}: no boxes for any of {_count(len(images), 'image')}, such as {images[0].name}; "
                f"the file has boxes of {', '.join(names[:3]) or 'no image'}{more}"
                + (f" ({reasons})" if reasons else "")
            )
        if not used and self.notes:
            raise ValueError(f"{self.path}: no usable box for any of {_count(len(images), 'image')}: {reasons}")
        messages = list(self.notes)
        if len(listed) < len(images):
            messages.append(f"{len(images) - len(listed)} of {len(images)} images have no boxes in {self.path}")
        if used < total:
            messages.append(f"{self.path}: {total - used} of {_count(total, 'box')} are of images not in this run")
        return messages

    def _images(self, image: pathlib.Path) -> list[int | str]:
        """The ids of an image in the file; none if the file does not list it."""
        if self._named is None:
            keys = (str(image_id_of(image)), image.name, image.stem)
            return [next(key for key in keys if key in self._objects)] if set(keys) & self._objects.keys() else []
        return [entry.id for entry in self._entries(image)]

    def _entries(self, image: pathlib.Path) -> list[CocoImage]:
        """The file's images of this name: several only if they have the same name and place."""
        places = {} if self._named is None else self._named.get(image_key(image.name, relative=self._relative), {})
        same_place = [parts for parts in places if image.parts[-len(parts) :] == parts]
        if same_place:
            return places[max(same_place, key=len)]
        if len(places) > 1:
            names = ", ".join("/".join(parts) for parts in places)
            raise ValueError(f"{self.path}: cannot tell which of {names} is {image}")
        return next(iter(places.values()), [])


def image_key(name: str, *, relative: bool) -> str:
    """By what an image is found: its file name; for YOLO's files, the name without its ending."""
    return pathlib.PurePosixPath(name).stem if relative and pathlib.PurePosixPath(name).suffix else name


def _count(number: int, what: str) -> str:
    plural = what if number == 1 else f"{what}es" if what.endswith("x") else f"{what}s"
    return f"{number} {plural}"


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
