"""COCO's JSON, read entry by entry. This is the only reader of it: box files, datasets and metrics all use it.

    annotations  {"images": [{"id", "file_name", "width", "height"}],
                  "annotations": [{"id", "image_id", "category_id", "bbox", "area", "keypoints", ...}],
                  "categories": [{"id", "name"}]}
    results      [{"image_id", "category_id", "bbox" or "keypoints", "score"}]

Every field that is present is checked here, once. Which fields must be present depends on the use of the file: callers
take the values they need with `require`. Boxes are x y w h and keypoints (x, y, visibility or score), in pixels of the
image.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from vitpose_jax.datasets.fields import (
    need_id,
    need_integer,
    need_list,
    read_json,
    shorten,
    to_flag,
    to_number,
    to_numbers,
)

KEYPOINTS = ("keypoints",)
WHOLEBODY_KEYPOINTS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
"""The fields of COCO-WholeBody's keypoints, in the order of its skeleton."""


class CocoImage(NamedTuple):
    """An entry of "images", under COCO's names; None if the file has no value.

    Attributes:
        where: the file and the image, for error messages.
        id: as in the file.
        file_name: relative to the folder of the images, with "/" between folders.
        width, height: in pixels.
        crowd_index: CrowdPose's "crowdIndex", from 0 to 1.
        stretched: whether the image was resized without keeping its aspect, so that its true aspect is not known.
    """

    where: str
    id: int | str
    file_name: str | None = None
    width: float | None = None
    height: float | None = None
    crowd_index: float | None = None
    stretched: bool = False


class CocoObject(NamedTuple):
    """An annotation or a result, under COCO's names; None if the file has no value.

    Attributes:
        where: the file and the entry, for error messages.
        image_id: of the object's image.
        id: of the annotation.
        category_id: of the object.
        bbox: float64 [4], x y w h in pixels.
        area: in square pixels.
        keypoints: float64 [K 3], x, y in pixels and the visibility (0, 1, 2) or the score; the fields of a whole
            body are joined.
        score: of a result.
        num_keypoints: the annotators' own count of labelled keypoints.
        iscrowd: whether the annotation covers a crowd.
    """

    where: str
    image_id: int | str
    id: int | None = None
    category_id: int | None = None
    bbox: np.ndarray | None = None
    area: float | None = None
    keypoints: np.ndarray | None = None
    score: float | None = None
    num_keypoints: int | None = None
    iscrowd: bool = False


class CocoAnnotations(NamedTuple):
    """The content of an annotation file.

    Attributes:
        name: the file's path, for error messages.
        images: by id, in the order of the file.
        objects: the annotations, in the order of the file.
        category_ids: from "categories".
        num_keypoints: K; None if the keypoints were skipped.
    """

    name: str
    images: dict[int | str, CocoImage]
    objects: list[CocoObject]
    category_ids: frozenset[int]
    num_keypoints: int | None = None


Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""An annotation file, or its parsed content."""


def read_annotations(
    source: Source, num_keypoints: int | None = None, *, fields: Sequence[str] = KEYPOINTS, name: str | None = None
) -> CocoAnnotations:
    """Read COCO's annotations.

    Args:
        source: the file, or its content as a dict, which is not changed.
        num_keypoints: K; None to skip the keypoints.
        fields: where the keypoints are, in this order.
        name: of the file, for error messages; default: the path, or "annotations" for a dict.

    Raises:
        ValueError: naming the file and the entry, if an image or an annotation has no id, an id occurs twice, or a
            value has a wrong type or size.
        OSError: if the file cannot be read.
    """
    if isinstance(source, Mapping):
        name, content = name or "annotations", source
    else:
        name, content = name or os.fspath(source), read_json(pathlib.Path(source))
    images: dict[int | str, CocoImage] = {}
    for index, entry in enumerate(need_list(content, "images", name)):
        image = _read_image(entry, name, index)
        if image.id in images:
            raise ValueError(f"{image.where}: expected each id once, got it twice")
        images[image.id] = image
    objects, names = [], ids_by_text(images)
    for index, entry in enumerate(need_list(content, "annotations", name)):
        where = f"{name}: annotations[{index}]"
        if isinstance(entry, Mapping) and entry.get("id") is not None:
            where = f"{name}: annotation {need_integer(entry, 'id', where)}"
        objects.append(_read_object(entry, where, num_keypoints, fields, names, is_annotation=True))
    categories = need_list(content, "categories", name) if content.get("categories") is not None else []
    category_ids = [need_integer(entry, "id", f"{name}: categories[{index}]") for index, entry in enumerate(categories)]
    return CocoAnnotations(name, images, objects, frozenset(category_ids), num_keypoints)


def read_results(
    content: Any,
    name: str,
    num_keypoints: int | None = None,
    *,
    fields: Sequence[str] = KEYPOINTS,
    image_ids: Iterable[int | str] = (),
) -> list[CocoObject]:
    """Read COCO's results from parsed JSON.

    Args:
        content: a list of dicts.
        name: the file's path, for error messages.
        num_keypoints, fields: as for `read_annotations`.
        image_ids: of the annotations that the results belong to: "139" is taken for 139 if that is one of them.

    Raises:
        ValueError: naming the file and the entry, if an entry has no image_id or a value has a wrong type or size.
    """
    if isinstance(content, str | Mapping) or not isinstance(content, Sequence):
        raise ValueError(f"{name}: expected a list of results, got {type(content).__name__}")
    names = ids_by_text(image_ids)
    return [
        _read_object(entry, f"{name}: result {index}", num_keypoints, fields, names)
        for index, entry in enumerate(content)
    ]


def ids_by_text(ids: Iterable[int | str]) -> dict[int | str, int | str]:
    """Ids by themselves and by their text, so that 139 and "139" are the same image."""
    ids = list(ids)
    other = {(str(id_) if isinstance(id_, int) else int(id_)): id_ for id_ in ids if str(id_).isdecimal()}
    return {**other, **{id_: id_ for id_ in ids}}


def require(record: CocoImage | CocoObject, key: str) -> Any:
    """The value of a key that this use of the file needs.

    Raises:
        ValueError: naming the file, the entry and the key, if the file has no value.
    """
    value = getattr(record, key)
    if value is None:
        fields = [(name, other) for name, other in record._asdict().items() if name != "where"]
        present = [name for name, other in fields if other is not None and other is not False]
        raise ValueError(f"{record.where}: expected the key {key!r}, got {', '.join(present)}")
    return value


def annotated_size(image: CocoImage) -> tuple[int | float, int | float] | None:
    """The width and height of an image in the file; None if it has not both."""
    return None if image.width is None or image.height is None else (image.width, image.height)


def _read_image(entry: Any, name: str, index: int) -> CocoImage:
    image_id = need_id(entry, "id", f"{name}: images[{index}]")
    where = f"{name}: image {image_id}"
    file_name = entry.get("file_name")
    if file_name is not None:
        # Some tools write names as Windows does.
        file_name = str(file_name).replace("\\", "/")
        if not pathlib.PurePosixPath(file_name).name:
            raise ValueError(f"{where}: expected a file name for 'file_name', got {shorten(entry['file_name'])}")
    return CocoImage(
        where=where,
        id=image_id,
        file_name=file_name,
        width=_optional_number(entry, "width", where),
        height=_optional_number(entry, "height", where),
        crowd_index=_optional_number(entry, "crowdIndex", where),
        stretched=to_flag(entry.get("stretched"), f"{where}: stretched"),
    )


def _read_object(
    entry: Any,
    where: str,
    num_keypoints: int | None,
    fields: Sequence[str],
    image_ids: Mapping[int | str, int | str],
    *,
    is_annotation: bool = False,
) -> CocoObject:
    image_id = need_id(entry, "image_id", where)
    count = _optional_number(entry, "num_keypoints", where)
    keypoints = None if num_keypoints is None else _read_keypoints(entry, where, num_keypoints, fields, is_annotation)
    return CocoObject(
        where=where,
        image_id=image_ids.get(image_id, image_id),
        id=None if entry.get("id") is None else need_integer(entry, "id", where),
        category_id=need_integer(entry, "category_id", where) if entry.get("category_id") is not None else None,
        bbox=to_numbers(entry["bbox"], (4,), f"{where}: bbox") if entry.get("bbox") is not None else None,
        area=_optional_number(entry, "area", where),
        keypoints=keypoints,
        score=_optional_number(entry, "score", where),
        num_keypoints=None if count is None else int(count),
        iscrowd=to_flag(entry.get("iscrowd"), f"{where}: iscrowd"),
    )


def _read_keypoints(
    entry: Mapping[str, Any], where: str, count: int, fields: Sequence[str], is_annotation: bool
) -> Float[np.ndarray, "K 3"] | None:
    """The keypoints of all fields together; None if there are none.

    Where the third number of an annotation is 0, nothing was labelled: NaN before it becomes 0, 0. So do three NaN or
    null.
    """
    parts = [entry[field] for field in fields if entry.get(field) is not None]
    flat = [to_numbers(part, (-1,), f"{where}: keypoints", finite=False) for part in parts]
    if not sum(map(len, flat)):
        return None
    points = to_numbers(np.concatenate(flat), (count, 3), f"{where}: keypoints", finite=False).copy()
    if is_annotation:
        points[(points[:, 2] == 0) & ~np.isfinite(points).all(axis=1) | np.isnan(points).all(axis=1)] = 0
    return to_numbers(points.ravel(), (count, 3), f"{where}: keypoints")


def _optional_number(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    """A number; None if the key is missing or null."""
    return None if entry.get(key) is None else to_number(entry[key], f"{where}: {key}")
