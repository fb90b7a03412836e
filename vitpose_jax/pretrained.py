"""`from_pretrained`: from a Hub id, a folder or a file, native or PyTorch, to a `VitPose`."""

import collections
import dataclasses
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from vitpose_jax.bundled import DEFAULT_MODEL
from vitpose_jax.convert.assembly import ignored
from vitpose_jax.convert.hub_files import resolve_source
from vitpose_jax.convert.sources import adapt, build_model, open_source, stored_dtype
from vitpose_jax.convert.torch_files import find_weights, weight_paths
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose


def from_pretrained(
    source: str | Path = DEFAULT_MODEL,
    *,
    revision: str | None = None,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    image_size: tuple[int, int] | None = None,
    skeleton: str | Skeleton | None = None,
    config: VitPoseConfig | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> VitPose:
    """Load a model.

    Args:
        source: a folder (native or of the Hub), a .safetensors, .pth, .pt or .bin file, a Hub id "user/name", or the
            name of the model that comes with the package.
        revision: branch, tag or commit on the Hub.
        dtype: in which the model computes: float32, bfloat16 or float16.
        param_dtype: in which it stores its parameters; None means `dtype`. Norms are always float32.
        image_size: height and width of a crop in pixels; the position embeddings are interpolated where the
            checkpoint has another.
        skeleton: what the channels of the head are, name or `Skeleton`; for a checkpoint with one head that does
            not say so itself, such as an original file.
        config: of an original file, where its shapes leave questions open.
        cache_dir: where huggingface_hub caches; None for its own default.
        token: for private repositories; None for the one that huggingface_hub knows.
        local_files_only: do not ask the network.

    Returns:
        The model; every parameter of it comes from the checkpoint.

    Raises:
        ValueError: where the source is not found, is damaged or no ViTPose, or where tensors are missing,
            unexpected or mis-shaped: all of those are listed at once.
    """
    path = resolve_source(
        source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    layout, config, tensors = open_source(path, config=config, image_size=image_size)
    param_dtype = dtype if param_dtype is None else param_dtype
    model = build_model(layout, config, tensors, dtype=dtype, param_dtype=param_dtype, source=str(path))
    return adapt(model, skeleton=skeleton, image_size=image_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint holds.

    Attributes:
        path: the folder or file on this machine.
        layout: "native", "huggingface" or "original".
        config: of the model; its `skeletons` are the heads, its `experts` the data sets with an expert.
        parameters: number of trainable parameters.
        dtype: in which the weights are stored: "int8" where the kernels are.
        size: bytes of the files with the weights.
        ignored: reason: how many tensors the model does not need for that reason.
    """

    path: Path
    layout: str
    config: VitPoseConfig
    parameters: int
    dtype: str
    size: int
    ignored: dict[str, int]


def describe(
    source: str | Path,
    *,
    revision: str | None = None,
    config: VitPoseConfig | None = None,
    image_size: tuple[int, int] | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Description:
    """Look at a checkpoint without reading its weights; names and shapes of all tensors are checked.

    Args:
        source, revision, config, image_size, cache_dir, token, local_files_only: as of `from_pretrained`.

    Raises:
        ValueError: as `from_pretrained`.
    """
    path = resolve_source(
        source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    layout, config, tensors = open_source(path, config=config, image_size=image_size)
    weights = nnx.state(abstract_vitpose(config), nnx.Param)
    unused = {} if layout == "native" else ignored(layout, config, tensors)
    files = weight_paths(find_weights(path) if path.is_dir() else path)
    return Description(
        path=path,
        layout=layout,
        config=config,
        parameters=sum(math.prod(variable.get_value().shape) for _, variable in nnx.to_flat_state(weights)),
        dtype="int8"
        if any(tensor.stored == np.int8 for tensor in tensors.values())
        else stored_dtype(layout, tensors).name,
        size=sum(file.stat().st_size for file in files),
        ignored=dict(collections.Counter(unused.values())),
    )
