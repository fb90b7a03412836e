"""The conversion itself: from any source to a native folder or one of the Hub."""

from pathlib import Path

import jax.numpy as jnp

from vitpose_jax import checkpoint
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage.tensors import write_folder
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose

from .assembly import to_torch_tensors
from .hub_config import to_hub
from .hub_files import resolve_source
from .sources import PREPROCESSOR_FILE, adapt, build_model, open_source, stored_dtype

LAYOUTS = ("native", "huggingface")


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
) -> list[Path]:
    """Convert a checkpoint. Weights keep the dtype they are stored in; those stored as int8 become float32.

    Args:
        source: a folder (native or of the Hub), a .safetensors, .pth, .pt or .bin file, or a Hub id "user/name".
        dest: the folder to write.
        to: "native" or "huggingface".
        int8: store the kernels of a native checkpoint as int8, in a quarter of the bytes; they lose digits.
        split: write a plain ViTPose for each head into dest/<data set>/, with the data set's expert folded in.
        dataset: write a plain ViTPose for this data set alone.
        overwrite: replace a checkpoint that is there already.
        config: of an original file, where its shapes leave questions open.
        image_size: height and width of a crop in pixels; the position embeddings are interpolated where the
            checkpoint has another.
        skeleton: what the channels of the head are, for a checkpoint with one head that does not say so itself.
        revision, cache_dir, token, local_files_only: for the Hub, as of `hub_files.locate`.

    Returns:
        The folders written.

    Raises:
        ValueError: for a source that cannot be read or is not a whole ViTPose, for a model that the format
            asked for cannot hold, and where `dest` holds a checkpoint and `overwrite` is not set.
    """
    _check_layout(to, int8)
    if split and dataset is not None:
        raise ValueError("split writes every data set, dataset chooses one: expected one of the two, got both")
    path = resolve_source(
        source, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    dest = Path(dest)
    layout, config, tensors = open_source(path, config=config, image_size=image_size)
    if to == "huggingface" and not split and dataset is None:
        to_hub(config, param_dtype=jnp.float32)  # raises before gigabytes are read
    param_dtype = stored_dtype(layout, tensors)
    model = build_model(layout, config, tensors, dtype=param_dtype, param_dtype=param_dtype, source=str(path))
    model = adapt(model, skeleton=skeleton, image_size=image_size)
    if split:
        names = [head.name for head in model.config.skeletons]
        taken = [name for name in names if (dest / name / checkpoint.CONFIG_FILE).exists()]
        if taken and not overwrite:
            raise ValueError(f"{dest}: already holds {', '.join(taken)}; choose another folder, or ask to overwrite")
        return [write(model.specialize(name), dest / name, to=to, int8=int8, overwrite=overwrite) for name in names]
    model = model if dataset is None else model.specialize(dataset)
    return [write(model, dest, to=to, int8=int8, overwrite=overwrite)]


def write(
    model: VitPose, folder: str | Path, *, to: str = "native", int8: bool = False, overwrite: bool = False
) -> Path:
    """Write a model as a native folder or one of the Hub, whole or not at all.

    Args:
        model: with one head for "huggingface". All its tensors are then written in its `param_dtype`.
        folder: made where it does not exist.
        to: "native" or "huggingface".
        int8: of a native folder, as of `convert`.
        overwrite: replace a checkpoint that is there already.

    Returns:
        The folder.

    Raises:
        ValueError: for a model that the format cannot hold, and where `folder` holds a checkpoint and
            `overwrite` is not set.
    """
    _check_layout(to, int8)
    if to == "native":
        checkpoint.save(model, folder, overwrite=overwrite, int8=int8)
        return Path(folder)
    values, preprocessor = to_hub(model.config, param_dtype=model.backbone.param_dtype)
    write_folder(
        folder,
        to_torch_tensors("huggingface", model),
        {checkpoint.CONFIG_FILE: values, PREPROCESSOR_FILE: preprocessor},
        metadata={"format": "pt"},
        overwrite=overwrite,
    )
    return Path(folder)


def _check_layout(to: str, int8: bool) -> None:
    if to not in LAYOUTS:
        raise ValueError(f"to: expected one of {', '.join(LAYOUTS)}, got {to!r}")
    if int8 and to != "native":
        raise ValueError(f"int8: expected the native layout, got {to!r}")
