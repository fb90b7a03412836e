"""Target heatmaps from keypoints in pixels of a crop.

Two encodings, for the two affine maps of preprocess.py:

* `udp=True`: the Gaussian is centred at the exact keypoint, between pixels (Huang et al. 2020, arXiv:1911.07524);
  `_udp_generate_target` of the original.
* `udp=False`: it is centred at the nearest pixel; `_msra_generate_target` of the original. This loses up to half a
  heatmap pixel, which no decoding can recover.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num


def gaussian_heatmaps(
    keypoints: Float[Array, "n K 2"],
    visible: Bool[Array, "n K"] | Num[Array, "n K"],
    crop_size: tuple[int, int] = (256, 192),
    heatmap_size: tuple[int, int] = (64, 48),
    *,
    sigma: float = 2.0,
    udp: bool | Bool[Array | np.ndarray, " n"] = True,
) -> tuple[Float[Array, "n height width K"], Float[Array, "n K"]]:
    """Heatmaps with a Gaussian of height 1 at each keypoint, and their weights.

    The Gaussian is 0 outside a square of 3 sigma around the nearest pixel, as in the original.

    Args:
        keypoints: (x, y) in pixels of the crop; any value if not visible.
        visible: labelled keypoints are above 0.
        crop_size: height and width of the crops, in pixels.
        heatmap_size: height and width of the heatmaps, in pixels.
        sigma: standard deviation of the Gaussian in heatmap pixels; 2 for 64 x 48, 3 for 96 x 72.
        udp: the encoding (see the top of this file), for all crops or for each.

    Returns:
        heatmaps, float32, and weights, float32: 1 for a visible keypoint whose square touches the heatmap, else 0.
        Heatmaps of weight 0 are 0.
    """
    radius = int(3 * sigma)
    size = jnp.asarray(heatmap_size[::-1], jnp.float32)
    udp = jnp.asarray(udp)[..., None, None]
    inset = udp.astype(jnp.float32)
    stride = (jnp.asarray(crop_size[::-1], jnp.float32) - inset) / (size - inset)
    exact = keypoints.astype(jnp.float32) / stride
    # Rounds towards zero, like int() in the original: from -1.5 to -0.5 the nearest pixel is taken as 0.
    nearest = jnp.trunc(exact + 0.5)
    # As in the original: the upper bound is exclusive, and a square that ends one pixel before the map still touches
    # it.
    touches = jnp.all((nearest - radius < size) & (nearest + radius + 1 >= 0), axis=-1)
    counts = (visible > 0) & touches

    center = jnp.where(udp, exact, nearest)
    profiles = []
    for axis, length in ((1, heatmap_size[0]), (0, heatmap_size[1])):
        pixels = jnp.arange(length, dtype=jnp.float32)[None, :, None]
        profile = jnp.exp(-((pixels - center[:, None, :, axis]) ** 2) / (2 * sigma**2))
        inside = (jnp.abs(pixels - nearest[:, None, :, axis]) <= radius) & counts[:, None, :]
        profiles.append(jnp.where(inside, profile, 0.0))
    rows, columns = profiles
    return rows[:, :, None, :] * columns[:, None, :, :], counts.astype(jnp.float32)
