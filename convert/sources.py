"""Opening a checkpoint: which format it has, its configuration, and its tensors under the names of the model.

    path -> format, by config.json or the names of the tensors
         -> configuration, from config.json or the shapes of the tensors
         -> tensors, compared with what the configuration needs: here, and nowhere else
         -> `Source`, from which a model is built

No weights are read before a model is built.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vitpose_jax.skeletons import Skeleton, get_skeleton
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, LazyTensor, read_json
from vitpose_jax.storage.text import join, shorten
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose
from vitpose_jax.vitpose.quantized import (
    DTYPES,
    Kind,
    Quantization,
    check_group_size,
    is_quantized,
    quantize_tensors,
    stored_group_size,
)

from .adapters import merged_tensors, read_adapter
from .engine import arrange
from .formats import ADAPTER, VITPOSE_FORMATS
from .formats.format import Format, Tensors, config_path
from .hub import resolve_source
from .torch_files import find_weights, open_tensors
from .wrappers import strip_prefixes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint that was opened and checked. Made by `open_source` or `check_tensors`.

    Attributes:
        format: of the checkpoint.
        config: of the model.
        tensors: of the model, by flat name: all of them, with the right shapes, each read whenever it is used.
        ignored: tensors of the checkpoint that the model does not need, with the reason.
        check_finite: whether a tensor that is not finite raises ValueError when it is read.
    """

    format: Format
    config: Any
    tensors: dict[str, LazyTensor]
    ignored: dict[str, str]
    check_finite: bool = True

    @property
    def stored_dtype(self) -> np.dtype:
        """The widest dtype of the weights, at most float32: a model stored in this dtype loses nothing.

        The norms of the native format, which are float32 in every model, do not count.
        """
        dtypes = [tensor.dtype for name, tensor in self.tensors.items() if self.format.pytorch or ".norm" not in name]
        widest = np.dtype(functools.reduce(jnp.promote_types, dtypes))
        return widest if widest.itemsize <= 4 else np.dtype(np.float32)


def open_source(
    path: Path,
    *,
    formats: tuple[Format, ...] = VITPOSE_FORMATS,
    config: Any = None,
    image_size: tuple[int, int] | None = None,
    strict: bool = True,
    check_finite: bool = True,
) -> Source:
    """Open a folder or a file and check it, without reading the weights.

    Args:
        path: a folder with a config.json; or a .safetensors, .pth, .pt or .bin file, with a config.json beside it
            unless it has the original format.
        formats: the formats to expect.
        config: instead of the configuration in the checkpoint, or the one inferred from an original file.
        image_size: of an original file, as in `infer_config`.
        strict: an unknown key of config.json is an error; False passes over it, with a warning.
        check_finite: as in `check_tensors`.

    Raises:
        ValueError: if a file is missing or damaged, or has none of the formats; if the configuration cannot be read;
            or listing at once all tensors that are missing, unexpected or have a wrong shape.
    """
    format = _declared_format(path, formats) if path.is_dir() else None
    if format is ADAPTER:
        return _open_adapter(path, strict=strict, check_finite=check_finite)
    weights = find_weights(path) if path.is_dir() else path
    tensors, marked = strip_prefixes(open_tensors(weights), formats, source=str(weights))
    if marked is None:
        marks = ", ".join(known.mark for known in formats)
        raise ValueError(
            f"{weights}: not a {formats[0].network}: expected one of {marks} among its tensors, "
            f"got {join(sorted(tensors), most=3)}"
        )
    if marked is ADAPTER:
        return _open_adapter(weights.parent, strict=strict, check_finite=check_finite)
    format = format or marked
    if config is None:
        config = format.read_config(path, tensors, image_size=image_size, strict=strict)
    return check_tensors(format, config, tensors, name=str(weights), check_finite=check_finite)


def _open_adapter(folder: Path, *, strict: bool, check_finite: bool) -> Source:
    """A folder of adapters with its base: the model with both."""
    adapter, tensors = read_adapter(folder)
    beside = folder / adapter.base
    try:
        path = beside if beside.exists() else resolve_source(adapter.base)
        formats = tuple(format for format in VITPOSE_FORMATS if format is not ADAPTER)
        base = open_source(path, formats=formats, strict=strict, check_finite=check_finite)
    except ValueError as error:
        raise ValueError(f'{folder / CONFIG_FILE}: "base", the model that its adapters belong to: {error}') from error
    merged = merged_tensors(adapter, tensors, base.tensors, source=str(folder))
    return check_tensors(ADAPTER, adapter.model, merged, name=str(folder), check_finite=check_finite)


def check_tensors(format: Format, config: Any, tensors: Tensors, *, name: str, check_finite: bool = True) -> Source:
    """A source from tensors in memory or in a file.

    Args:
        format: of the tensors.
        config: of the model.
        tensors: by the names of the format.
        name: where they come from, for the error message.
        check_finite: a tensor that has NaN, an infinity or a negative variance raises ValueError when it is read.

    Raises:
        ValueError: listing at once all tensors that are missing, unexpected, or have a wrong shape or dtype.
    """
    arranged, ignored = arrange(format, config, tensors, source=name, check_finite=check_finite)
    return Source(format=format, config=config, tensors=arranged, ignored=ignored, check_finite=check_finite)


def choose_quantization(source: Source, quantize: str | None, group_size: int | None) -> Quantization | None:
    """The quantization of a model that is read from a source.

    Args:
        source: of a ViTPose.
        quantize: "int8" or "int4"; None for a model in floating point.
        group_size: of int4; None for that of the file, or 128 if it is not int4.

    Raises:
        ValueError: for an unknown kind, for a `group_size` without int4, and for one that does not divide the inputs.
    """
    check_group_size(quantize, group_size)
    if quantize is None:
        return None
    if group_size is None and quantize == "int4":
        stored = {
            stored_group_size(tensor.quantized)
            for name, tensor in source.tensors.items()
            if is_quantized(name) and tensor.quantized and tensor.stored == DTYPES["int4"]
        }
        group_size = stored.pop() if len(stored) == 1 else None
    sizes = {} if group_size is None else {"group_size": group_size}
    quantization = Quantization(kind=cast(Kind, quantize), **sizes)
    for name, tensor in source.tensors.items():
        if is_quantized(name):
            quantization.scale_shape(tensor.shape)  # raises for a wrong group size, before gigabytes are read
    return quantization


def build_model(
    source: Source, *, dtype: DTypeLike, param_dtype: DTypeLike, quantization: Quantization | None = None
) -> VitPose:
    """The model of a source.

    Args:
        source: of a ViTPose.
        dtype: in which the model computes.
        param_dtype: in which it stores its parameters; norms are always float32.
        quantization: of the kernels of the blocks, which are rounded while they are read; None for `param_dtype`.
    """
    abstract = abstract_vitpose(source.config, dtype=dtype, param_dtype=param_dtype, quantization=quantization)
    tensors: Mapping[str, Any] = source.tensors
    if quantization is not None:
        tensors = quantize_tensors(tensors, quantization)
    return parameters.fill_checked(abstract, tensors, check_finite=source.check_finite)


def adapt(
    model: VitPose, *, skeleton: str | Skeleton | None = None, image_size: tuple[int, int] | None = None
) -> VitPose:
    """The same weights with another skeleton for the only head, or for crops of another size.

    Args:
        model: with one head, if a skeleton is given.
        skeleton: name or `Skeleton`, with as many keypoints as the head; None to keep the model's.
        image_size: height and width of a crop in pixels; None to keep the model's.

    Raises:
        ValueError: if the skeleton does not fit the head, or the size is not a multiple of the patch size.
    """
    if skeleton is not None:
        model = _with_skeleton(model, get_skeleton(skeleton) if isinstance(skeleton, str) else skeleton)
    if image_size is not None and tuple(image_size) != model.config.image_size:
        model = model.resize(image_size)
    return model


def _declared_format(folder: Path, formats: tuple[Format, ...]) -> Format:
    # A folder says in config.json what it holds.
    path = config_path(folder)
    model_type = read_json(path).get("model_type")
    for format in formats:
        if model_type in format.model_types:
            return format
    expected = " or ".join(repr(known) for format in formats for known in format.model_types)
    raise ValueError(f"{path}: not a {formats[0].network}: expected model_type {expected}, got {shorten(model_type)}")


def _with_skeleton(model: VitPose, skeleton: Skeleton) -> VitPose:
    config = model.config
    if len(config.skeletons) != 1:
        names = ", ".join(known.name for known in config.skeletons)
        raise ValueError(f"skeleton: expected a checkpoint with one head, got one with {names}")
    (old,) = config.skeletons
    if old.num_keypoints != skeleton.num_keypoints:
        raise ValueError(
            f"skeleton: expected {old.num_keypoints} keypoints, as the head has, "
            f"got {skeleton.name!r} with {skeleton.num_keypoints}"
        )
    experts = tuple(skeleton.name if name == old.name else name for name in config.experts)
    config = config.replace(skeletons=(skeleton,), experts=experts)
    tensors = {
        re.sub(rf"^heads\.{re.escape(old.name)}\.", f"heads.{skeleton.name}.", name): leaf
        for name, leaf in parameters.flatten(model).items()
    }
    return model.rebuild(config, tensors)
