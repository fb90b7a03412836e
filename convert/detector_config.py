"""Between the config.json of the Hub (model_type "rt_detr" or "rt_detr_v2") and `DetectorConfig`.

In the manner of `hub_config.py`: every key is used, must have a certain value, or is ignored for a stated reason.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from vitpose_jax.rtdetr.config import DetectorConfig

from . import hub_config

MODEL_TYPES = {"rt_detr": 1, "rt_detr_v2": 2}
BACKBONE_TYPE = "rt_detr_resnet"
ARCHITECTURES = {1: "RTDetrForObjectDetection", 2: "RTDetrV2ForObjectDetection"}

ACTIVATIONS = hub_config.ACTIVATIONS | {"silu": "silu", "swish": "silu"}
SAMPLINGS = {"default": "bilinear", "discrete": "nearest"}

# (key of the Hub, field here, default of transformers)
FIELDS: tuple[tuple[str, str, Any], ...] = (
    ("encoder_hidden_dim", "encoder_hidden_size", 256),
    ("encoder_layers", "encoder_layers", 1),
    ("encoder_attention_heads", "encoder_heads", 8),
    ("encoder_ffn_dim", "encoder_ffn_size", 1024),
    ("encode_proj_layers", "encoder_levels", (2,)),
    ("encoder_activation_function", "encoder_act", "gelu"),
    ("normalize_before", "normalize_before", False),
    ("positional_encoding_temperature", "temperature", 10000),
    ("activation_function", "fusion_act", "silu"),
    ("hidden_expansion", "hidden_expansion", 1.0),
    ("d_model", "hidden_size", 256),
    ("num_queries", "num_queries", 300),
    ("num_feature_levels", "num_levels", 3),
    ("decoder_n_points", "num_points", 4),
    ("decoder_layers", "decoder_layers", 6),
    ("decoder_attention_heads", "decoder_heads", 8),
    ("decoder_ffn_dim", "decoder_ffn_size", 1024),
    ("decoder_activation_function", "decoder_act", "relu"),
    ("layer_norm_eps", "layer_norm_eps", 1e-5),
    ("batch_norm_eps", "batch_norm_eps", 1e-5),
)
FIELDS_V2: tuple[tuple[str, str, Any], ...] = (
    ("decoder_offset_scale", "offset_scale", 0.5),
    ("decoder_method", "sampling", "default"),
)
FIELDS_BACKBONE: tuple[tuple[str, str, Any], ...] = (
    ("num_channels", "num_channels", 3),
    ("embedding_size", "embedding_size", 64),
    ("hidden_sizes", "hidden_sizes", (256, 512, 1024, 2048)),
    ("depths", "depths", (3, 4, 6, 3)),
    ("layer_type", "layer_type", "bottleneck"),
    ("hidden_act", "hidden_act", "relu"),
    ("downsample_in_first_stage", "downsample_in_first_stage", False),
    ("downsample_in_bottleneck", "downsample_in_bottleneck", False),
)

# These follow from others, and are compared with what follows.
FOLLOWING = ("encoder_in_channels", "decoder_in_channels", "feat_strides", "anchor_image_size", "decoder_n_levels")
OUTPUT_STAGES = ("out_indices", "out_features")

USED = frozenset(
    {"model_type", "backbone_config", "id2label", "num_labels", *FOLLOWING, *(key for key, _, _ in FIELDS)}
)
USED_V2 = USED | {key for key, _, _ in FIELDS_V2}
USED_BACKBONE = frozenset({"model_type", *OUTPUT_STAGES, *(key for key, _, _ in FIELDS_BACKBONE)})

# Keys with which the network would be another one, and the values with which it is not.
FIXED: dict[str, tuple[Any, ...]] = {
    **hub_config.FIXED,
    # With it transformers leaves the positions out of the encoder, which no published checkpoint does.
    "eval_size": (None,),
    "learn_initial_query": (False,),
    "with_box_refine": (True,),
    "use_focal_loss": (True,),
}

_TRAINING = "used in training alone"
_TRAINING_KEYS = (
    "dropout activation_dropout attention_dropout num_denoising label_noise_ratio box_noise_scale matcher_alpha "
    "matcher_gamma matcher_class_cost matcher_bbox_cost matcher_giou_cost auxiliary_loss focal_loss_alpha "
    "focal_loss_gamma weight_loss_vfl weight_loss_bbox weight_loss_giou eos_coefficient initializer_range "
    "initializer_bias_prior_prob"
)
IGNORED: dict[str, str] = {
    **hub_config.IGNORED,
    **dict.fromkeys(_TRAINING_KEYS.split(), _TRAINING),
    "disable_custom_kernels": "chooses how transformers computes the same",
    "freeze_backbone_batch_norms": "BatchNorm has its running statistics either way",
}
IGNORED_BACKBONE = IGNORED | hub_config.IGNORED_BACKBONE

# Of preprocessor_config.json: what must be so, and what is ignored; size, rescale_factor, do_normalize, image_mean and
# image_std are used.
PREPROCESSOR: dict[str, tuple[Any, ...]] = {
    "do_resize": (None, True),
    "do_rescale": (None, True),
    "resample": (None, 2),
    "pad_size": (None,),
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def from_hub(values: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, *, source: str) -> DetectorConfig:
    """The configuration in a Hub folder.

    Args:
        values: of its config.json.
        preprocessor: of its preprocessor_config.json; None where it has none.
        source: the folder, for the error.

    Raises:
        ValueError: where it is not an RT-DETR, or says something this library does not know or cannot do: all of
            that at once.
    """
    backbone = values.get("backbone_config")
    if values.get("model_type") not in MODEL_TYPES or not isinstance(backbone, Mapping):
        raise ValueError(
            f"{source}: not a detector: expected model_type {' or '.join(map(repr, MODEL_TYPES))} with a "
            f"backbone_config, got {values.get('model_type')!r} with {backbone!r}"
        )
    if backbone.get("model_type") != BACKBONE_TYPE:
        raise ValueError(
            f"{source}: expected a backbone_config of model_type {BACKBONE_TYPE!r}, got {backbone.get('model_type')!r}"
        )
    version = MODEL_TYPES[values["model_type"]]
    try:
        problems = [*hub_config.key_problems(values, USED_V2 if version == 2 else USED, IGNORED, "", FIXED)]
        problems += hub_config.key_problems(backbone, USED_BACKBONE, IGNORED_BACKBONE, "backbone_config.", FIXED)
        for key, allowed in PREPROCESSOR.items():
            if (preprocessor or {}).get(key) not in allowed:
                problems.append(
                    f"preprocessor_config.json: {key}: expected {allowed[-1]!r}, got {(preprocessor or {})[key]!r}"
                )
        for key in ("encoder_activation_function", "activation_function", "decoder_activation_function"):
            if values.get(key, "relu") not in ACTIVATIONS:
                problems.append(f"{key}: expected one of {', '.join(ACTIVATIONS)}, got {values[key]!r}")
        if problems:
            raise ValueError("; ".join(problems))
        fields = _fields(values, backbone, FIELDS + (FIELDS_V2 if version == 2 else ()))
        config = DetectorConfig(version=version, **fields, **_images(preprocessor or {}))
        _compare(values, config)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{source}: {error}") from error
    return config


def _fields(values: Mapping[str, Any], backbone: Mapping[str, Any], table: tuple) -> dict[str, Any]:
    fields = {ours: values.get(key, default) for key, ours, default in table}
    fields |= {ours: backbone.get(key, default) for key, ours, default in FIELDS_BACKBONE}
    for name, value in fields.items():
        if isinstance(value, list | tuple):
            fields[name] = tuple(value)
        elif name.endswith("_act"):
            fields[name] = ACTIVATIONS.get(value, value)
        elif name == "sampling":
            fields[name] = SAMPLINGS.get(value, value)
    fields["out_indices"] = hub_config.out_indices(backbone, len(fields["depths"]))
    fields["labels"] = hub_config.labels(values)
    return fields


def _images(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    size = preprocessor.get("size") or {"height": 640, "width": 640}
    if not isinstance(size, Mapping) or set(size) != {"height", "width"}:
        raise ValueError(f"preprocessor_config.json: size: expected a height and a width, got {size!r}")
    factor = preprocessor.get("rescale_factor")
    result: dict[str, Any] = {
        "image_size": (size["height"], size["width"]),
        "rescale_factor": 1 / 255 if factor is None else float(factor),
    }
    if preprocessor.get("do_normalize"):
        for key, default in IMAGENET.items():
            result[key] = tuple(map(float, preprocessor.get(key) or default))
    return result


def _compare(values: Mapping[str, Any], config: DetectorConfig) -> None:
    # Keys whose value follows from the rest.
    following = {
        "encoder_in_channels": [config.hidden_sizes[index - 1] for index in config.out_indices],
        "decoder_in_channels": [config.encoder_hidden_size] * len(config.out_indices),
        "feat_strides": list(config.strides),
        "anchor_image_size": list(config.image_size),
        "decoder_n_levels": config.num_levels,
    }
    for key, expected in following.items():
        value = values.get(key)
        value = list(value) if isinstance(value, tuple) else value
        if value is not None and value != expected:
            raise ValueError(f"{key}: expected {expected}, as the other fields have it, got {value}")


def to_hub(config: DetectorConfig, *, param_dtype: DTypeLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands in config.json and preprocessor_config.json for a detector.

    `num_denoising` is 0: the embedding of training's noisy queries is not kept here, and transformers would miss it.

    Args:
        config: of the detector.
        param_dtype: in which the weights are stored.
    """

    def take(table):
        return {key: _to_hub(ours, getattr(config, ours)) for key, ours, _ in table}

    model_type = next(name for name, version in MODEL_TYPES.items() if version == config.version)
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.version]],
        "model_type": model_type,
        "backbone_config": {
            "model_type": BACKBONE_TYPE,
            **take(FIELDS_BACKBONE),
            "out_indices": list(config.out_indices),
            "out_features": [f"stage{index}" for index in config.out_indices],
        },
        "dtype": np.dtype(param_dtype).name,
        "id2label": {str(index): label for index, label in enumerate(config.labels)},
        "label2id": {label: index for index, label in enumerate(config.labels)},
        "encoder_in_channels": [config.hidden_sizes[index - 1] for index in config.out_indices],
        "decoder_in_channels": [config.encoder_hidden_size] * len(config.out_indices),
        "feat_strides": list(config.strides),
        "num_denoising": 0,
        **take(FIELDS),
    }
    if config.version == 2:
        values |= {"decoder_n_levels": config.num_levels, **take(FIELDS_V2)}
    plain = set(config.image_mean) == {0.0} and set(config.image_std) == {1.0}
    preprocessor = {
        "image_processor_type": "RTDetrImageProcessor",
        "do_resize": True,
        "size": {"height": config.image_size[0], "width": config.image_size[1]},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": config.rescale_factor,
        "do_normalize": not plain,
        "do_pad": False,
    }
    if not plain:
        preprocessor |= {"image_mean": list(config.image_mean), "image_std": list(config.image_std)}
    return values, preprocessor


def _to_hub(name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    for ending, table in (("_act", ACTIVATIONS), ("sampling", SAMPLINGS)):
        if name.endswith(ending):
            return next(theirs for theirs, ours in table.items() if ours == value)
    return int(value) if name == "temperature" else value
