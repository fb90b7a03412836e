"""From the detector's logits and boxes to objects of chosen classes, in pixels of their image; jit-able."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num


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


def find_objects(
    logits: Float[Array, "n queries classes"],
    boxes: Float[Array, "n queries 4"],
    sizes: Num[Array | np.ndarray, "n 2"],
    class_mask: Bool[Array | np.ndarray, " classes"],
    count: int,
) -> Objects:
    """The `count` highest-scoring pairs of a query and a class, among the classes of `class_mask`.

    As in transformers, one query can be several objects of different classes. transformers keeps the best pairs of all
    classes, as many as there are queries. Here other classes are left out first, so they do not crowd out the chosen
    ones.

    Args:
        logits, boxes: from `RtDetr`.
        sizes: height and width of each image, in pixels.
        class_mask: True for each class to find.
        count: number of objects; at most queries x classes.
    """
    n, _, classes = logits.shape
    # Sort by logits: they still differ when both sigmoids round to 1.
    candidates = jnp.where(class_mask, logits, -jnp.inf).reshape(n, -1)
    top_logits, index = jax.lax.top_k(candidates, min(count, candidates.shape[1]))
    top_boxes = jnp.take_along_axis(boxes, (index // classes)[..., None], axis=1)
    centre, extent = top_boxes[..., :2], top_boxes[..., 2:]
    scale = jnp.tile(sizes[:, ::-1].astype(jnp.float32), 2)
    pixels = jnp.concatenate([centre - extent / 2, extent], axis=-1) * scale[:, None]
    return Objects(pixels, jax.nn.sigmoid(top_logits), (index % classes).astype(jnp.int32))
