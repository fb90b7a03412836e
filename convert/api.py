"""Conversion: from any source to a native folder or one for `transformers`."""

from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage import int8 as int8_kernels
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, write_folder
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose

from .engine import scatter
from .formats import WRITTEN_FORMATS
from .formats.format import Format
from .hub import resolve_source
from .sources import adapt, build_model, open_source


def convert(
    source: str | Path,
    dest: str | Path,
    *,
    to: str = "native",
    int8: bool = False,
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
    """Convert a checkpoint. Weights keep the dtype they are stored in; int8 weights become float32.

    Args:
        source: a folder (native or of the Hub), a .safetensors, .pth, .pt or .bin file, or a Hub id "user/name".
        dest: the folder to write.
        to: "native" or "huggingface".
        int8: store the kernels of a native checkpoint as int8: a quarter of the bytes, but rounded.
        split: write a plain ViTPose for each head into dest/<dataset>/, with the dataset's expert folded in.
        dataset: write a plain ViTPose for this dataset only.
        overwrite: replace a checkpoint that is already there.
        config: of an original file whose shapes do not determine it.
        image_size: height and width of a crop in pixels. If the checkpoint has another size, the position embeddings
            are interpolated.
        skeleton: the keypoints of the head, for a checkpoint with one head that does not name them.
        revision, cache_dir, token, local_files_only: for the Hub, as in `hub.resolve_source`.
        strict: as in `from_pretrained`.
        check_finite: as in `from_pretrained`. Kernels that are not finite cannot be stored as int8.

    Returns:
        The folders written.

    Raises:
        ValueError: if the source cannot be read or is not a complete ViTPose; if the format cannot hold the model; or
            if `dest` holds a checkpoint and `overwrite` is not set.
    """
    _written_format(to, int8)
    if split and dataset is not None:
        raise ValueError("split writes every dataset, dataset chooses one: expected one of the two, got both")
    path = resolve_source(
        source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    dest = Path(dest)
    opened = open_source(path, config=config, image_size=image_size, strict=strict, check_finite=check_finite)
    if not split and dataset is None:
        check_writable(opened.config, to)  # before gigabytes are read
    model = build_model(opened, dtype=opened.stored_dtype, param_dtype=opened.stored_dtype)
    model = adapt(model, skeleton=skeleton, image_size=image_size)
    if split:
        names = [head.name for head in model.config.skeletons]
        existing = [name for name in names if (dest / name / CONFIG_FILE).exists()]
        if existing and not overwrite:
            raise ValueError(f"{dest}: already holds {', '.join(existing)}; choose another folder, or ask to overwrite")
        return [write(model.specialize(name), dest / name, to=to, int8=int8, overwrite=overwrite) for name in names]
    model = model if dataset is None else model.specialize(dataset)
    return [write(model, dest, to=to, int8=int8, overwrite=overwrite)]


def write(
    model: VitPose, folder: str | Path, *, to: str = "native", int8: bool = False, overwrite: bool = False
) -> Path:
    """Write a model as a native folder or one for `transformers`, whole or not at all.

    Args:
        model: with one head for "huggingface". That format stores all tensors in the model's `param_dtype`; the native
            format stores each in the dtype it has.
        folder: created if it does not exist.
        to: "native" or "huggingface".
        int8: of a native folder, as in `convert`.
        overwrite: replace a checkpoint that is already there.

    Returns:
        The folder.

    Raises:
        ValueError: if the format cannot hold the model, or `folder` holds a checkpoint and `overwrite` is not set.
    """
    format = _written_format(to, int8)
    param_dtype = model.backbone.param_dtype
    documents = format.make_documents(model.config, param_dtype=param_dtype)
    tensors = scatter(format, model.config, parameters.flatten(model), param_dtype=param_dtype)
    write_folder(
        folder,
        int8_kernels.quantize(tensors) if int8 else tensors,
        documents,
        metadata={"format": "pt"} if format.pytorch else None,
        overwrite=overwrite,
    )
    return Path(folder)


def check_writable(config: VitPoseConfig, to: str, *, param_dtype: DTypeLike = jnp.float32) -> None:
    """Check that a format can hold a model, before the model exists.

    Args:
        config: of the model.
        to: "native" or "huggingface".
        param_dtype: the dtype of the stored weights.

    Raises:
        ValueError: if it cannot, for example because of a second head.
    """
    _written_format(to, int8=False).make_documents(config, param_dtype=param_dtype)


def _written_format(to: str, int8: bool) -> Format:
    formats = {format.name: format for format in WRITTEN_FORMATS}
    if to not in formats:
        raise ValueError(f"to: expected one of {', '.join(formats)}, got {to!r}")
    if int8 and to != "native":
        raise ValueError(f"int8: expected the native format, got {to!r}")
    return formats[to]
