"""How the poses of two programs are compared."""

import numpy as np

from tests.tolerances import KEYPOINTS

# Where results of two programs are compared. A pixel that lies between two grey levels may be rounded to either, and
# in a heatmap without clear peaks a hair moves a refined point far: so points are compared before refinement, and
# one in fifty may jump.
ARGMAX = {"decode": "argmax"}


def assert_same_poses(ours, expected):
    assert len(ours) == len(expected)
    np.testing.assert_array_equal(ours.boxes, expected.boxes)
    np.testing.assert_allclose(ours.scores, expected.scores, atol=2e-2)
    missing = np.isnan(expected.keypoints)
    np.testing.assert_array_equal(np.isnan(ours.keypoints), missing)
    if len(ours):
        assert (np.abs(ours.keypoints - expected.keypoints)[~missing] < KEYPOINTS).mean() > 0.98
