"""How the poses of two programs are compared."""

import numpy as np

from tests.tolerances import KEYPOINTS, ROUNDED_PEAKS, ROUNDED_PIXELS
from vitpose_jax import Poses

# Points are compared before refinement: in a heatmap without clear peaks a hair moves a refined point far.
ARGMAX = {"decode": "argmax"}


def assert_same_poses(ours: Poses, expected: Poses) -> None:
    """Equal but for pixels of a crop that were rounded the other way."""
    assert len(ours) == len(expected)
    np.testing.assert_array_equal(ours.boxes, expected.boxes)
    np.testing.assert_allclose(ours.scores, expected.scores, rtol=0, atol=ROUNDED_PIXELS)
    missing = np.isnan(expected.keypoints)
    np.testing.assert_array_equal(np.isnan(ours.keypoints), missing)
    if len(ours):
        assert (np.abs(ours.keypoints - expected.keypoints)[~missing] < KEYPOINTS).mean() > ROUNDED_PEAKS
