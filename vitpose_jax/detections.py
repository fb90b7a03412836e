"""Detections: the objects found in one image, and which classes to look for."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

# COCO's animals, from bird to giraffe.
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")

# COCO's 80 classes have these numbers in its annotations: 1 to 90 without ten that were dropped.
COCO_CATEGORIES = tuple(sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Detections:
    """The objects found in one image, the surest first.

    Attributes:
        boxes: x, y, width, height in pixels of the image; they may leave it by a little.
        scores: 0 to 1.
        labels: numbers of the objects' classes.
        classes: the names of all classes, `labels` counts in them.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    classes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The objects' classes by name."""
        return tuple(self.classes[label] for label in self.labels)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Any) -> "Detections":
        """Some of the objects: a number, a slice, a mask or a list of numbers.

        Raises:
            IndexError: for an object there is not.
        """
        rows = np.atleast_1d(np.arange(len(self))[rows])
        return dataclasses.replace(self, boxes=self.boxes[rows], scores=self.scores[rows], labels=self.labels[rows])

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
        """Results as COCO's evaluation and `vitpose-jax predict --boxes` read them, one dict an object.

        With COCO's 80 classes they have COCO's category_id, of which 1 is a person; others are counted from 1.
        """
        coco = len(self.classes) == len(COCO_CATEGORIES)
        return [
            {
                "image_id": image_id,
                "category_id": COCO_CATEGORIES[label] if coco else int(label) + 1,
                "bbox": np.round(box.astype(float), 3).tolist(),
                "score": round(float(score), 5),
            }
            for label, score, box in zip(self.labels, self.scores, self.boxes, strict=True)
        ]


def choose_classes(labels: str | Sequence[str], classes: tuple[str, ...]) -> Bool[np.ndarray, " classes"]:
    """Which classes are asked for.

    Args:
        labels: names of classes, "animals" for those of COCO, or "all"; one of these or a list of them.
        classes: the names there are.

    Raises:
        ValueError: where a name is not known, listing those that are, or none is given.
        TypeError: where it is no name.
    """
    names = [labels] if isinstance(labels, str) else list(labels)
    if not names:
        raise ValueError("labels: expected one or more names, got none")
    wanted = np.zeros(len(classes), bool)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"labels: expected names, got {name!r}")
        group = classes if name == "all" else ANIMALS if name == "animals" else (name,)
        places = [index for index, known in enumerate(classes) if known in group]
        if not places:
            known = ", ".join(classes)
            raise ValueError(f"labels: the detector knows no {name!r}; expected 'all', 'animals' or of {known}")
        wanted[places] = True
    return wanted
