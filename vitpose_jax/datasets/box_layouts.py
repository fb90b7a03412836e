"""How files write boxes: one reader for each layout, all into the same objects.

[{"image_id", "bbox", "score", "category_id"}, ...]             COCO results, as `vitpose-jax detect` writes them
{"images": [{"id", "file_name"}], "annotations": [...]}         COCO annotations
{"photo.jpg": [[x, y, w, h], ...]}                              a table by file name
[[x, y, w, h], ...]                                             boxes for all images
{"image": "photo.jpg", "poses": [{"box": [x, y, w, h]}]}        what `vitpose-jax predict` writes for an image
{"detections": [{"label", "score", "box"}]}                     `Detections.to_dict`, for all images
photo.txt, or a folder of such files                            YOLO: class, centre x, centre y, width, height, in
                                                                fractions of the image, and perhaps a score
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitpose_jax.datasets.coco import CocoImage, CocoObject, read_annotations, read_results, require
from vitpose_jax.datasets.fields import read_json, shorten, to_number
from vitpose_jax.pipeline.regions import check_boxes

LAYOUTS = (
    "COCO results [{image_id, bbox, score}, ...], COCO annotations {images, annotations}, "
    "a table {file name: [[x, y, w, h], ...]}, boxes for all images [[x, y, w, h], ...], "
    "the JSON of vitpose-jax predict or detect, or YOLO's .txt"
)


class Boxes(NamedTuple):
    """The boxes of a file.

    Attributes:
        objects: with usable boxes, x y w h.
        names: images by file name, in the order of the file; None if the file does not name its images.
        for_all: the boxes are for every image.
        relative: the boxes are in fractions of the image.
        skipped: why boxes were left out, one line each.
        crowds: number of crowds left out.
    """

    objects: list[CocoObject]
    names: list[tuple[str, CocoImage]] | None = None
    for_all: bool = False
    relative: bool = False
    skipped: Sequence[str] = ()
    crowds: int = 0


def read_boxes(path: pathlib.Path) -> Boxes:
    """Read a file of boxes in any of the layouts, or a folder of YOLO's files.

    Raises:
        ValueError: naming the file and the entry, if the layout is not known or a value is no box of numbers.
        OSError: if the file cannot be read.
    """
    if path.is_dir():
        return _read_yolo(sorted(path.glob("*.txt")), path)
    if path.suffix.lower() == ".txt":
        return _read_yolo([path], path)
    content = read_json(path)
    if isinstance(content, list):
        if content and all(_is_box(entry) for entry in content):
            return _read_rows(content, path)
        skipped: list[str] = []
        if not all(isinstance(entry, Mapping) for entry in content):
            raise _unknown(path, next(entry for entry in content if not isinstance(entry, Mapping)))
        entries = _without_bad_boxes(content, f"{path}: result", skipped)
        return Boxes([entry for entry in read_results(entries, str(path)) if entry.bbox is not None], skipped=skipped)
    if not isinstance(content, Mapping):
        raise _unknown(path, content)
    if {"images", "annotations"} & content.keys():
        return _read_annotations(content, path)
    if isinstance(content.get("poses"), list) and isinstance(content.get("image"), str):
        return _read_own(content["poses"], path, content["image"], "box_score")
    if isinstance(content.get("detections"), list):
        return _read_own(content["detections"], path, content.get("image"), "score")
    return _read_table(content, path)


def _read_annotations(content: Mapping[str, Any], path: pathlib.Path) -> Boxes:
    skipped: list[str] = []
    if isinstance(content.get("annotations"), list):
        entries = _without_bad_boxes(content["annotations"], f"{path}: annotation", skipped)
        content = {**content, "annotations": entries}
    annotations = read_annotations(content, name=str(path))
    names = [(require(image, "file_name"), image) for image in annotations.images.values()]
    crowds = sum(entry.iscrowd for entry in annotations.objects)
    objects = [entry for entry in annotations.objects if not entry.iscrowd and entry.bbox is not None]
    return Boxes(objects, names, skipped=skipped, crowds=crowds)


def _read_table(content: Mapping[str, Any], path: pathlib.Path) -> Boxes:
    objects, names, skipped = [], [], []
    for name, rows in content.items():
        if _is_box(rows):
            rows = [rows]
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise _unknown(path, content)
        where = f"{path}: {name!r}"
        name = name.replace("\\", "/")
        if not pathlib.PurePosixPath(name).name:
            raise ValueError(f"{where}: expected the name of an image file, got {name!r}")
        names.append((name, CocoImage(where, name, name)))
        objects += _objects(rows, where, name, skipped)
    return Boxes(objects, names, skipped=skipped)


def _read_rows(content: list, path: pathlib.Path) -> Boxes:
    skipped: list[str] = []
    return Boxes(_objects(content, str(path), "", skipped), for_all=True, skipped=skipped)


def _read_own(entries: list, path: pathlib.Path, image: str | None, score_key: str) -> Boxes:
    """The JSON of this project: each entry has a "box", and perhaps a score."""
    objects, skipped = [], []
    for index, entry in enumerate(entries):
        where = f"{path}: box {index}"
        if not isinstance(entry, Mapping):
            raise _unknown(path, entry)
        (box,) = _objects([entry.get("box")], where, image or "", skipped) or (None,)
        if box is not None:
            score = entry.get(score_key)
            objects.append(box._replace(score=None if score is None else to_number(score, f"{where}: {score_key}")))
    names = None if image is None else [(image, CocoImage(str(path), image, image))]
    return Boxes(objects, names, for_all=image is None, skipped=skipped)


def _read_yolo(files: list[pathlib.Path], path: pathlib.Path) -> Boxes:
    """YOLO's files, each named like its image."""
    if not files:
        raise ValueError(f"{path}: expected a folder of YOLO's .txt files, got none of them")
    objects, names, skipped = [], [], []
    for file in files:
        names.append((file.stem, CocoImage(str(file), file.stem, file.stem)))
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: expected text: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                label, *numbers = map(float, line.split())
            except ValueError:
                label, numbers = math.nan, []
            if len(numbers) not in (4, 5) or not label.is_integer():
                raise ValueError(
                    f"{file}:{number}: expected class, centre x, centre y, width, height in fractions of the image, "
                    f"and perhaps a score, got {shorten(line)}"
                )
            x, y, w, h, *score = numbers
            if not all(math.isfinite(value) and -1 <= value <= 2 for value in (x, y, w, h)):
                raise ValueError(f"{file}:{number}: expected fractions of the image, 0 to 1, got {shorten(line)}")
            for entry in _objects([[x - w / 2, y - h / 2, w, h]], f"{file}:{number}", file.stem, skipped):
                objects.append(entry._replace(score=score[0] if score else None, category_id=int(label) + 1))
    return Boxes(objects, names, relative=True, skipped=skipped)


def _objects(rows: Sequence[Any], where: str, image: str, skipped: list[str]) -> list[CocoObject]:
    """The usable rows of boxes, as objects; why the others are left out is added to `skipped`."""
    objects = []
    for index, row in enumerate(rows):
        place = where if len(rows) == 1 else f"{where}: box {index}"
        reason = _problem(row)
        if reason is None:
            objects.append(CocoObject(where=place, image_id=image, bbox=np.asarray(row, np.float64)))
        else:
            skipped.append(f"{place}: {reason}")
    return objects


def _without_bad_boxes(entries: list, where: str, skipped: list[str]) -> list:
    """COCO's entries without the boxes that cannot be used; why is added to `skipped`."""
    result = []
    for index, entry in enumerate(entries):
        reason = _problem(entry.get("bbox")) if isinstance(entry, Mapping) else None
        if reason is not None:
            skipped.append(f"{where} {entry.get('id', index)}: {reason}")
            entry = {**entry, "bbox": None}
        result.append(entry)
    return result


def _problem(box: Any) -> str | None:
    """Why a box cannot be used; None for a box that can."""
    if box is None:
        return "no box"
    try:
        check_boxes([box], name="bbox")
    except (TypeError, ValueError):
        return f"expected x, y, w, h in pixels with w and h above 0, got {shorten(box)}"
    return None


def _is_box(value: Any) -> bool:
    """Whether this is a list of four numbers; they need not be a box with an area."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    )


def _unknown(path: pathlib.Path, content: Any) -> ValueError:
    what = f"an object with {', '.join(map(repr, content)) or 'nothing'}" if isinstance(content, Mapping) else None
    return ValueError(f"{path}: this layout is not known; expected {LAYOUTS}; got {(what or shorten(content))[:200]}")
