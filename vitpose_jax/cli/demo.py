"""`vitpose-jax demo`: the bundled models on the bundled photographs."""

import pathlib
from typing import Annotated

import typer

from vitpose_jax.bundled import DEFAULT_FINDER, DEFAULT_MODEL, DEMO_IMAGES
from vitpose_jax.cli.common import say


def demo(
    output: Annotated[pathlib.Path, typer.Option(help="Folder for the drawings.", metavar="DIR")] = pathlib.Path(
        "demo"
    ),
) -> None:
    """Find the people in two bundled photographs and their keypoints, with the bundled models."""
    say(f"loading {DEFAULT_FINDER} and {DEFAULT_MODEL}")
    from vitpose_jax.draw import draw_poses
    from vitpose_jax.estimator import PoseEstimator
    from vitpose_jax.storage.atomic import write_png

    estimator = PoseEstimator.from_pretrained()
    say(f"compiling for {estimator.device_kind}, then estimating the poses in {len(DEMO_IMAGES)} photographs")
    for image in DEMO_IMAGES:
        poses = estimator(image, flip_test=True)
        path = output / f"{image.stem}_poses.png"
        write_png(path, draw_poses(image, poses))
        print(f"{path}: {len(poses)} people")
