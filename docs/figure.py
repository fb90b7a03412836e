"""Draws docs/figure.png: `vitpose_jax.draw` on NASA's portrait of Eileen Collins (public domain).

The joints are placed by hand: no trained weights are in this repository. Run it from the project's root.
"""

import numpy as np

from vitpose_jax import Poses
from vitpose_jax.draw import draw
from vitpose_jax.skeletons import COCO

JOINTS = {
    "nose": (223, 121),
    "left_eye": (247, 103),
    "right_eye": (202, 100),
    "left_ear": (276, 112),
    "right_ear": (178, 110),
    "left_shoulder": (322, 256),
    "right_shoulder": (90, 258),
    "left_elbow": (352, 366),
    "right_elbow": (46, 432),
    "right_wrist": (142, 496),
}

if __name__ == "__main__":
    keypoints = [[JOINTS.get(name, (np.nan, np.nan)) for name in COCO.keypoints]]
    scores = [[float(name in JOINTS) for name in COCO.keypoints]]
    poses = Poses.create(keypoints, scores, [[15, 10, 345, 502]], COCO)
    draw("docs/astronaut.jpg", poses, boxes=True).save("docs/figure.png")
