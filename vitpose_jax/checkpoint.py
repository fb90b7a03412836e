"""Save and load a model in the native format: a folder with config.json and model.safetensors.

The format itself is described in `convert/formats/native.py`. Reading it needs neither torch nor orbax, and does not
initialise a model first. `from_pretrained` also reads this format; `load` reads nothing else.
"""

from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from vitpose_jax.convert import write
from vitpose_jax.convert.formats import NATIVE
from vitpose_jax.convert.sources import build_model, choose_quantization, open_source
from vitpose_jax.vitpose.modeling import VitPose
from vitpose_jax.vitpose.ops import choose_param_dtype
from vitpose_jax.vitpose.quantized import Kind


def save(
    model: VitPose,
    folder: str | Path,
    *,
    overwrite: bool = False,
    int8: bool = False,
    int4: bool = False,
    group_size: int | None = None,
) -> None:
    """Write a model in the native format, whole or not at all.

    Args:
        model: its parameters are stored in the dtype they have; those of a quantized model bit for bit.
        folder: created if it does not exist.
        overwrite: replace a checkpoint that is already there.
        int8: store the kernels as int8 with float32 scales (`storage/int8.py`), which rounds them.
        int4: store the kernels of the blocks as int4 (`storage/int4.py`) and the other kernels as int8.
        group_size: of int4: the number of inputs that share a scale; None for that of the model, or 128.

    Raises:
        ValueError: if `folder` holds a checkpoint and `overwrite` is not set, or is not a folder; for a group size that
            does not divide the inputs of a layer; and if a quantized model is to be rounded a second time.
    """
    write(model, folder, to=NATIVE.name, overwrite=overwrite, int8=int8, int4=int4, group_size=group_size)


def load(
    folder: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    quantize: Kind | None = None,
    group_size: int | None = None,
    check_finite: bool = True,
) -> VitPose:
    """Read a model in the native format.

    Args:
        folder: as `save` wrote it.
        dtype: in which the model computes.
        param_dtype: in which it stores its parameters; see `from_pretrained`.
        quantize, group_size: see `from_pretrained`.
        check_finite: as in `from_pretrained`.

    Raises:
        ValueError: if a file is missing or damaged, or is of another format or version; if a tensor is not finite; or
            listing at once all tensors that are missing, unexpected or have a wrong shape.
    """
    source = open_source(Path(folder), formats=(NATIVE,), check_finite=check_finite)
    quantization = choose_quantization(source, quantize, group_size)
    param_dtype = choose_param_dtype(dtype, param_dtype)
    return build_model(source, dtype=dtype, param_dtype=param_dtype, quantization=quantization)
