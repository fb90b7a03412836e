"""Draws docs/figure.png: what `vitpose-jax demo` draws. Run it from the project's root."""

from vitpose_jax import PoseEstimator
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE
from vitpose_jax.draw import draw_poses

if __name__ == "__main__":
    estimator = PoseEstimator.from_pretrained()
    draw_poses(DEMO_IMAGE, estimator(DEMO_IMAGE, [DEMO_BOX], flip_test=True)).save("docs/figure.png")
