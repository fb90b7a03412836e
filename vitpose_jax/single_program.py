"""From an image to the people in it in one XLA program: the detector, its boxes, the crops, the poses.

`PoseEstimator` with a detector runs two programs, and the host looks at the boxes in between: it crops as many as there
are. Here nobody looks: always `max_people` crops are computed, and those of nobody are cut off at the end. That saves a
round trip to the device and costs the crops of nobody; benchmarks/detection.py measures both.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from vitpose_jax.detector import Detector
from vitpose_jax.images import load_image
from vitpose_jax.pipeline.packing import pack_images
from vitpose_jax.pipeline.postprocess import Decode, get_decoding
from vitpose_jax.pipeline.predict import predict
from vitpose_jax.poses import Poses
from vitpose_jax.rtdetr.modeling import RtDetr
from vitpose_jax.rtdetr.postprocess import Objects, find_objects
from vitpose_jax.rtdetr.preprocess import prepare, resize, resize_matrix, unpack_image
from vitpose_jax.serving.batching import pixel_bucket
from vitpose_jax.vitpose.modeling import VitPose


def find_people(
    detector: RtDetr,
    model: VitPose,
    pixels: UInt8[Array, "p 3"],
    shape: Int[Array, "3"],
    down: Float[Array, "2 height rows"],
    across: Float[Array, "2 width columns"],
    wanted: Bool[Array, " classes"],
    threshold: Float[Array, ""],
    *,
    max_people: int,
    dataset_index: int = 0,
    flip_test: bool = False,
    decode: Decode = "udp",
) -> tuple[Float[Array, "n 4"], Float[Array, "n"], Bool[Array, "n"], Float[Array, "n K 2"], Float[Array, "n K"]]:
    """The people in one image; jit-able.

    Args:
        detector, model: the two networks.
        pixels: RGB of the image, from `pack_images`.
        shape: where it begins there, its height, its width.
        down, across: `resize_matrix` of its height and its width.
        wanted: classes of the detector that count as people.
        threshold: they have a higher score.
        max_people: n.
        dataset_index, flip_test, decode: as of `predict`.

    Returns:
        boxes, their scores, whether there is anybody in them, keypoints and scores. Boxes and keypoints of nobody are
        those of the whole image.
    """
    config = detector.config
    image = unpack_image(pixels, shape, (down.shape[2], across.shape[2]))
    output = detector(prepare(resize(image, down, across), config)[None])
    found: Objects = find_objects(output.logits, output.boxes, shape[None, 1:], wanted, max_people)
    boxes, sure = found.boxes[0], found.scores[0]
    somebody = (sure > threshold) & (boxes[:, 2:] > 0).all(axis=-1)
    whole = jnp.stack([jnp.zeros(()), jnp.zeros(()), shape[2], shape[1]])
    boxes = jnp.where(somebody[:, None], boxes, whole)
    shapes = jnp.broadcast_to(shape, (len(boxes), 3))
    keypoints, scores = predict(
        model, pixels, shapes, boxes, dataset_index=dataset_index, flip_test=flip_test, decode=decode
    )
    return boxes, sure, somebody, keypoints, scores


class SingleProgramEstimator:
    """Finds people and their keypoints in an image, in one program.

    One program is compiled for each pair of padded sides of images, and for each combination of `dataset`, `flip_test`
    and `decode` in use. It holds both networks.

    Args:
        model: a `VitPose`.
        detector: its network, threshold and labels are used.
        max_people: as many crops are always computed; more people are not found.

    Raises:
        ValueError: for a `max_people` below 1 or above the detector's number of queries.
    """

    def __init__(self, model: VitPose, detector: Detector, *, max_people: int = 16):
        most = detector.config.num_queries
        if not 1 <= max_people <= most:
            raise ValueError(f"max_people: expected 1 to {most}, as many as the detector finds, got {max_people}")
        self.config, self.detector, self.max_people = model.config, detector, max_people
        graphdef, state = nnx.split((detector.model, model))
        leaves, structure = jax.tree.flatten(state)
        self._leaves = jax.device_put(leaves)

        @functools.partial(jax.jit, static_argnames=("dataset_index", "flip_test", "decode"))
        def run(leaves, *arrays, **options):
            networks = nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))
            return find_people(*networks, *arrays, max_people=max_people, **options)

        self._run = run

    def __call__(
        self, image: Any, *, dataset: str | int | None = None, flip_test: bool = False, decode: Decode = "udp"
    ) -> Poses:
        """Estimate poses.

        Args:
            image: a path, a PIL image or a uint8 array (height, width, 3) in RGB.
            dataset: which expert and head, name or number; None for the first head.
            flip_test, decode: as of `PoseEstimator`.

        Returns:
            `Poses` with the detector's boxes and `box_scores`; empty where there is nobody.

        Raises:
            ValueError: for an image that cannot be read, an unknown data set, or an unknown decoding.
        """
        get_decoding(decode)
        index, skeleton = self.config.dataset_index(dataset), self.config.skeleton(dataset)
        threshold, wanted, most = self.detector.request()
        pixels = load_image(image)
        sides = pixels.shape[:2]
        row, shapes = pack_images([pixels], pixel_bucket(sides[0] * sides[1]))
        down, across = (resize_matrix(*pair) for pair in zip(sides, self.detector.config.image_size, strict=True))
        options = {"dataset_index": index, "flip_test": flip_test, "decode": decode}
        found = self._run(self._leaves, row, shapes[0], down, across, wanted, np.float32(threshold), **options)
        boxes, sure, somebody, keypoints, scores = map(np.asarray, found)
        kept = np.flatnonzero(somebody)[:most]
        return Poses(
            keypoints=keypoints[kept],
            scores=scores[kept],
            boxes=boxes[kept],
            skeleton_index=np.zeros(len(kept), np.int32),
            skeletons=(skeleton,),
            box_scores=sure[kept],
        )

    @property
    def num_compiled(self) -> int:
        """How many programs have been compiled so far."""
        return self._run._cache_size()
