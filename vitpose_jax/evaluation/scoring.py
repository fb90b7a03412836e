"""From the poses in the boxes of a data set to COCO results and to the numbers of its protocol.

Plain NumPy on the host. The poses of an image are (n, K, 3): x, y in its pixels and the score, one row for each box.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from vitpose_jax.datasets.dataset import Dataset, Sample
from vitpose_jax.datasets.protocols import Protocol
from vitpose_jax.evaluation.accuracy import pckh
from vitpose_jax.evaluation.average_precision import (
    crowdpose_average_precision,
    keypoint_average_precision,
    wholebody_average_precision,
)
from vitpose_jax.evaluation.oks import KEYPOINT_THRESHOLD, instance_scores, object_keypoint_similarity, oks_nms
from vitpose_jax.pipeline.regions import BOX_PADDING, boxes_to_regions

NMS_THRESHOLD = 0.9
# A detected pose is that of the annotated person from here on, in the table of keypoints.
MATCH_OKS = 0.5
# The share of a person's size within which a keypoint counts as found, in the table of keypoints.
NEAR = 0.1
Nms: TypeAlias = Literal["hard", "soft"] | None


def check_nms(protocol: Protocol, nms: str | None) -> None:
    """See that a kind of OKS-NMS exists, and that a protocol has any use for it.

    Raises:
        ValueError: for an unknown one; for "soft" with MPII, whose boxes are the annotated ones.
    """
    if nms not in ("hard", "soft", None):
        raise ValueError(f"oks_nms: expected 'hard', 'soft' or None, got {nms!r}")
    if nms == "soft" and protocol.metric == "pckh":
        raise ValueError(f"oks_nms: expected none for {protocol.name}, whose boxes are the annotated ones, got 'soft'")


def check_scorable(dataset: Dataset) -> None:
    """See, before anything is computed, that the metric of a data set can be.

    Raises:
        ImportError: where the package that average precision needs is not installed.
        ValueError: for MPII without the sizes of heads; for annotations that lack what the metric needs.
    """
    if dataset.protocol.metric != "pckh":
        if importlib.util.find_spec("faster_coco_eval") is None:
            raise ImportError('average precision needs faster-coco-eval: pip install "vitpose-jax[eval]"')
        # One result that is nowhere: the annotations are read as they will be in the end.
        first = dataset.samples[0]
        nothing = {
            "image_id": first.image_id,
            "category_id": int(first.category_ids[0]),
            "keypoints": [0.0] * (3 * dataset.protocol.skeleton.num_keypoints),
            "score": 0.0,
        }
        measure(dataset, {}, [nothing])
    elif any(np.isnan(sample.people.head_sizes).any() for sample in dataset.samples):
        raise ValueError(f"{dataset.protocol.name}: PCKh needs the sizes of heads; give head_boxes, mpii_gt_val.mat")


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

    Poses get the score of their box times the mean of their keypoint scores above the threshold; then those that lie
    on a better one are dropped, with the padded box for the area. Images stand in the order of the data set, the poses
    of one in that of `oks_nms`, the best first: COCO's metric takes equal scores in their order.

    Args:
        dataset: as read.
        poses: by the place of their image in `dataset.samples`.
        image_size, padding: of the crops, for the padded boxes.
        nms: "hard", "soft" or None, see `oks_nms`.
        keypoint_threshold, nms_threshold: of the scores, and of the OKS.

    Raises:
        ValueError: for an unknown nms.
    """
    check_nms(dataset.protocol, nms)
    sigmas = dataset.protocol.skeleton.sigmas
    areas, results = _padded_areas(dataset, image_size, padding), []
    for place, points in sorted(poses.items()):
        sample = dataset.samples[place]
        scores = instance_scores(sample.scores, points[..., 2], keypoint_threshold)
        kept = np.arange(len(points))
        if nms is not None:
            options: dict[str, Any] = {"threshold": nms_threshold, "soft": nms == "soft"}
            kept = oks_nms(points[..., :2], scores, areas[place], sigmas, **options)
        results += [
            {
                "image_id": sample.image_id,
                "category_id": int(sample.category_ids[row]),
                "keypoints": points[row].ravel().tolist(),
                "score": float(scores[row]),
            }
            for row in kept
        ]
    return results


def _padded_areas(dataset: Dataset, image_size: tuple[int, int], padding: float) -> list[Float[np.ndarray, " _n"]]:
    """For each sample the areas of its boxes as they are cropped, in square pixels."""
    boxes = np.concatenate([np.zeros((0, 4)), *(sample.boxes for sample in dataset.samples)])
    sides = np.asarray(boxes_to_regions(boxes, image_size, padding=padding).scale, np.float64)
    return np.split(sides.prod(axis=-1), np.cumsum([len(sample.boxes) for sample in dataset.samples])[:-1])


def measure(
    dataset: Dataset, poses: Mapping[int, Float[np.ndarray, "_n K 3"]], results: list[dict[str, Any]]
) -> dict[str, float]:
    """The numbers of the data set's protocol; people of images without poses count as missed.

    Returns:
        for COCO and others the ten numbers of `keypoint_average_precision`; for CrowdPose its nine; for
        COCO-WholeBody those of the whole body, then "body AP" and so on for each part; all from 0 to 1.
        For MPII those of `pckh`, in per cent.
    """
    protocol = dataset.protocol
    if protocol.metric == "pckh":
        return _measure_pckh(dataset, poses)
    options: dict[str, Any] = {"image_ids": dataset.image_ids}
    arguments = (dataset.annotations, results, protocol.skeleton.sigmas)
    if protocol.metric == "crowdpose":
        return crowdpose_average_precision(*arguments, **options)
    if protocol.metric == "coco":
        return keypoint_average_precision(*arguments, use_area=protocol.use_area, **options)
    parts = wholebody_average_precision(*arguments, **options)
    whole = parts.pop("wholebody")
    return whole | {f"{part} {name}": value for part, found in parts.items() for name, value in found.items()}


def _measure_pckh(dataset: Dataset, poses: Mapping[int, Float[np.ndarray, "_n K 3"]]) -> dict[str, float]:
    people = [sample.people for sample in dataset.samples]
    predicted = [
        poses[place][..., :2] if place in poses else np.full(of_image.keypoints.shape, np.inf)
        for place, of_image in enumerate(people)
    ]
    return pckh(
        np.concatenate(predicted),
        np.concatenate([of_image.keypoints for of_image in people]),
        np.concatenate([of_image.visible for of_image in people]) > 0,
        np.concatenate([of_image.head_sizes for of_image in people]),
    )


def per_keypoint(dataset: Dataset, poses: Mapping[int, Float[np.ndarray, "_n K 3"]]) -> list[dict[str, Any]]:
    """How far each keypoint is from where it is labelled, over the annotated people that have a pose.

    In annotated boxes that is the pose of their box; in a detector's boxes the pose of the image with the best OKS,
    if that is at least 0.5.

    Returns:
        one row a keypoint: "keypoint", its name; "labelled", how often it is, in images that have boxes; "matched",
        how often of people with a pose; over those "pixels", the mean distance; "relative", the mean distance by the
        size of the person: the root of the area, or MPII's size of the head; "near", the share of distances by size
        of at most 0.1, or at most 0.5 for MPII; None where nothing is matched.
    """
    of_heads = dataset.protocol.metric == "pckh"
    distances, sizes, labelled = [], [], []
    for place, sample in enumerate(dataset.samples):
        people = sample.people
        predicted = (
            _matched(dataset, sample, poses[place]) if place in poses else np.full(people.keypoints.shape, np.nan)
        )
        distances.append(np.linalg.norm(predicted - people.keypoints, axis=-1))
        sizes.append(people.head_sizes if of_heads else np.sqrt(people.areas))
        labelled.append(people.visible > 0)
    table = []
    distances, labelled = np.concatenate(distances), np.concatenate(labelled)
    relative = distances / np.concatenate(sizes)[:, None]
    for index, name in enumerate(dataset.protocol.skeleton.keypoints):
        counted = labelled[:, index] & np.isfinite(distances[:, index])
        values = {
            "pixels": distances[counted, index],
            "relative": relative[counted, index],
            "near": relative[counted, index] <= (0.5 if of_heads else NEAR),
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
    """For each annotated person the keypoints of its pose; NaN where it has none."""
    people, found = sample.people, points[..., :2]
    if dataset.detections is None:
        return found
    if len(people) == 0:
        return people.keypoints
    similarity = object_keypoint_similarity(
        found[None],
        people.keypoints[:, None],
        people.visible[:, None] > 0,
        people.areas[:, None],
        dataset.protocol.skeleton.sigmas,
    )
    best = similarity.argmax(axis=1)
    matched = np.take_along_axis(similarity, best[:, None], axis=1) >= MATCH_OKS
    return np.where(matched[..., None], found[best], np.nan)
