"""Heatmaps and attention of the people in an image, for drawings.

Programs are compiled for a fixed number of boxes and for pixel buffers of a few lengths, as those of the estimator are:
an image of another size, or with more people, compiles nothing new.
"""

import functools
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.pipeline.packing import PackedImages, pack_images, pixel_bucket
from vitpose_jax.pipeline.predict import make_crops
from vitpose_jax.serving.program import Program
from vitpose_jax.vitpose.modeling import VitPose

Kind: TypeAlias = Literal["heatmaps", "attention"]
# Boxes of one call: the attention of all blocks takes much memory.
BOXES = 4


class Overlays:
    """What a network says of each crop, as one map for each box.

    Args:
        estimator: of the network.
    """

    def __init__(self, estimator: PoseEstimator):
        self._estimator = estimator

    def __call__(
        self,
        image: UInt8[np.ndarray, "height width 3"],
        boxes: Float[np.ndarray, "n 4"],
        kind: Kind,
        dataset: str | None = None,
    ) -> Float[np.ndarray, "n rows columns"]:
        """The maps of boxes in an image.

        Args:
            image: RGB.
            boxes: x y w h in pixels of the image, one or more.
            kind: "heatmaps": the largest value of any keypoint's heatmap. "attention": how much all patches look at
                each patch in the last block, the mean over its heads.
            dataset: the expert and head; None for the first.

        Raises:
            ValueError: if the model is an exported one or in another runtime, which gives poses alone.
        """
        index = self._estimator.config.dataset_index(dataset)
        images = pack_images([image], pixel_bucket(image.shape[0] * image.shape[1]))
        rows = np.zeros(BOXES, int)
        maps = []
        for start in range(0, len(boxes), BOXES):
            part = boxes[start : start + BOXES]
            padded = np.concatenate([part, np.repeat(part[-1:], BOXES - len(part), axis=0)])
            values = self._program(images.select(rows), padded, dataset_index=index, kind=kind)
            maps.append(np.asarray(values)[: len(part)])
        return np.concatenate(maps)

    @functools.cached_property
    def _program(self) -> Program:
        model = self._estimator.model
        if not isinstance(model, VitPose):
            raise ValueError(
                "expected a model in JAX for heatmaps and attention; an exported one, or one in another runtime, gives "
                "poses alone"
            )
        return Program(model, _make_maps, options=("dataset_index", "kind"))


def _make_maps(
    model: VitPose, images: PackedImages, boxes: Float[Array, "n 4"], *, dataset_index: int, kind: Kind
) -> Float[Array, "n rows columns"]:
    crops = make_crops(model.config, images, boxes)
    if kind == "heatmaps":
        return model(crops, dataset_index).astype(jnp.float32).max(axis=-1)
    rows, columns = model.config.grid_size
    attentions: Any = model.backbone(crops, dataset_index, output_attentions=True).attentions
    attention = attentions[-1]  # n, heads, tokens, tokens
    return attention.astype(jnp.float32).mean(axis=(1, 2))[:, -rows * columns :].reshape(-1, rows, columns)
