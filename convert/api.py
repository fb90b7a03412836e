"""Conversion: from any source to a native folder or one for `transformers`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage import int8 as int8_kernels
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, write_folder
from vitpose_jax.vitpose.adapters import check_no_adapters
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose
from vitpose_jax.vitpose.quantized import (
    Kind,
    Quantization,
    check_group_size,
    dequantize_tensors,
    quantize_tensors,
    stored_names,
)

from .engine import scatter
from .formats import WRITTEN_FORMATS
from .formats.format import Format
from .hub import resolve_source
from .sources import adapt, build_model, choose_quantization, open_source


def convert(
    source: str | Path,
    dest: str | Path,
    *,
    to: str = "native",
    int8: bool = False,
    int4: bool = False,
    group_size: int | None = None,
    split: bool = False,
    dataset: str | None = None,
    overwrite: bool = False,
    config: VitPoseConfig | None = None,
    image_size: tuple[int, int] | None = None,
    skeleton: str | Skeleton | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    strict: bool = True,
    check_finite: bool = True,
) -> list[Path]:
    """Convert a checkpoint. Weights keep the dtype they are stored in; int8 and int4 weights become float32.

    Args:
        source: a folder (native or of the Hub), a .safetensors, .pth, .pt or .bin file, or a Hub id "user/name".
        dest: the folder to write.
        to: "native" or "huggingface".
        int8: store the kernels of a native checkpoint as int8: a quarter of the bytes, but rounded.
        int4: store the kernels of its blocks as int4, an eighth of the bytes, and its other kernels as int8.
        group_size: of int4; see `from_pretrained`.
        split: write a plain ViTPose for each head into dest/<dataset>/, with the dataset's expert folded in.
        dataset: write a plain ViTPose for this dataset only.
        overwrite: replace a checkpoint that is already there.
        config: of an original file whose shapes do not determine it.
        image_size: height and width of a crop in pixels. If the checkpoint has another size, the position embeddings
            are interpolated.
        skeleton: the keypoints of the head, for a checkpoint with one head that does not name them.
        revision, cache_dir, token, local_files_only: for the Hub, as in `hub.resolve_source`.
        strict: as in `from_pretrained`.
        check_finite: as in `from_pretrained`. Kernels that are not finite cannot be stored as int8 or int4.

    Returns:
        The folders written.

    Raises:
        ValueError: if the source cannot be read or is not a complete ViTPose; if the format cannot hold the model; or
            if `dest` holds a checkpoint and `overwrite` is not set.
    """
    kind = stored_kind(to, int8=int8, int4=int4)
    if split and dataset is not None:
        raise ValueError("split writes every dataset, dataset chooses one: expected one of the two, got both")
    path = resolve_source(
        source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    dest = Path(dest)
    opened = open_source(path, config=config, image_size=image_size, strict=strict, check_finite=check_finite)
    if not split and dataset is None:
        check_writable(opened.config, to)  # before gigabytes are read
    # Rounded while it is read: a large model is never in memory in floating point.
    quantization = choose_quantization(opened, kind, group_size)
    dtype = opened.stored_dtype
    model = build_model(opened, dtype=dtype, param_dtype=dtype, quantization=quantization)
    # The open file: `dest` may be where it lies, and where open files can be neither renamed nor replaced.
    del opened
    options: dict[str, Any] = {"int8": int8, "int4": int4}
    model = adapt(model, skeleton=skeleton, image_size=image_size)
    if split:
        names = [head.name for head in model.config.skeletons]
        existing = [name for name in names if (dest / name / CONFIG_FILE).exists()]
        if existing and not overwrite:
            raise ValueError(f"{dest}: already holds {', '.join(existing)}; choose another folder, or ask to overwrite")
        return [write(model.specialize(name), dest / name, to=to, overwrite=overwrite, **options) for name in names]
    model = model if dataset is None else model.specialize(dataset)
    return [write(model, dest, to=to, overwrite=overwrite, **options)]


def write(
    model: VitPose,
    folder: str | Path,
    *,
    to: str = "native",
    int8: bool = False,
    int4: bool = False,
    group_size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as a native folder or one for `transformers`, whole or not at all.

    Args:
        model: with one head for "huggingface". That format stores all tensors in the model's `param_dtype`, also those
            of a quantized model; the native format stores each in the dtype it has.
        folder: created if it does not exist.
        to: "native" or "huggingface".
        int8, int4: of a native folder, as in `convert`.
        group_size: of int4; None for that of the model, or 128 for a model in floating point.
        overwrite: replace a checkpoint that is already there.

    Returns:
        The folder.

    Raises:
        ValueError: if the format cannot hold the model, if the model has adapters that are not merged, if a quantized
            model is to be rounded a second time, or if `folder` holds a checkpoint and `overwrite` is not set.
    """
    check_no_adapters(model, "write")
    kind, format = stored_kind(to, int8=int8, int4=int4), _written_format(to)
    check_group_size(kind, group_size)
    param_dtype = model.backbone.param_dtype
    documents = format.make_documents(model.config, param_dtype=param_dtype)
    tensors: Mapping[str, Any] = parameters.flatten(model)
    if format.pytorch:
        tensors = dequantize_tensors(tensors)
    elif kind is not None:
        tensors = quantize_tensors(tensors, _same_quantization(model, kind, group_size))
    tensors = stored_names(tensors)
    if format.pytorch:
        tensors = scatter(format, model.config, tensors, param_dtype=param_dtype)
    write_folder(
        folder,
        tensors if kind is None else int8_kernels.quantize(tensors),
        documents,
        metadata={"format": "pt"} if format.pytorch else None,
        overwrite=overwrite,
    )
    return Path(folder)


def _same_quantization(model: VitPose, kind: Kind, group_size: int | None) -> Quantization:
    sizes = {} if group_size is None else {"group_size": group_size}
    old = model.quantization
    if old is not None and (old.kind != kind or group_size not in (None, old.group_size)):
        got = old.kind if old.kind == "int8" else f"int4 with groups of {old.group_size}"
        raise ValueError(f"{kind}: expected a model in floating point or of the same kind, got {got}")
    return old or Quantization(kind=kind, **sizes)


def check_writable(config: VitPoseConfig, to: str, *, param_dtype: DTypeLike = jnp.float32) -> None:
    """Check that a format can hold a model, before the model exists.

    Args:
        config: of the model.
        to: "native" or "huggingface".
        param_dtype: the dtype of the stored weights.

    Raises:
        ValueError: if it cannot, for example because of a second head.
    """
    _written_format(to).make_documents(config, param_dtype=param_dtype)


def stored_kind(to: str, *, int8: bool, int4: bool) -> Kind | None:
    """The kind that kernels are to be stored as; None for floating point.

    Raises:
        ValueError: for an unknown format, for both kinds at once, and for one in another format than the native.
    """
    _written_format(to)
    if int8 and int4:
        raise ValueError("int8, int4: expected one of the two, got both")
    kind = "int8" if int8 else "int4" if int4 else None
    if kind is not None and to != "native":
        raise ValueError(f"{kind}: expected the native format, got {to!r}")
    return kind


def _written_format(to: str) -> Format:
    formats = {format.name: format for format in WRITTEN_FORMATS}
    if to not in formats:
        raise ValueError(f"to: expected one of {', '.join(formats)}, got {to!r}")
    return formats[to]
