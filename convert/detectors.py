"""Between RT-DETR of the Hub and `RtDetr`: reading a folder, and writing one that transformers loads."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vitpose_jax import checkpoint
from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.modeling import RtDetr, abstract_detector
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import LazyTensor, read_json, write_folder

from .assembly import Plan, compare, follow, gather, scatter, shapes_at_source
from .detector_config import from_hub, to_hub
from .detector_rules import ignored, rules, with_file_names
from .sources import PREPROCESSOR_FILE
from .torch_files import find_weights, open_tensors


def load_detector(folder: Path, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike | None = None) -> RtDetr:
    """The detector in a folder of the Hub; strict.

    Args:
        folder: with config.json and weights, and preprocessor_config.json if there is one.
        dtype: in which the detector computes.
        param_dtype: in which it stores its parameters; None means `dtype`. Norms are always float32.

    Raises:
        ValueError: where a file is missing or damaged, is no RT-DETR, or asks for what is not known here; and where
            tensors are missing, unexpected or mis-shaped: all of those are listed at once.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder with config.json and weights, as of the Hub, got a file")
    path, preprocessor = folder / checkpoint.CONFIG_FILE, folder / PREPROCESSOR_FILE
    read = read_json(preprocessor) if preprocessor.is_file() else None
    config = from_hub(read_json(path), read, source=str(path))
    weights = find_weights(folder)
    return from_torch(config, open_tensors(weights), dtype=dtype, param_dtype=param_dtype, source=str(weights))


def from_torch(
    config: DetectorConfig,
    tensors: Mapping[str, LazyTensor],
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    source: str,
) -> RtDetr:
    """A detector filled from the tensors of transformers; strict.

    Args:
        config: of the detector.
        tensors: under the names of transformers' files, or those its models have in memory.
        dtype, param_dtype: as of `load_detector`.
        source: where the tensors come from, for the error.

    Raises:
        ValueError: where tensors are missing, unexpected, mis-shaped or not numbers, or where a head stands there
            twice with different numbers.
    """
    named, twins = with_file_names(tensors)
    parameters.raise_problems(
        (
            f"{one}: expected the same numbers as {other}, which is the same tensor"
            for one, other in twins
            if not np.array_equal(np.asarray(tensors[one]), np.asarray(tensors[other]))
        ),
        source=source,
    )
    abstract = abstract_detector(config, dtype=dtype, param_dtype=dtype if param_dtype is None else param_dtype)
    pieces, shapes, unused = plan(abstract), target_shapes(abstract), ignored(named)
    used = {name: tensor for name, tensor in named.items() if name not in unused}
    compare(shapes_at_source(pieces, shapes), used, source=source)
    return parameters.fill(abstract, gather(pieces, shapes, used), source=source)


def to_torch_tensors(model: RtDetr) -> dict[str, np.ndarray]:
    """The tensors of transformers for a detector: the inverse of `from_torch`, all of the detector's `param_dtype`.

    BatchNorm's step counters are written as 0 where transformers has them: its frozen norms of the backbone do not.
    """
    tensors = scatter(plan(model), parameters.flatten(model), dtype=model.param_dtype)
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.startswith("model.backbone.") and name.endswith("num_batches_tracked"))
    }


def write_detector(model: RtDetr, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a detector as a folder of the Hub, whole or not at all.

    Args:
        model: the detector.
        folder: made where it does not exist.
        overwrite: replace a checkpoint that is there already.

    Returns:
        The folder.

    Raises:
        ValueError: where `folder` holds a checkpoint and `overwrite` is not set.
    """
    values, preprocessor = to_hub(model.config, param_dtype=model.param_dtype)
    write_folder(
        folder,
        to_torch_tensors(model),
        {checkpoint.CONFIG_FILE: values, PREPROCESSOR_FILE: preprocessor},
        metadata={"format": "pt"},
        overwrite=overwrite,
    )
    return Path(folder)


def plan(model: RtDetr) -> Plan:
    """For each tensor of a detector, abstract or not, the tensors of transformers it is made of."""
    return follow(rules(model.config), target_shapes(model), layout="huggingface")


def target_shapes(model: RtDetr) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a detector, abstract or not, by flat name."""
    return {name: tuple(leaf.shape) for name, leaf in parameters.flatten(model).items()}
