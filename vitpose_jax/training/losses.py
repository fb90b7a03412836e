"""Losses and the training metric, on heatmaps. The arithmetic is float32 for predictions of any dtype.

NaN or infinity in a prediction makes the loss NaN or infinity, even at weight 0.
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
    """Mean squared error of each heatmap. The difference is multiplied by the heatmap's weight first; None for none."""
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
    """The loss of ViTPose; `JointsMSELoss` of the original.

    The mean over all keypoints of all crops, including keypoints of weight 0: the loss is small if few keypoints are
    visible.

    Args:
        predicted, target: heatmaps.
        weights: weight of each heatmap, from `gaussian_heatmaps`.
        use_target_weight: False for weight 1 everywhere.
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
    """`joints_mse` over the `top_k` keypoints with the largest error of each crop; `JointsOHKMMSELoss` of the original.

    Args:
        predicted, target, weights, use_target_weight: as in `joints_mse`.
        top_k: keypoints that count in a crop.

    Raises:
        ValueError: if `top_k` is not from 1 to K.
    """
    if not 1 <= top_k <= predicted.shape[-1]:
        raise ValueError(f"top_k: expected 1 to {predicted.shape[-1]}, the number of keypoints, got {top_k}")
    errors = keypoint_errors(predicted, target, weights if use_target_weight else None)
    # top_k could leave NaN out.
    largest, _ = jax.lax.top_k(jnp.where(jnp.isnan(errors), jnp.inf, errors), top_k)
    return jnp.mean(largest)


def joints_mse_by_dataset(
    predicted: Float[Array, "n height width K"],
    target: Float[Array, "n height width K"],
    weights: Float[Array, "n K"],
    dataset_index: Int[Array, " n"],
    num_keypoints: tuple[int, ...],
) -> Float[Array, " datasets"]:
    """The losses of the heads of a ViTPose++ on a batch of several datasets; the loss of the batch is their sum.

    As in the original (`TopDownMoE`), the loss of a head is a mean over the whole batch in which crops of other
    datasets count 0. So it is proportional to the head's fraction of the batch. For equal weights of the datasets,
    divide by that fraction.

    Args:
        predicted: heatmaps of each crop's own head in the first channels, as `VitPose` returns them.
        target, weights: as in `joints_mse`; channels that the head does not have are not read.
        dataset_index: dataset of each crop.
        num_keypoints: keypoints of each dataset's head, in the order of `dataset_index`; 0 for a dataset without a
            head.

    Returns:
        The loss of each dataset; all are NaN if a crop's dataset has no head.

    Raises:
        ValueError: for a head with more keypoints than channels.
    """
    n, channels = weights.shape
    if not all(0 <= count <= channels for count in num_keypoints):
        raise ValueError(f"num_keypoints: expected 0 to {channels}, the number of channels, got {num_keypoints}")
    errors = keypoint_errors(predicted, target, weights)
    counts = jnp.asarray(num_keypoints)
    belongs = dataset_index[:, None] == jnp.arange(len(num_keypoints))
    has_channel = jnp.arange(channels) < counts[:, None]
    sums = jnp.sum(jnp.where(belongs[:, :, None] & has_channel, errors[:, None, :], 0.0), axis=(0, 2))
    every_crop_has_a_head = jnp.all(jnp.any(belongs & (counts > 0), axis=1))
    return jnp.where(every_crop_has_a_head, sums / (n * jnp.maximum(counts, 1)), jnp.nan)


def heatmap_pck(
    predicted: Float[Array, "n height width K"],
    target: Float[Array, "n height width K"],
    weights: Float[Array, "n K"],
    *,
    threshold: float = 0.05,
) -> Float[Array, ""]:
    """The fraction of keypoints whose peak is near the target's; `pose_pck_accuracy` of the original.

    A peak is near if its distance is below `threshold`, after dividing x by the height and y by the width of the
    heatmap. The original does it so, and this metric is for comparison with it. A heatmap without a positive pixel has
    its peak at (-1, -1).

    Args:
        predicted, target: heatmaps.
        weights: keypoints with weight 0 do not count.
        threshold: maximum normalised distance of a correct peak.

    Returns:
        The fraction of crops for each keypoint, averaged over the keypoints that occur; 0 if none occurs.
    """
    height, width = predicted.shape[1:3]
    counted = weights > 0
    predicted_peaks, target_peaks = (_positive_peaks(heatmaps) for heatmaps in (predicted, target))
    distance = jnp.linalg.norm((predicted_peaks - target_peaks) / jnp.asarray([height, width], jnp.float32), axis=-1)
    crops = jnp.sum(counted, axis=0)
    fraction = jnp.sum(counted & (distance < threshold), axis=0) / jnp.maximum(crops, 1)
    return jnp.sum(fraction) / jnp.maximum(jnp.sum(crops > 0), 1)


def _positive_peaks(heatmaps: Float[Array, "n height width K"]) -> Float[Array, "n K 2"]:
    points, scores = find_peaks(heatmaps)
    return jnp.where(scores[..., None] > 0, points, -1.0)
