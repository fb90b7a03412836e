"""Draws the people of a frame: one colour for each track, and its number."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vitpose_jax.draw import PEOPLE, draw_poses
from vitpose_jax.poses import Poses


def draw_tracks(
    image: UInt8[np.ndarray, "height width 3"],
    poses: Poses,
    track_ids: Int[np.ndarray, " n"],
    *,
    numbers: bool = True,
    **options: Any,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw poses on a copy of a frame, as `draw_poses` does.

    Args:
        image: RGB.
        poses, track_ids: of a `TrackedFrame`.
        numbers: write each track's number above the person.
        options: for `draw_poses`; `colour_by` is "person" by default: each track keeps its colour.

    Raises:
        ValueError: as `draw_poses`.
    """
    drawing: Mapping[str, Any] = {**options, "colour_by": options.get("colour_by") or "person"}
    labels = [str(number) for number in track_ids] if numbers else None
    colours = [PEOPLE[(int(number) - 1) % len(PEOPLE)] for number in track_ids]
    return np.asarray(draw_poses(image, poses, labels=labels, person_colours=colours, **drawing))
