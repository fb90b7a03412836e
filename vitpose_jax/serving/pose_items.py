"""An image on its way through the pose estimator, and a batch of boxes of several of them."""

import dataclasses
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Array, Float

from vitpose_jax.poses import Poses
from vitpose_jax.serving.batching import Batch, Item
from vitpose_jax.serving.requests import Request


@dataclasses.dataclass(eq=False)
class PoseItem(Item):
    """An image on its way through the estimator.

    Attributes:
        request: without boxes until the detector found them.
        box_scores: of the detector.
        keypoints, scores, covariances: filled as batches come back.
        pending: the number of boxes whose results have not come back.
    """

    request: Request
    box_scores: Float[np.ndarray, " n"] | None = None
    pending: int = dataclasses.field(init=False, default=0)
    keypoints: Float[np.ndarray, "n K 2"] = dataclasses.field(init=False)
    scores: Float[np.ndarray, "n K"] = dataclasses.field(init=False)
    covariances: Float[np.ndarray, "n K 2 2"] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if self.request.boxes is not None:
            self.set_boxes(self.request.boxes, self.request.box_scores)

    @property
    def num_boxes(self) -> int:
        return 1 if self.request.boxes is None else len(self.request.boxes)

    @property
    def finished(self) -> bool:
        return self.request.boxes is not None and self.pending == 0

    @property
    def boxes(self) -> Float[np.ndarray, "n 4"]:
        """x y w h in pixels of the image; known by now."""
        return cast(np.ndarray, self.request.boxes)

    def set_boxes(self, boxes: Float[np.ndarray, "n 4"], box_scores: Float[np.ndarray, " n"] | None = None) -> None:
        """Make room for the results of these boxes."""
        if self.request.boxes is None:
            self.request = self.request.with_boxes(boxes)
        self.box_scores, self.pending = box_scores, len(boxes)
        self.keypoints = np.zeros((self.pending, self.request.num_keypoints, 2), np.float32)
        self.scores = np.zeros((self.pending, self.request.num_keypoints), np.float32)
        self.covariances = np.full((*self.scores.shape, 2, 2), np.nan, np.float32)
        if self.pending == 0:
            self.release_pixels()

    def to_poses(self) -> Poses:
        """The result."""
        request = self.request
        return Poses.create(
            self.keypoints,
            self.scores,
            self.boxes,
            request.skeletons,
            request.skeleton_index,
            self.box_scores,
            self.covariances,
        )


class PoseJob(NamedTuple):
    """A batch on the device, and where its results go."""

    items: list[PoseItem]
    batch: Batch
    keypoints: Float[Array, "size K 2"]
    scores: Float[Array, "size K"]
    covariances: Float[Array, "size K 2 2"]

    def collect(self) -> None:
        """Wait for the results and put them into their items."""
        results = map(np.asarray, (self.keypoints, self.scores, self.covariances))
        for (image, box), keypoints, scores, covariances in zip(self.batch.rows, *results, strict=False):
            item = self.items[image]
            item.keypoints[box, : len(scores)] = keypoints
            item.scores[box, : len(scores)] = scores
            item.covariances[box, : len(scores)] = covariances
            item.pending -= 1
