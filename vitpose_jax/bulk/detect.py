"""`detect_files`: boxes of objects in many image files, as one file of COCO results, written as they come."""

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from vitpose_jax.bulk.inputs import find_images
from vitpose_jax.bulk.report import Summary, log
from vitpose_jax.bulk.results import DETECTIONS_FILE as DETECTIONS_FILE
from vitpose_jax.bulk.results import DetectionResults
from vitpose_jax.bulk.settings import detector_settings
from vitpose_jax.detections import Detections
from vitpose_jax.detector import Detector


def detect_files(
    detector: Detector | Callable[[], Detector],
    images: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike,
    *,
    draw: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    report: Callable[[str], None] = log,
    on_detections: Callable[[pathlib.Path, Detections], None] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Summary:
    """Find objects in image files and write them; `vitpose-jax detect` in Python.

    Images whose results are in the folder already are skipped. An image that cannot be read does not stop the others.
    The folder also gets settings.jsonl: what the results depend on. A run with other settings is refused, unless it
    overwrites.

    Args:
        detector: or a function that loads one: it is called only if there is something to do.
        images: files, folders and glob patterns.
        output: folder of the results: detections.json in the format of COCO results.
        draw: also write each image with its boxes drawn on it.
        overwrite: replace existing results.
        progress: show a progress bar on standard error.
        report: gets a message, one line, for each image that failed.
        on_detections: gets each image and its detections.
        settings: more values for settings.jsonl, ready for JSON, that the results depend on: with a function that loads
            the detector, what names its model.

    Raises:
        ValueError: for a name without an image, a result that would replace an image, or results with other settings
            in the folder, naming what differs.
    """
    paths = find_images((os.fspath(name) for name in images), report)
    results = DetectionResults(pathlib.Path(output), draw=draw, overwrite=overwrite)
    results.check_not_overwriting(paths)
    record: dict[str, Any] = {"format": "detections", **(settings or {})}
    if isinstance(detector, Detector):
        record |= detector_settings(detector) | {"dtype": np.dtype(detector.model.dtype).name}
    todo, summary = results.start(record, paths, report)
    if not todo:
        return summary
    if not isinstance(detector, Detector):
        detector = detector()
    stream = detector.stream(todo, errors="return")
    results.run(todo, stream, summary, report, add=results.add, then=on_detections, progress=progress)
    return summary
