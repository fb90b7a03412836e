"""Backbones to start a training from: MAE, DINOv2 or another ViTPose, made to fit a configuration.

A ViTPose of one's own may differ from the network that the weights come from: in the size of its crops and
patches, and in having experts. What differs is interpolated, resampled or copied here; everything else has to
agree. Which tensors go where, and which are left out, is in `rules.py`.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, LazyTensor, read_json
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose
from vitpose_jax.vitpose.positions import resize_positions

from .assembly import assemble, target_shapes
from .hub_files import resolve_source
from .rules import LAYER_SCALES
from .sources import build_model, layout_of, open_source
from .torch_files import find_weights, open_tensors

Tensors = dict[str, np.ndarray]

_POSITIONS = "backbone.patch_embed.pos_embed"
_PATCHES = "backbone.patch_embed.proj.kernel"
_KNOWLEDGE_TOKEN = "backbone.knowledge_token."

# layout: (a tensor that tells the layout, that of the positions, that of the patches)
_MARKS = {
    "dinov2": (
        "encoder.layer.0.layer_scale1.lambda1",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection.weight",
    ),
    "bare": ("last_norm.weight", "pos_embed", "patch_embed.proj.weight"),
    "mae": ("norm.weight", "pos_embed", "patch_embed.proj.weight"),
}

# In which two networks must agree for one to take the blocks of the other.
_SHARED = ("num_channels", "hidden_size", "num_layers", "num_heads", "mlp_features", "hidden_act", "qkv_bias")

_DINOV2_HEAD_FEATURES = 64


def load_backbone(source: str | Path | VitPose, config: VitPoseConfig) -> Tensors:
    """The parameters of a backbone for a configuration.

    Args:
        source: one of
            MAE: the original's .pth, with or without its decoder; its last norm is taken, too. The number of
                heads is not in the file: the presets have MAE's;
            DINOv2 as transformers lays it out: a file, a folder or an id of the Hub. LayerScale is folded into
                the layers before it; the position of its class token becomes zero;
            ViTPose: a model, or whatever `from_pretrained` reads; or the original's names without "backbone.".
        config: of the model to be. Positions are interpolated to its grid, as in the original, and patch kernels
            resampled to its patches (`resize_patches`). All its experts start as the last part_features
            channels of the second layer, as in the original, unless the source has experts of those names.

    Returns:
        Float32 arrays by flat name, "backbone.blocks.attention.qkv.kernel"; all that the backbone has, but for a
        knowledge token that the source has not.

    Raises:
        ValueError: where the source is not found, damaged or of another kind, where it does not agree with the
            configuration, or where tensors are missing, unexpected or mis-shaped: all of them at once.
    """
    model = source if isinstance(source, VitPose) else load_vitpose(source)
    if model is not None:
        where = "the ViTPose" if model is source else str(source)
        theirs = model.config
        parameters.raise_problems(_disagreements(theirs, config), source=where)
        flat = parameters.flatten(model)
        tensors = {name: np.asarray(leaf, np.float32) for name, leaf in flat.items() if name.startswith("backbone.")}
    else:
        where, path = str(source), resolve_source(source)
        theirs, tensors = _read(path, config)
    tensors[_POSITIONS] = resize_positions(tensors[_POSITIONS], theirs.grid_size, config.grid_size)
    tensors[_PATCHES] = resize_patches(tensors[_PATCHES], config.patch_size)
    tensors = _with_experts(tensors, theirs, config, where)
    expected = {name: shape for name, shape in target_shapes(config).items() if name.startswith("backbone.")}
    if not theirs.knowledge_token:
        expected = {name: shape for name, shape in expected.items() if not name.startswith(_KNOWLEDGE_TOKEN)}
    parameters.raise_problems(parameters.differences(expected, tensors), source=where)
    return tensors


def load_vitpose(source: str | Path) -> VitPose | None:
    """The model of a source, in float32; None where it holds the backbone of another network.

    Raises:
        ValueError: as `load_backbone`.
    """
    path = resolve_source(source)
    if layout_of(_open(path)) is None:
        return None
    layout, config, tensors = open_source(path)
    return build_model(layout, config, tensors, dtype=np.float32, param_dtype=np.float32, source=str(path))


def resize_patches(
    kernel: Float[np.ndarray, "rows columns features_in features"], size: tuple[int, int]
) -> Float[np.ndarray, "new_rows new_columns features_in features"]:
    """A patch kernel for patches of another size, by the pseudo-inverse of bilinear resizing.

    The new kernel answers to a patch enlarged to the new size as the old one does to the patch; where the new
    size is smaller, as nearly as it can (FlexiViT, Beyer et al. 2023, arXiv:2212.08013, section 3.4).
    """
    if kernel.shape[:2] == tuple(size):
        return kernel
    # Resizing a patch is linear, rows and columns apart: <B patch, new> = <patch, old>, so B^T new = old.
    rows, columns = (
        np.linalg.pinv(np.asarray(jax.image.resize(np.eye(old, dtype=np.float32), (new, old), "linear")).T)
        for old, new in zip(kernel.shape[:2], size, strict=True)
    )
    return np.einsum("yr,xc,rcio->yxio", rows, columns, kernel, optimize=True).astype(kernel.dtype)


def _open(path: Path) -> dict[str, LazyTensor]:
    return open_tensors(find_weights(path) if path.is_dir() else path)


def _read(path: Path, config: VitPoseConfig) -> tuple[VitPoseConfig, Tensors]:
    tensors = _open(path)
    layout = next((layout for layout, (mark, *_) in _MARKS.items() if mark in tensors), None)
    if layout is None:
        raise ValueError(
            f"{path}: expected a ViTPose, or a backbone with one of {', '.join(mark for mark, *_ in _MARKS.values())} "
            f"(MAE, DINOv2) among its tensors, got {', '.join(sorted(tensors)[:3])}, ..."
        )
    if any(name.endswith("mlp.weights_in.weight") for name in tensors):
        raise ValueError(f"{path}: expected an MLP of two layers in every block, got SwiGLU (a DINOv2 'giant')")
    theirs = _config_of(layout, tensors, config, path)
    parameters.raise_problems(_disagreements(theirs, config), source=str(path))
    assembled = assemble(layout, theirs, tensors, source=str(path))
    flat = {name: np.asarray(tensor, np.float32) for name, tensor in assembled.items()}
    return theirs, _without_layer_scale(flat) if layout == "dinov2" else flat


def _config_of(layout: str, tensors: Mapping[str, LazyTensor], config: VitPoseConfig, path: Path) -> VitPoseConfig:
    # The wanted configuration, without experts and with what the source has of its own.
    _, positions, patches = _MARKS[layout]
    for name, axes in ((positions, 3), (patches, 4)):
        if name not in tensors or len(tensors[name].shape) != axes:
            got = f"shape {tensors[name].shape}" if name in tensors else "none"
            raise ValueError(f"{path}: {name}: expected a tensor of {axes} axes, got {got}")
    count = tensors[positions].shape[1] - 1
    patch_size = tensors[patches].shape[2:]
    grid = config.grid_size if count == config.num_patches else (math.isqrt(count),) * 2
    if math.prod(grid) != count:
        raise ValueError(f"{path}: {positions}: expected positions of a square of patches, got {count}")
    num_heads, hidden_act = config.num_heads, config.hidden_act
    if layout == "dinov2":
        declared = read_json(path / CONFIG_FILE) if path.is_dir() else {}
        default = max(1, tensors[patches].shape[0] // _DINOV2_HEAD_FEATURES)
        num_heads, hidden_act = declared.get("num_attention_heads", default), declared.get("hidden_act", "gelu")
    try:
        return config.replace(
            image_size=tuple(side * patch for side, patch in zip(grid, patch_size, strict=True)),
            patch_size=patch_size,
            num_heads=num_heads,
            hidden_act=hidden_act,
            experts=(),
            part_features=0,
            knowledge_token=0,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _disagreements(theirs: VitPoseConfig, config: VitPoseConfig) -> Iterable[str]:
    for name in _SHARED:
        if getattr(theirs, name) != getattr(config, name):
            yield f"{name}: expected {getattr(config, name)!r}, as configured, got {getattr(theirs, name)!r}"


def _without_layer_scale(tensors: Tensors) -> Tensors:
    # x + scale * (h @ kernel + bias) is x + h @ (kernel * scale) + bias * scale.
    result = {name: tensor for name, tensor in tensors.items() if name not in LAYER_SCALES}
    for scale, layer in zip(LAYER_SCALES, ("attention.proj", "mlp.fc2"), strict=True):
        result[f"backbone.blocks.{layer}.kernel"] *= tensors[scale][:, None]
        result[f"backbone.blocks.{layer}.bias"] *= tensors[scale]
    # Of the class token; here it would be added to every patch.
    result[_POSITIONS][0] = 0
    return result


def _with_experts(tensors: Tensors, theirs: VitPoseConfig, config: VitPoseConfig, where: str) -> Tensors:
    names = {kind: f"backbone.blocks.mlp.experts_{kind}" for kind in ("kernel", "bias")}
    if theirs.experts and (not config.experts or not set(config.experts) <= set(theirs.experts)):
        raise ValueError(
            f"{where}: has experts for {', '.join(theirs.experts)}, and the configuration for "
            f"{', '.join(config.experts) or 'none'}; choose the data set to start from with `VitPose.specialize`"
        )
    if theirs.experts:
        chosen = [theirs.experts.index(name) for name in config.experts]
        return tensors | {name: tensors[name][:, chosen] for name in names.values()}
    if config.experts:
        shared = config.hidden_size - config.part_features
        for kind, name in names.items():
            fc2 = tensors[f"backbone.blocks.mlp.fc2.{kind}"]
            tensors |= {
                f"backbone.blocks.mlp.fc2.{kind}": fc2[..., :shared],
                name: np.repeat(fc2[:, None, ..., shared:], config.num_experts, axis=1),
            }
    return tensors
