"""What a source is: its layout ("native", "huggingface" or "original"), its configuration and its tensors."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vitpose_jax.checkpoint import MODEL_TYPE, dequantized, native_config
from vitpose_jax.skeletons import Skeleton, get_skeleton
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, LazyTensor, read_json
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose

from . import hub_config
from .assembly import check, from_torch, target_shapes
from .original_config import infer_config
from .torch_files import find_weights, open_tensors

PREPROCESSOR_FILE = "preprocessor_config.json"

# A tensor that tells the layouts apart.
_MARKS = {
    "native": "backbone.patch_embed.pos_embed",
    "huggingface": "backbone.embeddings.position_embeddings",
    "original": "backbone.pos_embed",
}


def open_source(
    path: Path, *, config: VitPoseConfig | None = None, image_size: tuple[int, int] | None = None
) -> tuple[str, VitPoseConfig, dict[str, LazyTensor]]:
    """Open a folder or a file and check it, without reading the weights.

    Args:
        path: a folder, native or of the Hub; or a .safetensors, .pth, .pt or .bin file, with a config.json
            beside it unless its tensors have the original names.
        config: instead of the one of the checkpoint, or the one guessed for an original file.
        image_size: as of `infer_config`, for an original file.

    Returns:
        The layout, the configuration and the tensors by the names they have in the layout.

    Raises:
        ValueError: where a file is missing or damaged, is no ViTPose, or does not go with its configuration;
            missing, unexpected and mis-shaped tensors are listed at once.
    """
    # Of a folder the configuration is read first: it says what the folder is.
    declared = _declared(path) if path.is_dir() else None
    weights = find_weights(path) if path.is_dir() else path
    tensors = open_tensors(weights)
    layout = layout_of(tensors)
    if layout is None:
        raise ValueError(
            f"{weights}: not a ViTPose: expected one of {', '.join(_MARKS.values())} among its tensors, "
            f"got {', '.join(sorted(tensors)[:3])}, ..."
        )
    if declared is None and config is None:
        if layout == "original":
            declared = layout, infer_config(tensors, source=str(weights), image_size=image_size)
        else:
            declared = _declared(path.parent)
    if declared is not None:
        layout, config = declared[0], config or declared[1]
    if layout == "native":
        tensors = dequantized(tensors, source=str(weights))
        parameters.raise_problems(parameters.differences(target_shapes(config), tensors), source=str(weights))
    else:
        check(layout, config, tensors, source=str(weights))
    return layout, config, tensors


def layout_of(tensors: Mapping[str, object]) -> str | None:
    """The layout of a ViTPose's tensors, told by their names; None for those of another network."""
    return next((layout for layout, mark in _MARKS.items() if mark in tensors), None)


def build_model(
    layout: str,
    config: VitPoseConfig,
    tensors: Mapping[str, LazyTensor],
    *,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    source: str,
) -> VitPose:
    """The model of an opened source.

    Args:
        layout, config, tensors: as `open_source` returns them.
        dtype, param_dtype: in which the model computes, and in which it stores its parameters.
        source: for errors.

    Raises:
        ValueError: where tensors are missing, unexpected or mis-shaped.
    """
    if layout == "native":
        abstract = abstract_vitpose(config, dtype=dtype, param_dtype=param_dtype)
        return parameters.fill(abstract, tensors, source=source)
    return from_torch(layout, config, tensors, dtype=dtype, param_dtype=param_dtype, source=source)


def adapt(
    model: VitPose, *, skeleton: str | Skeleton | None = None, image_size: tuple[int, int] | None = None
) -> VitPose:
    """The same weights with another skeleton for their only head, and for crops of another size.

    Args:
        model: with one head where a skeleton is given.
        skeleton: name or `Skeleton`, with as many keypoints as the head; None to leave it.
        image_size: height and width of a crop in pixels; None to leave it.

    Raises:
        ValueError: where the skeleton does not go with the heads, or the size not with the patches.
    """
    if skeleton is not None:
        model = _with_skeleton(model, get_skeleton(skeleton) if isinstance(skeleton, str) else skeleton)
    if image_size is not None and tuple(image_size) != model.config.image_size:
        model = model.resize(image_size)
    return model


def stored_dtype(layout: str, tensors: Mapping[str, LazyTensor]) -> np.dtype:
    """The dtype of a checkpoint's weights: the widest, up to float32, so that storing them in it loses nothing.

    The norms of the native format, which are float32 in any model, do not count.
    """
    counted = [
        tensor.dtype
        for name, tensor in tensors.items()
        if jnp.issubdtype(tensor.dtype, jnp.floating) and not (layout == "native" and ".norm" in name)
    ]
    widest = np.dtype(functools.reduce(jnp.promote_types, counted))
    return widest if widest.itemsize <= 4 else np.dtype(np.float32)


def _declared(folder: Path) -> tuple[str, VitPoseConfig]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder}: missing {CONFIG_FILE}; only a file with the original names does without")
    values = read_json(path)
    if values.get("model_type") == MODEL_TYPE:
        return "native", native_config(values, path)
    preprocessor = folder / PREPROCESSOR_FILE
    read = read_json(preprocessor) if preprocessor.is_file() else None
    return "huggingface", hub_config.from_hub(values, read, source=str(path))


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
    kwargs = {"dtype": model.backbone.dtype, "param_dtype": model.backbone.param_dtype}
    tensors = {
        re.sub(rf"^heads\.{re.escape(old.name)}\.", f"heads.{skeleton.name}.", name): leaf
        for name, leaf in parameters.flatten(model).items()
    }
    return parameters.fill(abstract_vitpose(config, **kwargs), tensors)
