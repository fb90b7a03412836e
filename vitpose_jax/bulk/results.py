"""The files that `predict_files` and `detect_files` write, and which of them exist already.

An image is done if its results are on the disk: what says so is written after them. Settings come first:

settings.jsonl           what the results depend on
NAME_poses.png           drawing
NAME.json                results of one image, NAME.txt for YOLO; that it exists says that the image is done
keypoints.json           or the results of all images, written every few seconds and at the end
keypoints.images.json    and after it, which images are done

For boxes: detections.settings.jsonl, NAME_detections.png, detections.json, detections.images.json.
"""

import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from vitpose_jax.bulk.inputs import check_not_overwriting
from vitpose_jax.bulk.report import Summary, failure, progress_bar
from vitpose_jax.bulk.settings import SETTINGS_FILE, check_settings, find_settings, settings_differ, write_settings
from vitpose_jax.datasets.box_files import ImageBoxes, image_id_of
from vitpose_jax.datasets.fields import read_json
from vitpose_jax.detections import Detections
from vitpose_jax.draw import draw_boxes, draw_poses
from vitpose_jax.images import ImageLike, read_size
from vitpose_jax.interop.yolo import write_yolo
from vitpose_jax.poses import Poses
from vitpose_jax.serving.flow import ItemError
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage.atomic import remove_leftovers, write_png, write_whole

Format: TypeAlias = Literal["json", "coco", "openpose", "yolo"]
Result = TypeVar("Result")

COCO_FILE = "keypoints.json"
# Of the names of the files of one image, in all formats.
_ENDS = (".json", "_keypoints.json")
# COCO results, which `predict --boxes` reads.
DETECTIONS_FILE = "detections.json"
DETECTIONS_SETTINGS_FILE = "detections.settings.jsonl"
# The file of all images is written again this many seconds after the last time, and so that writing takes at most this
# fraction of the time.
WRITE_SECONDS = 5.0
WRITE_FRACTION = 0.1


class Results:
    """What results of poses and of boxes share: one file for each image, or one for all images, and drawings.

    Args:
        folder: of the results; created when first needed. Temporary files of killed runs in it are deleted.
        settings: name of the record of the settings.
        shared: name of the file of all images; None for one file for each image.
        drawings: end of the names of drawings.
        draw: also write each image with its results drawn on it.
        overwrite: count no image as done. Results of other images stay if they have the same settings.

    Raises:
        ValueError: if a file of all images cannot be read.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        settings: str,
        shared: str | None,
        drawings: str,
        *,
        draw: bool,
        overwrite: bool,
    ):
        self._folder, self._drawings, self._draw, self._overwrite = folder, drawings, draw, overwrite
        self._record = folder / settings
        self._settings: Mapping[str, Any] | None = None
        self._images: list[pathlib.Path] = []
        self._unwritten, self._next_write = False, time.monotonic() + WRITE_SECONDS
        remove_leftovers(folder)
        self._shared = None if shared is None else folder / shared
        # Beside it, the names of all images that it covers, also those without people.
        self._covered = folder / shared.replace(".json", ".images.json") if shared is not None else None
        self._entries: dict[str, list[dict[str, Any]]] = {}
        if self._shared is not None and self._covered is not None:
            self._entries = _read_entries(self._shared, self._covered, self._record)

    def start(
        self, settings: Mapping[str, Any], paths: list[pathlib.Path], report: Callable[[str], None]
    ) -> tuple[list[pathlib.Path], Summary]:
        """Check that the results in the folder have these settings; with overwrite those of `paths` may have others.

        The settings are written before the first result.

        Returns:
            the images that are not done, and the summary at the start.

        Raises:
            ValueError: naming what differs.
        """
        self._check_settings(settings, paths)
        self._settings, self._images = settings, paths
        todo = [path for path in paths if not self.done(path)]
        remaining = set(todo)
        summary = Summary(paths, skipped=[path for path in paths if path not in remaining])
        if summary.skipped:
            report(f"{len(summary.skipped)} of {len(paths)} images are done already; overwrite replaces them")
        return todo, summary

    def run(
        self,
        paths: list[pathlib.Path],
        stream: Iterable[Result | ItemError],
        summary: Summary,
        report: Callable[[str], None],
        *,
        add: Callable[[pathlib.Path, Result], None],
        then: Callable[[pathlib.Path, Result], None] | None,
        progress: bool,
    ) -> None:
        """Add the result of each image; failures are reported. The results are complete at the end, however it comes.

        Args:
            paths, stream: images and their results.
            summary: is filled.
            report: gets a message for each image that failed.
            add: writes the result of an image.
            then: is called after that.
            progress: show a progress bar on standard error.
        """
        try:
            for path, result in zip(paths, progress_bar(stream, len(paths), shown=progress), strict=True):
                if isinstance(result, ItemError):
                    summary.failed[path] = str(result.__cause__)
                    report(failure(path, result.__cause__))
                    continue
                add(path, result)
                summary.written.append(path)
                if then is not None:
                    then(path, result)
        finally:
            self.finish()

    def _check_settings(self, settings: Mapping[str, Any], paths: list[pathlib.Path]) -> None:
        if not self._overwrite:
            has_results = bool(self._entries) or any(self.done(path) for path in paths)
            check_settings(self._record, settings, has_results=has_results)
        elif settings_differ(self._record, settings):
            replaced = self._documents(paths)
            for path in sorted(self._documents()):
                if path not in replaced:
                    raise ValueError(
                        f"{path}: is of an image that is not in this run, and has other settings; "
                        "choose another folder, or overwrite all results"
                    )

    def check_not_overwriting(self, paths: list[pathlib.Path]) -> None:
        """Check that no result would replace one of the images, or the settings.

        Raises:
            ValueError: naming the image.
        """
        settings = find_settings(self._record)
        for path in paths:
            if self._document(path) == settings:
                raise ValueError(f"{path}: its results would replace {settings}; rename the image")
        check_not_overwriting(
            paths, [(result, path) for path in paths for result in (self._drawing(path), self._document(path))]
        )

    def done(self, path: pathlib.Path) -> bool:
        """Whether all results of an image exist."""
        if self._overwrite or (self._draw and not self._drawing(path).is_file()):
            return False
        return self._document(path).is_file() if self._shared is None else path.name in self._entries

    def finish(self) -> None:
        """Write the file of all images, and which of them are done, also after an interruption."""
        if self._unwritten and self._shared is not None and self._covered is not None:
            start = time.monotonic()
            # Results first: an image without results is not done.
            write_whole(self._shared, _to_json([entry for row in self._entries.values() for entry in row]))
            write_whole(self._covered, _to_json(list(self._entries)))
            self._unwritten, now = False, time.monotonic()
            self._next_write = now + max(WRITE_SECONDS, (now - start) / WRITE_FRACTION)

    def begin_writing(self) -> None:
        """Before the first result: delete results of other settings, and write the settings."""
        if self._settings is None:
            return
        if self._overwrite and settings_differ(self._record, self._settings):
            self._entries = {}
            # A run that is ended must not leave them beside the new settings.
            for path in self._documents(self._images):
                path.unlink()
            for path in (self._covered, self._shared):
                if path is not None:
                    path.unlink(missing_ok=True)
        write_settings(self._record, self._settings)
        self._settings = None

    def _documents(self, images: list[pathlib.Path] | None = None) -> set[pathlib.Path]:
        """The files of single images, in all formats; None for all images."""
        return set()

    def _write_drawing(self, path: pathlib.Path, drawing: Image.Image) -> None:
        write_png(self._drawing(path), drawing)

    def _write_entries(self, path: pathlib.Path, entries: list[dict[str, Any]]) -> None:
        """Keep the COCO results of an image, and write the file of all now and then."""
        # COCO's tools ignore the name. A later run reads from it which image an entry belongs to.
        self._entries[path.name] = [{**entry, "file_name": path.name} for entry in entries]
        self._unwritten = True
        if time.monotonic() >= self._next_write:
            self.finish()

    def _document(self, path: pathlib.Path) -> pathlib.Path:
        return self._folder / f"{path.stem}.json" if self._shared is None else self._shared

    def _drawing(self, path: pathlib.Path) -> pathlib.Path:
        return self._folder / f"{path.stem}{self._drawings}"


class PoseResults(Results):
    """Poses: one file for each image ("json", "openpose", "yolo"), or one for all images ("coco"), and drawings.

    Args:
        folder, draw, overwrite: see `Results`.
        format: "json" (`Poses.to_dict`), "openpose", "yolo" or "coco".
        drawing: keyword arguments of `draw_poses`.
    """

    def __init__(
        self, folder: pathlib.Path, format: Format, *, draw: bool, drawing: Mapping[str, Any], overwrite: bool
    ):
        self._format, self._drawing_options = format, drawing
        shared = COCO_FILE if format == "coco" else None
        super().__init__(folder, SETTINGS_FILE, shared, "_poses.png", draw=draw, overwrite=overwrite)

    def check(self, skeleton: Skeleton) -> None:
        """Check that the format can hold poses of a skeleton, and that they can be drawn as wanted.

        Raises:
            ValueError: if not.
        """
        k = skeleton.num_keypoints
        example = Poses.create(np.zeros((1, k, 2)), np.ones((1, k)), np.ones((1, 4)), skeleton)
        if self._format == "openpose":
            example.to_openpose()
        if self._draw:
            self._draw_poses(np.zeros((1, 1, 3), np.uint8), example)

    def add(self, path: pathlib.Path, boxes: ImageBoxes, poses: Poses) -> None:
        """Write the results of an image."""
        self.begin_writing()
        if self._draw:
            self._write_drawing(path, self._draw_poses(path, poses))
        if self._format == "coco":
            entries = poses.to_coco(boxes.image_id, box_scores=boxes.scores, category_id=boxes.categories or 1)
            self._write_entries(path, entries)
            return
        if self._format == "yolo":
            width, height = read_size(path)
            write_yolo(self._document(path), poses, (height, width))
            return
        document = poses.to_openpose() if self._format == "openpose" else {"image": path.name, **poses.to_dict()}
        write_whole(self._document(path), _to_json(document))

    def _document(self, path: pathlib.Path) -> pathlib.Path:
        # OpenPose's own name for its files: see `_ENDS`.
        ending = {"openpose": "_keypoints.json", "yolo": ".txt"}.get(self._format)
        return super()._document(path) if ending is None else self._folder / f"{path.stem}{ending}"

    def _documents(self, images: list[pathlib.Path] | None = None) -> set[pathlib.Path]:
        # Text files of other runs can be a dataset's labels, so they are looked at for YOLO's format only.
        ends = (*_ENDS, ".txt") if self._format == "yolo" else _ENDS
        if images is None:
            paths = [path for path in self._folder.iterdir() if path.name.endswith(ends)]
        else:
            paths = [self._folder / f"{image.stem}{end}" for image in images for end in ends]
        return {path for path in paths if _is_document(path)}

    def _draw_poses(self, image: ImageLike, poses: Poses) -> Image.Image:
        options = dict(self._drawing_options)
        if options.pop("numbers", False):
            options["labels"] = [str(number) for number in range(len(poses))]
        return draw_poses(image, poses, **options)


class DetectionResults(Results):
    """Boxes of all images in one file, and drawings. Arguments: see `Results`."""

    def __init__(self, folder: pathlib.Path, *, draw: bool, overwrite: bool):
        super().__init__(
            folder, DETECTIONS_SETTINGS_FILE, DETECTIONS_FILE, "_detections.png", draw=draw, overwrite=overwrite
        )

    def add(self, path: pathlib.Path, detections: Detections) -> None:
        """Write the results of an image."""
        self.begin_writing()
        if self._draw:
            self._write_drawing(path, draw_boxes(path, detections.boxes, detections.names, detections.scores))
        self._write_entries(path, detections.to_coco(image_id_of(path)))


def _to_json(document: object) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def _is_document(path: pathlib.Path) -> bool:
    """Whether a file holds the poses of one image."""
    try:
        if path.suffix == ".txt":
            rows = [[float(word) for word in line.split()] for line in path.read_text().splitlines()]
            return all(len(row) > 5 and len(row) % 3 == 2 for row in rows)
        content = read_json(path)
    except (OSError, ValueError):
        return False
    keys = content.keys() if isinstance(content, dict) else set()
    return keys >= {"image", "poses"} or keys >= {"people", "version"}


def _read_entries(path: pathlib.Path, covered: pathlib.Path, record: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """The entries of a file of all images by the name of their image, of the images that are done."""
    if not path.is_file() or not (covered.is_file() or find_settings(record) is not None):
        if path.exists():
            raise ValueError(f"{path}: not of an earlier run; choose another folder")
        return {}
    try:
        names = read_json(covered) if covered.is_file() else []
        entries: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for entry in read_json(path):
            # Results of a run that was killed before it said that the image is done are computed again.
            if entry["file_name"] in entries:
                entries[entry["file_name"]].append(entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not of an earlier run; choose another folder") from error
    return entries
