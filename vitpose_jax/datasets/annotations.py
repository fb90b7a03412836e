"""Annotation files: COCO's keypoint JSON and MPII's list, read entry by entry into plain rows.

A row is a dict with the fields of `datasets.People`, for one person. Everything that is missing, of a wrong size or
unknown is a ValueError that names the file and the entry.
"""

import json
import os
import pathlib
from types import UnionType
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Num

from vitpose_jax.datasets.protocols import Protocol

Row: TypeAlias = dict[str, Any]

# COCO-WholeBody's fields, in the order of the skeleton.
WHOLEBODY_FIELDS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
# MPII: the side of a region of scale 1, and how far it is moved down, in pixels.
MPII_UNIT = 200.0
MPII_SHIFT = 15.0

# The fraction of its box that a person covers, where annotations have no area.
BOX_TO_AREA = 0.53
# MPII: the size of a head is this times the diagonal of its rectangle.
HEAD_BIAS = 0.6


def read_json(path: pathlib.Path) -> Any:
    """What is in a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error


def need(entry: Any, key: str, where: str) -> Any:
    """The value of a key that must be there; `where` names the entry in the error."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object with {key!r}, got {str(entry)[:80]}")
    if key not in entry:
        raise ValueError(f"{where}: expected the key {key!r}, got {', '.join(map(str, entry)) or 'none'}")
    return entry[key]


def need_list(entry: Any, key: str, where: str) -> list:
    """The list under a key that must be there."""
    value = need(entry, key, where)
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list for {key!r}, got {str(value)[:80]}")
    return value


def need_id(entry: Any, key: str, where: str, kinds: type | UnionType = int | str) -> Any:
    """The id under a key that must be there, a whole number or, unless told otherwise, a name."""
    value = need(entry, key, where)
    if not isinstance(value, kinds):
        raise ValueError(f"{where}: expected an id for {key!r}, got {str(value)[:80]}")
    return value


def numbers(values: Any, shape: tuple[int, ...], where: str) -> Float[np.ndarray, "..."]:
    """Finite numbers, as many as the shape asks for, in that shape."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected numbers, got {str(values)[:80]}") from error
    if array.size != np.prod(shape):
        raise ValueError(f"{where}: expected {int(np.prod(shape))} numbers, got {array.size}")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: expected finite numbers, got {str(values)[:80]}")
    return array.reshape(shape)


def read_coco(path: pathlib.Path, protocol: Protocol) -> list[tuple[int | str, str, list[Row]]]:
    """For each image of COCO's keypoint JSON its id, its file's name and its people, in the order of the file."""
    content = read_json(path)
    names: dict[int | str, str] = {}
    sizes: dict[int | str, tuple[float, float]] = {}
    for number, image in enumerate(need_list(content, "images", str(path))):
        image_id = need_id(image, "id", f"{path}: images[{number}]")
        where = f"{path}: image {image_id}"
        if image_id in names:
            raise ValueError(f"{where}: expected each id once, got it twice")
        names[image_id] = str(need(image, "file_name", where))
        width, height = numbers([need(image, "width", where), need(image, "height", where)], (2,), where).tolist()
        sizes[image_id] = width, height
    rows: dict[int | str, list[Row]] = {image_id: [] for image_id in names}
    for number, entry in enumerate(need_list(content, "annotations", str(path))):
        where = f"{path}: annotation {need_id(entry, 'id', f'{path}: annotations[{number}]', int)}"
        image_id = need_id(entry, "image_id", where)
        if image_id not in names:
            raise ValueError(f"{where}: no image has the id {image_id!r}")
        row = _coco_row(entry, sizes[image_id], protocol, where)
        if row is not None:
            rows[image_id].append(row)
    return [(image_id, name, rows[image_id]) for image_id, name in names.items()]


def _coco_row(entry: dict[str, Any], size: tuple[float, float], protocol: Protocol, where: str) -> Row | None:
    """What is known of one annotation; None where the original leaves it out."""
    if entry.get("iscrowd") or "keypoints" not in entry or entry.get("num_keypoints") == 0:
        return None
    fields = WHOLEBODY_FIELDS if protocol.metric == "wholebody" else WHOLEBODY_FIELDS[:1]
    values = [number for field in fields for number in need_list(entry, field, where)]
    keypoints = numbers(values, (protocol.skeleton.num_keypoints, 3), f"{where}: keypoints")
    given = numbers(need(entry, "bbox", where), (4,), f"{where}: bbox")
    area = float(numbers(need(entry, "area", where), (), f"{where}: area")) if protocol.use_area else None
    box = clip_box(given, *size)
    # The original looks at the keypoints of the body alone, also of whole bodies.
    if box is None or (area is not None and area <= 0) or keypoints[: np.size(entry["keypoints"]) // 3].max() <= 0:
        return None
    return {
        "annotation_id": entry["id"],
        "category_id": need_id(entry, "category_id", where, int),
        "box": box,
        "keypoints": keypoints[:, :2],
        "visible": np.minimum(np.ceil(keypoints[:, 2]), 2),  # some whole-body points have a score there
        "area": given[2] * given[3] * BOX_TO_AREA if area is None else area,
        "head_size": np.nan,
    }


def clip_box(box: Float[np.ndarray, "4"], width: int | float, height: int | float) -> Float[np.ndarray, "4"] | None:
    """An annotated box x y w h cut off at the edges of the image, as the original does; None where nothing is left."""
    x, y, w, h = box
    left, top = max(0.0, x), max(0.0, y)
    right = min(width - 1, left + max(0.0, w - 1))
    bottom = min(height - 1, top + max(0.0, h - 1))
    return np.array([left, top, right - left, bottom - top]) if right > left and bottom > top else None


def read_mpii(
    path: pathlib.Path, protocol: Protocol, head_boxes: str | os.PathLike | None = None
) -> list[tuple[str, list[Row]]]:
    """For each image of MPII's list its name and its people, in the order of the list."""
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of people, got {str(content)[:80]}")
    count = protocol.skeleton.num_keypoints
    rows: dict[str, list[Row]] = {}
    for number, entry in enumerate(content):
        where = f"{path}: person {number}"
        center = numbers(need(entry, "center", where), (2,), f"{where}: center")
        scale = float(numbers(need(entry, "scale", where), (), f"{where}: scale"))
        if scale <= 0:
            raise ValueError(f"{where}: expected a scale above 0, got {scale}")
        # No limbs are to be cut off; the original's factor of 1.25 is the padding that all boxes get later.
        if center[0] != -1:
            center[1] += MPII_SHIFT * scale
        side = MPII_UNIT * scale
        row = {
            "annotation_id": number,
            "category_id": 1,
            "box": [*(center - 1 - side / 2), side, side],
            "keypoints": numbers(need(entry, "joints", where), (count, 2), f"{where}: joints") - 1,
            "visible": numbers(need(entry, "joints_vis", where), (count,), f"{where}: joints_vis") > 0,
            "area": side * side * BOX_TO_AREA,
            "head_size": np.nan,
        }
        rows.setdefault(str(need(entry, "image", where)), []).append(row)
    if head_boxes is not None:
        _read_heads(pathlib.Path(head_boxes), [row for of_image in rows.values() for row in of_image], count)
    return list(rows.items())


def _read_heads(path: pathlib.Path, rows: list[Row], num_keypoints: int) -> None:
    """Put the official ground truth of MPII into the rows: joints, which of them are missing, sizes of heads."""
    from scipy.io import loadmat  # jax brings SciPy; it takes a moment to import

    try:
        content = loadmat(path)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{path}: expected a MATLAB file like mpii_gt_val.mat: {error}") from error
    for name, shape in {
        "pos_gt_src": (num_keypoints, 2, len(rows)),
        "jnt_missing": (num_keypoints, len(rows)),
        "headboxes_src": (2, 2, len(rows)),
    }.items():
        found = np.shape(need(content, name, str(path)))
        if found != shape:
            raise ValueError(f"{path}: expected {name} of shape {shape} for {len(rows)} people, got {found}")
    sizes = mpii_head_sizes(np.transpose(content["headboxes_src"], (2, 0, 1)))
    for row in rows:
        person = row["annotation_id"]
        row["keypoints"] = np.asarray(content["pos_gt_src"], np.float64)[:, :, person] - 1
        row["visible"] = content["jnt_missing"][:, person] == 0
        row["head_size"] = sizes[person]


def mpii_head_sizes(corners: Num[np.ndarray, "n 2 2"]) -> Float[np.ndarray, " n"]:
    """The sizes that PCKh divides by, from two opposite corners (x, y) of the rectangle around each head."""
    return HEAD_BIAS * np.linalg.norm(np.asarray(corners[:, 1], np.float64) - corners[:, 0], axis=-1)
