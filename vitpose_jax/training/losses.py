"""Losses and the training metric, on heatmaps. Arithmetic is float32 whatever the dtype of the predictions.

What is not finite in a prediction shows in the loss, also where its weight is 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitpose_jax.pipeline.postprocess import find_peaks


def keypoint_errors(
    predicted: Float[Array, "n height width K"],
    target: Float[Array, "n height width K"],
    weights: Float[Array, "n K"] | None = None,
) -> Float[Array, "n K"]:
    """Mean squared error of each heatmap, both multiplied by its weight before; None for no weights."""
    difference = predicted.astype(jnp.float32) - target.astype(jnp.float32)
    if weights is not None:
        difference *= weights.astype(jnp.float32)[:, None, None, :]
    return jnp.mean(difference**2, axis=(1, 2))


def joints_mse(
    predicted: Float[Array, "n height width K"],
    target: Float[Array, "n height width K"],
    weights: Float[Array, "n K"],
    *,
    use_target_weight: bool = True,
) -> Float[Array, ""]:
    """The loss ViTPose is trained with; `JointsMSELoss` of the original.

    The mean over all keypoints of all crops, those of weight 0 included: few visible keypoints make a small
    loss.

    Args:
        predicted, target: heatmaps.
        weights: of each heatmap, from `gaussian_heatmaps`.
        use_target_weight: False to count every heatmap fully.
    """
    return jnp.mean(keypoint_errors(predicted, target, weights if use_target_weight else None))


def online_hard_keypoints(
    predicted: Float[Array, "n height width K"],
    target: Float[Array, "n height width K"],
    weights: Float[Array, "n K"],
    *,
    top_k: int = 8,
    use_target_weight: bool = True,
) -> Float[Array, ""]:
    """As `joints_mse`, of the `top_k` worst keypoints of each crop alone; `JointsOHKMMSELoss` of the original.

    Raises:
        ValueError: where there are fewer than `top_k` keypoints, or `top_k` is not positive.
    """
    if not 1 <= top_k <= predicted.shape[-1]:
        raise ValueError(f"top_k: expected 1 to {predicted.shape[-1]}, the number of keypoints, got {top_k}")
    errors = keypoint_errors(predicted, target, weights if use_target_weight else None)
    # An error that is not a number must not be left out.
    worst, _ = jax.lax.top_k(jnp.where(jnp.isnan(errors), jnp.inf, errors), top_k)
    return jnp.mean(worst)


def joints_mse_by_dataset(
    predicted: Float[Array, "n height width K"],
    target: Float[Array, "n height width K"],
    weights: Float[Array, "n K"],
    dataset_index: Int[Array, " n"],
    num_keypoints: tuple[int, ...],
) -> Float[Array, " datasets"]:
    """The losses of the heads of a ViTPose++ on one batch of several data sets; their sum is what is minimised.

    As in the original (`TopDownMoE`), each head's loss is a mean over the whole batch in which the crops of other
    data sets count 0: its size is proportional to the head's share of the batch. To weigh the data sets by
    themselves, divide by that share.

    Args:
        predicted: of each crop, the heatmaps of its own head in the first channels, as `VitPose` returns them.
        target, weights: as in `joints_mse`; channels beyond a head's own are not read.
        dataset_index: of each crop.
        num_keypoints: of each data set's head, in the order of `dataset_index`; 0 where it has none.

    Returns:
        One loss for each data set; all of them NaN where a crop's data set has no head.

    Raises:
        ValueError: for a head with more keypoints than there are channels.
    """
    n, channels = weights.shape
    if not all(0 <= count <= channels for count in num_keypoints):
        raise ValueError(f"num_keypoints: expected 0 to {channels}, the number of channels, got {num_keypoints}")
    errors = keypoint_errors(predicted, target, weights)
    counts = jnp.asarray(num_keypoints)
    mine = dataset_index[:, None] == jnp.arange(len(num_keypoints))
    own = jnp.arange(channels) < counts[:, None]
    sums = jnp.sum(jnp.where(mine[:, :, None] & own, errors[:, None, :], 0.0), axis=(0, 2))
    every_crop_counts = jnp.all(jnp.any(mine & (counts > 0), axis=1))
    return jnp.where(every_crop_counts, sums / (n * jnp.maximum(counts, 1)), jnp.nan)


def heatmap_pck(
    predicted: Float[Array, "n height width K"],
    target: Float[Array, "n height width K"],
    weights: Float[Array, "n K"],
    *,
    threshold: float = 0.05,
) -> Float[Array, ""]:
    """The share of keypoints whose peak is near the target's; `pose_pck_accuracy` of the original.

    A peak is near where the distance is below `threshold`, after x was divided by the height and y by the width
    of the heatmap: so it is in the original, whose numbers these are to be compared with. Heatmaps without a
    positive pixel have their peak at (-1, -1).

    Args:
        predicted, target: heatmaps.
        weights: keypoints with a weight of 0 do not count.

    Returns:
        The mean over keypoints of the share among crops; keypoints that no crop has are left out. 0 where there
        are none at all.
    """
    height, width = predicted.shape[1:3]
    counted = weights > 0
    predicted_peaks, target_peaks = (_positive_peaks(heatmaps) for heatmaps in (predicted, target))
    distance = jnp.linalg.norm((predicted_peaks - target_peaks) / jnp.asarray([height, width], jnp.float32), axis=-1)
    crops = jnp.sum(counted, axis=0)
    share = jnp.sum(counted & (distance < threshold), axis=0) / jnp.maximum(crops, 1)
    return jnp.sum(share) / jnp.maximum(jnp.sum(crops > 0), 1)


def _positive_peaks(heatmaps: Float[Array, "n height width K"]) -> Float[Array, "n K 2"]:
    points, scores = find_peaks(heatmaps)
    return jnp.where(scores[..., None] > 0, points, -1.0)
