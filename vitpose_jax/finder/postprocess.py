"""From the person finder's output to objects in pixels of their image, by non-maximum suppression; jit-able."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from vitpose_jax.detections import Objects

# Two boxes are also of one person if this fraction of the smaller one lies in the other, and they overlap as much as
# this: one is of the upper half of a person, the other of the whole person. On photographs of COCO this removes more
# wrong boxes than right ones.
INSIDE, PART_IOU = 0.9, 0.4


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
    kept_logits, corners, class_ids = best_boxes(
        logits, boxes, class_mask, num_candidates=num_candidates, nms_iou=nms_iou, count=count
    )
    corners = corners * jnp.tile(scale[:, ::-1].astype(jnp.float32), 2)[:, None]
    sides = jnp.concatenate([corners[..., :2], corners[..., 2:] - corners[..., :2]], axis=-1)
    return Objects(sides, jax.nn.sigmoid(kept_logits), class_ids)


def best_boxes(
    logits: Float[Array, "n cells classes"],
    boxes: Float[Array, "n cells 4"],
    class_mask: Bool[Array | np.ndarray, " classes"],
    *,
    num_candidates: int,
    nms_iou: float,
    count: int,
) -> tuple[Float[Array, "n count"], Float[Array, "n count 4"], Int[Array, "n count"]]:
    """The logits, boxes x1, y1, x2, y2 and classes of the boxes that stay, by falling logit.

    Args:
        logits, boxes, class_mask, num_candidates, nms_iou, count: as for `find_objects`.

    Returns:
        Behind the boxes that stay there may be others, with a logit of minus infinity.
    """
    n, _, classes = logits.shape
    candidates = jnp.where(class_mask, logits, -jnp.inf).reshape(n, -1)
    top_logits, index = jax.lax.top_k(candidates, min(num_candidates, candidates.shape[1]))
    top_boxes, class_ids = jnp.take_along_axis(boxes, (index // classes)[..., None], axis=1), index % classes
    kept = jax.vmap(suppress)(jax.vmap(same_object, in_axes=(0, None))(top_boxes, nms_iou), class_ids)
    kept_logits, order = jax.lax.top_k(jnp.where(kept, top_logits, -jnp.inf), min(count, top_logits.shape[1]))
    corners = jnp.take_along_axis(top_boxes, order[..., None], axis=1)
    return kept_logits, corners, jnp.take_along_axis(class_ids, order, axis=1).astype(jnp.int32)


def same_object(boxes: Float[Array, "count 4"], nms_iou: float) -> Bool[Array, "count count"]:
    """Which pairs of boxes x1, y1, x2, y2 are taken for one object: those that overlap much, and parts of another."""
    intersection, areas = _intersections(boxes, boxes)
    smaller = jnp.minimum(*areas)
    iou = _iou(intersection, areas)
    return (iou > nms_iou) | ((iou > PART_IOU) & (intersection > INSIDE * smaller))


def suppress(same: Bool[Array, "count count"], class_ids: Int[Array, " count"]) -> Bool[Array, " count"]:
    """Greedy non-maximum suppression: which boxes stay, of boxes sorted by falling score.

    A box stays if no better box of its class that stays is of the same object. Starting from all boxes, this rule is
    applied to all of them until nothing changes. Each time at least one more box is settled for good, the best first;
    for photographs a few times are enough.

    Args:
        same: which pairs are taken for one object.
        class_ids: of the boxes.
    """
    order = jnp.arange(len(same))
    # blocks[i, j]: if box i stays, box j does not.
    blocks = same & (order[:, None] < order) & (class_ids[:, None] == class_ids)

    def settle(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stays, _ = state
        return ~jnp.any(blocks & stays[:, None], axis=0), stays

    def changed(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[0] != state[1])

    everything = jnp.ones(len(same), bool)
    return jax.lax.while_loop(changed, settle, settle((everything, everything)))[0]


def box_iou(first: Float[Array, "n 4"], second: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of each pair of boxes x1, y1, x2, y2; 0 for boxes without area."""
    return _iou(*_intersections(first, second))


def _intersections(
    first: Float[Array, "n 4"], second: Float[Array, "m 4"]
) -> tuple[Float[Array, "n m"], tuple[Float[Array, "n 1"], Float[Array, " m"]]]:
    """The area that each pair has in common, and the areas of the boxes."""
    start = jnp.maximum(first[:, None, :2], second[:, :2])
    end = jnp.minimum(first[:, None, 2:], second[:, 2:])
    areas = [jnp.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (first, second)]
    return jnp.prod(jnp.clip(end - start, 0), axis=-1), (areas[0][:, None], areas[1])


def _iou(intersection: Float[Array, "n m"], areas: tuple[Float[Array, "n 1"], Float[Array, " m"]]) -> Array:
    union = areas[0] + areas[1] - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)
