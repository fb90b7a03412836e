"""Several devices: every batch is divided among them, and the results stay the same.

    python examples/many_devices.py

Without several GPUs or TPU cores, XLA can divide the CPU into devices. That shows that the code is right; it does not
make anything faster.
"""

import os

# XLA reads this when JAX starts. It has no effect on GPUs and TPUs; remove it there.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import jax
import numpy as np

from vitpose_jax import PoseEstimator
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE

# A power of two of devices.
devices = jax.devices()[:4]
print(f"{len(devices)} devices: {devices[0].device_kind}")

boxes = np.asarray(DEMO_BOX) + np.arange(6)[:, None] * (4, 2, -4, -2)
on_one = PoseEstimator.from_pretrained()
on_all = PoseEstimator.from_pretrained(devices=devices)

expected, poses = on_one(DEMO_IMAGE, boxes), on_all(DEMO_IMAGE, boxes)
difference = np.abs(poses.keypoints - expected.keypoints).max()
print(f"{len(poses)} people; largest difference from one device: {difference:.1e} pixels")
