"""Poses by one and by eight forced host devices are the same; each device holds its part of a batch.

So they are where the caller set a mesh with explicit axes, and where a detector finds the boxes.
"""

import jax
import numpy as np

from tests.support.images import random_boxes, random_image
from tests.support.models import PLUS, TINY, random_model
from tests.support.poses import ARGMAX, assert_same_poses
from vitpose_jax import PoseEstimator, VitPoseConfig
from vitpose_jax.pipeline.packing import PackedImages

model = random_model(VitPoseConfig(**{**TINY, "num_layers": 1}, **PLUS, decoder="simple"))
one, eight = PoseEstimator(model), PoseEstimator(model, devices=jax.devices())
assert len(jax.devices()) == 8
for count, dataset in ((0, None), (1, None), (5, "ap10k"), (67, None)):
    image, boxes = random_image(count), random_boxes(count, count)
    assert_same_poses(eight(image, boxes, dataset=dataset, **ARGMAX), one(image, boxes, dataset=dataset, **ARGMAX))
assert len(eight(image).boxes) == len(one(image).boxes)
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
with jax.set_mesh(mesh):
    assert_same_poses(eight(image, boxes, **ARGMAX), PoseEstimator(model, devices=mesh)(image, boxes, **ARGMAX))
    assert len(eight(image).boxes) == len(one(image).boxes)
keypoints, *_ = eight._program(
    PackedImages(
        jax.device_put(np.zeros((4**9, 3), np.uint8), eight._replicated),
        jax.device_put(np.tile(np.array([0, 9, 9], np.int32), (16, 1)), eight._split),
    ),
    jax.device_put(np.ones((16, 4), np.float32), eight._split),
    dataset_index=0,
    flip_test=False,
    decode="udp",
)
assert len(keypoints.sharding.device_set) == 8
assert keypoints.addressable_shards[0].data.shape == (2, 17, 2)
