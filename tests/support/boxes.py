"""Pictures with coloured rectangles for people, and the person finder's loss in NumPy, one cell at a time."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vitpose_jax.training.config import from_dict
from vitpose_jax.training.detection.config import DetectionTrainConfig

TINY_FINDER = {
    "scales": [1.0],
    "score_threshold": 0.36,
    "image_size": 128,
    "stem_features": 8,
    "widths": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "hidden_size": 24,
    "nms_iou": 0.4,
}
RED = (230, 40, 40)


def draw_boxes(seed: int, count: int, size: tuple[int, int] = (96, 128)) -> tuple[np.ndarray, np.ndarray]:
    """An image (height, width, 3) of noise with red rectangles side by side, and their boxes x y w h."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = rng.integers(90, 170, (height, width, 3), np.uint8)
    boxes = []
    for place in range(count):
        space = width // count
        w, h = int(rng.integers(space // 3, 2 * space // 3)), int(rng.integers(height // 3, 4 * height // 5))
        x, y = place * space + int(rng.integers(0, space - w)), int(rng.integers(0, height - h))
        image[y : y + h, x : x + w] = RED
        boxes.append([x, y, w, h])
    return image, np.asarray(boxes, np.float64).reshape(-1, 4)


def write_boxes(folder: pathlib.Path, counts: Sequence[int]) -> dict[str, str]:
    """A dataset in COCO's layout, with so many rectangles in each image."""
    (folder / "images").mkdir(parents=True)
    document: dict[str, list] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    for number, count in enumerate(counts):
        image, boxes = draw_boxes(number, count)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        document["images"].append(
            {"id": number, "file_name": f"{number}.png", "height": image.shape[0], "width": image.shape[1]}
        )
        for box in boxes.tolist():
            document["annotations"].append(
                {"id": len(document["annotations"]) + 1, "image_id": number, "category_id": 1, "bbox": box}
            )
    (folder / "instances.json").write_text(json.dumps(document))
    return {"annotations": str(folder / "instances.json"), "images": str(folder / "images")}


def detection_settings(boxes: dict[str, str], output: pathlib.Path, **changes) -> DetectionTrainConfig:
    """The settings of a short training of a tiny finder."""
    values = {
        "task": "detection",
        "output": str(output),
        "data": [boxes],
        "model": TINY_FINDER,
        "steps": 7,
        "batch_size": 4,
        "optim": {"learning_rate": 1e-3, "warmup_steps": 2},
        "checkpoint": {"every_steps": 3},
        "log": {"every_steps": 1},
        "loader": {"threads": 1},
    }
    config = from_dict({**values, **changes})
    assert isinstance(config, DetectionTrainConfig)
    return config


def reference_iou(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """IoU and generalised IoU of two boxes x1, y1, x2, y2."""

    def area(box):
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    overlap = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    union = area(a) + area(b) - overlap
    enclosing = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    return overlap / union, overlap / union - (enclosing - union) / enclosing


def reference_assignment(
    scores: np.ndarray, boxes: np.ndarray, centres: np.ndarray, people: np.ndarray
) -> dict[int, tuple[int, float]]:
    """The person and the quality of each cell that has one."""
    overlaps = np.array([[reference_iou(box, person)[0] for box in boxes] for person in people]).reshape(-1, len(boxes))
    best: dict[int, int] = {}
    for person, (x1, y1, x2, y2) in enumerate(people):
        inside = [
            cell for cell, (x, y) in enumerate(centres) if x1 < x < x2 and y1 < y < y2 and overlaps[person, cell] > 0
        ]
        inside.sort(key=lambda cell: -scores[cell] * overlaps[person, cell] ** 6)
        for cell in inside[:10]:
            if cell not in best or overlaps[person, cell] > overlaps[best[cell], cell]:
                best[cell] = person
    result = {}
    for cell, person in best.items():
        own = [other for other, owner in best.items() if owner == person]
        aligned = {other: scores[other] * overlaps[person, other] ** 6 for other in own}
        result[cell] = (person, aligned[cell] / max(aligned.values()) * max(overlaps[person, own]))
    return result


def reference_losses(
    logits: np.ndarray,
    distances: np.ndarray,
    boxes: np.ndarray,
    people: list[np.ndarray],
    ignored: list[np.ndarray],
    centres: np.ndarray,
    strides: np.ndarray,
) -> tuple[float, float, float]:
    """The three parts of the loss, in float64.

    Args:
        logits, distances, boxes: (n, cells), (n, cells, 4, bins), (n, cells, 4).
        people, ignored: boxes of each image.
        centres, strides: of the cells.
    """
    score = box = distribution = total = 0.0
    for image in range(len(logits)):
        p = 1 / (1 + np.exp(-logits[image].astype(np.float64)))
        assigned = reference_assignment(p, boxes[image].astype(np.float64), centres, people[image])
        for cell, (x, y) in enumerate(centres):
            person, q = assigned.get(cell, (-1, 0.0))
            if person < 0 and any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in ignored[image]):
                continue
            score -= (q * np.log(p[cell]) + (1 - q) * np.log(1 - p[cell])) * (q - p[cell]) ** 2
            if person < 0:
                continue
            total += q
            x1, y1, x2, y2 = people[image][person]
            box += q * (1 - reference_iou(boxes[image, cell], people[image][person])[1])
            for side, length in enumerate((x - x1, y - y1, x2 - x, y2 - y)):
                values = distances[image, cell, side].astype(np.float64)
                log_p = values - np.log(np.sum(np.exp(values)))
                at = min(max(length / strides[cell], 0), len(values) - 1.01)
                left = int(at)
                distribution -= q / 4 * ((left + 1 - at) * log_p[left] + (at - left) * log_p[left + 1])
    total = max(total, 1)
    return score / total, 2 * box / total, 0.25 * distribution / total
