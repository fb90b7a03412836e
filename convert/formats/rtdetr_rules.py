"""Where each tensor of an RT-DETR or RT-DETRv2 goes.

The rules follow from a configuration: the blocks of the backbone differ, so each has rules of its own. [layer] is a
layer of the decoder.
"""

from collections.abc import Iterator

from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.encoder import NUM_FUSION_BLOCKS

from .format import Rule

_SHORTCUTS = {"project": "shortcut", "pool": "shortcut.1"}


def detector_rules(config: DetectorConfig) -> Iterator[Rule]:
    """The rules for a detector, from the names of `transformers` to those of `RtDetr`."""
    for number in range(3):
        yield from _conv_norm(
            f"model.backbone.model.embedder.embedder.{number}",
            f"backbone.stem.{number}",
            "convolution",
            "normalization",
        )
    for stage, blocks in enumerate(config.stages):
        for number, block in enumerate(blocks):
            source = f"model.backbone.model.encoder.stages.{stage}.layers.{number}"
            target = f"backbone.stages.{stage}.{number}"
            parts = [(f"layer.{conv}", f"convs.{conv}") for conv in range(2 if config.layer_type == "basic" else 3)]
            if block.shortcut in _SHORTCUTS:
                parts.append((_SHORTCUTS[block.shortcut], "project"))
            for part, name in parts:
                yield from _conv_norm(f"{source}.{part}", f"{target}.{name}", "convolution", "normalization")
    yield from _encoder(config)
    levels = len(config.out_indices)
    for level in range(config.num_levels):
        target = f"project.{level}" if level < levels else f"further.{level - levels}"
        yield from _conv_norm(f"model.decoder_input_proj.{level}", target, "0", "1")
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
            source, target = f"model.encoder.encoder.{place}.layers.{layer}", f"encoder.transformers.{place}.{layer}"
            yield from _transformer(source, target)
            yield from _norm(f"{source}.final_layer_norm", f"{target}.norm2")
    convs = ["conv1", "conv2", "conv3"]
    for step in range(len(config.out_indices) - 1):
        yield from _conv_norm(f"model.encoder.lateral_convs.{step}", f"encoder.lateral.{step}")
        yield from _conv_norm(f"model.encoder.downsample_convs.{step}", f"encoder.halve.{step}")
        for part, name in (("fpn_blocks", "downwards"), ("pan_blocks", "upwards")):
            source, target = f"model.encoder.{part}.{step}", f"encoder.{name}.{step}"
            for conv in convs:
                yield from _conv_norm(f"{source}.{conv}", f"{target}.{conv}")
            for block in range(NUM_FUSION_BLOCKS):
                for conv in convs[:2]:
                    yield from _conv_norm(f"{source}.bottlenecks.{block}.{conv}", f"{target}.blocks.{block}.{conv}")


def _decoder_layers() -> Iterator[Rule]:
    source, target = "model.decoder.layers.{layer}", "decoder.layers"
    yield from _transformer(source, target, "[layer]")
    for part, name in (
        ("sampling_offsets", "offsets"),
        ("attention_weights", "weights"),
        ("value_proj", "value"),
        ("output_proj", "proj"),
    ):
        yield from _linear(f"{source}.encoder_attn.{part}", f"{target}.cross.{name}", "[layer]")
    yield f"{source}.encoder_attn.n_points_scale", f"{target}.cross.points_scale[layer]", "same"
    yield from _norm(f"{source}.encoder_attn_layer_norm", f"{target}.norm2", "[layer]")
    yield from _norm(f"{source}.final_layer_norm", f"{target}.norm3", "[layer]")
    yield from _mlp("model.decoder.bbox_embed.{layer}", f"{target}.box", 3, "[layer]")
    yield from _linear("model.decoder.class_embed.{layer}", f"{target}.score", "[layer]")


def _transformer(source: str, target: str, index: str = "") -> Iterator[Rule]:
    # Attention, the norm after it and the MLP, which layers of the encoder and of the decoder have in common.
    for part, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "proj")):
        yield from _linear(f"{source}.self_attn.{part}", f"{target}.attention.{name}", index)
    yield from _norm(f"{source}.self_attn_layer_norm", f"{target}.norm1", index)
    for number in range(2):
        yield from _linear(f"{source}.fc{number + 1}", f"{target}.mlp.layers.{number}", index)


def _mlp(source: str, target: str, depth: int, index: str = "") -> Iterator[Rule]:
    for number in range(depth):
        yield from _linear(f"{source}.layers.{number}", f"{target}.layers.{number}", index)


def _linear(source: str, target: str, index: str = "") -> Iterator[Rule]:
    yield f"{source}.weight", f"{target}.kernel{index}", "linear"
    yield f"{source}.bias", f"{target}.bias{index}", "same"


def _norm(source: str, target: str, index: str = "") -> Iterator[Rule]:
    yield f"{source}.weight", f"{target}.scale{index}", "same"
    yield f"{source}.bias", f"{target}.bias{index}", "same"


def _conv_norm(source: str, target: str, conv: str = "conv", norm: str = "norm") -> Iterator[Rule]:
    yield f"{source}.{conv}.weight", f"{target}.conv.kernel", "conv"
    yield from _norm(f"{source}.{norm}", f"{target}.norm")
    yield f"{source}.{norm}.running_mean", f"{target}.norm.mean", "same"
    yield f"{source}.{norm}.running_var", f"{target}.norm.var", "same"
