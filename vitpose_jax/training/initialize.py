"""Where a training starts: a new head on a backbone that has learnt to see, as the original's on MAE's."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from vitpose_jax.convert.backbones import load_backbone, load_vitpose
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose

# What a source need not have.
NEW = ("heads.", "backbone.knowledge_token.")


def initialize(
    config: VitPoseConfig,
    source: str | Path | VitPose,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> VitPose:
    """A model to train: the backbone of a source, and heads that are new or, where they fit, a ViTPose's.

    A knowledge token is new where the source has none.

    Args:
        config: of the model to be; crops, patches, windows, experts and skeletons may differ from the source's.
        source: of the backbone, as of `load_backbone`: MAE, DINOv2, or another ViTPose, whose heads are taken
            over for the data sets that have the same name and keypoints here, with the same decoder.
        rngs: for what is new; heads are N(0, 0.001).
        dtype, param_dtype: in which the model computes, and in which it stores its parameters.

    Raises:
        ValueError: as `load_backbone`.
    """
    given = source if isinstance(source, VitPose) else load_vitpose(source)

    @jax.jit
    def fresh(key: Key[Array, ""]) -> dict[str, Array]:
        model = VitPose(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(key))
        return {name: leaf for name, leaf in parameters.flatten(model).items() if name.startswith(NEW)}

    tensors = fresh(rngs.params())
    tensors |= load_backbone(source if given is None else given, config)
    if given is not None and given.config.decoder == config.decoder:
        known = {(skeleton.name, skeleton.keypoints) for skeleton in given.config.skeletons}
        for skeleton in config.skeletons:
            if (skeleton.name, skeleton.keypoints) in known:
                prefix = f"heads.{skeleton.name}."
                tensors |= {name: leaf for name, leaf in parameters.flatten(given).items() if name.startswith(prefix)}
    abstract = abstract_vitpose(config, dtype=dtype, param_dtype=param_dtype)
    return parameters.fill(abstract, tensors, source=str(source) if given is None else "the ViTPose")
