"""An estimator that reads people out of the pixels: walkers whose places are written in each frame's first row."""

from collections.abc import Iterable, Iterator

import numpy as np

from tests.support.walkers import people
from vitpose_jax import PoseEstimator, Poses
from vitpose_jax.overlaps import box_overlaps
from vitpose_jax.skeletons import COCO
from vitpose_jax.video.reader import Frame

SIZE = (240, 480)


class _Config:
    def skeleton(self, _) -> object:
        return COCO


def picture(places: list[tuple[float, float, float]]) -> np.ndarray:
    """A frame with people by the middle of their head's top, x and y, and their height, in whole tens of pixels."""
    image = np.full((*SIZE, 3), 90, np.uint8)
    for number, (x, y, height) in enumerate(places):
        # Four blocks of 8 pixels: x, y, height in units of 2 and a mark; a lossy codec keeps them.
        for place, value in enumerate((x / 2, y / 2, height / 2, 255)):
            image[8 * number : 8 * number + 8, 8 * place : 8 * place + 8] = round(value)
    return image


class WalkerEstimator(PoseEstimator):
    """Finds the people of `picture`; its detector sees them on each call without boxes."""

    def __init__(self) -> None:
        self.config, self.calls = _Config(), []

    def _see(self, image: np.ndarray):
        places = []
        for row in range(8):
            x, y, height, mark = (
                float(image[8 * row + 2 : 8 * row + 6, 8 * c + 2 : 8 * c + 6].mean()) for c in range(4)
            )
            if mark > 200:
                places.append((2 * x, 2 * y, 2 * height))
        return people(places)

    def __call__(self, images, boxes=None, **_) -> Poses:
        found = self._see(images)
        self.calls.append("detect" if boxes is None else len(boxes))
        if boxes is None:
            return Poses.create(
                found.keypoints, found.scores, found.boxes, COCO, box_scores=np.full(len(found.boxes), 0.9)
            )
        boxes = np.asarray(boxes, np.float32)
        keypoints, scores = np.zeros((len(boxes), 17, 2)), np.full((len(boxes), 17), 0.01)
        for row, box in enumerate(boxes):
            overlap = box_overlaps(box[None], found.boxes)[0]
            if len(overlap) and overlap.max() > 0.3:
                keypoints[row], scores[row] = found.keypoints[overlap.argmax()], found.scores[overlap.argmax()]
        return Poses.create(keypoints, scores, boxes, COCO)

    def stream(self, items: Iterable[tuple], **options) -> Iterator[Poses]:
        for image, boxes in items:
            yield self(image, boxes, **options)

    @property
    def detector(self) -> None:
        return None


def crossing(count: int = 30) -> Iterator[Frame]:
    """Two people who walk towards and past each other, 100 and 150 pixels a second."""
    for number in range(count):
        places = [(60 + 8 * number, 10, 200), (400 - 8 * number, 40, 160)]
        yield Frame(number, number / 25, picture(places))
