"""The one-euro filter: keypoints that rest are still, keypoints that move do not lag.

Casiez, Roussel and Vogel, "1 euro filter: a simple speed-based low-pass filter for noisy input in interactive systems",
CHI 2012, https://doi.org/10.1145/2207676.2208639. A low-pass filter whose cutoff frequency grows with the speed:

    cutoff = min_cutoff + beta * |speed|

The speed is measured in sizes of the person per second, so that near and far people are filtered alike.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(eq=False)
class _State:
    time: float
    points: Float[np.ndarray, "K 2"]
    speeds: Float[np.ndarray, "K 2"]


class KeypointSmoother:
    """A one-euro filter for each keypoint of each track.

    Args:
        min_cutoff: in hertz; lower means less jitter of keypoints that rest, and more lag.
        beta: in hertz for each size of the person per second; higher means less lag of keypoints that move.
        speed_cutoff: of the filter of the speed, in hertz.
        max_gap: seconds after which a track that was lost starts afresh.

    Raises:
        ValueError: for a cutoff or a gap that is not positive, or a negative beta.
    """

    def __init__(
        self,
        *,
        min_cutoff: float | int = 1.5,
        beta: float | int = 3.0,
        speed_cutoff: float | int = 1.0,
        max_gap: float | int = 0.5,
    ):
        for name, value in (("min_cutoff", min_cutoff), ("speed_cutoff", speed_cutoff), ("max_gap", max_gap)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta: expected 0 or more, got {beta}")
        self._min_cutoff, self._beta, self._speed_cutoff, self._max_gap = min_cutoff, beta, speed_cutoff, max_gap
        self._states: dict[int, _State] = {}

    def __call__(
        self,
        time: float,
        ids: Sequence[int],
        keypoints: Float[np.ndarray, "n K 2"],
        boxes: Float[np.ndarray, "n 4"],
    ) -> Float[np.ndarray, "n K 2"]:
        """The smoothed keypoints of a frame.

        Args:
            time: in seconds, later than that of the frame before.
            ids: of the tracks.
            keypoints: (x, y) in pixels. One that is not finite stays so, and starts afresh when it comes back.
            boxes: x y w h in pixels: the sizes of the people.
        """
        smoothed = np.array(keypoints, np.float32)
        for row, number in enumerate(ids):
            points = np.asarray(keypoints[row], np.float64)
            state = self._states.get(number)
            if state is None or not 0 < time - state.time <= self._max_gap:
                state = _State(time, points, np.zeros_like(points))
            else:
                state = self._step(state, time, points, math.sqrt(max(float(boxes[row, 2] * boxes[row, 3]), 1.0)))
            self._states[number] = state
            smoothed[row] = state.points
        self._states = {number: state for number, state in self._states.items() if time - state.time <= self._max_gap}
        return smoothed

    def _step(self, state: _State, time: float, points: Float[np.ndarray, "K 2"], size: float) -> _State:
        period = time - state.time
        known = np.isfinite(state.points)
        speeds = np.where(known, (points - np.where(known, state.points, 0)) / period, 0.0)
        weight = _weight(np.full((1, 1), self._speed_cutoff, np.float64), period)
        speeds = np.where(np.isfinite(speeds), state.speeds + weight * (speeds - state.speeds), 0.0)
        # One cutoff for x and y: a keypoint keeps its direction.
        speed = np.linalg.norm(speeds, axis=-1, keepdims=True) / size
        weights = _weight(self._min_cutoff + self._beta * speed, period)
        moved = np.where(known & np.isfinite(points), state.points + weights * (points - state.points), points)
        return _State(time, moved, speeds)


def _weight(cutoff: Float[np.ndarray, "K 1"], period: float) -> Float[np.ndarray, "K 1"]:
    """The weight of a new value in a low-pass filter of first order."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff * period))
