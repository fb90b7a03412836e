"""RT-DETR of the Hub: `load_detector` reads a folder, `write_detector` writes one that `transformers` loads."""

from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from vitpose_jax.rtdetr.modeling import RtDetr, abstract_detector
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import write_folder

from .engine import scatter
from .formats import DETECTOR_FORMATS
from .formats.rtdetr import RTDETR
from .sources import open_source


def load_detector(folder: Path, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike | None = None) -> RtDetr:
    """The detector in a folder as on the Hub.

    Args:
        folder: with config.json and weights, and preprocessor_config.json if there is one.
        dtype: in which the detector computes.
        param_dtype: in which it stores its parameters; None means `dtype`. Norms are always float32.

    Raises:
        ValueError: if a file is missing or damaged, or is not of an RT-DETR that this library knows; or listing at once
            all tensors that are missing, unexpected or have a wrong shape, and those that are there twice with
            different numbers.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder with config.json and weights, as on the Hub, got a file")
    source = open_source(folder, formats=DETECTOR_FORMATS)
    abstract = abstract_detector(source.config, dtype=dtype, param_dtype=dtype if param_dtype is None else param_dtype)
    return parameters.fill_checked(abstract, source.tensors)


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
