"""Detections: the objects that a detector found in one image."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

# The animals among COCO's classes, from bird to giraffe.
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")

# The `category_id` of COCO's 80 classes in its annotations: 1 to 90 without ten that were dropped.
COCO_CATEGORIES = tuple(sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Detections:
    """The objects found in one image, the highest score first.

    Attributes:
        boxes: float32, x, y, width, height in pixels of the image; they can extend a little beyond it.
        scores: float32, 0 to 1.
        class_ids: for each object, the index of its class in `classes`.
        classes: the names of all classes that the detector knows.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    class_ids: Int[np.ndarray, " n"]
    classes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each object's class."""
        return tuple(self.classes[index] for index in self.class_ids)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Any) -> "Detections":
        """Some of the objects, by an index, a slice, a mask or a list of indices.

        Raises:
            IndexError: for an index out of range.
        """
        rows = np.atleast_1d(np.arange(len(self))[rows])
        return dataclasses.replace(
            self, boxes=self.boxes[rows], scores=self.scores[rows], class_ids=self.class_ids[rows]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, ready for JSON; this project's own format.

        {"detections": [{"label": "person", "score": 0.93, "box": [x, y, width, height]}, ...]}
        """
        rows = zip(self.names, self.scores, self.boxes, strict=True)
        return {
            "detections": [
                {"label": name, "score": round(float(score), 5), "box": np.round(box.astype(float), 3).tolist()}
                for name, score, box in rows
            ]
        }

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Results in the format of COCO's evaluation and of `vitpose-jax predict --boxes`, one dict for each object.

        COCO's 80 classes get COCO's category_id, of which 1 is a person. Other detectors' classes are numbered
        from 1.

        Args:
            image_id: of the image in the annotation file.
        """
        coco = len(self.classes) == len(COCO_CATEGORIES)
        return [
            {
                "image_id": image_id,
                "category_id": COCO_CATEGORIES[class_id] if coco else int(class_id) + 1,
                "bbox": np.round(box.astype(float), 3).tolist(),
                "score": round(float(score), 5),
            }
            for class_id, score, box in zip(self.class_ids, self.scores, self.boxes, strict=True)
        ]


class Objects(NamedTuple):
    """Objects in a batch of images, the highest-scoring first. There are always `count`: apply a score threshold.

    Attributes:
        boxes: x y w h in pixels of the image, float32.
        scores: 0 to 1, float32; 0 if there are fewer candidates than `count`.
        class_ids: class indices, int32.
    """

    boxes: Float[Array, "n count 4"]
    scores: Float[Array, "n count"]
    class_ids: Int[Array, "n count"]


def choose_classes(labels: str | Sequence[str], classes: tuple[str, ...]) -> Bool[np.ndarray, " classes"]:
    """A mask of the classes to look for.

    Args:
        labels: names of classes, "animals" for COCO's animals, or "all"; one of these or a list of them.
        classes: the names of all classes that the detector knows.

    Raises:
        ValueError: for an unknown name (the message lists the known ones), or an empty list.
        TypeError: for a label that is not a string.
    """
    names = [labels] if isinstance(labels, str) else list(labels)
    if not names:
        raise ValueError("labels: expected one or more names, got none")
    mask = np.zeros(len(classes), bool)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"labels: expected names, got {name!r}")
        group = classes if name == "all" else ANIMALS if name == "animals" else (name,)
        indices = [index for index, class_name in enumerate(classes) if class_name in group]
        if not indices:
            known = ", ".join(classes)
            raise ValueError(f"labels: the detector knows no {name!r}; expected 'all', 'animals' or one of {known}")
        mask[indices] = True
    return mask
