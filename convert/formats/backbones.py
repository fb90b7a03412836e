"""The formats of backbones without heads, to start a training from: MAE, DINOv2, and the original ViTPose's.

Their rules are those of a whole model's backbone, under other names. Their configuration is the one of the model to
train, changed to the source's own image size and patch size, and without experts.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_jax.storage.tensors import CONFIG_FILE, read_json
from vitpose_jax.vitpose.config import VitPoseConfig

from .format import CLASS_TOKEN, Format, Rule, Shapes, Tensors, vitpose_shapes
from .huggingface import HUGGINGFACE_RULES
from .original import ORIGINAL_RULES

_DINOV2_HEAD_FEATURES = 64
# The two LayerScales of a DINOv2 block, and the layers before them. The model has no LayerScale.
_LAYER_SCALES = {"layer_scale1": "attention.proj", "layer_scale2": "mlp.fc2"}


def backbone_shapes(config: VitPoseConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model's backbone, by flat name."""
    return {name: shape for name, shape in vitpose_shapes(config).items() if name.startswith("backbone.")}


def fold_layer_scale(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a DINOv2 with each LayerScale multiplied into the layer before it.

    The position embedding of the class token becomes 0, because it would be added to every patch here.
    """
    result = {name: tensor for name, tensor in tensors.items() if name not in _LAYER_SCALES}
    # x + scale * (h @ kernel + bias) is x + h @ (kernel * scale) + bias * scale.
    for scale, layer in _LAYER_SCALES.items():
        kernel, bias = f"backbone.blocks.{layer}.kernel", f"backbone.blocks.{layer}.bias"
        result[kernel] = tensors[kernel] * tensors[scale][:, None]
        result[bias] = tensors[bias] * tensors[scale]
    positions = "backbone.patch_embed.pos_embed"
    result[positions] = np.concatenate([np.zeros_like(tensors[positions][:1]), tensors[positions][1:]])
    return result


def _read_timm_config(path: Path, tensors: Tensors, *, config: VitPoseConfig) -> VitPoseConfig:
    return _with_sizes(path, tensors, config, positions="pos_embed", patches="patch_embed.proj.weight")


def _read_dinov2_config(path: Path, tensors: Tensors, *, config: VitPoseConfig) -> VitPoseConfig:
    if any(name.endswith("mlp.weights_in.weight") for name in tensors):
        raise ValueError(f"{path}: expected an MLP of two layers in every block, got SwiGLU (a DINOv2 'giant')")
    positions, patches = "embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight"
    values = read_json(path / CONFIG_FILE) if path.is_dir() else {}
    hidden_size = tensors[patches].shape[0] if patches in tensors and tensors[patches].shape else 0
    fields = {
        "num_heads": values.get("num_attention_heads", max(1, hidden_size // _DINOV2_HEAD_FEATURES)),
        "hidden_act": values.get("hidden_act", "gelu"),
    }
    return _with_sizes(path, tensors, config, positions=positions, patches=patches, **fields)


def _with_sizes(
    path: Path, tensors: Tensors, config: VitPoseConfig, *, positions: str, patches: str, **fields: Any
) -> VitPoseConfig:
    for name, axes in ((positions, 3), (patches, 4)):
        if name not in tensors or len(tensors[name].shape) != axes:
            shape = f"shape {tensors[name].shape}" if name in tensors else "none"
            raise ValueError(f"{path}: {name}: expected a tensor of {axes} axes, got {shape}")
    num_patches = tensors[positions].shape[1] - 1
    patch_size = tensors[patches].shape[2:]
    grid = config.grid_size if num_patches == config.num_patches else (math.isqrt(num_patches),) * 2
    if math.prod(grid) != num_patches:
        raise ValueError(f"{path}: {positions}: expected positions of a square of patches, got {num_patches}")
    try:
        return config.replace(
            image_size=tuple(side * patch for side, patch in zip(grid, patch_size, strict=True)),
            patch_size=patch_size,
            experts=(),
            part_features=0,
            knowledge_token=0,
            **fields,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _backbone_rules(rules: tuple[Rule, ...], *renamed: tuple[str, str]) -> tuple[Rule, ...]:
    # The backbone's rules of a whole model, without the prefix "backbone." and with other words in the source names.
    result = []
    for source, target, transform in rules:
        if target.startswith("backbone."):
            source = source.removeprefix("backbone.")
            for word, other in renamed:
                source = source.replace(word, other)
            result.append((source, target, transform))
    return tuple(result)


def _dinov2_shapes(config: VitPoseConfig) -> Shapes:
    return backbone_shapes(config) | dict.fromkeys(_LAYER_SCALES, (config.num_layers, config.hidden_size))


# The original's backbone without the prefix "backbone.".
BARE = Format(
    name="bare",
    mark="last_norm.weight",
    read_config=_read_timm_config,
    rules=_backbone_rules(ORIGINAL_RULES),
    ignored=((r"cls_token", CLASS_TOKEN),),
    shapes=backbone_shapes,
)

MAE = Format(
    name="mae",
    mark="norm.weight",
    read_config=_read_timm_config,
    rules=_backbone_rules(ORIGINAL_RULES, ("last_norm", "norm")),
    ignored=(
        (r"cls_token", CLASS_TOKEN),
        (r"mask_token|decoder_.+", "belongs to MAE's decoder, which only its training needs"),
    ),
    shapes=backbone_shapes,
)

DINOV2 = Format(
    name="dinov2",
    mark="encoder.layer.0.layer_scale1.lambda1",
    read_config=_read_dinov2_config,
    rules=(
        *_backbone_rules(HUGGINGFACE_RULES, ("layernorm_before", "norm1"), ("layernorm_after", "norm2")),
        *((f"encoder.layer.{{layer}}.{name}.lambda1", f"{name}[layer]", "same") for name in _LAYER_SCALES),
    ),
    ignored=(
        (r"embeddings\.cls_token", CLASS_TOKEN),
        (r"embeddings\.mask_token", "replaces hidden patches, which only DINOv2's training has"),
    ),
    shapes=_dinov2_shapes,
    finish=fold_layer_scale,
)
