"""`detect_files`: boxes of objects in many image files, as one file of COCO results."""

import json
import os
import pathlib
from collections.abc import Callable, Iterable

from vitpose_jax.bulk.inputs import check_not_overwriting, find_images
from vitpose_jax.bulk.report import Summary, failure, log, progress_bar
from vitpose_jax.datasets.box_files import image_id_of
from vitpose_jax.detections import Detections
from vitpose_jax.detector import Detector
from vitpose_jax.draw import draw_boxes
from vitpose_jax.serving.flow import ItemError
from vitpose_jax.storage.atomic import write_png, write_whole

# COCO results, which `predict --boxes` reads.
DETECTIONS_FILE = "detections.json"


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
) -> Summary:
    """Find objects in image files and write them; `vitpose-jax detect` in Python.

    An image that cannot be read does not stop the others.

    Args:
        detector: or a function that loads one, which is called after the arguments were checked.
        images: files, folders and glob patterns.
        output: folder of the results: detections.json in the format of COCO results.
        draw: also write each image with its boxes drawn on it.
        overwrite: replace existing results.
        progress: show a progress bar on standard error.
        report: gets a message, one line, for each image that failed.
        on_detections: gets each image and its detections.

    Raises:
        ValueError: for a name without an image, a drawing that would replace an image, or results that are
            there already.
    """
    paths, folder = find_images((os.fspath(name) for name in images), report), pathlib.Path(output)
    results, drawings = folder / DETECTIONS_FILE, {path: folder / f"{path.stem}_detections.png" for path in paths}
    if results.exists() and not overwrite:
        raise ValueError(f"{results}: is there already; choose another folder, or ask to overwrite")
    if draw:
        check_not_overwriting(paths, [(drawing, path) for path, drawing in drawings.items()])
    if not isinstance(detector, Detector):
        detector = detector()
    summary, entries = Summary(paths), []
    stream = detector.stream(paths, errors="return")
    for path, detections in zip(paths, progress_bar(stream, len(paths), shown=progress), strict=True):
        if isinstance(detections, ItemError):
            summary.failed[path] = str(detections.__cause__)
            report(failure(path, detections.__cause__))
            continue
        entries += detections.to_coco(image_id_of(path))
        if draw:
            write_png(drawings[path], draw_boxes(path, detections.boxes, detections.names, detections.scores))
        summary.written.append(path)
        if on_detections is not None:
            on_detections(path, detections)
    write_whole(results, (json.dumps(entries, indent=1) + "\n").encode())
    return summary
