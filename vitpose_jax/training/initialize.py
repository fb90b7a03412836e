"""The model at the start of a run: new heads on a pretrained backbone, as the original starts from MAE."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from vitpose_jax.convert.backbones import load_backbone, load_vitpose
from vitpose_jax.storage import parameters
from vitpose_jax.training.optim import arrays_by_name
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose

# Parameters that are initialised at random if the source does not have them.
NEW = ("heads.", "backbone.knowledge_token.")


def initialize(
    config: VitPoseConfig,
    source: str | Path | VitPose,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> VitPose:
    """A model to train: the backbone of a source, and its heads if they fit; other heads are new.

    A knowledge token is new if the source has none.

    Args:
        config: configuration of the new model. Crop size, patches, windows, experts and skeletons may differ from the
            source's.
        source: a backbone, as in `load_backbone`: MAE, DINOv2, or another ViTPose. A head of a ViTPose is copied if the
            new model has a head of the same name and keypoints, and the decoders are the same.
        rngs: for new parameters; heads are drawn from N(0, 0.001).
        dtype, param_dtype: dtype of the computation, and of the parameters.

    Raises:
        ValueError: as in `load_backbone`.
    """
    pretrained = source if isinstance(source, VitPose) else load_vitpose(source)

    @jax.jit
    def new_parameters(key: Key[Array, ""]) -> dict[str, Array]:
        model = VitPose(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(key))
        return {name: leaf for name, leaf in arrays_by_name(model).items() if name.startswith(NEW)}

    tensors = new_parameters(rngs.params())
    tensors |= load_backbone(source if pretrained is None else pretrained, config)
    if pretrained is not None and pretrained.config.decoder == config.decoder:
        flat = parameters.flatten(pretrained)
        heads = {(skeleton.name, skeleton.keypoints) for skeleton in pretrained.config.skeletons}
        for skeleton in config.skeletons:
            if (skeleton.name, skeleton.keypoints) in heads:
                tensors |= {name: leaf for name, leaf in flat.items() if name.startswith(f"heads.{skeleton.name}.")}
    abstract = abstract_vitpose(config, dtype=dtype, param_dtype=param_dtype)
    return parameters.fill(abstract, tensors, source=str(source) if pretrained is None else "the ViTPose")
