"""Draws docs/figure.png, the picture of the README: the same as `vitpose-jax demo`.

    python benchmarks/figure.py

Draw it again when the drawing or the bundled model changes.
"""

import argparse

from tables import ROOT

from vitpose_jax import PoseEstimator, draw_poses
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE


def parser() -> argparse.ArgumentParser:
    """The command line: no options."""
    return argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


def main() -> None:
    """Draw the picture."""
    parser().parse_args()
    estimator = PoseEstimator.from_pretrained()
    draw_poses(DEMO_IMAGE, estimator(DEMO_IMAGE, [DEMO_BOX], flip_test=True)).save(ROOT / "docs" / "figure.png")


if __name__ == "__main__":
    main()
