"""`from_pretrained`: from a Hub id, a folder or a file, native or PyTorch, to a `VitPose`."""

import collections
import dataclasses
import math
import os
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vitpose_jax.bundled import DEFAULT_MODEL
from vitpose_jax.convert.hub import resolve_source
from vitpose_jax.convert.sources import adapt, build_model, choose_quantization, open_source
from vitpose_jax.convert.torch_files import find_weights, weight_paths
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose
from vitpose_jax.vitpose.ops import choose_dtype, choose_param_dtype
from vitpose_jax.vitpose.quantized import DTYPES, Kind


def from_pretrained(
    source: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    revision: str | None = None,
    dtype: DTypeLike | Literal["auto"] = jnp.float32,
    param_dtype: DTypeLike | None = None,
    quantize: Kind | None = None,
    group_size: int | None = None,
    image_size: tuple[int, int] | None = None,
    skeleton: str | Skeleton | None = None,
    config: VitPoseConfig | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    strict: bool = True,
    check_finite: bool = True,
) -> VitPose:
    """Load a model.

    Args:
        source: a folder (native or of the Hub), a .safetensors, .pth, .pt or .bin file, a Hub id "user/name", or the
            name of a bundled model.
        revision: branch, tag or commit on the Hub.
        dtype: in which the model computes: float32, bfloat16 or float16. "auto" is bfloat16 on GPUs, TPUs and CPUs with
            instructions for it, float32 on other CPUs.
        param_dtype: in which it stores its parameters; None means `dtype`, but float32 for bfloat16 on CPUs, which is
            faster there. Norms are always float32.
        quantize: store the kernels of the blocks as "int8" or "int4" in memory; the other parameters stay in
            `param_dtype`. They are rounded while they are read, layer by layer. Such a model predicts; it does not
            train. See vitpose/quantized.py.
        group_size: of int4: the number of inputs of a layer that share a scale, a divisor of the width of the model.
            None for that of the file, or 128 if the file is not int4.
        image_size: height and width of a crop in pixels. If the checkpoint has another size, the position embeddings
            are interpolated.
        skeleton: the keypoints of the head, as a name or a `Skeleton`; for a checkpoint with one head that does not
            name them, such as an original file.
        config: of an original file whose shapes do not determine it.
        cache_dir: cache folder of huggingface_hub; None for its default.
        token: for private repositories; None for the one that huggingface_hub has stored.
        local_files_only: do not use the network.
        strict: an unknown key of config.json, as a later version may write, is an error, because it may matter; False
            passes over it, with a warning.
        check_finite: raise an error for a tensor with NaN, an infinity or a negative variance; False loads it all the
            same, for research.

    Returns:
        The model; every parameter comes from the checkpoint.

    Raises:
        ValueError: if the source is not found, is damaged or is not a ViTPose; if a tensor is not finite; for an
            unknown `quantize` or a group size that does not divide the inputs of a layer; or listing at once all
            tensors that are missing, unexpected or have a wrong shape.
    """
    dtype = choose_dtype(dtype)
    param_dtype = choose_param_dtype(dtype, param_dtype)
    path = resolve_source(
        source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    opened = open_source(path, config=config, image_size=image_size, strict=strict, check_finite=check_finite)
    quantization = choose_quantization(opened, quantize, group_size)
    model = build_model(opened, dtype=dtype, param_dtype=param_dtype, quantization=quantization)
    return adapt(model, skeleton=skeleton, image_size=image_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint holds.

    Attributes:
        path: the folder or file on this machine.
        format: "native", "huggingface", "mmpose" or "original".
        config: of the model; its `skeletons` are the heads, its `experts` the datasets with an expert.
        parameters: number of trainable parameters.
        dtype: of the stored weights; "int8" or "int4" if the kernels of the blocks are.
        size: bytes of the files with the weights.
        ignored: number of tensors that the model does not need, by reason.
    """

    path: Path
    format: str
    config: VitPoseConfig
    parameters: int
    dtype: str
    size: int
    ignored: dict[str, int]


def describe(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    config: VitPoseConfig | None = None,
    image_size: tuple[int, int] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    strict: bool = True,
) -> Description:
    """Describe a checkpoint without reading its weights. Names and shapes of all tensors are checked.

    Args:
        source, revision, config, image_size, cache_dir, token, local_files_only, strict: as in `from_pretrained`.

    Raises:
        ValueError: as `from_pretrained`.
    """
    path = resolve_source(
        source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    opened = open_source(path, config=config, image_size=image_size, strict=strict)
    trainable = nnx.to_flat_state(nnx.state(abstract_vitpose(opened.config), nnx.Param))
    stored = {tensor.stored for tensor in opened.tensors.values()}
    kind = next((kind for kind in ("int4", "int8") if DTYPES[kind] in stored), None)
    files = weight_paths(find_weights(path) if path.is_dir() else path)
    return Description(
        path=path,
        format=opened.format.name,
        config=opened.config,
        parameters=sum(math.prod(variable.get_value().shape) for _, variable in trainable),
        dtype=kind or opened.stored_dtype.name,
        size=sum(file.stat().st_size for file in files),
        ignored=dict(collections.Counter(opened.ignored.values())),
    )
