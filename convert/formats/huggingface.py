"""The format of `transformers`: a folder as on the Hub, model_type "vitpose".

Its config.json says everything about the network; `hub_keys.py` has the keys that detectors have, too. Two keys are our
own, `skeleton` and `experts`: transformers keeps them without reading them.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from jax.typing import DTypeLike

from vitpose_jax.sides import flip_pairs_from_names
from vitpose_jax.skeletons import COCO, DATASETS, SKELETONS, Skeleton
from vitpose_jax.storage.tensors import CONFIG_FILE, read_json
from vitpose_jax.storage.text import LONGEST_MESSAGE, printable, shorten
from vitpose_jax.vitpose.config import IMAGENET_MEAN, IMAGENET_STD, VitPoseConfig, read_skeleton

from .format import STEP_COUNTER, Format, Rule, Tensors, config_path, known_keys
from .hub_keys import (
    FIXED_KEYS,
    HUB_ACTIVATIONS,
    IGNORED_BACKBONE_KEYS,
    IGNORED_KEYS,
    PREPROCESSOR_FILE,
    check_counts,
    key_problems,
    read_labels,
    read_out_indices,
    read_preprocessor,
    words,
)

HUB_MODEL_TYPE = "vitpose"
HUB_BACKBONE_TYPE = "vitpose_backbone"

# The labels of the published checkpoints: COCO's, under other names.
COCO_LABELS = tuple(
    name.replace("left_", "L_").replace("right_", "R_").title().replace(" ", "_") for name in COCO.keypoints
)

USED_KEYS = words(
    "model_type backbone_config scale_factor use_simple_decoder id2label num_labels edges skeleton experts"
)
USED_BACKBONE_KEYS = words(
    "model_type image_size patch_size num_channels hidden_size num_hidden_layers num_attention_heads mlp_ratio "
    "num_experts part_features hidden_act layer_norm_eps initializer_range qkv_bias out_indices out_features"
)

# Both levels have an initializer_range. The backbone's is used; the decoder has a value of its own here.
IGNORED_TOP_KEYS = IGNORED_KEYS | {"initializer_range": "the backbone's is used"}
KNOWN_KEYS = {*USED_KEYS, *IGNORED_TOP_KEYS, *FIXED_KEYS}
KNOWN_BACKBONE_KEYS = {*USED_BACKBONE_KEYS, *IGNORED_BACKBONE_KEYS, *FIXED_KEYS}

# preprocessor_config.json: image_mean and image_std are used, and these keys must have these values. All others are
# ignored, also `size`: a crop has the network's image_size here.
FIXED_PREPROCESSOR: dict[str, Any] = {
    "do_affine_transform": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "normalize_factor": 200.0,
}


def parse_config(values: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, *, source: str) -> VitPoseConfig:
    """The configuration in a Hub folder.

    Args:
        values: the content of config.json.
        preprocessor: the content of preprocessor_config.json; None if there is none.
        source: the file, for the error message.

    Raises:
        ValueError: if the model is not a ViTPose; or listing at once everything that this library does not know or
            cannot do.
    """
    backbone = values.get("backbone_config")
    if values.get("model_type") != HUB_MODEL_TYPE or not isinstance(backbone, Mapping):
        raise ValueError(
            f"{source}: not a ViTPose: expected model_type {HUB_MODEL_TYPE!r} with a backbone_config, "
            f"got {shorten(values.get('model_type'))} with {shorten(backbone)}"
        )
    if backbone.get("model_type") != HUB_BACKBONE_TYPE:
        raise ValueError(
            f"{source}: not a ViTPose: expected a backbone_config of model_type {HUB_BACKBONE_TYPE!r}, "
            f"got {shorten(backbone.get('model_type'))}"
        )
    try:
        problems = [*key_problems(values, USED_KEYS, IGNORED_TOP_KEYS, "")]
        problems += key_problems(backbone, USED_BACKBONE_KEYS, IGNORED_BACKBONE_KEYS, "backbone_config.")
        problems += _preprocessor_problems(preprocessor or {})
        if str(backbone.get("hidden_act", "gelu")) not in HUB_ACTIVATIONS:
            problems.append(
                f"hidden_act: expected one of {', '.join(HUB_ACTIVATIONS)}, got {shorten(backbone['hidden_act'])}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return _config(values, backbone, preprocessor or {})
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{source}: {printable(error, LONGEST_MESSAGE)}") from error


def make_documents(config: VitPoseConfig, *, param_dtype: DTypeLike) -> dict[str, dict[str, Any]]:
    """The content of config.json and preprocessor_config.json for a model.

    Args:
        config: of a model with one head.
        param_dtype: the dtype of the stored weights.

    Raises:
        ValueError: if the format cannot describe the model.
    """
    if len(config.skeletons) != 1:
        names = ", ".join(skeleton.name for skeleton in config.skeletons)
        raise ValueError(
            f"a Hub checkpoint holds one head, and this model has {len(config.skeletons)}: {names}; "
            "write one folder for each (split), or choose one (dataset)"
        )
    if config.mlp_ratio != int(config.mlp_ratio):
        raise ValueError(f"mlp_ratio: a Hub checkpoint needs a whole number, got {config.mlp_ratio}")
    if config.window_size is not None:
        raise ValueError(f"transformers has no attention in windows, got window_size {config.window_size}")
    if config.knowledge_token:
        raise ValueError(f"transformers has no knowledge token, got one of width {config.knowledge_token}")
    (skeleton,) = config.skeletons
    labels = COCO_LABELS if skeleton == COCO else skeleton.keypoints
    activation = next(name for name, value in HUB_ACTIVATIONS.items() if value == config.hidden_act)
    backbone = {
        "model_type": HUB_BACKBONE_TYPE,
        "image_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "num_channels": config.num_channels,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": int(config.mlp_ratio),
        "num_experts": config.num_experts,
        "part_features": config.part_features,
        "hidden_act": activation,
        "layer_norm_eps": config.layer_norm_eps,
        "initializer_range": config.initializer_range,
        "qkv_bias": config.qkv_bias,
        "out_indices": list(config.out_indices),
        "out_features": [f"stage{index}" if index else "stem" for index in config.out_indices],
    }
    values: dict[str, Any] = {
        "architectures": ["VitPoseForPoseEstimation"],
        "model_type": HUB_MODEL_TYPE,
        "backbone_config": backbone,
        "dtype": np.dtype(param_dtype).name,
        "edges": [list(edge) for edge in skeleton.edges],
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "initializer_range": config.initializer_range,
        "scale_factor": config.scale_factor,
        "use_simple_decoder": config.decoder == "simple",
    }
    if skeleton != COCO:
        values["skeleton"] = skeleton.to_dict()
    if config.experts:
        values["experts"] = list(config.experts)
    preprocessor = {
        "image_processor_type": "VitPoseImageProcessor",
        "size": {"height": config.image_size[0], "width": config.image_size[1]},
        **FIXED_PREPROCESSOR,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }
    return {CONFIG_FILE: values, PREPROCESSOR_FILE: preprocessor}


def _config(values: Mapping[str, Any], backbone: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> VitPoseConfig:
    num_layers = backbone.get("num_hidden_layers", 12)
    num_experts = backbone.get("num_experts", 1)
    decoder = "simple" if values.get("use_simple_decoder", True) else "classic"
    skeleton = _skeleton(values)
    return VitPoseConfig(
        image_size=_pair(backbone.get("image_size", (256, 192))),
        patch_size=_pair(backbone.get("patch_size", (16, 16))),
        num_channels=backbone.get("num_channels", 3),
        hidden_size=backbone.get("hidden_size", 768),
        num_layers=num_layers,
        num_heads=backbone.get("num_attention_heads", 12),
        mlp_ratio=float(backbone.get("mlp_ratio", 4)),
        hidden_act=HUB_ACTIVATIONS[backbone.get("hidden_act", "gelu")],
        qkv_bias=backbone.get("qkv_bias", True),
        layer_norm_eps=float(backbone.get("layer_norm_eps", 1e-12)),
        experts=_experts(values, num_experts, skeleton),
        part_features=backbone.get("part_features", 256) if num_experts > 1 else 0,
        out_indices=read_out_indices(backbone, num_layers),
        decoder=decoder,
        # The classic decoder always enlarges by 4.
        scale_factor=values.get("scale_factor", 4) if decoder == "simple" else 4,
        skeletons=(skeleton,),
        image_mean=tuple(map(float, preprocessor.get("image_mean") or IMAGENET_MEAN)),
        image_std=tuple(map(float, preprocessor.get("image_std") or IMAGENET_STD)),
        initializer_range=float(backbone.get("initializer_range", 0.02)),
    )


def _preprocessor_problems(values: Mapping[str, Any]) -> Iterator[str]:
    for key, expected in FIXED_PREPROCESSOR.items():
        value = values.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or not math.isclose(value, expected, rel_tol=1e-6):
            yield f"{PREPROCESSOR_FILE}: {key}: expected {expected!r}, got {shorten(value)}"


def _pair(value: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    # VitPoseConfig checks the length.
    return (value, value) if isinstance(value, int) else cast(tuple[int, int], tuple(value))


def _experts(values: Mapping[str, Any], num_experts: int, skeleton: Skeleton) -> tuple[str, ...]:
    if num_experts <= 1:
        return ()
    if "experts" in values:
        if not isinstance(values["experts"], list) or len(values["experts"]) != num_experts:
            raise ValueError(f"experts: expected {num_experts} names, got {shorten(values['experts'])}")
        return tuple(values["experts"])
    published = [known.name for known in DATASETS]
    names = [*published, *(f"expert{number}" for number in range(len(published), num_experts))][:num_experts]
    # The head belongs to the first expert, unless its skeleton has the name of another.
    return tuple(names) if skeleton.name in names else (skeleton.name, *names[1:])


def _skeleton(values: Mapping[str, Any]) -> Skeleton:
    if "skeleton" in values:
        return read_skeleton(values["skeleton"])
    names = read_labels(values)
    edges = tuple((int(start), int(end)) for start, end in values.get("edges") or ())
    if names == COCO_LABELS:
        return COCO
    for known in SKELETONS.values():
        if names == known.keypoints:
            return known
    generic = tuple(f"LABEL_{index}" for index in range(COCO.num_keypoints))
    if names == generic and edges == COCO.edges:
        return COCO
    return Skeleton(name="custom", keypoints=names, flip_pairs=flip_pairs_from_names(names), edges=edges)


def _read_config(
    path: Path, tensors: Tensors, *, image_size: tuple[int, int] | None = None, strict: bool = True
) -> VitPoseConfig:
    path = config_path(path)
    values = read_json(path)
    if not strict:
        parts = {"backbone_config": KNOWN_BACKBONE_KEYS}
        values = known_keys(values, KNOWN_KEYS, parts, source=str(path), strict=False)
    check_counts(values, ("num_labels",), tensors, str(path))
    if isinstance(values.get("backbone_config"), Mapping):
        check_counts(values["backbone_config"], ("num_hidden_layers", "num_experts"), tensors, str(path))
    return parse_config(values, read_preprocessor(path.parent), source=str(path))


_BLOCK = "backbone.encoder.layer.{layer}."
HUGGINGFACE_RULES: tuple[Rule, ...] = (
    ("backbone.embeddings.position_embeddings", "backbone.patch_embed.pos_embed", "positions"),
    ("backbone.embeddings.patch_embeddings.projection.weight", "backbone.patch_embed.proj.kernel", "conv"),
    ("backbone.embeddings.patch_embeddings.projection.bias", "backbone.patch_embed.proj.bias", "same"),
    (_BLOCK + "layernorm_before.weight", "backbone.blocks.norm1.scale[layer]", "same"),
    (_BLOCK + "layernorm_before.bias", "backbone.blocks.norm1.bias[layer]", "same"),
    *(
        rule
        for part in ("query", "key", "value")
        for rule in (
            (
                _BLOCK + f"attention.attention.{part}.weight",
                f"backbone.blocks.attention.qkv.kernel[layer, {part}]",
                "linear",
            ),
            (
                _BLOCK + f"attention.attention.{part}.bias",
                f"backbone.blocks.attention.qkv.bias[layer, {part}]",
                "same",
            ),
        )
    ),
    (_BLOCK + "attention.output.dense.weight", "backbone.blocks.attention.proj.kernel[layer]", "linear"),
    (_BLOCK + "attention.output.dense.bias", "backbone.blocks.attention.proj.bias[layer]", "same"),
    (_BLOCK + "layernorm_after.weight", "backbone.blocks.norm2.scale[layer]", "same"),
    (_BLOCK + "layernorm_after.bias", "backbone.blocks.norm2.bias[layer]", "same"),
    (_BLOCK + "mlp.fc1.weight", "backbone.blocks.mlp.fc1.kernel[layer]", "linear"),
    (_BLOCK + "mlp.fc1.bias", "backbone.blocks.mlp.fc1.bias[layer]", "same"),
    (_BLOCK + "mlp.fc2.weight", "backbone.blocks.mlp.fc2.kernel[layer]", "linear"),
    (_BLOCK + "mlp.fc2.bias", "backbone.blocks.mlp.fc2.bias[layer]", "same"),
    (_BLOCK + "mlp.experts.{expert}.weight", "backbone.blocks.mlp.experts_kernel[layer, expert]", "linear"),
    (_BLOCK + "mlp.experts.{expert}.bias", "backbone.blocks.mlp.experts_bias[layer, expert]", "same"),
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

HUGGINGFACE = Format(
    name="huggingface",
    mark="backbone.embeddings.position_embeddings",
    model_types=(HUB_MODEL_TYPE,),
    read_config=_read_config,
    make_documents=make_documents,
    rules=HUGGINGFACE_RULES,
    ignored=((r"head\.batchnorm[12]\.num_batches_tracked", STEP_COUNTER),),
)
