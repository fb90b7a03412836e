"""Poses drawn by supervision: edges, vertices and the spread of annotators, for people and animals in one image.

pip install "vitpose-jax[supervision]"
python examples/supervision_annotators.py
"""

import numpy as np
import supervision as sv
from PIL import Image

from vitpose_jax import PoseEstimator, load_image
from vitpose_jax.bundled import GROUP_IMAGE

DRAWING = "supervision_poses.png"

estimator = PoseEstimator.from_pretrained()
image = load_image(GROUP_IMAGE)

# Boxes may come from supervision: any detector that it reads. Their confidences become the poses' box scores.
people = estimator.detector(image)
corners = np.concatenate([people.boxes[:, :2], people.boxes[:, :2] + people.boxes[:, 2:]], axis=1)
poses = estimator(image, sv.Detections(xyxy=corners, confidence=people.scores))

key_points = poses.to_supervision()
key_points.visible = key_points.visible & (key_points.keypoint_confidence > 0.3)
key_points = key_points.with_nms(threshold=0.7)

# Edges by skeleton: an animal with 17 keypoints is not drawn as a person.
edges = sv.EdgeAnnotator(edges=poses.edges_from_one, color=sv.Color.GREEN)
scene = image.copy()
for annotator in (sv.VertexEllipseAreaAnnotator(sigma=2.0, color=sv.Color.YELLOW), edges, sv.VertexAnnotator(radius=2)):
    scene = annotator.annotate(scene, key_points)
Image.fromarray(scene).save(DRAWING)

boxes = key_points.as_detections()
print(f"{len(poses)} people, {len(boxes)} after suppression: {DRAWING}")
