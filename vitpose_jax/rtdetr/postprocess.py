"""From the detector's logits and boxes to objects of chosen classes, in pixels of their image; jit-able."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from vitpose_jax.detections import Objects


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
