"""Tiny models with random weights, and their sizes."""

import jax
import jax.numpy as jnp
import numpy as np

from vitpose_jax import VitPose, VitPoseConfig
from vitpose_jax.skeletons import AP10K, COCO, DATASETS
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose.modeling import abstract_vitpose

TINY = {"image_size": (64, 48), "hidden_size": 24, "num_layers": 2, "num_heads": 3, "mlp_ratio": 2}

PLUS = {"experts": tuple(skeleton.name for skeleton in DATASETS), "part_features": 7, "skeletons": DATASETS}

SMALL_PLUS = {**PLUS, "skeletons": (COCO, AP10K)}

SMALLEST = {"image_size": (32, 16), "hidden_size": 8, "num_layers": 2, "num_heads": 2, "decoder": "simple"}


def random_model(config: VitPoseConfig, seed: int = 0, **dtypes) -> VitPose:
    """Every parameter and running statistic random; variances positive."""
    rng = np.random.default_rng(seed)
    model = abstract_vitpose(config, **dtypes)
    tensors = {
        name: rng.uniform(0.8, 1.2, leaf.shape) if name.endswith(("var", "scale")) else rng.normal(0, 0.08, leaf.shape)
        for name, leaf in parameters.flatten(model).items()
    }
    return parameters.fill(model, tensors)


def random_crops(config: VitPoseConfig, count: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(count, *config.image_size, 3)), jnp.float32)


def smallest_model(dtype=jnp.float32, **fields) -> VitPose:
    """A model with random numbers in every tensor, norms included."""
    abstract = abstract_vitpose(VitPoseConfig(**{**SMALLEST, **fields}), dtype=dtype, param_dtype=dtype)
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=leaf.shape) for name, leaf in parameters.flatten(abstract).items()}
    tensors = {name: np.abs(tensor) if name.endswith("var") else tensor for name, tensor in tensors.items()}
    return parameters.fill(abstract, tensors)


def assert_same_model(left: VitPose, right: VitPose) -> None:
    assert left.config == right.config
    expected = parameters.flatten(right)
    assert parameters.flatten(left).keys() == expected.keys()
    for name, leaf in parameters.flatten(left).items():
        assert leaf.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
