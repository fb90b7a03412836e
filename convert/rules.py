"""What every tensor of a PyTorch checkpoint is called here, and which ones are left out.

A rule is (source, target, transform), and is read in both directions. In the source, {layer} and {expert}
stand for numbers. The brackets of the target say which part of it the source tensor is:

    [layer]             target[layer]: the blocks are stacked along the first axis
    [layer, expert]     target[layer, expert]
    [layer, query]      the first third of target[layer] on the last axis; [layer, key] and [layer, value]
                        are the second and the last

The number in "heads.0" is the place of the head in the configuration's skeletons. A rule whose target the
model does not have does not apply: the rules serve both decoders, with and without experts.
"""

Rule = tuple[str, str, str]

THIRDS = ("query", "key", "value")

_HUB_BLOCK = "backbone.encoder.layer.{layer}."
_BLOCK = "backbone.blocks.{layer}."

HUGGINGFACE: tuple[Rule, ...] = (
    ("backbone.embeddings.position_embeddings", "backbone.patch_embed.pos_embed", "positions"),
    ("backbone.embeddings.patch_embeddings.projection.weight", "backbone.patch_embed.proj.kernel", "conv"),
    ("backbone.embeddings.patch_embeddings.projection.bias", "backbone.patch_embed.proj.bias", "same"),
    (_HUB_BLOCK + "layernorm_before.weight", "backbone.blocks.norm1.scale[layer]", "same"),
    (_HUB_BLOCK + "layernorm_before.bias", "backbone.blocks.norm1.bias[layer]", "same"),
    *(
        rule
        for part in THIRDS
        for rule in (
            (
                _HUB_BLOCK + f"attention.attention.{part}.weight",
                f"backbone.blocks.attention.qkv.kernel[layer, {part}]",
                "linear",
            ),
            (
                _HUB_BLOCK + f"attention.attention.{part}.bias",
                f"backbone.blocks.attention.qkv.bias[layer, {part}]",
                "same",
            ),
        )
    ),
    (_HUB_BLOCK + "attention.output.dense.weight", "backbone.blocks.attention.proj.kernel[layer]", "linear"),
    (_HUB_BLOCK + "attention.output.dense.bias", "backbone.blocks.attention.proj.bias[layer]", "same"),
    (_HUB_BLOCK + "layernorm_after.weight", "backbone.blocks.norm2.scale[layer]", "same"),
    (_HUB_BLOCK + "layernorm_after.bias", "backbone.blocks.norm2.bias[layer]", "same"),
    (_HUB_BLOCK + "mlp.fc1.weight", "backbone.blocks.mlp.fc1.kernel[layer]", "linear"),
    (_HUB_BLOCK + "mlp.fc1.bias", "backbone.blocks.mlp.fc1.bias[layer]", "same"),
    (_HUB_BLOCK + "mlp.fc2.weight", "backbone.blocks.mlp.fc2.kernel[layer]", "linear"),
    (_HUB_BLOCK + "mlp.fc2.bias", "backbone.blocks.mlp.fc2.bias[layer]", "same"),
    (_HUB_BLOCK + "mlp.experts.{expert}.weight", "backbone.blocks.mlp.experts_kernel[layer, expert]", "linear"),
    (_HUB_BLOCK + "mlp.experts.{expert}.bias", "backbone.blocks.mlp.experts_bias[layer, expert]", "same"),
    ("backbone.layernorm.weight", "backbone.norm.scale", "same"),
    ("backbone.layernorm.bias", "backbone.norm.bias", "same"),
    ("head.deconv1.weight", "heads.0.deconv1.kernel", "deconv"),
    ("head.batchnorm1.weight", "heads.0.norm1.scale", "same"),
    ("head.batchnorm1.bias", "heads.0.norm1.bias", "same"),
    ("head.batchnorm1.running_mean", "heads.0.norm1.mean", "same"),
    ("head.batchnorm1.running_var", "heads.0.norm1.var", "same"),
    ("head.deconv2.weight", "heads.0.deconv2.kernel", "deconv"),
    ("head.batchnorm2.weight", "heads.0.norm2.scale", "same"),
    ("head.batchnorm2.bias", "heads.0.norm2.bias", "same"),
    ("head.batchnorm2.running_mean", "heads.0.norm2.mean", "same"),
    ("head.batchnorm2.running_var", "heads.0.norm2.var", "same"),
    ("head.conv.weight", "heads.0.conv.kernel", "conv"),
    ("head.conv.bias", "heads.0.conv.bias", "same"),
)

# The first head is keypoint_head; those of the other data sets of a ViTPose++ are counted from 0.
_ORIGINAL_HEADS = ("keypoint_head.", *(f"associate_keypoint_heads.{number}." for number in range(5)))

ORIGINAL: tuple[Rule, ...] = (
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


def _of_backbone(rules: tuple[Rule, ...], *renamed: tuple[str, str]) -> tuple[Rule, ...]:
    # The rules for the backbone, with its prefix left out and other words in the source's names.
    result = []
    for source, target, transform in rules:
        if target.startswith("backbone."):
            source = source.removeprefix("backbone.")
            for word, other in renamed:
                source = source.replace(word, other)
            result.append((source, target, transform))
    return tuple(result)


# Backbones alone, to start a training from. "bare" is the original's without its prefix.
BARE = _of_backbone(ORIGINAL)
MAE = _of_backbone(ORIGINAL, ("last_norm", "norm"))
# The two LayerScales of a block have no place in the model: they are folded into the layers before them.
LAYER_SCALES = ("layer_scale1", "layer_scale2")
DINOV2 = (
    *_of_backbone(HUGGINGFACE, ("layernorm_before", "norm1"), ("layernorm_after", "norm2")),
    *((f"encoder.layer.{{layer}}.{name}.lambda1", f"{name}[layer]", "same") for name in LAYER_SCALES),
)

BACKBONES: dict[str, tuple[Rule, ...]] = {"bare": BARE, "mae": MAE, "dinov2": DINOV2}
RULES: dict[str, tuple[Rule, ...]] = {"huggingface": HUGGINGFACE, "original": ORIGINAL, **BACKBONES}

# Tensors a model does not need: (pattern that must match the whole name, reason).
_CLASS_TOKEN = "never read: the network has no class token"
_COUNTER = "counts training steps, which BatchNorm with a fixed momentum does not use"
IGNORED: dict[str, tuple[tuple[str, str], ...]] = {
    "huggingface": ((r"head\.batchnorm[12]\.num_batches_tracked", _COUNTER),),
    "original": (
        (r".+_heads?(\.\d)?\.deconv_layers\.[14]\.num_batches_tracked", _COUNTER),
        (r"backbone\.cls_token", _CLASS_TOKEN),
    ),
    "bare": ((r"cls_token", _CLASS_TOKEN),),
    "mae": (
        (r"cls_token", _CLASS_TOKEN),
        (r"mask_token|decoder_.+", "of MAE's decoder, which only its training needs"),
    ),
    "dinov2": (
        (r"embeddings\.cls_token", _CLASS_TOKEN),
        (r"embeddings\.mask_token", "stands for hidden patches, which only DINOv2's training has"),
    ),
}

# These may be ignored in a plain model alone: with experts they would be weights the configuration forgot.
_LEFT_OVER = "left behind when one data set was split off: fc2 holds its expert already"
LEFT_OVERS: dict[str, tuple[tuple[str, str], ...]] = {
    "original": (
        (r"backbone\.blocks\.\d+\.mlp\.experts\.\d+\.(weight|bias)", _LEFT_OVER),
        (r"associate_keypoint_heads\.\d+\..+", _LEFT_OVER),
    ),
}
