"""Evaluation of a detector: its boxes of the people in a dataset's images, and how good they are.

annotations --> find_boxes (Detector.stream) --> detections --> AP, recall at a precision --> evaluation --> files

A detector takes a small part of a pose network's time: a run is not resumed but repeated.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from vitpose_jax import __version__
from vitpose_jax.bulk.detect import DETECTIONS_FILE
from vitpose_jax.bulk.report import progress_bar
from vitpose_jax.bulk.settings import hash_file
from vitpose_jax.datasets.coco import CocoAnnotations, annotated_size, read_annotations, require
from vitpose_jax.datasets.sizes import check_sizes
from vitpose_jax.detector import LABELS, Detector
from vitpose_jax.evaluation.coco_eval import check_installed
from vitpose_jax.evaluation.detection import (
    MAX_DETECTIONS,
    PERSON,
    OperatingPoint,
    box_average_precision,
    recall_at_precision,
)
from vitpose_jax.evaluation.runner import METRICS, check_images, to_json
from vitpose_jax.serving.flow import ItemError
from vitpose_jax.storage.atomic import remove_leftovers, write_whole

# Average precision needs the boxes of low scores, too; a box of a lower score than this changes nothing.
THRESHOLD = 0.05


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DetectorEvaluation:
    """The result of an evaluation of a detector.

    Attributes:
        metrics: "AP", "AP50", "AP75", "AP(S)", "AP(M)", "AP(L)" and "AR", see `box_average_precision`.
        operating_points: the recall at precisions of 0.8 and 0.9, see `recall_at_precision`.
        counts: "images", "people" and "crowds" in the annotations, "detections" and "failed_images".
        failures: (image, reason) of the images that failed; their people count as missed.
        results: COCO results.
        settings: what the numbers depend on, ready for JSON.
    """

    metrics: dict[str, float]
    operating_points: list[OperatingPoint]
    counts: dict[str, int]
    failures: list[tuple[str, str]]
    results: list[dict[str, Any]]
    settings: dict[str, Any]


def evaluate_detector(
    detector: Detector,
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    threshold: float = THRESHOLD,
    max_detections: int = MAX_DETECTIONS,
    limit: int | None = None,
    overwrite: bool = False,
    detector_name: str | None = None,
    progress: bool = False,
) -> DetectorEvaluation:
    """Find the people in all images of an annotation file and measure the boxes as COCO does.

    People without annotation count as false detections, and the people of an image that cannot be read as missed.

    Args:
        detector: knows the class "person".
        annotations: COCO's annotations: of people alone, or of all classes; a person is category 1.
        images: the folder that file names in the annotations are relative to.
        output: folder for detections.json (COCO results) and metrics.json, both written at the end.
        threshold: boxes have a higher score.
        max_detections: the most boxes in an image.
        limit: only the first images of the file; None for all.
        overwrite: replace the results in the output folder.
        detector_name: written to metrics.json.
        progress: show a bar on standard error.

    Raises:
        ValueError: if the output folder holds results and overwrite is not given; naming the file and the entry, for
            annotations without a value that the metric needs; for wrong options.
        ImportError: if faster-coco-eval is not installed.
    """
    check_installed()
    folder = None if output is None else pathlib.Path(output)
    if folder is not None and not overwrite:
        for path in (folder / DETECTIONS_FILE, folder / METRICS):
            if path.exists():
                raise ValueError(f"{folder} already holds {path.name}; overwrite it or choose another folder")
    if folder is not None:
        remove_leftovers(folder)
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 image, got {limit}")
    coco = read_annotations(annotations)
    image_ids = list(coco.images)[:limit]
    # What the annotations lack shows before the detector runs.
    _measure(coco, [], image_ids)
    results, failures = find_boxes(
        detector,
        coco,
        images,
        image_ids=image_ids,
        threshold=threshold,
        max_detections=max_detections,
        progress=progress,
    )
    metrics, points = _measure(coco, results, image_ids)
    chosen = set(image_ids)
    people = [entry for entry in coco.objects if entry.category_id == PERSON and entry.image_id in chosen]
    crowds = sum(entry.iscrowd for entry in people)
    evaluation = DetectorEvaluation(
        metrics=metrics,
        operating_points=points,
        counts={
            "images": len(image_ids),
            "people": len(people) - crowds,
            "crowds": crowds,
            "detections": len(results),
            "failed_images": len(failures),
        },
        failures=failures,
        results=results,
        settings={
            "annotations": hash_file(pathlib.Path(annotations)),
            "detector": detector_name,
            "dtype": np.dtype(detector.model.dtype).name,
            "max_batch": detector.max_batch,
            "threshold": threshold,
            "max_detections": max_detections,
            "limit": limit,
            "versions": {"vitpose_jax": __version__, "jax": jax.__version__},
        },
    )
    if folder is not None:
        _write(evaluation, folder)
    return evaluation


def find_boxes(
    detector: Detector,
    coco: CocoAnnotations,
    images: str | os.PathLike[str],
    *,
    image_ids: Iterable[int | str] | None = None,
    threshold: float = THRESHOLD,
    max_detections: int = MAX_DETECTIONS,
    progress: bool = False,
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """The people that a detector finds in the images of an annotation file.

    Args:
        detector: knows the class "person".
        coco: the annotations.
        images: the folder of the images.
        image_ids: the images to look at; None for all.
        threshold, max_detections, progress: see `evaluate_detector`.

    Returns:
        COCO results of category 1; and (image, reason) of the images that failed.

    Raises:
        ValueError: for images that are not there or have another size than annotated, an image without a file name,
            or wrong options.
    """
    folder = pathlib.Path(images)
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected the folder of the images")
    ids = list(coco.images if image_ids is None else image_ids)
    if not ids:
        raise ValueError(f"{coco.name}: expected one or more images, got none")
    paths = [folder / require(coco.images[image_id], "file_name") for image_id in ids]
    check_images(paths)
    check_sizes((path, annotated_size(coco.images[image_id])) for image_id, path in zip(ids, paths, strict=True))
    stream = detector.stream(paths, threshold=threshold, labels=LABELS, max_detections=max_detections, errors="return")
    results, failures = [], []
    for image_id, path, detections in zip(ids, paths, progress_bar(stream, len(paths), shown=progress), strict=True):
        if isinstance(detections, ItemError):
            failures.append((str(path), str(detections.__cause__ or detections)))
            continue
        results += [{**entry, "category_id": PERSON} for entry in detections.to_coco(image_id)]
    return results, failures


def _measure(
    coco: CocoAnnotations, results: list[dict[str, Any]], image_ids: list[int | str]
) -> tuple[dict[str, float], list[OperatingPoint]]:
    return (
        box_average_precision(coco, results, image_ids=image_ids),
        recall_at_precision(coco, results, image_ids=image_ids),
    )


def _write(evaluation: DetectorEvaluation, folder: pathlib.Path) -> None:
    """Write detections.json and, last, metrics.json."""
    # Old numbers must not remain beside new boxes.
    (folder / METRICS).unlink(missing_ok=True)
    write_whole(folder / DETECTIONS_FILE, to_json(evaluation.results))
    document = {
        "metrics": evaluation.metrics,
        "operating_points": [point._asdict() for point in evaluation.operating_points],
        "counts": evaluation.counts,
        "failures": [{"image": image, "reason": reason} for image, reason in evaluation.failures],
        "settings": evaluation.settings,
    }
    write_whole(folder / METRICS, to_json(document, indent=1))
