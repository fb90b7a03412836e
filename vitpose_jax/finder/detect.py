"""From resized images to people: the person finder, with its pre- and post-processing; jit-able."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, UInt8

from vitpose_jax.detections import Objects
from vitpose_jax.finder.config import FinderConfig, SecondStageConfig
from vitpose_jax.finder.modeling import PersonFinder
from vitpose_jax.finder.postprocess import best_boxes, find_objects
from vitpose_jax.finder.preprocess import prepare, shrink
from vitpose_jax.finder.second_stage import box_shapes, cut_crops, move_boxes


def detect(
    model: PersonFinder,
    images: UInt8[Array, "n height width 3"],
    sizes: Num[Array | np.ndarray, "n 2"],
    resized: Num[Array | np.ndarray, "n 2"],
    class_mask: Bool[Array | np.ndarray, " classes"],
    count: int,
) -> Objects:
    """Find people in a batch of images, at each scale of the configuration; of two boxes of a person the better stays.

    With a second stage, the best boxes are judged again, each in a crop of its own.

    Args:
        model: the network.
        images: resized, in the upper left corner of the network's input, with zeros around them.
        sizes: height and width of each image before it was resized, in pixels.
        resized: height and width after that.
        class_mask: True for each class to find.
        count: number of people in an image.
    """
    config = model.config
    logits, boxes = first_stage(model, images, resized)
    if config.second_stage is not None:
        logits, boxes = run_second_stage(model, config.second_stage, images, logits, boxes, resized)
    return find_objects(
        logits,
        boxes,
        jnp.asarray(sizes, jnp.float32) / jnp.asarray(resized, jnp.float32),
        class_mask,
        num_candidates=config.num_candidates,
        nms_iou=config.nms_iou,
        count=count,
    )


def first_stage(
    model: PersonFinder,
    images: UInt8[Array, "n height width 3"],
    resized: Num[Array | np.ndarray, "n 2"],
) -> tuple[Float[Array, "n cells classes"], Float[Array, "n cells 4"]]:
    """The logits and boxes x1, y1, x2, y2 of all cells at all scales; arguments as for `detect`."""
    pixels = prepare(images, model.config)
    looks = [(model(shrink(pixels, scale)), scale) for scale in model.config.scales]
    logits = jnp.concatenate([look.logits for look, _ in looks], axis=1)
    boxes = jnp.concatenate([look.boxes / scale for look, scale in looks], axis=1)
    return logits, _clip(boxes, resized)


def _clip(boxes: Float[Array, "n count 4"], resized: Num[Array | np.ndarray, "n 2"]) -> Float[Array, "n count 4"]:
    # Boxes end at the border of the image, not of the input.
    return jnp.clip(boxes, 0, jnp.tile(jnp.asarray(resized)[:, ::-1].astype(jnp.float32), 2)[:, None])


def run_second_stage(
    model: PersonFinder,
    stage: SecondStageConfig,
    images: UInt8[Array, "n height width 3"],
    logits: Float[Array, "n cells 1"],
    boxes: Float[Array, "n cells 4"],
    resized: Num[Array | np.ndarray, "n 2"],
) -> tuple[Float[Array, "n count 1"], Float[Array, "n count 4"]]:
    """The boxes that stay after non-maximum suppression, the best of them judged again by their crops.

    Args:
        model: with a second stage.
        stage: its configuration.
        images, resized: as in `detect`.
        logits, boxes: of the first stage; boxes x1, y1, x2, y2 in pixels of the resized image.
    """
    logits, boxes = keep_first_stage(logits, boxes, model.config)
    first = boxes[:, : stage.num_boxes]
    shapes = box_shapes(first, jnp.asarray(resized, jnp.float32)[:, None])
    crops = cut_crops(images, first, stage)
    judged, offsets = model.second_stage(jax.lax.collapse(crops, 0, 2), jax.lax.collapse(shapes, 0, 2))
    judged, offsets = judged.reshape(first.shape[:2]), offsets.reshape(first.shape)
    both = stage.first_weight * logits[:, : stage.num_boxes] + stage.second_weight * judged + stage.bias
    rest = stage.rest_weight * logits[:, stage.num_boxes :] + stage.rest_bias
    joined = jnp.concatenate([both, rest], axis=1)
    moved = _clip(move_boxes(first, stage.box_weight * offsets), resized)
    # Behind the boxes that stay there may be others, with a logit of minus infinity.
    joined = jnp.where(jnp.isfinite(logits), joined, -jnp.inf)
    return joined[..., None], jnp.concatenate([moved, boxes[:, stage.num_boxes :]], axis=1)


def keep_first_stage(
    logits: Float[Array, "n cells 1"], boxes: Float[Array, "n cells 4"], config: FinderConfig
) -> tuple[Float[Array, "n count"], Float[Array, "n count 4"]]:
    """The logits and boxes that the second stage gets: the `max_objects` best that no better one overlaps."""
    logits, boxes, _ = best_boxes(
        logits,
        boxes,
        np.ones(1, bool),
        num_candidates=config.num_candidates,
        nms_iou=config.nms_iou,
        count=config.max_objects,
    )
    return logits, boxes
