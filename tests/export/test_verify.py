"""The check after an export: what computes something else than the model, or nothing, does not pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import smallest_model
from vitpose_jax import VitPose
from vitpose_jax.export.verify import check_network, check_path
from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.predict import predict
from vitpose_jax.pipeline.regions import BOX_PADDING

OPTIONS = {"flip_test": False, "decode": "udp", "border": "scipy", "padding": BOX_PADDING, "stretch": False}


pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.mark.parametrize("counts", [(2,), (1, 2)])
def test_a_network_that_computes_nan(counts):
    model = smallest_model()
    calls = iter([np.nan, *[0.0] * 100])

    def run(crops):
        # Only the first result is bad: a later one must not hide it.
        return np.asarray(model(jnp.asarray(crops))) + next(calls)

    with pytest.raises(ValueError, match=r"jax: heatmaps: expected at most .* got nan"):
        check_network(run, model, counts)


def test_a_model_that_computes_nan():
    model = smallest_model()
    model.backbone.norm.bias[...] = jnp.full_like(model.backbone.norm.bias[...], jnp.nan)
    with pytest.raises(ValueError, match="jax: heatmaps: expected at most"):
        check_network(lambda crops: model(jnp.asarray(crops)), model, (1,))


@functools.cache
def path(dtype: str) -> tuple[VitPose, list[np.ndarray]]:
    """A model, and what it computes for the one box of the check."""
    model, results = smallest_model(dtype=jnp.dtype(dtype)), []

    def run(pixels, shapes, boxes):
        function = jax.jit(lambda *arguments: predict(model, PackedImages(*arguments[:2]), arguments[2], **OPTIONS))
        results[:] = map(np.asarray, function(pixels, shapes, boxes))
        return results

    check = check_path(run, model, OPTIONS, (1,))
    assert list(check.differences) == ["keypoints", "scores"] and check.largest > 0
    return model, results


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("index", "count", "value", "message"),
    [
        (0, 1, np.nan, "expected finite keypoints, got NaN or infinity"),
        (0, 17, 30.0, r"expected \d+% of the keypoints within [\d.]+ pixels of the model's, got 0%"),
        (1, 1, np.nan, "scores: expected at most .*, got nan"),
        (2, 17, 1e9, r"expected \d+% of the covariances within \d+% of the model's, got 0%"),
        (2, 17, np.inf, r"expected \d+% of the covariances within \d+% of the model's, got 0%"),
    ],
)
def test_a_path_that_computes_something_else(dtype, index, count, value, message):
    model, results = path(dtype)
    changed = [np.array(result) for result in results]
    changed[index][:, :count] += value
    changed[2][~np.isfinite(results[2])] = 0 if index == 2 else np.nan
    with pytest.raises(ValueError, match=message):
        check_path(lambda *_: changed, model, OPTIONS, (1,))
