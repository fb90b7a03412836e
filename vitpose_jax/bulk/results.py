"""The files that `predict_files` writes, and which of them exist already.

An image is done if its results are on the disk: what says so is written after them. Settings come first:

settings.json          what the results depend on
NAME_poses.png         drawing
NAME.json              results of one image, NAME.txt for YOLO; that it exists says that the image is done
keypoints.json         or the results of all images, written every few seconds and at the end
keypoints.images.json  and after it, which images are done
"""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from vitpose_jax.bulk.inputs import check_not_overwriting
from vitpose_jax.bulk.settings import SETTINGS_FILE, check_settings, settings_differ, write_settings
from vitpose_jax.datasets.box_files import ImageBoxes
from vitpose_jax.draw import draw_poses
from vitpose_jax.images import ImageLike, read_size
from vitpose_jax.interop.yolo import write_yolo
from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage.atomic import remove_leftovers, write_png, write_whole

Format: TypeAlias = Literal["json", "coco", "openpose", "yolo"]

COCO_FILE = "keypoints.json"
# Beside the COCO file, the names of all images that it covers, also those without people.
COVERED_FILE = "keypoints.images.json"
# The COCO file is written again this many seconds after the last time, and so that writing takes at most this fraction
# of the time.
WRITE_SECONDS = 5.0
WRITE_FRACTION = 0.1


class Results:
    """Writes one file for each image ("json", "openpose", "yolo"), or one for all images ("coco"), and drawings.

    Args:
        folder: of the results; created when first needed. Temporary files of killed runs in it are deleted.
        format: "json" (`Poses.to_dict`), "openpose", "yolo" or "coco".
        draw: also write each image with its poses drawn on it.
        drawing: keyword arguments of `draw_poses`.
        overwrite: count no image as done. Results of other images in a COCO file stay if they have the same settings.

    Raises:
        ValueError: if a COCO file of an earlier run cannot be read.
    """

    def __init__(
        self, folder: pathlib.Path, format: Format, *, draw: bool, drawing: Mapping[str, Any], overwrite: bool
    ):
        self._folder, self._format, self._draw = folder, format, draw
        self._drawing_options, self._overwrite = drawing, overwrite
        self._settings: Mapping[str, Any] | None = None
        self._unwritten, self._next_write = False, time.monotonic() + WRITE_SECONDS
        remove_leftovers(folder)
        self._coco = _read_coco(folder) if format == "coco" else {}

    def check_settings(self, settings: Mapping[str, Any], paths: list[pathlib.Path]) -> None:
        """Check that the results in the folder have these settings; with overwrite they may have others.

        Raises:
            ValueError: naming what differs.
        """
        if not self._overwrite:
            has_results = bool(self._coco) or any(self.done(path) for path in paths)
            check_settings(self._folder, settings, has_results=has_results)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings, to be written before the first result."""
        self._settings = settings

    def check_not_overwriting(self, paths: list[pathlib.Path]) -> None:
        """Check that no result would replace one of the images, or the settings.

        Raises:
            ValueError: naming the image.
        """
        for path in paths:
            if self._document(path).name == SETTINGS_FILE and self._format != "coco":
                raise ValueError(f"{path}: its results would replace {SETTINGS_FILE}; rename the image")
        check_not_overwriting(
            paths, [(result, path) for path in paths for result in (self._drawing(path), self._document(path))]
        )

    def done(self, path: pathlib.Path) -> bool:
        """Whether all results of an image exist."""
        if self._overwrite or (self._draw and not self._drawing(path).is_file()):
            return False
        return path.name in self._coco if self._format == "coco" else self._document(path).is_file()

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
        """Write the results of an image. A COCO file is written now and then, and by `finish`."""
        if self._settings is not None:
            if self._overwrite and settings_differ(self._folder, self._settings):
                self._coco = {}  # of other settings
            write_settings(self._folder, self._settings)
            self._settings = None
        if self._draw:
            write_png(self._drawing(path), self._draw_poses(path, poses))
        if self._format == "coco":
            # COCO's tools ignore the name. A later run reads from it which image an entry belongs to.
            entries = poses.to_coco(boxes.image_id, box_scores=boxes.scores, category_id=boxes.categories or 1)
            self._coco[path.name] = [{**entry, "file_name": path.name} for entry in entries]
            self._unwritten = True
            if time.monotonic() >= self._next_write:
                self.finish()
            return
        if self._format == "yolo":
            width, height = read_size(path)
            write_yolo(self._document(path), poses, (height, width))
            return
        document = poses.to_openpose() if self._format == "openpose" else {"image": path.name, **poses.to_dict()}
        write_whole(self._document(path), _to_json(document))

    def finish(self) -> None:
        """Write the COCO file with the images that are done, also after an interruption."""
        if self._unwritten:
            start = time.monotonic()
            # Results first: an image without results is not done.
            write_whole(self._folder / COCO_FILE, _to_json([entry for row in self._coco.values() for entry in row]))
            write_whole(self._folder / COVERED_FILE, _to_json(list(self._coco)))
            self._unwritten, now = False, time.monotonic()
            self._next_write = now + max(WRITE_SECONDS, (now - start) / WRITE_FRACTION)

    def _document(self, path: pathlib.Path) -> pathlib.Path:
        # OpenPose's own name for its files.
        ending = {"openpose": "_keypoints.json", "yolo": ".txt"}.get(self._format, ".json")
        return self._folder / f"{path.stem}{ending}"

    def _draw_poses(self, image: ImageLike, poses: Poses) -> Image.Image:
        options = dict(self._drawing_options)
        if options.pop("numbers", False):
            options["labels"] = [str(number) for number in range(len(poses))]
        return draw_poses(image, poses, **options)

    def _drawing(self, path: pathlib.Path) -> pathlib.Path:
        return self._folder / f"{path.stem}_poses.png"


def _to_json(document: object) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def _read_coco(folder: pathlib.Path) -> dict[str, list[dict]]:
    """The entries of a COCO file by the name of their image, of the images that are done."""
    path, covered = folder / COCO_FILE, folder / COVERED_FILE
    if not path.is_file() or not (covered.is_file() or (folder / SETTINGS_FILE).is_file()):
        if path.exists():
            raise ValueError(f"{path}: not of an earlier run; choose another folder")
        return {}
    try:
        names = json.loads(covered.read_text(encoding="utf-8")) if covered.is_file() else []
        entries: dict[str, list[dict]] = {name: [] for name in names}
        for entry in json.loads(path.read_text(encoding="utf-8")):
            # Results of a run that was killed before it said that the image is done are computed again.
            if entry["file_name"] in entries:
                entries[entry["file_name"]].append(entry)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not of an earlier run; choose another folder") from error
    return entries
