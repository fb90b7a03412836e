"""How good a detector's boxes of one class are: COCO's average precision, and recall at a wanted precision.

    annotations (file, dict or as read) --> objects of the class --+--> faster-coco-eval --> AP, AR
    results (list of dicts) ------------------> boxes of the class -+--> match_boxes --> recall at a precision

Boxes are x y w h in pixels. Crowds are as in COCO: finding one is neither right nor wrong, and missing it is no miss.
Every object of the class must be annotated: a box around an object without annotation is a false one. Numbers are from
0 to 1; -1, as in COCO, means that the annotations have nothing to measure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from vitpose_jax.datasets.coco import CocoAnnotations, CocoObject, Source, read_annotations, read_results, require
from vitpose_jax.evaluation.coco_eval import compute_statistics, number_images
from vitpose_jax.overlaps import box_intersections, ratio

Annotations: TypeAlias = CocoAnnotations | Source
"""Annotations that have been read, an annotation file, or its parsed content."""
Results: TypeAlias = Sequence[Mapping[str, Any]]

# The `category_id` of a person in COCO.
PERSON = 1
# The most detections that count in an image, the highest-scoring: COCO's number.
MAX_DETECTIONS = 100
# The names of faster-coco-eval's numbers; AR with 1 and 10 detections, and by size, are left out.
STATISTICS = ("AP", "AP50", "AP75", "AP(S)", "AP(M)", "AP(L)", "", "", "AR")
# A tall object is higher than this fraction of its image.
TALL = 0.25
# A box finds an object with at least this intersection over union.
MATCH_IOU = 0.5

FALSE, IGNORED = -1, -2
"""In place of the index of an object: the box finds none, or a crowd."""


class OperatingPoint(NamedTuple):
    """A detector at the threshold with the highest recall of those with at least a precision.

    Attributes:
        min_precision: the wanted precision.
        threshold: the boxes are those with at least this score; None if no threshold is precise enough.
        precision: the fraction of these boxes that find an object; None without a threshold.
        recall: the fraction of the objects that are found; 0 without a threshold, -1 without objects.
        recall_tall: the same of the objects that are higher than a quarter of their image.
    """

    min_precision: float
    threshold: float | None
    precision: float | None
    recall: float
    recall_tall: float


def box_average_precision(
    annotations: Annotations,
    results: Results,
    *,
    category: int = PERSON,
    image_ids: Iterable[int | str] | None = None,
) -> dict[str, float]:
    """COCO's AP and AR of boxes, of one class.

    Args:
        annotations: as read, the annotation file, or its content; objects need "bbox" and "area".
        results: dicts with "image_id", "category_id", "bbox" and "score", as from `Detections.to_coco`. At most 100
            count in an image.
        category: the `category_id` of the class; objects and results of others do not count.
        image_ids: the images to evaluate on; None for all.

    Returns:
        "AP", "AP50", "AP75", "AP(S)" (objects of less than 32^2 square pixels), "AP(M)" (32^2 to 96^2), "AP(L)"
        (larger), and "AR", the recall with 100 detections, averaged over thresholds as AP is.

    Raises:
        ImportError: if faster-coco-eval is not installed.
        ValueError: naming the file and the entry, if a value is missing or not finite, or an image is unknown.
    """
    objects, boxes = _group(annotations, results, category, image_ids)
    numbers = number_images(objects)
    targets, detections = [], []
    for image_id, number in numbers.items():
        shared = {"image_id": number, "category_id": category}
        targets += [
            {
                **shared,
                "bbox": require(entry, "bbox").tolist(),
                "area": require(entry, "area"),
                "iscrowd": int(entry.iscrowd),
            }
            for entry in objects[image_id]
        ]
        detections += [
            {**shared, "bbox": box.tolist(), "area": float(box[2:].prod()), "score": entry.score}
            for entry, box in zip(boxes[image_id], _stack(boxes[image_id]), strict=True)
        ]
    if all(target["iscrowd"] for target in targets):
        return {name: -1.0 for name in STATISTICS if name}
    for rows in (targets, detections):
        for number, row in enumerate(rows, 1):
            row["id"] = number
    statistics = compute_statistics("bbox", numbers.values(), [category], targets, detections)
    return {name: value for name, value in zip(STATISTICS, statistics, strict=False) if name}


def recall_at_precision(
    annotations: Annotations,
    results: Results,
    min_precisions: Sequence[float] = (0.8, 0.9),
    *,
    category: int = PERSON,
    image_ids: Iterable[int | str] | None = None,
) -> list[OperatingPoint]:
    """The highest recall of a detector whose boxes must have a precision; boxes match at an IoU of 0.5.

    Args:
        annotations, results, category, image_ids: as in `box_average_precision`; images need a "height".
        min_precisions: the wanted precisions.

    Raises:
        ValueError: as `box_average_precision`.
    """
    annotations = _read(annotations)
    objects, boxes = _group(annotations, results, category, image_ids)
    scores, correct, correct_tall, total, total_tall = [], [], [], 0, 0
    for image_id, entries in objects.items():
        people = [entry for entry in entries if not entry.iscrowd]
        height = require(annotations.images[image_id], "height") if people else 0
        tall = np.array([require(entry, "bbox")[3] > TALL * height for entry in people], bool)
        crowds = [entry for entry in entries if entry.iscrowd]
        matches = match_boxes(
            _stack(boxes[image_id]),
            _stack([*people, *crowds]),
            np.arange(len(entries)) >= len(people),
        )
        counted = matches != IGNORED
        scores += [entry.score for entry, counts in zip(boxes[image_id], counted, strict=True) if counts]
        correct += (matches[counted] >= 0).tolist()
        correct_tall += [index >= 0 and bool(tall[index]) for index in matches[counted]]
        total, total_tall = total + len(people), total_tall + int(tall.sum())
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    falling = np.asarray(scores, np.float64)[order]
    # The last row of each score: boxes of equal scores pass a threshold together.
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)[: len(falling)])
    right, right_tall = (np.cumsum(np.asarray(rows, np.int64)[order])[last] for rows in (correct, correct_tall))
    precision = right / (last + 1)
    points = []
    for wanted in min_precisions:
        rows = np.flatnonzero(precision >= wanted)
        # Of equal recalls the first, with the highest precision.
        row = rows[right[rows].argmax()] if len(rows) else None
        points.append(
            OperatingPoint(
                min_precision=float(wanted),
                threshold=None if row is None else float(falling[last[row]]),
                precision=None if row is None else float(precision[row]),
                recall=_fraction(right, row, total),
                recall_tall=_fraction(right_tall, row, total_tall),
            )
        )
    return points


def match_boxes(
    boxes: Float[np.ndarray, "n 4"], objects: Float[np.ndarray, "m 4"], crowd: Bool[np.ndarray, " m"]
) -> Int[np.ndarray, " n"]:
    """The object that each box finds, matched as in COCO's evaluation at an IoU of 0.5.

    Each box, the first one first, takes the object that it overlaps most of those that no earlier box took. A box that
    overlaps none of them enough, but covers a crowd with half of its own area, is ignored.

    Args:
        boxes: x y w h, by falling score.
        objects: x y w h.
        crowd: which objects are crowds.

    Returns:
        for each box the index of its object, `FALSE` or `IGNORED`.
    """
    shared, areas, object_areas = box_intersections(boxes, objects)
    overlaps = ratio(shared, np.where(crowd, areas[:, None], areas[:, None] + object_areas - shared))
    matches = np.full(len(boxes), FALSE)
    free = ~crowd
    for row, overlap in enumerate(overlaps):
        candidates = np.where(free, overlap, -1.0)
        best = int(candidates.argmax()) if len(candidates) else FALSE
        if best != FALSE and candidates[best] >= MATCH_IOU:
            matches[row], free[best] = best, False
        elif (overlap[crowd] >= MATCH_IOU).any():
            matches[row] = IGNORED
    return matches


def _read(annotations: Annotations) -> CocoAnnotations:
    return annotations if isinstance(annotations, CocoAnnotations) else read_annotations(annotations)


def _group(
    annotations: Annotations, results: Results, category: int, image_ids: Iterable[int | str] | None
) -> tuple[dict[int | str, list[CocoObject]], dict[int | str, list[CocoObject]]]:
    """The objects and the boxes of the class in each chosen image; boxes by falling score, at most 100."""
    annotations = _read(annotations)
    chosen = list(annotations.images if image_ids is None else dict.fromkeys(image_ids))
    for image_id in chosen:
        if image_id not in annotations.images:
            raise ValueError(f"image_ids: expected images of the annotations, got {image_id!r}")
    objects: dict[int | str, list[CocoObject]] = {image_id: [] for image_id in chosen}
    boxes: dict[int | str, list[CocoObject]] = {image_id: [] for image_id in chosen}
    for entry in annotations.objects:
        if require(entry, "category_id") == category and entry.image_id in objects:
            objects[entry.image_id].append(entry)
    for entry in read_results(results, "results", image_ids=annotations.images):
        if entry.image_id not in annotations.images:
            raise ValueError(f"{entry.where}: expected an image of the annotations, got {entry.image_id!r}")
        if require(entry, "category_id") == category and entry.image_id in boxes:
            require(entry, "bbox")
            boxes[entry.image_id].append(entry)
    for entries in boxes.values():
        entries.sort(key=lambda entry: -require(entry, "score"))
        del entries[MAX_DETECTIONS:]
    return objects, boxes


def _stack(entries: Sequence[CocoObject]) -> Float[np.ndarray, "n 4"]:
    return np.asarray([require(entry, "bbox") for entry in entries], np.float64).reshape(-1, 4)


def _fraction(counts: Int[np.ndarray, " thresholds"], row: int | np.integer | None, total: int) -> float:
    """The recall at a threshold."""
    if total == 0:
        return -1.0
    return 0.0 if row is None else int(counts[row]) / total
