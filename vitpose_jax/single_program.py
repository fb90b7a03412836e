"""From an image to the people in it in one XLA program: the detector, its boxes, the crops, the poses.

`PoseEstimator` with a detector runs two programs: the host reads the boxes in between and computes as many crops as
there are people. Here one program always computes `max_people` crops and drops the empty ones. This saves one
round trip to the device, and computes some empty crops. benchmarks/detection.py measures both.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vitpose_jax.detector import DetectionModel, Detector, Network
from vitpose_jax.images import ImageLike, load_image
from vitpose_jax.pipeline.packing import PackedImages, pack_images, pixel_bucket, unpack_image
from vitpose_jax.pipeline.postprocess import Decode, get_decoding
from vitpose_jax.pipeline.predict import predict
from vitpose_jax.pipeline.resize import resize, resize_matrix
from vitpose_jax.poses import Poses
from vitpose_jax.serving.program import Program
from vitpose_jax.serving.requests import check_flip_pairs
from vitpose_jax.vitpose.modeling import VitPose


class People(NamedTuple):
    """The `max_people` highest-scoring boxes of an image and the poses in them.

    Attributes:
        boxes: x y w h in pixels of the image; the whole image if there is no person for a row.
        box_scores: of the detector.
        occupied: whether the box holds a person: a score above the threshold and an area.
        keypoints: (x, y) in pixels of the image.
        scores: of the keypoints.
        covariances: of the keypoints, in square pixels; see `peak_covariances`.
    """

    boxes: Float[Array | np.ndarray, "n 4"]
    box_scores: Float[Array | np.ndarray, " n"]
    occupied: Bool[Array | np.ndarray, " n"]
    keypoints: Float[Array | np.ndarray, "n K 2"]
    scores: Float[Array | np.ndarray, "n K"]
    covariances: Float[Array | np.ndarray, "n K 2 2"]


def find_people(
    models: tuple[DetectionModel, VitPose],
    images: PackedImages,
    down: Float[Array, "2 height rows"],
    across: Float[Array, "2 width columns"],
    resized: Float[Array, "2"],
    class_mask: Bool[Array, " classes"],
    threshold: Float[Array, ""],
    *,
    max_people: int,
    dataset_index: int = 0,
    flip_test: bool = False,
    decode: Decode = "udp",
) -> People:
    """The people in one image; jit-able.

    Args:
        models: the detector's network and the pose network.
        images: one image, from `pack_images`.
        down, across: `resize_matrix` of its height and its width.
        resized: height and width after resizing, in pixels.
        class_mask: True for the detector's classes that count as people.
        threshold: people have a higher score.
        max_people: n.
        dataset_index, flip_test, decode: see `predict`.
    """
    detector, model = models
    _, height, width = shape = images.shapes[0]
    image = unpack_image(images.pixels, shape, (down.shape[2], across.shape[2]))
    small = resize(image, down, across)[None]
    objects = Network.of(detector).detect(detector, small, shape[None, 1:], resized[None], class_mask, max_people)
    boxes, box_scores = objects.boxes[0], objects.scores[0]
    occupied = (box_scores > threshold) & (boxes[:, 2:] > 0).all(axis=-1)
    boxes = jnp.where(occupied[:, None], boxes, jnp.stack([jnp.zeros(()), jnp.zeros(()), width, height]))
    crops = images._replace(shapes=jnp.broadcast_to(shape, (len(boxes), 3)))
    results = predict(model, crops, boxes, dataset_index=dataset_index, flip_test=flip_test, decode=decode)
    return People(boxes, box_scores, occupied, *results)


class SingleProgramEstimator:
    """Finds people and their keypoints in an image, in one program.

    One program is compiled for each pair of padded sides of images, and for each combination of `dataset`, `flip_test`
    and `decode` in use. It holds both networks.

    Args:
        model: a `VitPose`.
        detector: its network, threshold and labels are used.
        max_people: the number of crops that are always computed; more people are not found.

    Raises:
        ValueError: for a `max_people` below 1 or above the detector's maximum number of objects.
    """

    def __init__(self, model: VitPose, detector: Detector, *, max_people: int = 16):
        limit = detector.config.max_objects
        if not 1 <= max_people <= limit:
            raise ValueError(f"max_people: expected 1 to {limit}, the detector's maximum, got {max_people}")
        self.config, self.detector, self.max_people = model.config, detector, max_people
        options = ("max_people", "dataset_index", "flip_test", "decode")
        self._program = Program((detector.model, model), find_people, options=options)

    def __call__(
        self, image: ImageLike, *, dataset: str | int | None = None, flip_test: bool = False, decode: Decode = "udp"
    ) -> Poses:
        """Estimate poses.

        Args:
            image: a path, a PIL image or a uint8 array (height, width, 3) in RGB.
            dataset: the expert and head, a name or an index; None for the first head.
            flip_test, decode: see `PoseEstimator`.

        Returns:
            `Poses` with the detector's boxes and `box_scores`; empty for an image without people.

        Raises:
            ValueError: for an image that cannot be read, an unknown dataset or decoding, or a flip test of a skeleton
                without flip pairs.
        """
        get_decoding(decode)
        dataset_index, skeleton = self.config.dataset_index(dataset), self.config.skeleton(dataset)
        if flip_test:
            check_flip_pairs(skeleton)
        threshold, class_mask, max_detections = self.detector.check_options()
        pixels = load_image(image)
        (height, width, _), network = pixels.shape, Network.of(self.detector.model)
        resized = network.resized_size(height, width, self.detector.config)
        input_size = network.input_size([resized], self.detector.config)
        down = resize_matrix(height, resized[0], input_size[0])
        across = resize_matrix(width, resized[1], input_size[1])
        people = self._program(
            pack_images([pixels], pixel_bucket(height * width)),
            down,
            across,
            np.asarray(resized, np.float32),
            class_mask,
            np.float32(threshold),
            max_people=self.max_people,
            dataset_index=dataset_index,
            flip_test=flip_test,
            decode=decode,
        )
        people = People(*map(np.asarray, people))
        rows = np.flatnonzero(people.occupied)[:max_detections]
        return Poses.create(
            people.keypoints[rows],
            people.scores[rows],
            people.boxes[rows],
            skeleton,
            box_scores=people.box_scores[rows],
            covariances=people.covariances[rows],
        )

    @property
    def num_compiled(self) -> int:
        """The number of programs compiled so far."""
        return self._program.num_compiled
