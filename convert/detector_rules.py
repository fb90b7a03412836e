"""What every tensor of an RT-DETR or RT-DETRv2 of the Hub is called here, and which ones are left out.

Rules as in `rules.py`, worked out for a configuration: the backbone's blocks differ from one another, so each has
rules of its own; [layer] is a layer of the decoder.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.encoder import NUM_FUSION_BLOCKS
from vitpose_jax.storage.tensors import LazyTensor

from .rules import Rule

# Tensors a detector does not need: (pattern that must match the whole name, reason).
IGNORED: tuple[tuple[str, str], ...] = (
    (r".+\.num_batches_tracked", "counts training steps, which BatchNorm with a fixed momentum does not use"),
    (r"model\.denoising_class_embed\.weight", "makes the noisy queries that only training has"),
)

# transformers has renamed parts, in memory but not in the files it writes; and the heads have two places.
# (pattern, what the file calls it)
ALIASES: tuple[tuple[str, str], ...] = (
    (r"model\.encoder\.aifi\.", "model.encoder.encoder."),
    (r"(?<=\.layers\.)(\d+)\.mlp\.(?=fc[12]\.)", r"\1."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"^(?=(class|bbox)_embed\.)", "model.decoder."),
)

_SHORTCUTS = {"project": "shortcut", "pool": "shortcut.1"}


def rules(config: DetectorConfig) -> Iterator[Rule]:
    """The rules for a detector."""
    for number in range(3):
        yield from _conv_norm(
            f"model.backbone.model.embedder.embedder.{number}",
            f"backbone.stem.{number}",
            "convolution",
            "normalization",
        )
    for stage, blocks in enumerate(config.stages):
        for number, block in enumerate(blocks):
            theirs = f"model.backbone.model.encoder.stages.{stage}.layers.{number}"
            ours = f"backbone.stages.{stage}.{number}"
            parts = [(f"layer.{conv}", f"convs.{conv}") for conv in range(2 if config.layer_type == "basic" else 3)]
            if block.shortcut in _SHORTCUTS:
                parts.append((_SHORTCUTS[block.shortcut], "project"))
            for source, target in parts:
                yield from _conv_norm(f"{theirs}.{source}", f"{ours}.{target}", "convolution", "normalization")
    yield from _encoder(config)
    levels = len(config.out_indices)
    for level in range(config.num_levels):
        ours = f"project.{level}" if level < levels else f"further.{level - levels}"
        yield from _conv_norm(f"model.decoder_input_proj.{level}", ours, "0", "1")
    yield from _linear("model.enc_output.0", "propose")
    yield from _norm("model.enc_output.1", "propose_norm")
    yield from _linear("model.enc_score_head", "propose_score")
    yield from _mlp("model.enc_bbox_head", "propose_box", 3)
    yield from _mlp("model.decoder.query_pos_head", "decoder.position", 2)
    yield from _decoder_layers()


def _encoder(config: DetectorConfig) -> Iterator[Rule]:
    for level in range(len(config.out_indices)):
        yield from _conv_norm(f"model.encoder_input_proj.{level}", f"encoder.project.{level}", "0", "1")
    for place in range(len(config.encoder_levels)):
        for layer in range(config.encoder_layers):
            theirs, ours = f"model.encoder.encoder.{place}.layers.{layer}", f"encoder.transformers.{place}.{layer}"
            yield from _transformer(theirs, ours)
            yield from _norm(f"{theirs}.final_layer_norm", f"{ours}.norm2")
    convs = ["conv1", "conv2", "conv3"]
    for step in range(len(config.out_indices) - 1):
        yield from _conv_norm(f"model.encoder.lateral_convs.{step}", f"encoder.lateral.{step}")
        yield from _conv_norm(f"model.encoder.downsample_convs.{step}", f"encoder.halve.{step}")
        for source, target in (("fpn_blocks", "downwards"), ("pan_blocks", "upwards")):
            theirs, ours = f"model.encoder.{source}.{step}", f"encoder.{target}.{step}"
            for conv in convs:
                yield from _conv_norm(f"{theirs}.{conv}", f"{ours}.{conv}")
            for block in range(NUM_FUSION_BLOCKS):
                for conv in convs[:2]:
                    yield from _conv_norm(f"{theirs}.bottlenecks.{block}.{conv}", f"{ours}.blocks.{block}.{conv}")


def _decoder_layers() -> Iterator[Rule]:
    theirs, ours = "model.decoder.layers.{layer}", "decoder.layers"
    yield from _transformer(theirs, ours, "[layer]")
    for source, target in (
        ("sampling_offsets", "offsets"),
        ("attention_weights", "weights"),
        ("value_proj", "value"),
        ("output_proj", "proj"),
    ):
        yield from _linear(f"{theirs}.encoder_attn.{source}", f"{ours}.cross.{target}", "[layer]")
    yield f"{theirs}.encoder_attn.n_points_scale", f"{ours}.cross.points_scale[layer]", "same"
    yield from _norm(f"{theirs}.encoder_attn_layer_norm", f"{ours}.norm2", "[layer]")
    yield from _norm(f"{theirs}.final_layer_norm", f"{ours}.norm3", "[layer]")
    yield from _mlp("model.decoder.bbox_embed.{layer}", f"{ours}.box", 3, "[layer]")
    yield from _linear("model.decoder.class_embed.{layer}", f"{ours}.score", "[layer]")


def _transformer(theirs: str, ours: str, index: str = "") -> Iterator[Rule]:
    # Attention, the norm after it and the MLP: what layers of encoder and decoder share.
    for source, target in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "proj")):
        yield from _linear(f"{theirs}.self_attn.{source}", f"{ours}.attention.{target}", index)
    yield from _norm(f"{theirs}.self_attn_layer_norm", f"{ours}.norm1", index)
    for number in range(2):
        yield from _linear(f"{theirs}.fc{number + 1}", f"{ours}.mlp.layers.{number}", index)


def _mlp(theirs: str, ours: str, depth: int, index: str = "") -> Iterator[Rule]:
    for number in range(depth):
        yield from _linear(f"{theirs}.layers.{number}", f"{ours}.layers.{number}", index)


def _linear(theirs: str, ours: str, index: str = "") -> Iterator[Rule]:
    yield f"{theirs}.weight", f"{ours}.kernel{index}", "linear"
    yield f"{theirs}.bias", f"{ours}.bias{index}", "same"


def _norm(theirs: str, ours: str, index: str = "") -> Iterator[Rule]:
    yield f"{theirs}.weight", f"{ours}.scale{index}", "same"
    yield f"{theirs}.bias", f"{ours}.bias{index}", "same"


def _conv_norm(theirs: str, ours: str, conv: str = "conv", norm: str = "norm") -> Iterator[Rule]:
    yield f"{theirs}.{conv}.weight", f"{ours}.conv.kernel", "conv"
    yield from _norm(f"{theirs}.{norm}", f"{ours}.norm")
    yield f"{theirs}.{norm}.running_mean", f"{ours}.norm.mean", "same"
    yield f"{theirs}.{norm}.running_var", f"{ours}.norm.var", "same"


def ignored(names: Iterable[str]) -> dict[str, str]:
    """Those names that a detector does not need, each with the reason."""
    return {name: reason for name in names for pattern, reason in IGNORED if re.fullmatch(pattern, name)}


def with_file_names(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], list[tuple[str, str]]]:
    """The tensors under the names that transformers' files have, and pairs of names that mean the same tensor.

    Of such a pair the name as in the file stays.
    """
    result, twins = {}, []
    for name, tensor in tensors.items():
        renamed = name
        for pattern, replacement in ALIASES:
            renamed = re.sub(pattern, replacement, renamed)
        if renamed != name and renamed in tensors:
            twins.append((name, renamed))
        else:
            result[renamed] = tensor
    return result, twins
