"""Data sets as they lie on disk, read into one plain structure for evaluation and training.

Annotations come in two layouts:

* COCO's keypoint JSON: {"images", "annotations", ...}. COCO, COCO-WholeBody (the body's keypoints, then those of
  feet, face, left and right hand), OCHuman, CrowdPose, AP-10K, APT-36K, and AI Challenger once converted to it.
* MPII's: a list of people {"image", "center", "scale", "joints", "joints_vis"}, whose pixels count from 1.

A detector's boxes are COCO results: a list of {"image_id", "category_id", "bbox", "score"}.
Here all boxes are x y w h and all keypoints (x, y), in pixels of the image, pixel centres at whole numbers from 0.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vitpose_jax.datasets.annotations import Row, need, need_id, numbers, read_coco, read_json, read_mpii
from vitpose_jax.datasets.box_files import image_id_of
from vitpose_jax.datasets.protocols import Protocol, get_protocol


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class People:
    """The annotated people or animals of an image, those that the original evaluates and trains on.

    Crowds, objects without a labelled keypoint and boxes without area are left out.

    Attributes:
        annotation_ids: of COCO's layout the "id", of MPII's the place in the list.
        category_ids: COCO's "category_id"; 1 for MPII.
        boxes: x y w h, cut off at the image's edges (COCO's layout); the square around a person (MPII's).
        keypoints: (x, y); 0, 0 mostly where not labelled.
        visible: 0 not labelled, 1 labelled but hidden, 2 visible; of MPII 0 or 1, labelled.
        areas: in square pixels; 0.53 times that of the annotated box where the protocol has none.
        head_sizes: MPII's, in pixels; NaN where not known.
    """

    annotation_ids: Int[np.ndarray, " n"]
    category_ids: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    keypoints: Float[np.ndarray, "n K 2"]
    visible: Int[np.ndarray, "n K"]
    areas: Float[np.ndarray, " n"]
    head_sizes: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.boxes)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """An image, the boxes in which poses are to be estimated, and what is known of them.

    Attributes:
        image_id: as in the annotation file; for MPII the number in the image's name.
        path: the image, not looked at.
        boxes: x y w h: those of `people`, one for each, or a detector's.
        scores: of the boxes; 1 where annotated.
        category_ids: of the boxes.
        people: the annotated ones.
    """

    image_id: int | str
    path: pathlib.Path
    boxes: Float[np.ndarray, "m 4"]
    scores: Float[np.ndarray, " m"]
    category_ids: Int[np.ndarray, " m"]
    people: People


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A data set, read.

    Attributes:
        protocol: how it is evaluated.
        samples: the images that have boxes, in the order of the annotation file.
        annotations: the file.
        detections: the file of a detector's boxes; None where boxes are the annotated ones.
        num_images: of the annotation file, with or without boxes.
        skipped_boxes: detections without area.
        min_score: of the detections that were kept.
        image_ids: of the images that count; None for all in the annotation file.
    """

    protocol: Protocol
    samples: tuple[Sample, ...]
    annotations: pathlib.Path
    detections: pathlib.Path | None
    num_images: int
    skipped_boxes: int = 0
    min_score: float = 0.0
    image_ids: tuple[int | str, ...] | None = None

    @property
    def num_boxes(self) -> int:
        """Boxes of all samples."""
        return sum(len(sample.boxes) for sample in self.samples)

    def first(self, count: int) -> "Dataset":
        """The first so many images that have boxes, as a data set of its own."""
        if count < 1:
            raise ValueError(f"limit: expected at least 1 image, got {count}")
        samples = self.samples[:count]
        ids = tuple(sample.image_id for sample in samples)
        return dataclasses.replace(self, samples=samples, image_ids=ids, num_images=len(samples))


def read_dataset(
    name: str | Protocol,
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    *,
    detections: str | os.PathLike | None = None,
    min_score: float = 0.0,
    head_boxes: str | os.PathLike | None = None,
) -> Dataset:
    """Read a data set; the images themselves are not opened.

    Args:
        name: a data set of protocols.py, or a protocol of one's own.
        annotations: its file, in the layout the protocol names.
        images: the folder that file names in it are relative to.
        detections: a detector's boxes, as COCO results; without it boxes are the annotated ones. Those of the
            protocol's category count; as in the original they are not cut off at the image's edges.
        min_score: leave out detections below it.
        head_boxes: MPII's official `mpii_gt_val.mat`, whose people stand in the order of the annotations. It gives
            the sizes of the heads, and replaces the keypoints by its own.

    Raises:
        ValueError: naming the file and the entry, where something is missing, of a wrong size or unknown; for a
            folder of images that is none.
        OSError: for a file that cannot be read.
    """
    protocol = name if isinstance(name, Protocol) else get_protocol(name)
    path, folder = pathlib.Path(annotations), pathlib.Path(images)
    if min_score and detections is None:
        raise ValueError(f"min_score: expected with detections alone, got {min_score} with the annotated boxes")
    if head_boxes is not None and protocol.layout != "mpii":
        raise ValueError(f"head_boxes: expected with the data set mpii alone, got {head_boxes} with {protocol.name}")
    if protocol.layout == "mpii" and detections is not None:
        raise ValueError(f"{protocol.name} is evaluated in its annotated boxes, got detections {detections}")
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected the folder of the images")
    if protocol.layout == "mpii":
        entries = [
            (image_id_of(pathlib.Path(file)), file, rows) for file, rows in read_mpii(path, protocol, head_boxes)
        ]
    else:
        entries = read_coco(path, protocol)
    count = protocol.skeleton.num_keypoints
    samples = [_sample(image_id, folder / file, _people(rows, count)) for image_id, file, rows in entries]
    num_images, skipped = len(samples), 0
    if detections is not None:
        detections = pathlib.Path(detections)
        samples, skipped = _with_detections(samples, detections, path, protocol.category, min_score)
    samples = [sample for sample in samples if len(sample.boxes)]
    if not samples:
        what = "annotated people with keypoints" if detections is None else f"detections of at least {min_score}"
        raise ValueError(f"{detections or path}: expected {what}, got none")
    return Dataset(
        protocol=protocol,
        samples=tuple(samples),
        annotations=path,
        detections=detections,
        num_images=num_images,
        skipped_boxes=skipped,
        min_score=min_score,
    )


def _people(rows: list[Row], num_keypoints: int) -> People:
    """Rows of what `People` holds, together."""

    def column(name: str, shape: tuple[int, ...] = (), dtype: Any = np.float64) -> np.ndarray:
        return np.asarray([row[name] for row in rows], dtype).reshape(len(rows), *shape)

    return People(
        annotation_ids=column("annotation_id", dtype=np.int64),
        category_ids=column("category_id", dtype=np.int64),
        boxes=column("box", (4,)),
        keypoints=column("keypoints", (num_keypoints, 2)),
        visible=column("visible", (num_keypoints,), np.int64),
        areas=column("area"),
        head_sizes=column("head_size"),
    )


def _sample(image_id: int | str, path: pathlib.Path, people: People) -> Sample:
    """A sample whose boxes are the annotated ones."""
    return Sample(
        image_id=image_id,
        path=path,
        boxes=people.boxes,
        scores=np.ones(len(people)),
        category_ids=people.category_ids,
        people=people,
    )


def _with_detections(
    samples: list[Sample], path: pathlib.Path, annotations: pathlib.Path, category: int | None, min_score: float
) -> tuple[list[Sample], int]:
    """Samples with a detector's boxes in place of the annotated ones; and how many boxes had no area."""
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of detections, got {type(content).__name__}")
    found: dict[Any, list[tuple[np.ndarray, float, int]]] = {sample.image_id: [] for sample in samples}
    skipped = 0
    for number, entry in enumerate(content):
        where = f"{path}: detection {number}"
        of_category = need_id(entry, "category_id", where, int)
        if category is not None and of_category != category:
            continue
        image_id = need_id(entry, "image_id", where)
        if image_id not in found:
            raise ValueError(f"{where}: no image with the id {image_id!r} in {annotations}")
        box = numbers(need(entry, "bbox", where), (4,), f"{where}: bbox")
        score = float(numbers(need(entry, "score", where), (), f"{where}: score"))
        if score < min_score:
            continue
        if min(box[2:]) <= 0:
            skipped += 1
            continue
        found[image_id].append((box, score, of_category))
    result = [
        dataclasses.replace(
            sample,
            boxes=np.asarray([box for box, _, _ in rows], np.float64).reshape(-1, 4),
            scores=np.asarray([score for _, score, _ in rows], np.float64),
            category_ids=np.asarray([number for _, _, number in rows], np.int64),
        )
        for sample, rows in ((sample, found[sample.image_id]) for sample in samples)
    ]
    return result, skipped
