"""Arguments of other libraries' types, dtypes that are not computed in, and short texts of objects."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.support import programs
from tests.support.images import random_image
from tests.support.models import SMALL_PLUS, TINY, random_model
from vitpose_jax import Detector, PoseEstimator, VitPoseConfig, __version__, from_pretrained

BOXES = [[10, 10, 50, 80], [20, 5, 40, 60]]


@pytest.fixture(scope="module")
def estimator():
    return PoseEstimator(random_model(VitPoseConfig(**TINY, **SMALL_PLUS)), max_batch=4)


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray, torch.tensor, list, tuple])
def test_datasets_of_any_library(estimator, make):
    image = random_image(1)
    expected = estimator(image, BOXES, dataset=["coco", "ap10k"])
    index = [estimator.config.dataset_index(name) for name in ("coco", "ap10k")]
    poses = estimator(image, BOXES, dataset=make(index))
    np.testing.assert_array_equal(poses.keypoints, expected.keypoints)
    (second,) = estimator([image], [BOXES], dataset=[make(index)])
    np.testing.assert_array_equal(second.keypoints, expected.keypoints)


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray, torch.tensor])
def test_one_dataset_of_any_library(estimator, make):
    expected = estimator(random_image(1), BOXES, dataset="ap10k")
    poses = estimator(random_image(1), BOXES, dataset=make(estimator.config.dataset_index("ap10k")))
    np.testing.assert_array_equal(poses.keypoints, expected.keypoints)


def test_datasets_of_two_dimensions_are_refused(estimator):
    with pytest.raises(ValueError, match="dataset: expected one dimension"):
        estimator(random_image(1), BOXES, dataset=np.zeros((2, 1), np.int32))


@pytest.mark.parametrize("make", [torch.tensor, jnp.asarray])
def test_boxes_in_bfloat16(estimator, make):
    dtype = torch.bfloat16 if make is torch.tensor else jnp.bfloat16
    poses = estimator(random_image(1), make(BOXES, dtype=dtype))
    np.testing.assert_array_equal(poses.boxes, BOXES)


@pytest.mark.parametrize("dtype", ["float64", np.float64, jnp.int32, "float3"])
@pytest.mark.parametrize("load", [from_pretrained, PoseEstimator.from_pretrained, Detector.from_pretrained])
def test_other_dtypes_are_refused(load, dtype):
    with pytest.raises(ValueError, match=r"^dtype: expected float32, bfloat16 or float16, got (float64|int32|float3)$"):
        load(dtype=dtype)
    with pytest.raises(ValueError, match=r"^param_dtype: expected float32"):
        load(param_dtype=dtype)


def test_short_texts(estimator):
    assert repr(estimator).startswith("PoseEstimator(coco, ap10k, crops 64 x 48, float32, max_batch=4")
    assert repr(estimator(random_image(1), BOXES, dataset="coco")) == "Poses(keypoints (2, 17, 2), coco)"


def test_the_package_is_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "vitpose_jax", "--version"],
        env=programs.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{__version__}\n"
