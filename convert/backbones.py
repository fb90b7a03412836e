"""Backbones to start a training from: MAE, DINOv2 or another ViTPose, fitted to a configuration.

The model to train may differ from the source in three ways: the size of the crops, the size of the patches, and
whether it has experts. Here positions are interpolated, patch kernels resampled, and experts copied. In everything
else the two must agree. Which tensors go where is in `formats/backbones.py`.
"""

from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import LazyTensor
from vitpose_jax.storage.text import join
from vitpose_jax.vitpose.adapters import check_no_adapters
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose
from vitpose_jax.vitpose.positions import resize_positions
from vitpose_jax.vitpose.quantized import check_not_quantized

from .adapters import is_adapter
from .formats import BACKBONE_FORMATS, VITPOSE_FORMATS
from .formats.backbones import backbone_shapes
from .hub import resolve_source
from .sources import build_model, check_tensors, open_source
from .torch_files import find_weights, open_tensors
from .wrappers import strip_prefixes

Arrays = dict[str, np.ndarray]

_POSITIONS = "backbone.patch_embed.pos_embed"
_PATCHES = "backbone.patch_embed.proj.kernel"
_KNOWLEDGE_TOKEN = "backbone.knowledge_token."

# Fields that must be equal for one network to take the blocks of the other.
_SHARED_FIELDS = ("num_channels", "hidden_size", "num_layers", "num_heads", "mlp_features", "hidden_act", "qkv_bias")


def load_backbone(source: str | Path | VitPose, config: VitPoseConfig) -> Arrays:
    """The parameters of a backbone for a configuration.

    Args:
        source: one of
            MAE: the .pth file of facebookresearch/mae, with or without the decoder. Its last norm is used, too. The
                file does not contain the number of heads: the presets have MAE's;
            DINOv2 as transformers stores it: a file, a folder or a Hub id. LayerScale is folded into the layers before
                it; the position of its class token becomes zero;
            ViTPose: a model, or any source of `from_pretrained`; or the original names without "backbone.".
        config: of the model to train. Positions are interpolated to its grid, as in the original, and patch kernels
            resampled to its patches (`resize_patches`). All its experts start as the last part_features channels of
            the MLP's second layer, as in the original, unless the source has experts of the same names.

    Returns:
        Float32 arrays by flat name, such as "backbone.blocks.attention.qkv.kernel": every tensor of the backbone,
        except a knowledge token that the source does not have.

    Raises:
        ValueError: if the source is not found, damaged or of another kind, or does not agree with the configuration; or
            listing at once all tensors that are missing, unexpected or have a wrong shape.
    """
    if isinstance(source, VitPose):
        check_not_quantized(source, "load_backbone")
        check_no_adapters(source, "load_backbone")
        model, where = source, "the ViTPose"
    else:
        model, where = load_vitpose(source), str(source)
    if model is None:
        source_config, tensors = _read(resolve_source(where), config)
    else:
        source_config = model.config
        parameters.raise_problems(_disagreements(source_config, config), source=where)
        flat = parameters.flatten(model)
        tensors = {name: np.asarray(leaf, np.float32) for name, leaf in flat.items() if name.startswith("backbone.")}
    tensors[_POSITIONS] = resize_positions(tensors[_POSITIONS], source_config.grid_size, config.grid_size)
    tensors[_PATCHES] = resize_patches(tensors[_PATCHES], config.patch_size)
    tensors = _with_experts(tensors, source_config, config, where)
    expected = backbone_shapes(config)
    if not source_config.knowledge_token:
        expected = {name: shape for name, shape in expected.items() if not name.startswith(_KNOWLEDGE_TOKEN)}
    parameters.raise_problems(parameters.differences(expected, tensors), source=where)
    return tensors


def load_vitpose(source: str | Path) -> VitPose | None:
    """The model of a source, in float32; None if the source holds the backbone of another network.

    Raises:
        ValueError: as `load_backbone`.
    """
    path = resolve_source(source)
    if not is_adapter(path) and strip_prefixes(_open(path), VITPOSE_FORMATS, source=str(path))[1] is None:
        return None
    return build_model(open_source(path), dtype=np.float32, param_dtype=np.float32)


def resize_patches(
    kernel: Float[np.ndarray, "rows columns features_in features"], size: tuple[int, int]
) -> Float[np.ndarray, "new_rows new_columns features_in features"]:
    """A patch kernel for patches of another size, by the pseudo-inverse of bilinear resizing.

    The new kernel gives for an enlarged patch what the old kernel gives for the patch itself. For a smaller size this
    holds as nearly as possible (FlexiViT, Beyer et al. 2023, arXiv:2212.08013, section 3.4).
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


def _read(path: Path, config: VitPoseConfig) -> tuple[VitPoseConfig, Arrays]:
    tensors, format = strip_prefixes(_open(path), BACKBONE_FORMATS, source=str(path))
    if format is None:
        raise ValueError(
            f"{path}: expected a ViTPose, or a backbone with one of "
            f"{', '.join(known.mark for known in BACKBONE_FORMATS)} (MAE, DINOv2) among its tensors, "
            f"got {join(sorted(tensors), most=3)}"
        )
    source_config = format.read_config(path, tensors, config=config)
    parameters.raise_problems(_disagreements(source_config, config), source=str(path))
    source = check_tensors(format, source_config, tensors, name=str(path))
    arrays = {name: np.asarray(tensor, np.float32) for name, tensor in source.tensors.items()}
    return source_config, format.finish(arrays) if format.finish else arrays


def _disagreements(source: VitPoseConfig, config: VitPoseConfig) -> Iterable[str]:
    for name in _SHARED_FIELDS:
        if getattr(source, name) != getattr(config, name):
            yield f"{name}: expected {getattr(config, name)!r}, as configured, got {getattr(source, name)!r}"


def _with_experts(tensors: Arrays, source: VitPoseConfig, config: VitPoseConfig, where: str) -> Arrays:
    names = {kind: f"backbone.blocks.mlp.experts_{kind}" for kind in ("kernel", "bias")}
    if source.experts and (not config.experts or not set(config.experts) <= set(source.experts)):
        raise ValueError(
            f"{where}: has experts for {', '.join(source.experts)}, and the configuration for "
            f"{', '.join(config.experts) or 'none'}; choose the dataset to start from with `VitPose.specialize`"
        )
    if source.experts:
        chosen = [source.experts.index(name) for name in config.experts]
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
