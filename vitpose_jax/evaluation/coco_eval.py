"""The calls of faster-coco-eval, which matches results with annotations and agrees with pycocotools."""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

EVAL_EXTRA = 'average precision needs the package faster-coco-eval: pip install "vitpose-jax[eval]"'


def check_installed() -> None:
    """Check that faster-coco-eval is installed.

    Raises:
        ImportError: if it is not.
    """
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise ImportError(EVAL_EXTRA)


def number_images(image_ids: Iterable[int | str]) -> dict[int | str, int]:
    """Numbers from 1 for the ids of images, in the order of COCO's tools: integers before names."""
    return {image_id: number for number, image_id in enumerate(sorted(set(image_ids), key=_by_type), 1)}


def _by_type(image_id: int | str) -> tuple[str, int | str]:
    return str(type(image_id)), image_id


def compute_statistics(
    kind: Literal["bbox", "keypoints"],
    images: Iterable[int],
    categories: Iterable[int],
    annotations: Sequence[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    **options: Any,
) -> list[float]:
    """The numbers of faster-coco-eval, in its order; -1 where the annotations have nothing to measure.

    Args:
        kind: what is compared.
        images: from 1: faster-coco-eval takes an annotation of number 0 for one without a match.
        categories: of annotations and detections.
        annotations, detections: dicts with COCO's keys, numbered from 1.
        options: for its evaluator.

    Raises:
        ImportError: if faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise ImportError(EVAL_EXTRA) from None
    shared = {
        "images": [{"id": number} for number in images],
        "categories": [{"id": category} for category in categories],
    }
    evaluator = COCOeval_faster(
        COCO({**shared, "annotations": list(annotations)}),
        COCO({**shared, "annotations": list(detections)}),
        kind,
        **options,
    )
    evaluator.run()
    return np.asarray(evaluator.stats).tolist()
