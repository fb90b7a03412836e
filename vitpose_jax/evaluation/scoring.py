"""From the poses in the boxes of a dataset to COCO results and to the numbers of its protocol.

    poses of each image --> to_results (scores, OKS-NMS) --> measure --> metrics
                        +--> per_keypoint --> the table of keypoints

Plain NumPy on the host. The poses of an image are (n, K, 3): x, y in pixels of the image and the score, one row for
each box.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from vitpose_jax.datasets.coco import CocoAnnotations
from vitpose_jax.datasets.dataset import Dataset, Sample
from vitpose_jax.datasets.protocols import Protocol
from vitpose_jax.evaluation.accuracy import pckh
from vitpose_jax.evaluation.average_precision import (
    check_measurable,
    crowdpose_average_precision,
    keypoint_average_precision,
    known_categories,
    wholebody_average_precision,
)
from vitpose_jax.evaluation.coco_eval import check_installed
from vitpose_jax.evaluation.oks import KEYPOINT_THRESHOLD, instance_scores, object_keypoint_similarity, oks_nms
from vitpose_jax.pipeline.regions import BOX_PADDING, boxes_to_regions

NMS_THRESHOLD = 0.9
# In the table of keypoints: the least OKS at which a detected pose belongs to an annotated person.
MATCH_OKS = 0.5
# In the table of keypoints: a keypoint is near if its distance is at most this fraction of the person's size, and for
# MPII of the head's.
NEAR = 0.1
NEAR_HEAD = 0.5
Nms: TypeAlias = Literal["hard", "soft"] | None


def check_nms(protocol: Protocol, nms: str | None) -> None:
    """Check that a kind of OKS-NMS exists and that the protocol uses it.

    Raises:
        ValueError: for an unknown kind; for "soft" with MPII, whose boxes are the annotated ones.
    """
    if nms not in ("hard", "soft", None):
        raise ValueError(f"oks_nms: expected 'hard', 'soft' or None, got {nms!r}")
    if nms == "soft" and protocol.metric == "pckh":
        raise ValueError(f"oks_nms: expected none for {protocol.name}, whose boxes are the annotated ones, got 'soft'")


def check_scorable(dataset: Dataset) -> None:
    """Check, before any pose is computed, that the dataset's metric can be computed.

    Raises:
        ImportError: if the package that average precision needs is not installed.
        ValueError: for MPII without the sizes of heads; for annotations that lack a value the metric needs, naming
            the entry; for boxes of a category that is not in the annotations; for a skeleton without sigmas.
    """
    protocol = dataset.protocol
    if protocol.metric == "pckh":
        if any(np.isnan(sample.people.head_sizes).any() for sample in dataset.samples):
            raise ValueError(f"{protocol.name}: PCKh needs the sizes of heads; give head_boxes, mpii_gt_val.mat")
        return
    check_installed()
    if not protocol.skeleton.sigmas:
        raise ValueError(f"{protocol.name}: average precision needs sigmas in its skeleton")
    annotations = _coco(dataset)
    check_measurable(
        annotations,
        use_area=protocol.use_area,
        crowd_index=protocol.metric == "crowdpose",
        image_ids=dataset.image_ids,
    )
    known = known_categories(annotations, dataset.image_ids)
    for sample in dataset.samples:
        for category in set(sample.category_ids.tolist()) - set(known):
            raise ValueError(
                f"{dataset.detections or dataset.annotations}: image {sample.image_id}: expected boxes of a category "
                f"in {dataset.annotations}, one of {known}, got {category}"
            )


def to_results(
    dataset: Dataset,
    poses: Mapping[int, Float[np.ndarray, "_n K 3"]],
    *,
    image_size: tuple[int, int] = (256, 192),
    padding: float = BOX_PADDING,
    nms: Nms = "hard",
    keypoint_threshold: float = KEYPOINT_THRESHOLD,
    nms_threshold: float = NMS_THRESHOLD,
) -> list[dict[str, Any]]:
    """COCO results: {"image_id", "category_id", "keypoints": [x, y, score, ...], "score"}.

    The score of a pose is the score of its box times the mean of its keypoint scores above the threshold. Then
    OKS-NMS drops poses that overlap a better one, with the area of the padded box. Images are in the order of the
    dataset; the poses of an image are in the order of `oks_nms`, the best first, because COCO's metric keeps the order
    of equal scores.

    Args:
        dataset: as read.
        poses: by the index of their image in `dataset.samples`.
        image_size: height and width of the crops in pixels.
        padding: of the boxes.
        nms: "hard", "soft" or None, see `oks_nms`.
        keypoint_threshold: only keypoint scores above it count.
        nms_threshold: the OKS above which a pose is dropped.

    Raises:
        ValueError: for an unknown nms.
    """
    check_nms(dataset.protocol, nms)
    sigmas = dataset.protocol.skeleton.sigmas
    areas, results = _padded_areas(dataset, image_size, padding), []
    for index, points in sorted(poses.items()):
        sample = dataset.samples[index]
        scores = instance_scores(sample.scores, points[..., 2], keypoint_threshold)
        rows = np.arange(len(points))
        if nms is not None:
            rows = oks_nms(points[..., :2], scores, areas[index], sigmas, threshold=nms_threshold, soft=nms == "soft")
        results += [
            {
                "image_id": sample.image_id,
                "category_id": int(sample.category_ids[row]),
                "keypoints": points[row].ravel().tolist(),
                "score": float(scores[row]),
            }
            for row in rows
        ]
    return results


def _padded_areas(dataset: Dataset, image_size: tuple[int, int], padding: float) -> list[Float[np.ndarray, " _n"]]:
    """The areas of each sample's boxes as they are cropped, in square pixels."""
    boxes = np.concatenate([np.zeros((0, 4)), *(sample.boxes for sample in dataset.samples)])
    sides = np.asarray(boxes_to_regions(boxes, image_size, padding=padding).scale, np.float64)
    return np.split(sides.prod(axis=-1), np.cumsum([len(sample.boxes) for sample in dataset.samples])[:-1])


def measure(
    dataset: Dataset, poses: Mapping[int, Float[np.ndarray, "_n K 3"]], results: list[dict[str, Any]]
) -> dict[str, float]:
    """The numbers of the dataset's protocol; people of images without poses count as missed.

    Args:
        dataset: as read; the annotation file is not read again.
        poses: by the index of their image in `dataset.samples`; MPII is measured by them.
        results: from `to_results`; all other datasets are measured by them.

    Returns:
        for COCO and others the ten numbers of `keypoint_average_precision`; for CrowdPose its nine; for
        COCO-WholeBody the numbers of the whole body, then "body AP" and so on for each part; all from 0 to 1.
        For MPII the numbers of `pckh`, in percent.
    """
    protocol = dataset.protocol
    sigmas, image_ids = protocol.skeleton.sigmas, dataset.image_ids
    if protocol.metric == "pckh":
        return _measure_pckh(dataset, poses)
    annotations = _coco(dataset)
    if protocol.metric == "crowdpose":
        return crowdpose_average_precision(annotations, results, sigmas, image_ids=image_ids)
    if protocol.metric == "coco":
        return keypoint_average_precision(annotations, results, sigmas, use_area=protocol.use_area, image_ids=image_ids)
    parts = wholebody_average_precision(annotations, results, sigmas, image_ids=image_ids)
    overall = parts.pop("wholebody")
    return overall | {
        f"{part} {name}": value for part, statistics in parts.items() for name, value in statistics.items()
    }


def _coco(dataset: Dataset) -> CocoAnnotations:
    """The annotations that COCO's metric needs."""
    if dataset.coco is None:
        raise ValueError(f"{dataset.annotations}: expected COCO's annotations in the dataset, got none")
    return dataset.coco


def _measure_pckh(dataset: Dataset, poses: Mapping[int, Float[np.ndarray, "_n K 3"]]) -> dict[str, float]:
    """PCKh in percent; people of images without poses are infinitely far away."""
    people = [sample.people for sample in dataset.samples]
    predicted = [
        poses[index][..., :2] if index in poses else np.full(group.keypoints.shape, np.inf)
        for index, group in enumerate(people)
    ]
    return pckh(
        np.concatenate(predicted),
        np.concatenate([group.keypoints for group in people]),
        np.concatenate([group.visible for group in people]) > 0,
        np.concatenate([group.head_sizes for group in people]),
    )


def per_keypoint(dataset: Dataset, poses: Mapping[int, Float[np.ndarray, "_n K 3"]]) -> list[dict[str, Any]]:
    """How far each keypoint is from its label, over the annotated people that have a pose.

    In annotated boxes, a person's pose is the pose in the person's box. In a detector's boxes it is the pose of the
    image with the highest OKS, if that is at least 0.5.

    Returns:
        one row per keypoint:
        "keypoint", its name;
        "labelled", the number of labels, in images that have boxes;
        "matched", the number of these whose person has a pose; over them
        "pixels", the mean distance;
        "relative", the mean of the distance divided by the person's size: the root of the area, or MPII's size of the
        head;
        "near", the fraction with a relative distance of at most 0.1, or 0.5 for MPII.
        The last three are None if nothing is matched.
    """
    is_mpii = dataset.protocol.metric == "pckh"
    distances, sizes, labelled = [], [], []
    for index, sample in enumerate(dataset.samples):
        people = sample.people
        predicted = (
            _matched(dataset, sample, poses[index]) if index in poses else np.full(people.keypoints.shape, np.nan)
        )
        distances.append(np.linalg.norm(predicted - people.keypoints, axis=-1))
        sizes.append(people.head_sizes if is_mpii else np.sqrt(people.areas))
        labelled.append(people.visible > 0)
    table = []
    distances, labelled = np.concatenate(distances), np.concatenate(labelled)
    relative = distances / np.concatenate(sizes)[:, None]
    for index, name in enumerate(dataset.protocol.skeleton.keypoints):
        counted = labelled[:, index] & np.isfinite(distances[:, index])
        values = {
            "pixels": distances[counted, index],
            "relative": relative[counted, index],
            "near": relative[counted, index] <= (NEAR_HEAD if is_mpii else NEAR),
        }
        table.append(
            {
                "keypoint": name,
                "labelled": int(labelled[:, index].sum()),
                "matched": int(counted.sum()),
                **{key: round(float(value.mean()), 4) if len(value) else None for key, value in values.items()},
            }
        )
    return table


def _matched(dataset: Dataset, sample: Sample, points: Float[np.ndarray, "n K 3"]) -> Float[np.ndarray, "people K 2"]:
    """The keypoints of each annotated person's pose; NaN for a person without a pose."""
    people, keypoints = sample.people, points[..., :2]
    if dataset.detections is None:
        return keypoints
    if len(people) == 0:
        return people.keypoints
    similarity = object_keypoint_similarity(
        keypoints[None],
        people.keypoints[:, None],
        people.visible[:, None] > 0,
        people.areas[:, None],
        dataset.protocol.skeleton.sigmas,
    )
    best = similarity.argmax(axis=1)
    matched = np.take_along_axis(similarity, best[:, None], axis=1) >= MATCH_OKS
    return np.where(matched[..., None], keypoints[best], np.nan)
