"""Average precision and recall of keypoints, as COCO, CrowdPose and COCO-WholeBody measure them.

    annotations (file, dict or a dataset's own) --> targets ----+
                                                                +--> faster-coco-eval --> AP, AR
    results (list of dicts) ----------------------> detections -+

faster-coco-eval does the matching and agrees with pycocotools. This module handles what differs between datasets: the
area that errors are divided by, and which images and keypoints count. Annotations and results are in COCO's format
and are not changed; keypoints are flat lists [x, y, v, ...], in pixels of the image. Numbers are from 0 to 1; -1, as
in COCO, means that the annotations have nothing to measure.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from vitpose_jax.datasets.annotations import BOX_TO_AREA
from vitpose_jax.datasets.coco import (
    KEYPOINTS,
    WHOLEBODY_KEYPOINTS,
    CocoAnnotations,
    Source,
    read_annotations,
    read_results,
    require,
)
from vitpose_jax.evaluation.coco_eval import compute_statistics, number_images

Annotations: TypeAlias = CocoAnnotations | Source
"""Annotations that have been read (`Dataset.coco`), an annotation file, or its parsed content."""
Results: TypeAlias = Sequence[Mapping[str, Any]]

STATISTICS = ("AP", "AP50", "AP75", "AP(M)", "AP(L)", "AR", "AR50", "AR75", "AR(M)", "AR(L)")

CROWD_RANGES = {"E": (-np.inf, 0.2), "M": (0.2, 0.8), "H": (0.8, np.inf)}
"""CrowdPose: the crowd index of easy, medium and hard images: at least the first number, below the second."""

WHOLEBODY_PARTS = {
    "body": slice(0, 17),
    "foot": slice(17, 23),
    "face": slice(23, 91),
    "left_hand": slice(91, 112),
    "right_hand": slice(112, 133),
    "wholebody": slice(0, 133),
}


class Targets(NamedTuple):
    """The annotations of the chosen images, as faster-coco-eval takes them.

    Attributes:
        numbers: from the ids of the chosen images to their numbers. Images and annotations are numbered from 1:
            faster-coco-eval takes an annotation of number 0 for one without a match.
        annotations: dicts with COCO's keys; "keypoints" float64 [3 K].
        category_ids: of the annotations, and of the file's "categories".
    """

    numbers: dict[int | str, int]
    annotations: list[dict[str, Any]]
    category_ids: list[int]


def keypoint_average_precision(
    annotations: Annotations,
    results: Results,
    sigmas: Sequence[float],
    *,
    use_area: bool = True,
    image_ids: Iterable[int | str] | None = None,
) -> dict[str, float]:
    """AP and AR of COCO, and of datasets with the same metric.

    At most 20 results count in an image. Annotations without a visible keypoint are not targets, and results that
    match them are not errors. The area of a result, which decides between AP(M) and AP(L), is the area of the box
    around its keypoints; the "bbox" of a result does not count.

    Args:
        annotations: `Dataset.coco`, the annotation file, or its content: "images", "annotations" and "categories".
        results: dicts with "image_id", "category_id", "keypoints" and "score", as from `Poses.to_coco`.
        sigmas: K standard deviations, `Skeleton.sigmas`. Several categories (AP-10K) share them, and the result is
            the mean over categories.
        use_area: divide errors by the annotations' areas; False: by 0.53 times the areas of their boxes, as for AIC.
        image_ids: the images to evaluate on; None for all.

    Returns:
        "AP", "AP50", "AP75", "AP(M)" (people of 32^2 to 96^2 square pixels), "AP(L)" (larger people), and the same
        for "AR".

    Raises:
        ImportError: if faster-coco-eval is not installed.
        ValueError: naming the file and the entry, if a file or dict has no annotations, a value is missing or not
            finite, an entry does not have K keypoints, or a result's image or category is unknown.
    """
    annotations = _read(annotations, len(sigmas))
    targets = _targets(annotations, len(sigmas), use_area=use_area, image_ids=image_ids)
    return _evaluate(targets, _detections(results, annotations, targets, len(sigmas)), sigmas)


def crowdpose_average_precision(
    annotations: Annotations,
    results: Results,
    sigmas: Sequence[float],
    *,
    image_ids: Iterable[int | str] | None = None,
) -> dict[str, float]:
    """AP and AR of CrowdPose: areas are 0.53 times the boxes, and the "crowdIndex" of an image says how hard it is.

    The ranges are as in the official evaluation: easy below 0.2, hard from 0.8. (The paper writes 0.1 for 0.2.)

    Args:
        annotations, results, sigmas, image_ids: as in `keypoint_average_precision`; every image needs a "crowdIndex".

    Returns:
        "AP", "AP50", "AP75", "AR", "AR50", "AR75" over all images; "AP(E)", "AP(M)", "AP(H)" over easy, medium and
        hard images.

    Raises:
        ImportError, ValueError: as `keypoint_average_precision`; for an image without a "crowdIndex".
    """
    annotations = _read(annotations, len(sigmas))
    targets = _targets(annotations, len(sigmas), use_area=False, crowd_index=True, image_ids=image_ids)
    detections = _detections(results, annotations, targets, len(sigmas))
    overall = _evaluate(targets, detections, sigmas)
    statistics = {name: overall[name] for name in ("AP", "AP50", "AP75", "AR", "AR50", "AR75")}
    for name, (low, high) in CROWD_RANGES.items():
        numbers = {
            image_id: number
            for image_id, number in targets.numbers.items()
            if low <= require(annotations.images[image_id], "crowd_index") < high
        }
        in_range = set(numbers.values())
        part = Targets(
            numbers,
            [target for target in targets.annotations if target["image_id"] in in_range],
            targets.category_ids,
        )
        part_detections = [detection for detection in detections if detection["image_id"] in in_range]
        statistics[f"AP({name})"] = _evaluate(part, part_detections, sigmas)["AP"]
    return statistics


def wholebody_average_precision(
    annotations: Annotations,
    results: Results,
    sigmas: Sequence[float],
    *,
    image_ids: Iterable[int | str] | None = None,
) -> dict[str, dict[str, float]]:
    """AP and AR of COCO-WholeBody, for each part.

    Every part uses the area of the whole person and the score of the whole pose. A person without a visible keypoint
    in a part is not a target for that part (the flags "face_valid" and so on do not count), and a result without a
    positive keypoint score in a part is left out there. The 133 keypoints are in "keypoints", or divided among
    "keypoints", "foot_kpts", "face_kpts", "lefthand_kpts" and "righthand_kpts", as in the official files.

    Args:
        annotations, results, image_ids: as in `keypoint_average_precision`.
        sigmas: 133 standard deviations, `Skeleton.sigmas`.

    Returns:
        "body", "foot", "face", "left_hand", "right_hand", "hand" (the mean of the two hands) and "wholebody", each
        with the numbers of `keypoint_average_precision`.

    Raises:
        ImportError, ValueError: as `keypoint_average_precision`; for another number of sigmas.
    """
    count = WHOLEBODY_PARTS["wholebody"].stop
    if len(sigmas) != count:
        raise ValueError(f"sigmas: expected one for each of {count} keypoints, got {len(sigmas)}")
    annotations = _read(annotations, count, WHOLEBODY_KEYPOINTS)
    targets = _targets(annotations, count, use_area=True, annotators_counts=False, image_ids=image_ids)
    detections = _detections(results, annotations, targets, count, WHOLEBODY_KEYPOINTS)
    for detection in detections:
        detection["area"] = _area(detection["keypoints"].reshape(-1, 3)[WHOLEBODY_PARTS["body"]])
    statistics = {}
    for part, rows in WHOLEBODY_PARTS.items():
        columns = slice(3 * rows.start, 3 * rows.stop)
        part_targets = [{**target, "keypoints": target["keypoints"][columns]} for target in targets.annotations]
        part_detections = [{**detection, "keypoints": detection["keypoints"][columns]} for detection in detections]
        part_detections = [detection for detection in part_detections if (detection["keypoints"][2::3] > 0).any()]
        statistics[part] = _evaluate(targets._replace(annotations=part_targets), part_detections, sigmas[rows])
    left, right = statistics["left_hand"], statistics["right_hand"]
    # If one hand is nowhere labelled, the other one counts alone.
    statistics["hand"] = {
        name: float(np.mean([hand[name] for hand in (left, right) if hand[name] >= 0] or [-1.0])) for name in left
    }
    return statistics


def check_measurable(
    annotations: CocoAnnotations,
    *,
    use_area: bool = True,
    crowd_index: bool = False,
    image_ids: Collection[int | str] | None = None,
) -> None:
    """Check that annotations have every value that the metrics need.

    Args:
        annotations: as read.
        use_area: every annotation of the chosen images needs an area.
        crowd_index: every chosen image needs a "crowdIndex".
        image_ids: the chosen images; None for all.

    Raises:
        ValueError: naming the file and the entry; for image_ids that are not in the file.
    """
    chosen = annotations.images.keys() if image_ids is None else set(image_ids)
    unknown = chosen - annotations.images.keys()
    if unknown:
        raise ValueError(f"image_ids: expected images of the annotations, got {min(unknown, key=str)!r}")
    for annotation in annotations.objects:
        require(annotation, "category_id")
        for key in ("bbox", "area") if use_area else ("bbox",):
            if annotation.image_id in chosen:
                require(annotation, key)
    for image in annotations.images.values() if crowd_index else ():
        if image.id in chosen and image.crowd_index is None:
            raise ValueError(f"{image.where}: expected a crowdIndex, as in CrowdPose, got none")


def known_categories(annotations: CocoAnnotations, image_ids: Collection[int | str] | None = None) -> list[int]:
    """The categories that results may have: of the annotations of the chosen images, and of "categories"."""
    chosen = annotations.images.keys() if image_ids is None else set(image_ids)
    used = {require(annotation, "category_id") for annotation in annotations.objects if annotation.image_id in chosen}
    return sorted(annotations.category_ids | used)


def _read(annotations: Annotations, num_keypoints: int, fields: Sequence[str] = KEYPOINTS) -> CocoAnnotations:
    """The annotations, which are read if they come as a file or a dict."""
    if not isinstance(annotations, CocoAnnotations):
        return read_annotations(annotations, num_keypoints, fields=fields)
    if annotations.num_keypoints != num_keypoints:
        raise ValueError(
            f"{annotations.name}: expected annotations of {num_keypoints} keypoints, got {annotations.num_keypoints}"
        )
    return annotations


def _targets(
    annotations: CocoAnnotations,
    num_keypoints: int,
    *,
    use_area: bool,
    crowd_index: bool = False,
    annotators_counts: bool = True,
    image_ids: Iterable[int | str] | None,
) -> Targets:
    """The annotations of the chosen images, with what the evaluation needs and nothing else.

    `annotators_counts`: take "num_keypoints" from the file, if it has one; False: count visible keypoints.
    """
    chosen = set(annotations.images if image_ids is None else image_ids)
    check_measurable(annotations, use_area=use_area, crowd_index=crowd_index, image_ids=chosen)
    numbers = number_images(chosen)
    targets: list[dict[str, Any]] = []
    for annotation in annotations.objects:
        if annotation.image_id not in numbers:
            continue
        if annotation.keypoints is None:
            keypoints, count = np.zeros(3 * num_keypoints), 0
        else:
            keypoints = annotation.keypoints.ravel()
            # The annotators' own count goes before ours: CrowdPose's leaves out some visible keypoints.
            count = annotation.num_keypoints if annotators_counts else None
        bbox = require(annotation, "bbox").tolist()
        targets.append(
            {
                "id": len(targets) + 1,
                "image_id": numbers[annotation.image_id],
                "category_id": annotation.category_id,
                "keypoints": keypoints,
                "area": annotation.area if use_area else BOX_TO_AREA * bbox[2] * bbox[3],
                "bbox": bbox,
                "iscrowd": int(annotation.iscrowd),
                "num_keypoints": count,
            }
        )
    return Targets(numbers, targets, known_categories(annotations, chosen))


def _detections(
    results: Results,
    annotations: CocoAnnotations,
    targets: Targets,
    num_keypoints: int,
    fields: Sequence[str] = KEYPOINTS,
) -> list[dict[str, Any]]:
    """The results in the chosen images, as faster-coco-eval takes them."""
    detections: list[dict[str, Any]] = []
    for result in read_results(results, "results", num_keypoints, fields=fields, image_ids=annotations.images):
        category_id = require(result, "category_id")
        keypoints, score = require(result, "keypoints"), require(result, "score")
        if result.image_id not in annotations.images:
            raise ValueError(f"{result.where}: expected an image of the annotations, got {result.image_id!r}")
        if category_id not in targets.category_ids:
            raise ValueError(f"{result.where}: expected a category of {targets.category_ids}, got {category_id!r}")
        if result.image_id not in targets.numbers:
            continue
        detections.append(
            {
                "id": len(detections) + 1,
                "image_id": targets.numbers[result.image_id],
                "category_id": category_id,
                "keypoints": keypoints.ravel(),
                "area": _area(keypoints),
                "score": score,
            }
        )
    return detections


def _area(keypoints: Float[np.ndarray, "K 3"]) -> float:
    """The area of the box around keypoints, in square pixels."""
    return float(np.ptp(keypoints[:, :2], axis=0).prod())


def _evaluate(targets: Targets, detections: Sequence[Mapping[str, Any]], sigmas: Sequence[float]) -> dict[str, float]:
    """The ten numbers of faster-coco-eval, by name."""
    annotations = [
        target
        if target["num_keypoints"] is not None
        else {**target, "num_keypoints": int((target["keypoints"][2::3] > 0).sum())}
        for target in targets.annotations
    ]
    if not any(target["num_keypoints"] for target in annotations):
        return dict.fromkeys(STATISTICS, -1.0)
    statistics = compute_statistics(
        "keypoints",
        targets.numbers.values(),
        targets.category_ids,
        annotations,
        detections,
        kpt_oks_sigmas=list(sigmas),
    )
    return dict(zip(STATISTICS, statistics, strict=True))
