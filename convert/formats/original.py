"""The format of the original ViTPose repository (https://github.com/ViTAE-Transformer/ViTPose): a .pth file.

The file has no configuration, so it is inferred from the shapes of the tensors. Three things do not show in a shape.
The number of attention heads is known for the published widths, and the image size for the usual numbers of patches.
The skeleton follows from the number of keypoints and the name of the file.
"""

import re
from pathlib import Path

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
from vitpose_jax.storage.text import printable, shorten
from vitpose_jax.vitpose.config import VitPoseConfig

from .format import CLASS_TOKEN, MOVING_AVERAGE, STEP_COUNTER, Format, Ignored, Rule, Tensors

# Attention heads by width.
NUM_HEADS = {384: 12, 768: 12, 1024: 16, 1280: 16}

# Height and width of the usual crops, in pixels.
IMAGE_SIZES = ((256, 192), (256, 256), (384, 288), (384, 384), (512, 384), (512, 512))

# Skeletons with the same number of keypoints; the first is the default if the file's name has none of them.
_SKELETONS = ((COCO, AP10K, APT36K), (AIC, CROWDPOSE), (MPII,), (WHOLEBODY,), (COCO25,))

# The tensors whose shapes are used, with their number of axes.
_POSITIONS = ("backbone.pos_embed", 3)
_PATCHES = ("backbone.patch_embed.proj.weight", 4)
_FC1 = ("backbone.blocks.0.mlp.fc1.weight", 2)
_FC2 = ("backbone.blocks.0.mlp.fc2.weight", 2)
_FINAL = ("keypoint_head.final_layer.weight", 4)


def infer_config(tensors: Tensors, *, source: str, image_size: tuple[int, int] | None = None) -> VitPoseConfig:
    """The configuration of an original checkpoint.

    Args:
        tensors: of the checkpoint; only names and shapes are used.
        source: the file, for error messages; its name also tells datasets with the same number of keypoints apart.
        image_size: height and width in pixels, for an unusual number of patches. Ignored if it does not fit that
            number.

    Raises:
        ValueError: if a tensor is missing, or the shapes do not determine a field.
    """
    for name, axes in (_POSITIONS, _PATCHES, _FC1, _FC2, _FINAL):
        if name not in tensors:
            raise ValueError(f"{source}: missing {name}: not an original ViTPose checkpoint, or only a part of one")
        if len(tensors[name].shape) != axes:
            raise ValueError(f"{source}: {name}: expected {axes} axes, got shape {tensors[name].shape}")
    hidden_size, num_channels, patch_height, patch_width = tensors[_PATCHES[0]].shape
    patch_size = (patch_height, patch_width)
    if hidden_size not in NUM_HEADS:
        raise ValueError(
            f"{source}: the number of attention heads is not known for a width of {hidden_size}; "
            "give a configuration (config=VitPoseConfig(...))"
        )
    part_features = hidden_size - tensors[_FC2[0]].shape[0]
    # The original script that splits a ViTPose++ may leave experts in the file, although fc2 has its full width.
    num_experts = (
        _count(tensors, r"backbone\.blocks\.0\.mlp\.experts\.([0-9]+)\.weight", source) if part_features else 0
    )
    skeletons = _skeletons(tensors, num_experts, source)
    image_size = _image_size(tensors[_POSITIONS[0]].shape[1] - 1, patch_size, image_size, source)
    try:
        return VitPoseConfig(
            image_size=image_size,
            patch_size=patch_size,
            num_channels=num_channels,
            hidden_size=hidden_size,
            num_layers=_count(tensors, r"backbone\.blocks\.([0-9]+)\..+", source),
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
    """The most likely skeleton, by the number of keypoints and a dataset's name in the file name."""
    stem = canonical_name(file_name)
    for candidates in _SKELETONS:
        if candidates[0].num_keypoints == num_keypoints:
            named = [skeleton for skeleton in candidates[1:] if skeleton.name in stem]
            return named[0] if named else candidates[0]
    return _unnamed("custom", num_keypoints)


def _unnamed(name: str, num_keypoints: int) -> Skeleton:
    return Skeleton(name=name, keypoints=tuple(f"keypoint_{index}" for index in range(num_keypoints)))


def _skeletons(tensors: Tensors, num_experts: int, source: str) -> tuple[Skeleton, ...]:
    counts = [tensors[_FINAL[0]].shape[0]]
    if not num_experts:
        return (skeleton_for(counts[0], re.split(r"[/\\]", source)[-1]),)
    heads = _count(tensors, r"associate_keypoint_heads\.([0-9]+)\.final_layer\.weight", source)
    for head in range(heads):
        name = f"associate_keypoint_heads.{head}.final_layer.weight"
        if name not in tensors:
            raise ValueError(f"{source}: missing {name}")
        counts.append(tensors[name].shape[0])
    # The heads have the order of ViTPose++. A head with another number of keypoints is of an unknown dataset.
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
        f"{source}: {patches} patches of {patch_size[0]} x {patch_size[1]} pixels fit images of several sizes; "
        "give the size that it was trained with (image_size=(height, width))"
    )


def _count(tensors: Tensors, pattern: str, source: str) -> int:
    # The number of blocks or experts is at most that of the tensors: a number in a name cannot be taken at its word.
    count = 0
    for name in tensors:
        match = re.fullmatch(pattern, name)
        if match:
            if len(match[1]) > 9 or int(match[1]) >= len(tensors):
                raise ValueError(
                    f"{source}: {printable(name)}: expected a number below {len(tensors)}, as many as there are "
                    f"tensors, got {shorten(match[1])}"
                )
            count = max(count, int(match[1]) + 1)
    return count


def _read_config(
    path: Path, tensors: Tensors, *, image_size: tuple[int, int] | None = None, strict: bool = True
) -> VitPoseConfig:
    return infer_config(tensors, source=str(path), image_size=image_size)


_BLOCK = "backbone.blocks.{layer}."
# The first head is keypoint_head; the heads of a ViTPose++'s other datasets are counted from 0.
_ORIGINAL_HEADS = ("keypoint_head.", *(f"associate_keypoint_heads.{number}." for number in range(5)))

ORIGINAL_RULES: tuple[Rule, ...] = (
    ("backbone.pos_embed", "backbone.patch_embed.pos_embed", "positions"),
    ("backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.kernel", "conv"),
    ("backbone.patch_embed.proj.bias", "backbone.patch_embed.proj.bias", "same"),
    (_BLOCK + "norm1.weight", "backbone.blocks.norm1.scale[layer]", "same"),
    (_BLOCK + "norm1.bias", "backbone.blocks.norm1.bias[layer]", "same"),
    (_BLOCK + "attn.qkv.weight", "backbone.blocks.attention.qkv.kernel[layer]", "linear"),
    (_BLOCK + "attn.qkv.bias", "backbone.blocks.attention.qkv.bias[layer]", "same"),
    (_BLOCK + "attn.proj.weight", "backbone.blocks.attention.proj.kernel[layer]", "linear"),
    (_BLOCK + "attn.proj.bias", "backbone.blocks.attention.proj.bias[layer]", "same"),
    (_BLOCK + "norm2.weight", "backbone.blocks.norm2.scale[layer]", "same"),
    (_BLOCK + "norm2.bias", "backbone.blocks.norm2.bias[layer]", "same"),
    (_BLOCK + "mlp.fc1.weight", "backbone.blocks.mlp.fc1.kernel[layer]", "linear"),
    (_BLOCK + "mlp.fc1.bias", "backbone.blocks.mlp.fc1.bias[layer]", "same"),
    (_BLOCK + "mlp.fc2.weight", "backbone.blocks.mlp.fc2.kernel[layer]", "linear"),
    (_BLOCK + "mlp.fc2.bias", "backbone.blocks.mlp.fc2.bias[layer]", "same"),
    (_BLOCK + "mlp.experts.{expert}.weight", "backbone.blocks.mlp.experts_kernel[layer, expert]", "linear"),
    (_BLOCK + "mlp.experts.{expert}.bias", "backbone.blocks.mlp.experts_bias[layer, expert]", "same"),
    ("backbone.last_norm.weight", "backbone.norm.scale", "same"),
    ("backbone.last_norm.bias", "backbone.norm.bias", "same"),
    *(
        (prefix + source, f"heads.{number}.{target}", transform)
        for number, prefix in enumerate(_ORIGINAL_HEADS)
        for source, target, transform in (
            ("deconv_layers.0.weight", "deconv1.kernel", "deconv"),
            ("deconv_layers.1.weight", "norm1.scale", "same"),
            ("deconv_layers.1.bias", "norm1.bias", "same"),
            ("deconv_layers.1.running_mean", "norm1.mean", "same"),
            ("deconv_layers.1.running_var", "norm1.var", "same"),
            ("deconv_layers.3.weight", "deconv2.kernel", "deconv"),
            ("deconv_layers.4.weight", "norm2.scale", "same"),
            ("deconv_layers.4.bias", "norm2.bias", "same"),
            ("deconv_layers.4.running_mean", "norm2.mean", "same"),
            ("deconv_layers.4.running_var", "norm2.var", "same"),
            ("final_layer.weight", "conv.kernel", "conv"),
            ("final_layer.bias", "conv.bias", "same"),
        )
    ),
)

_IGNORED: Ignored = (
    (r".+_heads?(\.\d)?\.deconv_layers\.[14]\.num_batches_tracked", STEP_COUNTER),
    (r"backbone\.cls_token", CLASS_TOKEN),
    (r"steps|n_averaged", MOVING_AVERAGE),
)
_LEFT_OVER = "left behind when one dataset was split off: fc2 holds its expert already"
_IGNORED_WITHOUT_EXPERTS: Ignored = (
    (r"backbone\.blocks\.\d+\.mlp\.experts\.\d+\.(weight|bias)", _LEFT_OVER),
    (r"associate_keypoint_heads\.\d+\..+", _LEFT_OVER),
)


def _ignored(config: VitPoseConfig) -> Ignored:
    # In a model with experts, an expert more would be one that the configuration does not know.
    return _IGNORED if config.experts else _IGNORED + _IGNORED_WITHOUT_EXPERTS


ORIGINAL = Format(
    name="original",
    mark="backbone.pos_embed",
    read_config=_read_config,
    rules=ORIGINAL_RULES,
    ignored=_ignored,
)
