"""Is an exported file the model? It is run, and its results are compared with the model's."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vitpose_jax.bundled import GROUP_IMAGE
from vitpose_jax.images import load_image
from vitpose_jax.pipeline.packing import PackedImages, pack_images, pixel_bucket
from vitpose_jax.pipeline.predict import predict
from vitpose_jax.serving.program import Program
from vitpose_jax.vitpose.modeling import VitPose

# The numbers of crops to compare, where a file takes any.
COUNTS = (1, 3)
# The largest difference of heatmaps and scores, in float32: absolute, or relative to the largest value if that is above
# 1. An untrained model has tiny heatmaps, so there is a relative limit, too; in narrower dtypes there is no other. In
# those, a file and its model are the same on a CPU. Two programs that round bfloat16 differently (OpenVINO, and a model
# in float32) had scores that differed by 0.4 to 1.0 % of the largest, for eight random models; times three.
MAX_DIFFERENCE = 1e-4
MAX_FRACTION, MAX_FRACTION_NARROW = 1e-2, 3e-2
# Without a clear peak in a heatmap, a keypoint may jump. This fraction must be within so many pixels, in float32.
MOST, MAX_DISTANCE = 0.9, 0.1
# The same in narrower dtypes.
MOST_NARROW, MAX_DISTANCE_NARROW = 0.5, 2.0
# Covariances are those of the peaks: the same fractions of them must be within these, relative, or absolute in square
# pixels if that is more.
MAX_COVARIANCE, MAX_COVARIANCE_NARROW = 0.1, 0.5
ROUNDS = 3


class Check(NamedTuple):
    """A comparison of a file with the model.

    Attributes:
        runtime: "jax", "onnxruntime" or "openvino".
        counts: the numbers of crops that were compared.
        differences: the greatest absolute difference of each result; of keypoints in pixels of the image.
        largest: the largest absolute value of the heatmaps, or of the scores.
        seconds: of one call with the last of `counts`: the file, the model. The fastest of three.
    """

    runtime: str
    counts: tuple[int, ...]
    differences: dict[str, float]
    largest: float
    seconds: tuple[float, float]


def check_network(
    run: Callable[[Any], Any], model: VitPose, counts: Sequence[int] = COUNTS, *, runtime: str = "jax"
) -> Check:
    """Compare heatmaps of random crops.

    Args:
        run: the exported network.
        model: with one head and no experts.
        counts: numbers of crops.
        runtime: of `run`, for the result.

    Raises:
        ValueError: if the heatmaps differ by more than `MAX_DIFFERENCE`.
    """
    config = model.config
    expected = Program(model, lambda model, crops: model(crops).astype(jnp.float32))
    differences, largest, seconds = {"heatmaps": 0.0}, 0.0, (0.0, 0.0)
    for count in counts:
        shape = (count, *config.image_size, config.num_channels)
        crops = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        (actual, reference), seconds = _run_in_turn((run, expected), crops)
        # Unlike max, np.maximum keeps NaN.
        largest = float(np.maximum(largest, np.abs(reference).max()))
        differences["heatmaps"] = float(np.maximum(differences["heatmaps"], _difference(actual, reference)))
    _check_limit(differences["heatmaps"], largest, model, f"{runtime}: heatmaps")
    return Check(runtime, tuple(counts), differences, largest, seconds)


def check_path(
    run: Callable[..., Any], model: VitPose, options: dict[str, Any], counts: Sequence[int] = COUNTS
) -> Check:
    """Compare keypoints, scores and covariances in boxes of a photograph.

    Args:
        run: the exported path.
        model: with one head and no experts.
        options: of the path, for `predict`.
        counts: numbers of boxes.

    Raises:
        ValueError: if a keypoint is not finite, if the scores differ by more than `MAX_DIFFERENCE`, or if too many of
            the keypoints or covariances differ: more than a tenth in float32, more than half in narrower dtypes.
    """

    def path(model: VitPose, pixels: Any, shapes: Any, boxes: Any) -> Any:
        return predict(model, PackedImages(pixels, shapes), boxes, **options)

    expected = Program(model, path)
    image = load_image(GROUP_IMAGE)
    height, width, _ = image.shape
    packed = pack_images([image], pixel_bucket(height * width))
    differences = {"keypoints": 0.0, "scores": 0.0}
    largest, seconds = 0.0, (0.0, 0.0)
    for count in counts:
        # Boxes of half of the image, each a little further to the right.
        left = np.linspace(0, width / 2, count)
        boxes = np.stack([left, np.full(count, height / 8), np.full(count, width / 2), np.full(count, height / 2)], -1)
        arguments = packed.pixels, np.repeat(packed.shapes, count, axis=0), boxes.astype(np.float32)
        (actual, reference), seconds = _run_in_turn((run, expected), *arguments)
        # Unlike max, np.maximum keeps NaN.
        largest = float(np.maximum(largest, np.abs(reference[1]).max()))
        keypoints, scores = (_difference(actual[index], reference[index]) for index in (0, 1))
        differences["keypoints"] = float(np.maximum(differences["keypoints"], keypoints))
        differences["scores"] = float(np.maximum(differences["scores"], scores))
        _check_peaks(actual, reference, model)
    _check_limit(differences["scores"], largest, model, "scores")
    return Check("jax", tuple(counts), differences, largest, seconds)


def _run_in_turn(functions: Sequence[Callable[..., Any]], *arguments: Any) -> tuple[list[Any], tuple[float, float]]:
    """The results of two functions as NumPy arrays, and the seconds of their fastest calls."""
    results, seconds = [_to_numpy(function(*arguments)) for function in functions], [np.inf, np.inf]
    for _ in range(ROUNDS):
        for index, function in enumerate(functions):
            start = time.perf_counter()
            _to_numpy(function(*arguments))
            seconds[index] = min(seconds[index], time.perf_counter() - start)
    return results, (seconds[0], seconds[1])


def _to_numpy(result: Any) -> Any:
    return tuple(map(np.asarray, result)) if isinstance(result, tuple | list) else np.asarray(result)


def _difference(actual: np.ndarray, expected: np.ndarray) -> float:
    if actual.shape != expected.shape:
        raise ValueError(f"the export failed its check: expected shape {expected.shape}, got {actual.shape}")
    return float(np.abs(actual - expected).max())


def _check_peaks(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], model: VitPose) -> None:
    """Check keypoints and covariances, of which some may differ."""
    if not np.isfinite(actual[0]).all():
        raise ValueError("the export failed its check: expected finite keypoints, got NaN or infinity")
    most, distance, spread = MOST, MAX_DISTANCE, MAX_COVARIANCE
    if model.backbone.dtype != jnp.float32:
        most, distance, spread = MOST_NARROW, MAX_DISTANCE_NARROW, MAX_COVARIANCE_NARROW
    if actual[2].shape != expected[2].shape:
        raise ValueError(f"the export failed its check: expected shape {expected[2].shape}, got {actual[2].shape}")
    for name, near, limit in (
        ("keypoints", np.abs(actual[0] - expected[0]).max(axis=-1) < distance, f"{distance} pixels"),
        # A peak without a covariance has NaN in both.
        ("covariances", np.isclose(actual[2], expected[2], rtol=spread, atol=spread, equal_nan=True), f"{spread:.0%}"),
    ):
        if near.mean() < most:
            raise ValueError(
                f"the export failed its check: expected {most:.0%} of the {name} within {limit} of the model's, "
                f"got {near.mean():.0%}"
            )


def _check_limit(difference: float, largest: float, model: VitPose, name: str) -> None:
    wide = model.backbone.dtype == jnp.float32
    limit = MAX_FRACTION_NARROW * largest
    if wide:
        limit = min(MAX_DIFFERENCE * max(1.0, largest), MAX_FRACTION * largest)
    # Of NaN, in the file or the model, no comparison is true.
    if not difference <= limit:
        raise ValueError(
            f"the export failed its check: {name}: expected at most {limit:.1e} from the model's, got {difference:.1e}"
        )
