"""The files that `vitpose-jax predict` writes, and which of them are there already."""

import io
import json
import pathlib

from vitpose_jax.detections import Detections
from vitpose_jax.draw import draw as draw_poses
from vitpose_jax.files import write_whole
from vitpose_jax.poses import Poses

COCO_FILE = "keypoints.json"


class Results:
    """Writes one file an image ("json", "openpose"), or one for all images ("coco"), and drawings.

    Args:
        folder: where to; made when first needed.
        format: "json" (`Poses.to_dict`), "openpose" or "coco".
        draw: also write each image with its poses drawn on it.
        threshold: draw keypoints with at least this score.
        overwrite: take nothing for done.

    Raises:
        ValueError: where a COCO file of an earlier run cannot be read.
    """

    def __init__(self, folder: pathlib.Path, format: str, *, draw: bool, threshold: float, overwrite: bool):
        self._folder, self._format, self._draw = folder, format, draw
        self._threshold, self._overwrite = threshold, overwrite
        self._coco: dict[str, list[dict]] = {}
        if format == "coco" and not overwrite and (folder / COCO_FILE).is_file():
            try:
                for entry in json.loads((folder / COCO_FILE).read_text(encoding="utf-8")):
                    self._coco.setdefault(entry["file_name"], []).append(entry)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{folder / COCO_FILE}: not of an earlier run; --overwrite starts anew") from error

    def done(self, path: pathlib.Path) -> bool:
        """Whether everything wanted of an image is there."""
        if self._overwrite or (self._draw and not self._drawing(path).is_file()):
            return False
        return path.name in self._coco if self._format == "coco" else self._document(path).is_file()

    def add(self, path: pathlib.Path, found: Detections, poses: Poses) -> None:
        """Write the results of an image; those of a COCO file are kept for `finish`."""
        if self._draw:
            drawing = io.BytesIO()
            draw_poses(path, poses, threshold=self._threshold).save(drawing, "PNG")
            write_whole(self._drawing(path), drawing.getvalue())
        if self._format == "coco":
            # COCO's tools pass over the name; a later run knows by it what is done.
            entries = poses.to_coco(found.image_id, box_scores=found.scores)
            self._coco[path.name] = [{**entry, "file_name": path.name} for entry in entries]
            return
        document = poses.to_openpose() if self._format == "openpose" else {"image": path.name, **poses.to_dict()}
        write_whole(self._document(path), _to_json(document))

    def finish(self) -> None:
        """Write the COCO file, also after an interruption: with the images done so far."""
        if self._format == "coco" and self._coco:
            write_whole(self._folder / COCO_FILE, _to_json([entry for row in self._coco.values() for entry in row]))

    def _document(self, path: pathlib.Path) -> pathlib.Path:
        # OpenPose's own name for its files.
        return self._folder / (f"{path.stem}_keypoints.json" if self._format == "openpose" else f"{path.stem}.json")

    def _drawing(self, path: pathlib.Path) -> pathlib.Path:
        return self._folder / f"{path.stem}.png"


def _to_json(document: object) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
