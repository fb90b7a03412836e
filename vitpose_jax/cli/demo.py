"""`vitpose-jax demo`: the bundled model on the bundled photograph."""

import pathlib
from typing import Annotated

import typer

from vitpose_jax.bundled import DEFAULT_MODEL, DEMO_BOX, DEMO_IMAGE
from vitpose_jax.cli.common import say
from vitpose_jax.cli.predict import print_poses


def demo(
    output: Annotated[pathlib.Path, typer.Option(help="Folder for the drawing.", metavar="DIR")] = pathlib.Path("demo"),
) -> None:
    """Find the keypoints of a person in the bundled photograph, with the bundled model."""
    say(f"loading {DEFAULT_MODEL}")
    from vitpose_jax.draw import draw_poses
    from vitpose_jax.estimator import PoseEstimator
    from vitpose_jax.storage.atomic import write_png

    estimator = PoseEstimator.from_pretrained()
    say(f"compiling for {estimator.device_kind}, then estimating the pose in {DEMO_IMAGE.name}")
    poses = estimator(DEMO_IMAGE, [DEMO_BOX], flip_test=True)
    print_poses(poses)
    path = output / f"{DEMO_IMAGE.stem}_poses.png"
    write_png(path, draw_poses(DEMO_IMAGE, poses))
    print(path)
