"""Detectors: `load_detector` reads a folder, `write_detector` and `write_finder` write one.

An RT-DETR is written as on the Hub, for `transformers`; a person finder in this project's own format.
"""

from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from vitpose_jax.finder.config import FinderConfig
from vitpose_jax.finder.modeling import PersonFinder, abstract_finder
from vitpose_jax.rtdetr.modeling import RtDetr, abstract_detector
from vitpose_jax.storage import int8 as int8_kernels
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import write_folder

from .engine import scatter
from .formats import DETECTOR_FORMATS
from .formats.finder import FINDER
from .formats.rtdetr import RTDETR
from .sources import open_source


def load_detector(
    path: Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    strict: bool = True,
    check_finite: bool = True,
) -> RtDetr | PersonFinder:
    """The detector in a folder.

    Args:
        path: an RT-DETR's folder as on the Hub, with config.json, weights, and preprocessor_config.json if there is
            one; or a person finder: a native folder or a file of NanoDet-g's weights.
        dtype: in which the detector computes.
        param_dtype: in which it stores its parameters; None means `dtype`. Norms are always float32.
        strict, check_finite: as in `from_pretrained`.

    Raises:
        ValueError: if a file is missing or damaged, or is not of a detector that this library knows; if a tensor is not
            finite; or listing at once all tensors that are missing, unexpected or have a wrong shape, and those that
            are there twice with different numbers.
    """
    source = open_source(path, formats=DETECTOR_FORMATS, strict=strict, check_finite=check_finite)
    abstract = abstract_finder if isinstance(source.config, FinderConfig) else abstract_detector
    model = abstract(source.config, dtype=dtype, param_dtype=dtype if param_dtype is None else param_dtype)
    return parameters.fill_checked(model, source.tensors, check_finite=check_finite)


def write_finder(model: PersonFinder, folder: str | Path, *, int8: bool = False, overwrite: bool = False) -> Path:
    """Write a person finder as a native folder, whole or not at all.

    Args:
        model: its parameters are stored in the dtype they have.
        folder: created if it does not exist.
        int8: store the kernels as int8 with float32 scales (`storage/int8.py`), which rounds them.
        overwrite: replace a checkpoint that is already there.

    Returns:
        The folder.

    Raises:
        ValueError: if `folder` holds a checkpoint and `overwrite` is not set.
    """
    tensors = scatter(FINDER, model.config, parameters.flatten(model), param_dtype=model.param_dtype)
    tensors = int8_kernels.quantize(tensors) if int8 else tensors
    write_folder(
        folder, tensors, FINDER.make_documents(model.config, param_dtype=model.param_dtype), overwrite=overwrite
    )
    return Path(folder)


def write_detector(model: RtDetr, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a detector as a folder that `transformers` loads, whole or not at all.

    Args:
        model: all its tensors are stored in its `param_dtype`.
        folder: created if it does not exist.
        overwrite: replace a checkpoint that is already there.

    Returns:
        The folder.

    Raises:
        ValueError: if `folder` holds a checkpoint and `overwrite` is not set.
    """
    tensors = scatter(RTDETR, model.config, parameters.flatten(model), param_dtype=model.param_dtype)
    # The backbone's norms are frozen in transformers, and frozen norms have no step counters.
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.startswith("model.backbone.") and name.endswith("num_batches_tracked"))
    }
    documents = RTDETR.make_documents(model.config, param_dtype=model.param_dtype)
    write_folder(folder, tensors, documents, metadata={"format": "pt"}, overwrite=overwrite)
    return Path(folder)
