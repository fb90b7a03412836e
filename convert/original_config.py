"""The configuration of an original checkpoint, which has none: read from the shapes of its tensors.

Three things leave no trace in a shape. The number of heads is known for the published widths; the image size
for the usual numbers of patches; what the keypoints are follows from their number and from the file's name.
"""

import re
from collections.abc import Mapping

from vitpose_jax.skeletons import (
    AIC,
    AP10K,
    APT36K,
    COCO,
    COCO25,
    CROWDPOSE,
    DATASETS,
    MPII,
    WHOLEBODY,
    Skeleton,
    canonical_name,
)
from vitpose_jax.storage.tensors import LazyTensor
from vitpose_jax.vitpose.config import VitPoseConfig

NUM_HEADS = {384: 12, 768: 12, 1024: 16, 1280: 16}

# Height and width, in pixels.
IMAGE_SIZES = ((256, 192), (256, 256), (384, 288), (384, 384), (512, 384), (512, 512))

# For each number of keypoints the data sets that have so many; the first where the file's name says nothing.
_SKELETONS = ((COCO, AP10K, APT36K), (AIC, CROWDPOSE), (MPII,), (WHOLEBODY,), (COCO25,))

# The tensors that are looked at, with the number of their axes.
_POSITIONS = ("backbone.pos_embed", 3)
_PATCHES = ("backbone.patch_embed.proj.weight", 4)
_FC1 = ("backbone.blocks.0.mlp.fc1.weight", 2)
_FC2 = ("backbone.blocks.0.mlp.fc2.weight", 2)
_FINAL = ("keypoint_head.final_layer.weight", 4)


def infer_config(
    tensors: Mapping[str, LazyTensor], *, source: str, image_size: tuple[int, int] | None = None
) -> VitPoseConfig:
    """The configuration of an original checkpoint.

    Args:
        tensors: of the checkpoint; only names and shapes are looked at.
        source: the file; its name helps to tell data sets with as many keypoints apart, and goes into errors.
        image_size: height and width in pixels, where the number of patches is an unusual one. Ignored where
            it does not go with that number.

    Raises:
        ValueError: where a tensor is missing or the shapes leave a question open, naming it.
    """
    for name, axes in (_POSITIONS, _PATCHES, _FC1, _FC2, _FINAL):
        if name not in tensors:
            raise ValueError(f"{source}: missing {name}: not an original ViTPose checkpoint, or a part of one")
        if len(tensors[name].shape) != axes:
            raise ValueError(f"{source}: {name}: expected {axes} axes, got shape {tensors[name].shape}")
    hidden_size, num_channels, *patch_size = tensors[_PATCHES[0]].shape
    if hidden_size not in NUM_HEADS:
        raise ValueError(
            f"{source}: the number of attention heads is not known for a width of {hidden_size}; "
            "give a configuration (config=VitPoseConfig(...))"
        )
    part_features = hidden_size - tensors[_FC2[0]].shape[0]
    # Of a checkpoint split by the original script, experts may be left over although fc2 has its full width.
    num_experts = _count(tensors, r"backbone\.blocks\.0\.mlp\.experts\.(\d+)\.weight") if part_features else 0
    skeletons = _skeletons(tensors, num_experts, source)
    image_size = _image_size(tensors[_POSITIONS[0]].shape[1] - 1, tuple(patch_size), image_size, source)
    try:
        return VitPoseConfig(
            image_size=image_size,
            patch_size=tuple(patch_size),
            num_channels=num_channels,
            hidden_size=hidden_size,
            num_layers=_count(tensors, r"backbone\.blocks\.(\d+)\..+"),
            num_heads=NUM_HEADS[hidden_size],
            mlp_ratio=tensors[_FC1[0]].shape[0] / hidden_size,
            qkv_bias="backbone.blocks.0.attn.qkv.bias" in tensors,
            layer_norm_eps=1e-6,
            experts=_experts(num_experts, skeletons),
            part_features=part_features,
            decoder="classic" if "keypoint_head.deconv_layers.0.weight" in tensors else "simple",
            skeletons=skeletons,
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def skeleton_for(num_keypoints: int, file_name: str) -> Skeleton:
    """The likeliest skeleton: by the number of keypoints, and the data set the file's name speaks of."""
    stem = canonical_name(file_name)
    for candidates in _SKELETONS:
        if candidates[0].num_keypoints == num_keypoints:
            named = [skeleton for skeleton in candidates[1:] if skeleton.name in stem]
            return named[0] if named else candidates[0]
    return _unnamed("custom", num_keypoints)


def _unnamed(name: str, num_keypoints: int) -> Skeleton:
    return Skeleton(name=name, keypoints=tuple(f"keypoint_{index}" for index in range(num_keypoints)))


def _skeletons(tensors: Mapping[str, LazyTensor], num_experts: int, source: str) -> tuple[Skeleton, ...]:
    counts = [tensors[_FINAL[0]].shape[0]]
    if not num_experts:
        return (skeleton_for(counts[0], re.split(r"[/\\]", source)[-1]),)
    heads = _count(tensors, r"associate_keypoint_heads\.(\d+)\.final_layer\.weight")
    for head in range(heads):
        name = f"associate_keypoint_heads.{head}.final_layer.weight"
        if name not in tensors:
            raise ValueError(f"{source}: missing {name}")
        counts.append(tensors[name].shape[0])
    # In the order of ViTPose++; a head of another size belongs to a data set nobody has named.
    known = dict(enumerate(DATASETS))
    return tuple(
        known[number]
        if number in known and known[number].num_keypoints == count
        else _unnamed(f"expert{number}", count)
        for number, count in enumerate(counts)
    )


def _experts(num_experts: int, skeletons: tuple[Skeleton, ...]) -> tuple[str, ...]:
    if not num_experts:
        return ()
    published = [skeleton.name for skeleton in DATASETS]
    names = [*published, *(f"expert{number}" for number in range(len(published), num_experts))][:num_experts]
    return (*(skeleton.name for skeleton in skeletons), *names[len(skeletons) :])


def _image_size(
    patches: int, patch_size: tuple[int, ...], hint: tuple[int, int] | None, source: str
) -> tuple[int, int]:
    for height, width in (hint, *IMAGE_SIZES) if hint else IMAGE_SIZES:
        grid = (height // patch_size[0], width // patch_size[1])
        if grid[0] * grid[1] == patches and height % patch_size[0] == width % patch_size[1] == 0:
            return (height, width)
    raise ValueError(
        f"{source}: {patches} patches of {patch_size[0]} x {patch_size[1]} pixels could be images of several sizes; "
        "give the one it was trained with (image_size=(height, width))"
    )


def _count(tensors: Mapping[str, LazyTensor], pattern: str) -> int:
    numbers = [int(found[1]) for found in (re.fullmatch(pattern, name) for name in tensors) if found]
    return max(numbers, default=-1) + 1
