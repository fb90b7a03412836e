"""Poses in the boxes that a detector finds in the same run, alone or beside those in the annotated boxes.

dataset with the annotated boxes --+--------------------------------------------------> evaluate --> "annotated"
                                   +--> detect_dataset --> dataset with found boxes --> evaluate --> "detected"
"""

import dataclasses
import os
import pathlib
from typing import Any

from vitpose_jax.bulk.detect import DETECTIONS_FILE
from vitpose_jax.datasets.dataset import Dataset, read_dataset
from vitpose_jax.datasets.protocols import Protocol
from vitpose_jax.detector import Detector
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.evaluation.detection import PERSON
from vitpose_jax.evaluation.detector_runner import THRESHOLD, find_boxes
from vitpose_jax.evaluation.runner import Evaluation, check_estimator, check_output, evaluate, to_json
from vitpose_jax.evaluation.scoring import check_scorable
from vitpose_jax.storage.atomic import write_whole

# Boxes of a lower score are many, and their poses change AP little: the score of a box enters that of its pose.
MIN_SCORE = 0.1
ANNOTATED, DETECTED = "annotated", "detected"


def check_detectable(protocol: Protocol) -> None:
    """Check that a dataset is one of people, whose boxes a detector can find.

    Raises:
        ValueError: naming the dataset.
    """
    if protocol.format == "mpii":
        raise ValueError(f"{protocol.name} is evaluated in its annotated boxes, got a detector")
    if protocol.category != PERSON:
        raise ValueError(f"{protocol.name}: expected a dataset of people for a detector of people; give detections")


def detect_dataset(
    detector: Detector,
    dataset: Dataset,
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    min_score: float = MIN_SCORE,
    resume: bool = False,
    overwrite: bool = False,
    detector_name: str | None = None,
    progress: bool = False,
) -> Dataset:
    """Find the people in all images of a dataset, and read it with their boxes, for `evaluate`.

    Args:
        detector: knows the class "person".
        dataset: from `read_dataset`, with the annotated boxes.
        images: the folder of the images, as for `read_dataset`.
        output: the folder that `evaluate` will write to. It gets detections.json (COCO results), with the boxes of
            lower scores, too.
        min_score: leave out boxes with a lower score.
        resume: detect again and check that the boxes are those of the run to resume.
        overwrite: replace detections.json.
        detector_name: written to metrics.json.
        progress: show a bar on standard error.

    Returns:
        the dataset; its `failures` are the images that could not be read.

    Raises:
        ValueError: if the output folder holds results and neither resume nor overwrite is given; if the boxes are
            not those of the run to resume; for a dataset of animals or MPII; if nothing is found; as `read_dataset`.
    """
    check_detectable(dataset.protocol)
    if dataset.coco is None or dataset.detections is not None:
        raise ValueError(f"dataset: expected one with the annotated boxes, got those of {dataset.detections}")
    path = pathlib.Path(output) / DETECTIONS_FILE
    _check_folder(path.parent, resume=resume, overwrite=overwrite)
    results, failures = find_boxes(
        detector, dataset.coco, images, threshold=min(THRESHOLD, min_score), progress=progress
    )
    content = to_json(results)
    if resume and path.exists() and path.read_bytes() != content:
        raise ValueError(f"{path}: cannot resume with other boxes; the detector found others before")
    write_whole(path, content)
    detected = read_dataset(dataset.protocol, dataset.annotations, images, detections=path, min_score=min_score)
    return dataclasses.replace(detected, detector=detector_name, failures=tuple(failures))


def compare_boxes(
    estimator: PoseEstimator,
    detector: Detector,
    dataset: Dataset,
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    min_score: float = MIN_SCORE,
    resume: bool = False,
    overwrite: bool = False,
    detector_name: str | None = None,
    progress: bool = False,
    **options: Any,
) -> dict[str, Evaluation]:
    """Measure poses in the annotated boxes and in those of a detector.

    Args:
        estimator: as for `evaluate`.
        detector, dataset, images, min_score, detector_name: as for `detect_dataset`.
        output: folder for the results, in its folders annotated and detected.
        resume, overwrite, progress: as for `evaluate`.
        options: for `evaluate`: flip_test, decode, oks_nms, keypoint_threshold, nms_threshold, model_name. No limit:
            the first images with annotated people and the first with detections are not the same.

    Returns:
        the evaluations, by "annotated" and "detected".

    Raises:
        ValueError: as `detect_dataset` and `evaluate`; for a limit.
    """
    if options.get("limit") is not None:
        raise ValueError("limit: expected none for a comparison of boxes, whose first images are not the same")
    folders = {name: pathlib.Path(output) / name for name in (ANNOTATED, DETECTED)}
    flow = {"resume": resume, "overwrite": overwrite, "progress": progress}
    # Mistakes show before the long run.
    check_estimator(estimator, dataset.protocol)
    check_scorable(dataset)
    check_output(folders[ANNOTATED], resume=resume, overwrite=overwrite)
    detected = detect_dataset(
        detector, dataset, images, folders[DETECTED], min_score=min_score, detector_name=detector_name, **flow
    )
    return {
        name: evaluate(estimator, boxes, output=folders[name], **flow, **options)
        for name, boxes in ((ANNOTATED, dataset), (DETECTED, detected))
    }


def _check_folder(folder: pathlib.Path, *, resume: bool, overwrite: bool) -> None:
    """Check that the folder holds no results, unless they are resumed or overwritten."""
    check_output(folder, resume=resume, overwrite=overwrite)
    if (folder / DETECTIONS_FILE).exists() and not (resume or overwrite):
        raise ValueError(f"{folder} already holds {DETECTIONS_FILE}; resume it, overwrite it or choose another folder")
