"""The files that `predict_files` writes, and which of them exist already."""

import json
import pathlib
from typing import Literal, TypeAlias

import numpy as np

from vitpose_jax.bulk.inputs import check_not_overwriting
from vitpose_jax.datasets.box_files import ImageBoxes
from vitpose_jax.draw import draw_poses
from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage.atomic import write_png, write_whole

Format: TypeAlias = Literal["json", "coco", "openpose"]

COCO_FILE = "keypoints.json"
# Beside the COCO file, the names of all images that it covers, also those without people.
COVERED_FILE = "keypoints.images.json"


class Results:
    """Writes one file for each image ("json", "openpose"), or one for all images ("coco"), and drawings.

    Args:
        folder: of the results; created when first needed.
        format: "json" (`Poses.to_dict`), "openpose" or "coco".
        draw: also write each image with its poses drawn on it.
        threshold: draw keypoints with at least this score.
        overwrite: count no image as done. Results of other images in a COCO file stay.

    Raises:
        ValueError: if a COCO file of an earlier run cannot be read.
    """

    def __init__(self, folder: pathlib.Path, format: Format, *, draw: bool, threshold: float, overwrite: bool):
        self._folder, self._format, self._draw = folder, format, draw
        self._threshold, self._overwrite = threshold, overwrite
        self._coco: dict[str, list[dict]] = {}
        if format == "coco" and (folder / COCO_FILE).is_file():
            try:
                self._coco = {name: [] for name in json.loads((folder / COVERED_FILE).read_text(encoding="utf-8"))}
                for entry in json.loads((folder / COCO_FILE).read_text(encoding="utf-8")):
                    self._coco[entry["file_name"]].append(entry)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{folder / COCO_FILE}: not of an earlier run; choose another folder") from error

    def check_not_overwriting(self, paths: list[pathlib.Path]) -> None:
        """Check that no result would replace one of the images.

        Raises:
            ValueError: naming the image.
        """
        check_not_overwriting(
            paths, [(result, path) for path in paths for result in (self._drawing(path), self._document(path))]
        )

    def done(self, path: pathlib.Path) -> bool:
        """Whether all results of an image exist."""
        if self._overwrite or (self._draw and not self._drawing(path).is_file()):
            return False
        return path.name in self._coco if self._format == "coco" else self._document(path).is_file()

    def check(self, skeleton: Skeleton) -> None:
        """Check that the format can hold poses of a skeleton.

        Raises:
            ValueError: if it cannot.
        """
        if self._format == "openpose":
            k = skeleton.num_keypoints
            Poses.create(np.zeros((1, k, 2)), np.zeros((1, k)), np.zeros((1, 4)), skeleton).to_openpose()

    def add(self, path: pathlib.Path, boxes: ImageBoxes, poses: Poses) -> None:
        """Write the results of an image. `finish` writes a COCO file."""
        if self._draw:
            write_png(self._drawing(path), draw_poses(path, poses, threshold=self._threshold))
        if self._format == "coco":
            # COCO's tools ignore the name. A later run reads from it which image an entry belongs to.
            entries = poses.to_coco(boxes.image_id, box_scores=boxes.scores, category_id=boxes.category)
            self._coco[path.name] = [{**entry, "file_name": path.name} for entry in entries]
            return
        document = poses.to_openpose() if self._format == "openpose" else {"image": path.name, **poses.to_dict()}
        write_whole(self._document(path), _to_json(document))

    def finish(self) -> None:
        """Write the COCO file with the images that are done, also after an interruption."""
        if self._format == "coco" and self._coco:
            write_whole(self._folder / COVERED_FILE, _to_json(list(self._coco)))
            write_whole(self._folder / COCO_FILE, _to_json([entry for row in self._coco.values() for entry in row]))

    def _document(self, path: pathlib.Path) -> pathlib.Path:
        # OpenPose's own name for its files.
        return self._folder / (f"{path.stem}_keypoints.json" if self._format == "openpose" else f"{path.stem}.json")

    def _drawing(self, path: pathlib.Path) -> pathlib.Path:
        return self._folder / f"{path.stem}_poses.png"


def _to_json(document: object) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
