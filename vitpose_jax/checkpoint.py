"""Save and load a model in the native format: a folder with config.json and model.safetensors.

The format itself is described in `convert/formats/native.py`. Reading it needs neither torch nor orbax, and does not
initialise a model first. `from_pretrained` also reads this format; `load` reads nothing else.
"""

from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from vitpose_jax.convert import write
from vitpose_jax.convert.formats import NATIVE
from vitpose_jax.convert.sources import build_model, open_source
from vitpose_jax.vitpose.modeling import VitPose
from vitpose_jax.vitpose.ops import choose_param_dtype


def save(model: VitPose, folder: str | Path, *, overwrite: bool = False, int8: bool = False) -> None:
    """Write a model in the native format, whole or not at all.

    Args:
        model: its parameters are stored in the dtype they have.
        folder: created if it does not exist.
        overwrite: replace a checkpoint that is already there.
        int8: store the kernels as int8 with float32 scales (`storage/int8.py`), which rounds them.

    Raises:
        ValueError: if `folder` holds a checkpoint and `overwrite` is not set, or is not a folder.
    """
    write(model, folder, to=NATIVE.name, overwrite=overwrite, int8=int8)


def load(
    folder: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    check_finite: bool = True,
) -> VitPose:
    """Read a model in the native format.

    Args:
        folder: as `save` wrote it.
        dtype: in which the model computes.
        param_dtype: in which it stores its parameters; see `from_pretrained`.
        check_finite: as in `from_pretrained`.

    Raises:
        ValueError: if a file is missing or damaged, or is of another format or version; if a tensor is not finite; or
            listing at once all tensors that are missing, unexpected or have a wrong shape.
    """
    source = open_source(Path(folder), formats=(NATIVE,), check_finite=check_finite)
    return build_model(source, dtype=dtype, param_dtype=choose_param_dtype(dtype, param_dtype))
