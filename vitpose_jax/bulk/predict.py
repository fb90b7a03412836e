"""`predict_files`: poses of many image files, written as they come."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils
from numpy.typing import ArrayLike

from vitpose_jax.bulk.inputs import find_images
from vitpose_jax.bulk.report import Summary, log
from vitpose_jax.bulk.results import Format, PoseResults
from vitpose_jax.bulk.settings import detector_settings, estimator_settings, hash_file
from vitpose_jax.datasets.box_files import BoxFile, ImageBoxes, image_id_of
from vitpose_jax.datasets.sizes import check_sizes
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.pipeline.postprocess import Decode
from vitpose_jax.pipeline.regions import check_boxes
from vitpose_jax.poses import Poses
from vitpose_jax.serving.requests import WHOLE_IMAGE, DatasetKey, plain


def predict_files(
    estimator: PoseEstimator | Callable[[], PoseEstimator],
    images: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike,
    *,
    boxes: BoxFile | str | os.PathLike | ArrayLike | None = None,
    whole_image: bool = False,
    format: Format = "json",
    draw: bool = False,
    drawing: Mapping[str, Any] | None = None,
    dataset: DatasetKey = None,
    flip_test: bool = False,
    decode: Decode = "udp",
    overwrite: bool = False,
    progress: bool = False,
    report: Callable[[str], None] = log,
    on_poses: Callable[[pathlib.Path, Poses], None] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Summary:
    """Estimate the poses in image files and write them; `vitpose-jax predict` in Python.

    Images whose results are in the folder already are skipped. An image that cannot be read does not stop the others.
    The folder also gets settings.jsonl: what the results depend on. A run with other settings is refused, unless it
    overwrites.

    With `jax.distributed` initialised, every process calls this with the same arguments and a folder that all share.
    Each takes its part of the images, on the devices of its estimator, which must be its own (`jax.local_devices()`);
    its summary is of this part.

    Args:
        estimator: or a function that loads one: it is called only if there is something to do.
        images: files, folders and glob patterns.
        output: folder of the results.
        boxes: for all images, (n, 4) x y w h in pixels; or a file of boxes or its path, in one of the layouts of
            datasets/box_layouts.py; what it leaves out is reported. With None the estimator's detector finds the boxes.
        whole_image: each whole image is one box.
        format: "json", "openpose" or "yolo", one file for each image; "coco", one file for all.
        draw: also write each image with its poses drawn on it.
        drawing: keyword arguments of `draw_poses`, such as {"threshold": 0.5}; with "numbers": True, the labels are the
            numbers of the people.
        dataset, flip_test, decode: see `PoseEstimator`.
        overwrite: replace existing results.
        progress: show a progress bar on standard error.
        report: gets each message, one line: what is skipped, what failed.
        on_poses: gets each image and its poses, after their results were written.
        settings: more values for settings.jsonl, ready for JSON, that the results depend on: with a function that loads
            the estimator, what names its model.

    Raises:
        ValueError: for a name without an image, a result that would replace an image, a file of boxes that cannot be
            read or has no box for any of the images, boxes beside `whole_image`, options that every image would fail
            on, or results with other settings in the folder, naming what differs; for "coco" in several processes.
    """
    paths = find_images((os.fspath(name) for name in images), report)
    if whole_image and boxes is not None:
        raise ValueError("expected boxes or whole_image, got both")
    if isinstance(boxes, str | os.PathLike):
        boxes = BoxFile(pathlib.Path(boxes))
    if isinstance(boxes, BoxFile):
        for message in boxes.check(paths):
            report(message)
        image_boxes = {path: boxes[path] for path in paths}
    else:
        rows = None if boxes is None else check_boxes(boxes).tolist()
        image_boxes = {path: ImageBoxes(image_id_of(path), rows) for path in paths}
    results = PoseResults(pathlib.Path(output), format, draw=draw, drawing=drawing or {}, overwrite=overwrite)
    results.check_not_overwriting(paths)
    record: dict[str, Any] = {
        "format": format,
        "boxes": _describe(boxes, whole_image=whole_image),
        "dataset": plain(dataset),
        "flip_test": flip_test,
        "decode": str(decode),
        **(settings or {}),
    }
    if isinstance(estimator, PoseEstimator):
        record |= estimator_settings(estimator)
        if boxes is None and not whole_image:
            record |= detector_settings(estimator.detector)
    todo, summary = results.start(record, paths, report)
    if not todo:
        return summary
    if not isinstance(estimator, PoseEstimator):
        estimator = estimator()
    # What would fail for every image fails once, before the first.
    results.check(estimator.config.skeleton(plain(dataset)))
    if jax.process_count() > 1:
        todo = _take_part(results, todo, format)
    if isinstance(boxes, BoxFile):
        _report_sizes(boxes, todo, report)
    stream = estimator.stream(
        ((path, WHOLE_IMAGE if whole_image else image_boxes[path].boxes) for path in todo),
        dataset=dataset,
        flip_test=flip_test,
        decode=decode,
        errors="return",
    )

    def add(path: pathlib.Path, poses: Poses) -> None:
        results.add(path, image_boxes[path], poses)

    results.run(todo, stream, summary, report, add=add, then=on_poses, progress=progress)
    return summary


def _take_part(results: PoseResults, todo: list[pathlib.Path], format: Format) -> list[pathlib.Path]:
    """The images of this process. No process writes before all know what is done and the settings are written."""
    if format == "coco":
        raise ValueError("format: expected one with a file for each image in several processes, got 'coco'")
    multihost_utils.sync_global_devices("what is done is known")
    if jax.process_index() == 0:
        results.begin_writing()
    multihost_utils.sync_global_devices("settings are written")
    return todo[jax.process_index() :: jax.process_count()]


def _report_sizes(boxes: BoxFile, paths: list[pathlib.Path], report: Callable[[str], None]) -> None:
    """Say if images have another size than the file of boxes says: turned by EXIF, or resized since."""
    try:
        check_sizes((path, boxes.size(path)) for path in paths)
    except ValueError as error:
        report(f"warning: {boxes.path}: {error}")


def _describe(boxes: BoxFile | ArrayLike | None, *, whole_image: bool) -> str | dict[str, Any] | None:
    """What the settings say about boxes: a hash of a file or of numbers, and which of a file's boxes are used."""
    if whole_image:
        return "whole image"
    if boxes is None:
        return "detector"
    if isinstance(boxes, BoxFile):
        return {"file": hash_file(boxes.path), "category": boxes.category, "min_score": boxes.min_score}
    return hashlib.sha256(check_boxes(boxes).tobytes()).hexdigest()
