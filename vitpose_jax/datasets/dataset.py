"""Datasets on disk, read into one plain structure for evaluation and training.

    annotations (+ MPII's heads) --> people of each image --+
                                                            +--> Sample: image, boxes, people --> Dataset
    a detector's boxes ------------> boxes of each image ---+

Annotation files have one of three formats:

* COCO's keypoint JSON: {"images", "annotations", ...}. COCO, COCO-WholeBody (the keypoints of the body, then those of
  feet, face, left and right hand), OCHuman, CrowdPose, AP-10K, APT-36K, and AI Challenger after conversion.
* YOLO's pose labels, with a data.yaml; see yolo.py.
* MPII's: a list of people {"image", "center", "scale", "joints", "joints_vis"}, whose pixels count from 1.

A detector's boxes are COCO results: a list of {"image_id", "category_id", "bbox", "score"}.
In this module all boxes are x y w h and all keypoints (x, y), in pixels of the image; pixel centres are at integers,
from 0.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vitpose_jax.datasets.annotations import Person, coco_people, read_mpii
from vitpose_jax.datasets.box_files import image_id_of
from vitpose_jax.datasets.coco import (
    KEYPOINTS,
    WHOLEBODY_KEYPOINTS,
    CocoAnnotations,
    CocoObject,
    read_annotations,
    read_results,
    require,
)
from vitpose_jax.datasets.fields import read_json
from vitpose_jax.datasets.image_files import find_image
from vitpose_jax.datasets.protocols import Protocol, get_protocol
from vitpose_jax.datasets.yolo import is_yolo, read_yolo


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class People:
    """The annotated people or animals of an image that the original evaluates and trains on.

    Crowds, objects without a labelled keypoint and boxes without area are left out.

    Attributes:
        annotation_ids: COCO's "id"; for MPII the index in the list.
        category_ids: COCO's "category_id"; 1 for MPII.
        boxes: x y w h in pixels, cut off at the image's edges; for MPII the square around a person.
        keypoints: (x, y) in pixels; mostly 0, 0 if not labelled.
        visible: 0 not labelled, 1 labelled but hidden, 2 visible; for MPII 0 or 1, labelled.
        areas: in square pixels; 0.53 times the area of the annotated box if the protocol has no areas.
        head_sizes: MPII's, in pixels; NaN if unknown.
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
    """An image, the boxes in which to estimate poses, and the annotated people.

    Attributes:
        image_id: as in the annotation file; for MPII the number in the image's name.
        path: of the image, which is not opened.
        boxes: x y w h in pixels: one for each of `people`, or a detector's.
        scores: of the boxes; 1 for annotated boxes.
        category_ids: of the boxes.
        people: the annotated people.
        size: width and height of the image in pixels, as annotated; None for MPII.
    """

    image_id: int | str
    path: pathlib.Path
    boxes: Float[np.ndarray, "m 4"]
    scores: Float[np.ndarray, " m"]
    category_ids: Int[np.ndarray, " m"]
    people: People
    size: tuple[int | float, int | float] | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A dataset that has been read.

    Attributes:
        protocol: how it is evaluated.
        samples: the images that have boxes, in the order of the annotation file.
        annotations: the annotation file.
        coco: all that COCO's metric needs from that file, crowds and unlabelled people too; None for MPII.
        detections: the file of a detector's boxes; None if the boxes are the annotated ones.
        num_images: in the annotation file, with or without boxes.
        skipped_boxes: detections without area.
        min_score: detections have at least this score.
        image_ids: of the images to evaluate on; None for all in the annotation file.
        detector: the name of the detector that found the boxes in the same run.
        failures: (image, reason) of the images in which it failed.
    """

    protocol: Protocol
    samples: tuple[Sample, ...]
    annotations: pathlib.Path
    coco: CocoAnnotations | None
    detections: pathlib.Path | None
    num_images: int
    skipped_boxes: int = 0
    min_score: float = 0.0
    image_ids: tuple[int | str, ...] | None = None
    detector: str | None = None
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def num_boxes(self) -> int:
        """The number of boxes in all samples."""
        return sum(len(sample.boxes) for sample in self.samples)

    def first(self, count: int) -> "Dataset":
        """A dataset of the first `count` images that have boxes."""
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
    """Read a dataset; the images themselves are not opened.

    Args:
        name: a dataset of protocols.py, or your own protocol.
        annotations: the annotation file, in the protocol's format, also as CVAT and Label Studio export COCO's
            keypoints; or the data.yaml of a YOLO pose dataset, whose labels are found by the folder of the images.
        images: the folder that file names in the annotations are relative to. An image that is not there is looked for
            under the last parts of its name, and without the prefix of an upload; see `image_files.find_image`.
        detections: a detector's boxes, as COCO results; default: the annotated boxes. Only boxes of the protocol's
            category count; as in the original they are not cut off at the image's edges.
        min_score: leave out detections with a lower score.
        head_boxes: MPII's official `mpii_gt_val.mat`, with people in the order of the annotations. It gives the
            sizes of the heads, and its keypoints replace the annotated ones.

    Raises:
        ValueError: naming the file and the entry, if a value is missing, of a wrong size or unknown; if `images` is
            not a folder.
        OSError: if a file cannot be read.
    """
    protocol = name if isinstance(name, Protocol) else get_protocol(name)
    path, folder = pathlib.Path(annotations), pathlib.Path(images)
    if min_score and detections is None:
        raise ValueError(f"min_score: expected with detections alone, got {min_score} with the annotated boxes")
    if head_boxes is not None and protocol.format != "mpii":
        raise ValueError(f"head_boxes: expected with the dataset mpii alone, got {head_boxes} with {protocol.name}")
    if protocol.format == "mpii" and detections is not None:
        raise ValueError(f"{protocol.name} is evaluated in its annotated boxes, got detections {detections}")
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected the folder of the images")
    count = protocol.skeleton.num_keypoints
    coco = None
    if protocol.format == "mpii":
        entries = [
            (image_id_of(pathlib.Path(file)), file, people, None)
            for file, people in read_mpii(path, protocol, head_boxes).items()
        ]
    else:
        source = read_yolo(path, folder, count) if is_yolo(path) else path
        fields = WHOLEBODY_KEYPOINTS if protocol.metric == "wholebody" and source is path else KEYPOINTS
        coco = read_annotations(source, count, fields=fields, name=str(path))
        entries = [
            (image_id, require(image, "file_name"), people, (require(image, "width"), require(image, "height")))
            for image_id, people in coco_people(coco, protocol).items()
            for image in [coco.images[image_id]]
        ]
    samples = [
        _sample(image_id, find_image(folder, file), _stack(people, count), size)
        for image_id, file, people, size in entries
    ]
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
        coco=coco,
        detections=detections,
        num_images=num_images,
        skipped_boxes=skipped,
        min_score=min_score,
    )


def _stack(people: list[Person], num_keypoints: int) -> People:
    """The people of an image, as arrays."""

    def column(name: str, shape: tuple[int, ...] = (), dtype: Any = np.float64) -> np.ndarray:
        return np.asarray([getattr(person, name) for person in people], dtype).reshape(len(people), *shape)

    return People(
        annotation_ids=column("annotation_id", dtype=np.int64),
        category_ids=column("category_id", dtype=np.int64),
        boxes=column("box", (4,)),
        keypoints=column("keypoints", (num_keypoints, 2)),
        visible=column("visible", (num_keypoints,), np.int64),
        areas=column("area"),
        head_sizes=column("head_size"),
    )


def _sample(
    image_id: int | str, path: pathlib.Path, people: People, size: tuple[int | float, int | float] | None
) -> Sample:
    """A sample with the annotated boxes."""
    return Sample(
        image_id=image_id,
        path=path,
        boxes=people.boxes,
        scores=np.ones(len(people)),
        category_ids=people.category_ids,
        people=people,
        size=size,
    )


def _with_detections(
    samples: list[Sample], path: pathlib.Path, annotations: pathlib.Path, category: int | None, min_score: float
) -> tuple[list[Sample], int]:
    """Samples with a detector's boxes in place of the annotated ones, and the number of boxes without area."""
    detections: dict[int | str, list[CocoObject]] = {sample.image_id: [] for sample in samples}
    skipped = 0
    for detection in read_results(read_json(path), str(path), image_ids=detections):
        if category not in (None, require(detection, "category_id")):
            continue
        if detection.image_id not in detections:
            raise ValueError(f"{detection.where}: no image with the id {detection.image_id!r} in {annotations}")
        bbox = require(detection, "bbox")
        if require(detection, "score") < min_score:
            continue
        if min(bbox[2:]) <= 0:
            skipped += 1
            continue
        detections[detection.image_id].append(detection)
    return [_replace_boxes(sample, detections[sample.image_id]) for sample in samples], skipped


def _replace_boxes(sample: Sample, detections: list[CocoObject]) -> Sample:
    """A sample with a detector's boxes."""
    return dataclasses.replace(
        sample,
        boxes=np.asarray([detection.bbox for detection in detections], np.float64).reshape(-1, 4),
        scores=np.asarray([detection.score for detection in detections], np.float64),
        category_ids=np.asarray([detection.category_id for detection in detections], np.int64),
    )
