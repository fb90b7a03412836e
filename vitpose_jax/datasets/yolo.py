"""YOLO's pose datasets: data.yaml, and a text file of labels for each image.

    data.yaml               kpt_shape: [K, 2 or 3], names: [person, ...]
    images/val/0001.jpg
    labels/val/0001.txt     class centre-x centre-y width height x1 y1 v1 ... in fractions of the image

They become annotations in COCO's form, which the reader of COCO's JSON checks. An image without a file of labels has no
people. Class 0 is category 1.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from vitpose_jax.datasets.annotations import BOX_TO_AREA
from vitpose_jax.datasets.fields import shorten
from vitpose_jax.images import image_endings, read_size

# Fractions of the image may leave 0 to 1 by this: a keypoint may lie outside.
OUTSIDE = 1.0


def is_yolo(path: pathlib.Path) -> bool:
    """Whether this is the description of a YOLO dataset."""
    return path.suffix.lower() in (".yaml", ".yml")


def read_yolo(path: pathlib.Path, images: pathlib.Path, num_keypoints: int) -> dict[str, Any]:
    """A YOLO pose dataset as the content of COCO's annotations, for `coco.read_annotations`.

    Args:
        path: the data.yaml. Its paths are not used: the labels belong to the folder of the images.
        images: their folder, with sub-folders. Its labels are in the folder of the same path with "labels" in the place
            of the last "images"; without such a part, in the folder itself.
        num_keypoints: K.

    Raises:
        ValueError: naming the file and the line, for another number of keypoints or numbers that are no label; if no
            image has labels.
        OSError: if a file cannot be read.
    """
    count, dimensions = _read_shape(path)
    if count != num_keypoints:
        raise ValueError(f"{path}: expected {num_keypoints} keypoints, as the skeleton has, got kpt_shape {count}")
    labels = label_folder(images)
    endings = image_endings()
    files = sorted(file for file in images.rglob("*") if file.suffix.lower() in endings and file.is_file())
    entries, annotations, labelled = [], [], 0
    for number, file in enumerate(files, 1):
        width, height = read_size(file)
        name = file.relative_to(images)
        entries.append({"id": number, "file_name": name.as_posix(), "width": width, "height": height})
        text = (labels / name).with_suffix(".txt")
        if not text.is_file():
            continue
        labelled += 1
        for category, box, points in _read_labels(text, count, dimensions):
            x, y, w, h = box * (width, height, width, height)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": category,
                "bbox": [x - w / 2, y - h / 2, w, h],
                "area": w * h * BOX_TO_AREA,
                "iscrowd": 0,
            }
            if points is not None:
                points = points * (width, height, 1)
                points[points[:, 2] == 0] = 0
                annotation["keypoints"] = points.ravel().tolist()
                annotation["num_keypoints"] = int((points[:, 2] > 0).sum())
            annotations.append(annotation)
    if not labelled:
        raise ValueError(f"{path}: expected the labels of {images} in {labels}, got none")
    categories = [{"id": number} for number in sorted({annotation["category_id"] for annotation in annotations})]
    return {"images": entries, "annotations": annotations, "categories": categories}


def label_folder(images: pathlib.Path) -> pathlib.Path:
    """The folder of the labels of a folder of images."""
    parts = list(images.parts)
    if "images" not in parts:
        return images
    last = len(parts) - 1 - parts[::-1].index("images")
    return pathlib.Path(*parts[:last], "labels", *parts[last + 1 :])


def _read_shape(path: pathlib.Path) -> tuple[int, int]:
    """The number of keypoints, and of numbers for each: 2, or 3 with the visibility."""
    import yaml  # of huggingface_hub; a second less for those who read no YAML

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected YAML: {shorten(str(error))}") from None
    shape = content.get("kpt_shape") if isinstance(content, Mapping) else None
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(size, int) for size in shape):
        raise ValueError(f"{path}: expected kpt_shape: [K, 3], as a YOLO pose dataset has it, got {shorten(shape)}")
    count, dimensions = shape
    if count < 1 or dimensions not in (2, 3):
        raise ValueError(f"{path}: expected kpt_shape: [K, 2] or [K, 3], got {shape}")
    return count, dimensions


def _read_labels(
    path: pathlib.Path, count: int, dimensions: int
) -> list[tuple[int, Float[np.ndarray, "4"], Float[np.ndarray, "K 3"] | None]]:
    """The category, the box and the keypoints of each line, in fractions; None for a line without keypoints."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text: {error}") from None
    labels = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = np.asarray([float(word) for word in line.split()])
        except ValueError:
            values = np.zeros(0)
        expected = 5 + count * dimensions
        if len(values) not in (5, expected) or not np.isfinite(values).all() or values[0] != int(values[0]):
            raise ValueError(
                f"{path}:{number}: expected class, centre x, centre y, width, height and {count} keypoints of "
                f"{dimensions} numbers, {expected} in all, got {len(line.split())}: {shorten(line)}"
            )
        box, points = values[1:5], None
        if len(values) == expected:
            points = values[5:].reshape(count, dimensions)
            if dimensions == 2:  # without a visibility 0, 0 is not labelled
                points = np.concatenate([points, 2.0 * (points != 0).any(axis=1, keepdims=True)], axis=1)
        places = box if points is None else np.concatenate([box, points[:, :2].ravel()])
        if (places < -OUTSIDE).any() or (places > 1 + OUTSIDE).any():
            raise ValueError(f"{path}:{number}: expected fractions of the image, 0 to 1, got {shorten(line)}")
        labels.append((int(values[0]) + 1, box, points))
    return labels
