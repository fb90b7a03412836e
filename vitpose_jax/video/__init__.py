"""Videos: frames in, poses with the same number for the same person, drawings and results out.

for frame in track(estimator, "in.mp4"):
    frame.time, frame.poses, frame.track_ids
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitpose_jax.video.flow import TrackedFrame as TrackedFrame
    from vitpose_jax.video.flow import track as track
    from vitpose_jax.video.reader import Frame as Frame
    from vitpose_jax.video.reader import VideoReader as VideoReader
    from vitpose_jax.video.run import track_file as track_file
    from vitpose_jax.video.smoothing import KeypointSmoother as KeypointSmoother
    from vitpose_jax.video.tracking import Tracker as Tracker
    from vitpose_jax.video.writer import VideoWriter as VideoWriter

# Imported when first used, as the names of vitpose_jax itself are.
_HOMES = {
    "Frame": "reader",
    "KeypointSmoother": "smoothing",
    "TrackedFrame": "flow",
    "Tracker": "tracking",
    "VideoReader": "reader",
    "VideoWriter": "writer",
    "track": "flow",
    "track_file": "run",
}

__all__ = [
    "Frame",
    "KeypointSmoother",
    "TrackedFrame",
    "Tracker",
    "VideoReader",
    "VideoWriter",
    "track",
    "track_file",
]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"vitpose_jax.video.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vitpose_jax.video' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
