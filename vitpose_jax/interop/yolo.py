"""YOLO's pose files: a line of text for each pose, in fractions of the image.

    class  centre-x centre-y width height  x1 y1 v1  x2 y2 v2  ...

v is 0 for a keypoint that is not labelled, whose x and y are 0, and 2 for a visible one. `vitpose_jax.datasets.yolo`
reads a dataset of such files.
"""

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from vitpose_jax.poses import Poses
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage.atomic import write_whole

VISIBLE = 2


def to_yolo(poses: Poses, image_size: tuple[int, int], *, threshold: float = 0.0, class_id: int = 0) -> str:
    """The text of YOLO's file for one image, with six decimals; empty without poses.

    Args:
        poses: of one skeleton.
        image_size: height and width of the image in pixels.
        threshold: keypoints with a lower score count as not labelled. Keypoints outside the image always do.
        class_id: of all poses, from 0.

    Raises:
        ValueError: for an image without pixels, or poses of several skeletons.
    """
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size: expected height and width above 0, got {image_size}")
    if len(poses):
        _ = poses.skeleton  # one for all rows
    lines = []
    for _, keypoints, scores, (x, y, w, h) in poses.rows():
        points = keypoints.astype(np.float64) / (width, height)
        with np.errstate(invalid="ignore"):
            shown = ((points >= 0) & (points <= 1)).all(axis=1) & (scores >= threshold)
        box = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
        numbers = [f"{float(number):.6f}" for number in box]
        for (px, py), seen in zip(points, shown, strict=True):
            numbers += [f"{px:.6f}", f"{py:.6f}", str(VISIBLE)] if seen else ["0", "0", "0"]
        lines.append(" ".join([str(class_id), *numbers]) + "\n")
    return "".join(lines)


def write_yolo(
    path: str | os.PathLike,
    poses: Poses,
    image_size: tuple[int, int],
    *,
    threshold: float = 0.0,
    class_id: int = 0,
) -> None:
    """Write YOLO's file of one image, whole or not at all; see `to_yolo`."""
    write_whole(pathlib.Path(path), to_yolo(poses, image_size, threshold=threshold, class_id=class_id).encode())


def data_yaml(skeleton: Skeleton, names: Sequence[str] = ("person",), *, train: str = "images", val: str = "") -> str:
    """The text of the data.yaml that belongs to such files: `kpt_shape`, `flip_idx` and the names of the classes.

    Args:
        skeleton: of the poses.
        names: of the classes, in the order of their numbers.
        train, val: the folders of the images, relative to the file; val is train's if it is empty.
    """
    lines = [
        f"train: {json.dumps(train)}",
        f"val: {json.dumps(val or train)}",
        f"kpt_shape: [{skeleton.num_keypoints}, 3]",
        f"flip_idx: {list(skeleton.flip_indices)}",
        f"names: {json.dumps(list(names), ensure_ascii=False)}",
        "kpt_names:",
        *(f"  {number}: {json.dumps(list(skeleton.keypoints))}" for number in range(len(names))),
    ]
    return "\n".join(lines) + "\n"
