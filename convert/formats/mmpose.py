"""The format of MMPose 1.x (https://github.com/open-mmlab/mmpose): a .pth file with the weights of a ViTPose.

MMPose 1.x builds ViTPose from the VisionTransformer of MMPretrain (before: MMClassification), the FFN of MMCV and its
own HeatmapHead. Their arithmetic is the original's: padding 2, LayerNorm eps 1e-6, the same heads. The names differ,
and the position embeddings have no row for a class token.

The names follow mmpretrain/models/backbones/vision_transformer.py, mmcv/cnn/bricks/transformer.py and
mmpose/models/heads/heatmap_heads/heatmap_head.py. As in the original format, the configuration is inferred from shapes.
"""

import dataclasses
from pathlib import Path

from vitpose_jax.storage.tensors import LazyTensor
from vitpose_jax.vitpose.config import VitPoseConfig

from .format import MOVING_AVERAGE, STEP_COUNTER, Format, Rule, Tensors
from .original import ORIGINAL_RULES, infer_config

# (original, MMPose), in an order that is right both ways: the last norm has the name of each layer's first.
_WORDS = (
    ("backbone.last_norm.", "backbone.ln1."),
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
    ("backbone.blocks.", "backbone.layers."),
    ("backbone.patch_embed.proj.", "backbone.patch_embed.projection."),
)
_HEADS = ("keypoint_head.", "head.")
_POSITIONS = "backbone.pos_embed"


def _mmpose_name(name: str) -> str:
    for original, mmpose in _WORDS:
        name = name.replace(original, mmpose)
    return _HEADS[1] + name.removeprefix(_HEADS[0]) if name.startswith(_HEADS[0]) else name


def _original_name(name: str) -> str:
    for original, mmpose in _WORDS:
        name = name.replace(mmpose, original)
    return _HEADS[0] + name.removeprefix(_HEADS[1]) if name.startswith(_HEADS[1]) else name


def _rules() -> tuple[Rule, ...]:
    return tuple(
        (_mmpose_name(source), target, "patch_positions" if source == _POSITIONS else transform)
        for source, target, transform in ORIGINAL_RULES
        if "experts" not in source and not source.startswith("associate_keypoint_heads")
    )


def _read_config(
    path: Path, tensors: Tensors, *, image_size: tuple[int, int] | None = None, strict: bool = True
) -> VitPoseConfig:
    renamed = {_original_name(name): tensor for name, tensor in tensors.items()}
    if _POSITIONS in renamed:
        renamed[_POSITIONS] = _with_class_token(renamed[_POSITIONS])
    return infer_config(renamed, source=str(path), image_size=image_size)


def _with_class_token(positions: LazyTensor) -> LazyTensor:
    # The shape that the original has. The numbers are not read.
    if len(positions.shape) != 3:
        return positions
    batch, patches, features = positions.shape
    return dataclasses.replace(positions, shape=(batch, patches + 1, features))


MMPOSE = Format(
    name="mmpose",
    mark="backbone.patch_embed.projection.weight",
    read_config=_read_config,
    rules=_rules(),
    ignored=(
        (r"head\.deconv_layers\.[14]\.num_batches_tracked", STEP_COUNTER),
        (r"steps|n_averaged", MOVING_AVERAGE),
    ),
)
