"""From the person finder's output to objects in pixels of their image, by non-maximum suppression; jit-able."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from vitpose_jax.detections import Objects


def find_objects(
    logits: Float[Array, "n cells classes"],
    boxes: Float[Array, "n cells 4"],
    scale: Num[Array | np.ndarray, "n 2"],
    class_mask: Bool[Array | np.ndarray, " classes"],
    *,
    num_candidates: int,
    nms_iou: float,
    count: int,
) -> Objects:
    """The highest-scoring boxes that no better box of their class overlaps.

    Args:
        logits, boxes: from `PersonFinder`.
        scale: for each image, how many of its pixels one pixel of the network's input is: down and across.
        class_mask: True for each class to find.
        num_candidates: the highest-scoring pairs of a cell and a class that are looked at.
        nms_iou: largest intersection over union of two boxes of one class.
        count: number of objects.
    """
    n, _, classes = logits.shape
    candidates = jnp.where(class_mask, logits, -jnp.inf).reshape(n, -1)
    top_logits, index = jax.lax.top_k(candidates, min(num_candidates, candidates.shape[1]))
    top_boxes, class_ids = jnp.take_along_axis(boxes, (index // classes)[..., None], axis=1), index % classes
    kept = jax.vmap(suppress, in_axes=(0, 0, None))(top_boxes, class_ids, nms_iou)
    kept_logits, order = jax.lax.top_k(jnp.where(kept, top_logits, -jnp.inf), min(count, top_logits.shape[1]))
    corners = jnp.take_along_axis(top_boxes, order[..., None], axis=1)
    corners = corners * jnp.tile(scale[:, ::-1].astype(jnp.float32), 2)[:, None]
    sides = jnp.concatenate([corners[..., :2], corners[..., 2:] - corners[..., :2]], axis=-1)
    class_ids = jnp.take_along_axis(class_ids, order, axis=1).astype(jnp.int32)
    return Objects(sides, jax.nn.sigmoid(kept_logits), class_ids)


def suppress(
    boxes: Float[Array, "count 4"], class_ids: Int[Array, " count"], iou_threshold: float
) -> Bool[Array, " count"]:
    """Greedy non-maximum suppression: which boxes stay, of boxes x1, y1, x2, y2 sorted by falling score.

    A box stays if no better box that stays overlaps it too much. Starting from all boxes, this rule is applied to all
    of them until nothing changes. Each time at least one more box is settled for good, the best first; for photographs
    a few times are enough.
    """
    order = jnp.arange(len(boxes))
    overlaps = box_iou(boxes, boxes) > iou_threshold
    # blocks[i, j]: if box i stays, box j does not.
    blocks = overlaps & (order[:, None] < order) & (class_ids[:, None] == class_ids)

    def settle(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stays, _ = state
        return ~jnp.any(blocks & stays[:, None], axis=0), stays

    def changed(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[0] != state[1])

    everything = jnp.ones(len(boxes), bool)
    return jax.lax.while_loop(changed, settle, settle((everything, everything)))[0]


def box_iou(first: Float[Array, "n 4"], second: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of each pair of boxes x1, y1, x2, y2; 0 for boxes without area."""
    start = jnp.maximum(first[:, None, :2], second[:, :2])
    end = jnp.minimum(first[:, None, 2:], second[:, 2:])
    intersection = jnp.prod(jnp.clip(end - start, 0), axis=-1)
    areas = [jnp.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1] - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)
