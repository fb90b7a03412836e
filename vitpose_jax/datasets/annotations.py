"""From annotation files to annotated people, as the original ViTPose repository selects and prepares them.

COCO's JSON  -> coco.read_annotations -> coco_people --+
MPII's list  -> read_mpii -------------------------------> for each image its `Person`s
"""

import logging
import os
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from vitpose_jax.datasets.coco import CocoAnnotations, CocoImage, CocoObject, require
from vitpose_jax.datasets.fields import need, read_json, shorten, to_number, to_numbers
from vitpose_jax.datasets.matlab import read_arrays
from vitpose_jax.datasets.protocols import Protocol

_log = logging.getLogger(__name__)

# The fraction of its box that a person covers, if annotations have no area.
BOX_TO_AREA = 0.53
# The keypoints of COCO's body, which come first in a whole body.
BODY = 17
# MPII: the side of a region of scale 1, and how far the region is moved down, in pixels.
MPII_UNIT = 200.0
MPII_SHIFT = 15.0
# MPII: the size of a head is this times the diagonal of its rectangle.
HEAD_BIAS = 0.6


class Person(NamedTuple):
    """One annotated person or animal: a row of `dataset.People`, which describes the fields."""

    annotation_id: int
    category_id: int
    box: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray
    area: float
    head_size: float = np.nan


def coco_people(annotations: CocoAnnotations, protocol: Protocol) -> dict[int | str, list[Person]]:
    """The people of every image, by image id, in the order of the file.

    Crowds, objects without a labelled keypoint and boxes without area are left out. A message says how many people with
    keypoints are left out for their area.

    Raises:
        ValueError: naming the file and the entry, if a needed value is missing, or an annotation's image is unknown.
    """
    for image in annotations.images.values():
        for key in ("file_name", "width", "height"):
            require(image, key)
    people: dict[int | str, list[Person]] = {image_id: [] for image_id in annotations.images}
    labelled = without_area = 0
    for annotation in annotations.objects:
        require(annotation, "id")
        if annotation.image_id not in people:
            raise ValueError(f"{annotation.where}: no image has the id {annotation.image_id!r}")
        person = _coco_person(annotation, annotations.images[annotation.image_id], protocol)
        if person is not None:
            people[annotation.image_id].append(person)
        labelled += person is not None
        without_area += person is None and _is_labelled(annotation, protocol)
    if without_area:
        _log.warning(
            "%s: left out %d of %d people whose area is 0, or whose box has no area in its image",
            annotations.name,
            without_area,
            labelled + without_area,
        )
    return people


def _is_labelled(annotation: CocoObject, protocol: Protocol) -> bool:
    """Whether an annotation is of a single person with a labelled keypoint."""
    if annotation.iscrowd or annotation.keypoints is None or annotation.num_keypoints == 0:
        return False
    # The original looks at the keypoints of the body alone, also for whole bodies.
    body = annotation.keypoints[:BODY] if protocol.metric == "wholebody" else annotation.keypoints
    return bool(body.max() > 0)


def _coco_person(annotation: CocoObject, image: CocoImage, protocol: Protocol) -> Person | None:
    """The person of one annotation; None if the original leaves it out."""
    if annotation.keypoints is None or not _is_labelled(annotation, protocol):
        return None
    bbox = require(annotation, "bbox")
    area = require(annotation, "area") if protocol.use_area else bbox[2] * bbox[3] * BOX_TO_AREA
    box = clip_box(bbox, require(image, "width"), require(image, "height"))
    if box is None or area <= 0:
        return None
    return Person(
        annotation_id=require(annotation, "id"),
        category_id=require(annotation, "category_id"),
        box=box,
        keypoints=annotation.keypoints[:, :2],
        visible=np.ceil(annotation.keypoints[:, 2]).clip(0, 2),  # some whole-body points have a score there
        area=area,
    )


def clip_box(box: Float[np.ndarray, "4"], width: int | float, height: int | float) -> Float[np.ndarray, "4"] | None:
    """An annotated box x y w h cut off at the edges of the image, as in the original; None if nothing is left."""
    x, y, w, h = box
    left, top = max(0.0, x), max(0.0, y)
    right = min(width - 1, left + max(0.0, w - 1))
    bottom = min(height - 1, top + max(0.0, h - 1))
    return np.array([left, top, right - left, bottom - top]) if right > left and bottom > top else None


def read_mpii(
    path: pathlib.Path, protocol: Protocol, head_boxes: str | os.PathLike | None = None
) -> dict[str, list[Person]]:
    """The people of every image of MPII's list, by the image's file name, in the order of the list.

    Args:
        path: the list of people, JSON.
        protocol: MPII's.
        head_boxes: the official `mpii_gt_val.mat`; its people are in the order of the list.

    Raises:
        ValueError: naming the file and the person, if a value is missing or has a wrong type or size.
        OSError: if a file cannot be read.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of people, got {shorten(content)}")
    count = protocol.skeleton.num_keypoints
    names, people = [], []
    for index, entry in enumerate(content):
        where = f"{path}: person {index}"
        center = to_numbers(need(entry, "center", where), (2,), f"{where}: center")
        scale = to_number(need(entry, "scale", where), f"{where}: scale")
        if scale <= 0:
            raise ValueError(f"{where}: expected a scale above 0, got {scale}")
        # The shift keeps limbs inside; the original's factor 1.25 is the padding that all boxes get later.
        if center[0] != -1:
            center[1] += MPII_SHIFT * scale
        side = MPII_UNIT * scale
        names.append(str(need(entry, "image", where)))
        people.append(
            Person(
                annotation_id=index,
                category_id=1,
                box=np.array([*(center - 1 - side / 2), side, side]),
                keypoints=to_numbers(need(entry, "joints", where), (count, 2), f"{where}: joints") - 1,
                visible=to_numbers(need(entry, "joints_vis", where), (count,), f"{where}: joints_vis") > 0,
                area=side * side * BOX_TO_AREA,
            )
        )
    if head_boxes is not None:
        people = _with_heads(pathlib.Path(head_boxes), people, count)
    groups: dict[str, list[Person]] = {}
    for name, person in zip(names, people, strict=True):
        groups.setdefault(name, []).append(person)
    return groups


def _with_heads(path: pathlib.Path, people: list[Person], num_keypoints: int) -> list[Person]:
    """The people with MPII's official ground truth: keypoints, which of them are labelled, sizes of heads."""
    truth = _read_ground_truth(path, num_keypoints, len(people))
    sizes = mpii_head_sizes(np.transpose(truth["headboxes_src"], (2, 0, 1)))
    return [
        person._replace(
            keypoints=np.asarray(truth["pos_gt_src"], np.float64)[:, :, index] - 1,
            visible=truth["jnt_missing"][:, index] == 0,
            head_size=sizes[index],
        )
        for index, person in enumerate(people)
    ]


def _read_ground_truth(path: pathlib.Path, num_keypoints: int, count: int) -> dict[str, np.ndarray]:
    """The arrays of `mpii_gt_val.mat`, with people on the last axis; pixels count from 1."""
    shapes = {
        "pos_gt_src": (num_keypoints, 2, count),
        "jnt_missing": (num_keypoints, count),
        "headboxes_src": (2, 2, count),
    }
    arrays = read_arrays(path, shapes)
    for name, shape in shapes.items():
        if name not in arrays:
            raise ValueError(f"{path}: expected {name}, as in mpii_gt_val.mat, got {', '.join(arrays) or 'none'}")
        if arrays[name].shape != shape:
            raise ValueError(f"{path}: expected {name} of shape {shape} for {count} people, got {arrays[name].shape}")
    return arrays


def mpii_head_sizes(corners: Num[np.ndarray, "n 2 2"]) -> Float[np.ndarray, " n"]:
    """The sizes in pixels that PCKh divides by, from two opposite corners (x, y) of the rectangle around each head."""
    return HEAD_BIAS * np.linalg.norm(np.asarray(corners[:, 1], np.float64) - corners[:, 0], axis=-1)
