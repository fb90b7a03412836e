"""Draws docs/figure.jpg, the picture of the README: what `vitpose-jax demo` draws.

    python benchmarks/figure.py

Draw it again when the drawing or a bundled model changes.
"""

import argparse

from PIL import Image
from reports import ROOT

from vitpose_jax import PoseEstimator, draw_poses
from vitpose_jax.bundled import DEMO_IMAGES

HEIGHT = 512


def parser() -> argparse.ArgumentParser:
    """The command line: no options."""
    return argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


def main() -> None:
    """Draw the picture: the photographs side by side, of one height."""
    parser().parse_args()
    estimator = PoseEstimator.from_pretrained()
    drawings = [draw_poses(image, estimator(image, flip_test=True)) for image in DEMO_IMAGES]
    drawings = [drawing.resize((round(drawing.width * HEIGHT / drawing.height), HEIGHT)) for drawing in drawings]
    sheet = Image.new("RGB", (sum(drawing.width for drawing in drawings), HEIGHT))
    left = 0
    for drawing in drawings:
        sheet.paste(drawing, (left, 0))
        left += drawing.width
    sheet.save(ROOT / "docs" / "figure.jpg", quality=90)


if __name__ == "__main__":
    main()
