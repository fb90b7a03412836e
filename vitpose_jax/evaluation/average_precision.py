"""Average precision and recall of keypoints, as COCO, CrowdPose and COCO-WholeBody measure them.

The matching is done by faster-coco-eval, which agrees with pycocotools. Here stands what the data sets differ in:
the area an error is measured by, which images and which keypoints count. Annotations and results are in the format
of COCO and are not changed; keypoints stand as flat lists [x, y, v, ...], in pixels of the image. Numbers are from
0 to 1, and -1 where the annotations leave nothing to measure, as in COCO.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from vitpose_jax.datasets.annotations import BOX_TO_AREA

Annotations: TypeAlias = Mapping[str, Any] | str | os.PathLike[str]
Results: TypeAlias = Sequence[Mapping[str, Any]]

STATISTICS = ("AP", "AP50", "AP75", "AP(M)", "AP(L)", "AR", "AR50", "AR75", "AR(M)", "AR(L)")

CROWD_RANGES = {"E": (-np.inf, 0.2), "M": (0.2, 0.8), "H": (0.8, np.inf)}
"""CrowdPose: easy, medium and hard images by crowd index, from and below."""

WHOLEBODY_PARTS = {
    "body": slice(0, 17),
    "foot": slice(17, 23),
    "face": slice(23, 91),
    "left_hand": slice(91, 112),
    "right_hand": slice(112, 133),
    "wholebody": slice(0, 133),
}
_WHOLEBODY_FIELDS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")


def keypoint_average_precision(
    annotations: Annotations,
    results: Results,
    sigmas: Sequence[float],
    *,
    use_area: bool = True,
    image_ids: Iterable[int | str] | None = None,
) -> dict[str, float]:
    """AP and AR of COCO, and of data sets that measure as COCO does.

    At most 20 results an image count. Annotations without a visible keypoint are no targets, and results that
    match them are no errors. The area of a result, which counts for AP(M) and AP(L), is that around its keypoints;
    boxes of results are not looked at.

    Args:
        annotations: the annotation file or what is in it: "images", "annotations" and "categories".
        results: dicts with "image_id", "category_id", "keypoints" and "score", as from `Poses.to_coco`.
        sigmas: K deviations, `Skeleton.sigmas`. Several categories (AP-10K) share them; the mean over categories
            is taken.
        use_area: measure errors by the annotations' areas; False for 0.53 times their boxes, as for AIC.
        image_ids: the images to evaluate on; None for all.

    Returns:
        "AP", "AP50", "AP75", "AP(M)", "AP(L)" (persons of 32^2 to 96^2 and of more square pixels), and the same
        for "AR".

    Raises:
        ImportError: where faster-coco-eval is not installed.
        ValueError: for a file or dict that holds no annotations, an annotation or a result without a needed field
            or with other than K keypoints, a result that is not finite or of an unknown image or category.
    """
    targets = _read_targets(_load(annotations), len(sigmas), use_area, image_ids)
    return _evaluate(targets, _read_detections(results, targets, len(sigmas)), sigmas)


def crowdpose_average_precision(
    annotations: Annotations,
    results: Results,
    sigmas: Sequence[float],
    *,
    image_ids: Iterable[int | str] | None = None,
) -> dict[str, float]:
    """AP and AR of CrowdPose: areas are 0.53 times the boxes, and images are told apart by their "crowdIndex".

    The ranges are those of the official evaluation: easy below 0.2, hard from 0.8. (The paper writes 0.1 for 0.2.)
    Arguments and errors are those of `keypoint_average_precision`.

    Returns:
        "AP", "AP50", "AP75", "AR", "AR50", "AR75" over all images; "AP(E)", "AP(M)", "AP(H)" over the easy, medium
        and hard ones.
    """
    content = _load(annotations)
    targets = _read_targets(content, len(sigmas), False, image_ids)
    detections = _read_detections(results, targets, len(sigmas))
    whole = _evaluate(targets, detections, sigmas)
    statistics = {name: whole[name] for name in ("AP", "AP50", "AP75", "AR", "AR50", "AR75")}
    crowd = {image["id"]: image.get("crowdIndex") for image in content["images"]}
    for image in targets["ids"]:
        if crowd[image] is None:
            raise ValueError(f"image {image}: expected a crowdIndex, as in CrowdPose, got none")
    for name, (low, high) in CROWD_RANGES.items():
        numbers = {number for image, number in targets["ids"].items() if low <= crowd[image] < high}
        part = {
            **targets,
            "images": [image for image in targets["images"] if image["id"] in numbers],
            "annotations": [target for target in targets["annotations"] if target["image_id"] in numbers],
        }
        chosen = [detection for detection in detections if detection["image_id"] in numbers]
        statistics[f"AP({name})"] = _evaluate(part, chosen, sigmas)["AP"]
    return statistics


def wholebody_average_precision(
    annotations: Annotations,
    results: Results,
    sigmas: Sequence[float],
    *,
    image_ids: Iterable[int | str] | None = None,
) -> dict[str, dict[str, float]]:
    """AP and AR of COCO-WholeBody, for each part.

    Every part is measured by the area of the whole person and ranked by the score of the whole pose. A person
    without a visible keypoint in a part is no target there (the flags "face_valid" and so on are not looked at), and
    a result without a positive keypoint score in a part is none there. Keypoints stand as 133 in "keypoints" or
    divided among "keypoints", "foot_kpts", "face_kpts", "lefthand_kpts" and "righthand_kpts", as in the official
    files. Other arguments and errors are those of `keypoint_average_precision`.

    Returns:
        "body", "foot", "face", "left_hand", "right_hand", "hand" (the mean of the two hands) and "wholebody", each
        with the numbers of `keypoint_average_precision`.
    """
    count = WHOLEBODY_PARTS["wholebody"].stop
    if len(sigmas) != count:
        raise ValueError(f"sigmas: expected one for each of {count} keypoints, got {len(sigmas)}")
    targets = _read_targets(_load(annotations), count, True, image_ids, _WHOLEBODY_FIELDS)
    detections = _read_detections(results, targets, count, _WHOLEBODY_FIELDS)
    for detection in detections:
        detection["area"] = _area(detection["keypoints"].reshape(-1, 3)[WHOLEBODY_PARTS["body"]])
    statistics = {}
    for part, rows in WHOLEBODY_PARTS.items():
        columns = slice(3 * rows.start, 3 * rows.stop)
        part_targets = [{**target, "keypoints": target["keypoints"][columns]} for target in targets["annotations"]]
        part_detections = [{**detection, "keypoints": detection["keypoints"][columns]} for detection in detections]
        found = [detection for detection in part_detections if (detection["keypoints"][2::3] > 0).any()]
        statistics[part] = _evaluate({**targets, "annotations": part_targets}, found, sigmas[rows])
    left, right = statistics["left_hand"], statistics["right_hand"]
    # A hand that is nowhere labelled leaves the number of the other one.
    statistics["hand"] = {
        name: float(np.mean([hand[name] for hand in (left, right) if hand[name] >= 0] or [-1.0])) for name in left
    }
    return statistics


def _load(annotations: Annotations) -> Mapping[str, Any]:
    if isinstance(annotations, Mapping):
        name, content = "annotations", annotations
    else:
        name = os.fspath(annotations)
        try:
            content = json.loads(pathlib.Path(annotations).read_bytes())
        except ValueError as error:
            raise ValueError(f"{name}: expected JSON, got something else: {error}") from None
    missing = {"images", "annotations"} - set(content if isinstance(content, Mapping) else ())
    if missing:
        raise ValueError(f"{name}: expected the annotations of COCO, got no {' and no '.join(sorted(missing))}")
    return content


def _read_targets(
    content: Mapping[str, Any],
    count: int,
    use_area: bool,
    image_ids: Iterable[int | str] | None,
    fields: Sequence[str] = ("keypoints",),
) -> dict[str, Any]:
    """The annotations of the chosen images, with what the evaluation needs and nothing else.

    Images and annotations are numbered from 1: an annotation of number 0 would pass for one without a match.
    "ids" leads from the ids of the chosen images to their numbers, "known" holds those of all.
    """
    known = {image["id"] for image in content["images"]}
    chosen = known if image_ids is None else set(image_ids)
    if not chosen <= known:
        raise ValueError(f"image_ids: expected images of the annotations, got {min(chosen - known, key=str)!r}")
    ids = {image: number for number, image in enumerate(sorted(chosen, key=lambda id_: (str(type(id_)), id_)), 1)}
    targets = []
    for annotation in content["annotations"]:
        name = f"annotation {annotation.get('id')}"
        if not {"image_id", "category_id"} <= set(annotation):
            raise ValueError(f"{name}: expected an image_id and a category_id, got {sorted(annotation)}")
        if annotation["image_id"] not in ids:
            continue
        box = annotation.get("bbox")
        area = annotation.get("area") if use_area else box and BOX_TO_AREA * box[2] * box[3]
        if box is None or area is None:
            raise ValueError(
                f"{name}: expected a bbox and, unless use_area is False, an area, got {sorted(annotation)}"
            )
        labelled = any(annotation.get(field) for field in fields)
        keypoints = _keypoints(annotation, fields, count, name) if labelled else np.zeros(3 * count)
        targets.append(
            {
                "id": len(targets) + 1,
                "image_id": ids[annotation["image_id"]],
                "category_id": annotation["category_id"],
                "keypoints": keypoints,
                "area": float(area),
                "bbox": [float(number) for number in box],
                "iscrowd": int(annotation.get("iscrowd", 0)),
                "num_keypoints": annotation.get("num_keypoints") if labelled and len(fields) == 1 else None,
            }
        )
    categories = {category["id"] for category in content.get("categories", ())}
    categories |= {target["category_id"] for target in targets}
    return {
        "ids": ids,
        "known": known,
        "images": [{"id": number} for number in ids.values()],
        "annotations": targets,
        "categories": [{"id": category} for category in sorted(categories)],
    }


def _read_detections(
    results: Results, targets: Mapping[str, Any], count: int, fields: Sequence[str] = ("keypoints",)
) -> list[dict[str, Any]]:
    """The results on the chosen images."""
    categories = {category["id"] for category in targets["categories"]}
    detections = []
    for index, result in enumerate(results):
        name = f"result {index}"
        missing = {"image_id", "category_id", "keypoints", "score"} - set(result)
        if missing:
            raise ValueError(f"{name}: expected {', '.join(sorted(missing))} as well, got {sorted(result)}")
        if result["image_id"] not in targets["known"]:
            raise ValueError(f"{name}: expected an image of the annotations, got {result['image_id']!r}")
        if result["category_id"] not in categories:
            raise ValueError(f"{name}: expected a category of {sorted(categories)}, got {result['category_id']!r}")
        if result["image_id"] not in targets["ids"]:
            continue
        keypoints, score = _keypoints(result, fields, count, name), float(result["score"])
        if not np.isfinite(keypoints).all() or not np.isfinite(score):
            raise ValueError(f"{name}: expected finite keypoints and score, got {keypoints.tolist()} and {score}")
        detections.append(
            {
                "id": len(detections) + 1,
                "image_id": targets["ids"][result["image_id"]],
                "category_id": result["category_id"],
                "keypoints": keypoints,
                "area": _area(keypoints.reshape(-1, 3)),
                "score": score,
            }
        )
    return detections


def _keypoints(
    record: Mapping[str, Any], fields: Sequence[str], count: int, name: str
) -> Float[np.ndarray, " three_K"]:
    flat = np.concatenate([np.asarray(record.get(field, ()), np.float64).ravel() for field in fields])
    if len(flat) != 3 * count:
        raise ValueError(f"{name}: expected {count} keypoints, {3 * count} numbers, got {len(flat)} numbers")
    return flat


def _area(keypoints: Float[np.ndarray, "K 3"]) -> float:
    return float(np.ptp(keypoints[:, :2], axis=0).prod())


def _evaluate(
    targets: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], sigmas: Sequence[float]
) -> dict[str, float]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise ImportError(
            'average precision needs the package faster-coco-eval: pip install "vitpose-jax[eval]"'
        ) from None
    # The annotators' own count goes before ours: CrowdPose's leaves out some visible keypoints.
    labelled = [
        target
        if target.get("num_keypoints") is not None
        else {**target, "num_keypoints": int((target["keypoints"][2::3] > 0).sum())}
        for target in targets["annotations"]
    ]
    if not any(target["num_keypoints"] for target in labelled):
        return dict.fromkeys(STATISTICS, -1.0)
    shared = {"images": targets["images"], "categories": targets["categories"]}
    evaluator = COCOeval_faster(
        COCO({**shared, "annotations": labelled}),
        COCO({**shared, "annotations": list(detections)}),
        "keypoints",
        kpt_oks_sigmas=list(sigmas),
    )
    evaluator.run()
    return dict(zip(STATISTICS, evaluator.stats.tolist(), strict=True))
