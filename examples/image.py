"""One image: find the keypoints of the people in boxes, print them and draw them.

    python examples/image.py

The model that comes with the package is small. For real use load a published one:
`PoseEstimator.from_pretrained("usyd-community/vitpose-base-simple")`.
"""

from vitpose_jax import PoseEstimator, draw_poses
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE

# A path, a PIL image, or a uint8 array (height, width, 3) in RGB.
IMAGE = DEMO_IMAGE
# One row for each person: x, y, width, height in pixels. With None the whole image is one box.
BOXES = [DEMO_BOX]
DRAWING = "image_poses.png"

estimator = PoseEstimator.from_pretrained()
# flip_test also runs the mirrored crop and averages: a little better, twice the time.
poses = estimator(IMAGE, BOXES, flip_test=True)

for name, (x, y), score in zip(poses.skeleton.keypoints, poses.keypoints[0], poses.scores[0], strict=True):
    print(f"{name:15} {x:7.1f} {y:7.1f} {score:.2f}")

# Scores are peaks of heatmaps. Keypoints below the threshold are not drawn.
draw_poses(IMAGE, poses, threshold=0.3).save(DRAWING)
print(DRAWING)
