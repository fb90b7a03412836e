"""One image: find the people in it and their keypoints, print them and draw them.

    python examples/image.py

The models that come with the package are small. For real use load published ones: `PoseEstimator.from_pretrained(
"usyd-community/vitpose-base-simple", detector="PekingU/rtdetr_r50vd_coco_o365")`.
"""

from vitpose_jax import PoseEstimator, draw_poses
from vitpose_jax.bundled import GROUP_IMAGE

# A path, a PIL image, or a uint8 array (height, width, 3) in RGB.
IMAGE = GROUP_IMAGE
# None: a detector finds the people. Or one row for each person: x, y, width, height in pixels.
BOXES = None
DRAWING = "image_poses.png"

estimator = PoseEstimator.from_pretrained()
# flip_test also runs the mirrored crop and averages: a little better, twice the time.
poses = estimator(IMAGE, BOXES, flip_test=True)

print(f"{len(poses)} people; the first:")
for name, (x, y), score in zip(poses.skeleton.keypoints, poses.keypoints[0], poses.scores[0], strict=True):
    print(f"{name:15} {x:7.1f} {y:7.1f} {score:.2f}")

# Scores are peaks of heatmaps. Keypoints below the threshold are not drawn.
draw_poses(IMAGE, poses, threshold=0.3).save(DRAWING)
print(DRAWING)
