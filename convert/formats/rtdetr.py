"""The format of RT-DETR and RT-DETRv2 in `transformers`: a folder as on the Hub, "rt_detr" or "rt_detr_v2".

As in `huggingface.py`, every key of config.json is used, must have a certain value, or is ignored for a stated reason.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.modeling import abstract_detector
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, LazyTensor, read_json
from vitpose_jax.storage.text import LONGEST_MESSAGE, printable, shorten

from .format import STEP_COUNTER, Format, Tensors, config_path, known_keys
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
from .rtdetr_rules import detector_rules

VERSIONS = {"rt_detr": 1, "rt_detr_v2": 2}
RESNET_TYPE = "rt_detr_resnet"
ARCHITECTURES = {1: "RTDetrForObjectDetection", 2: "RTDetrV2ForObjectDetection"}

DETECTOR_ACTIVATIONS = HUB_ACTIVATIONS | {"silu": "silu", "swish": "silu"}
SAMPLINGS = {"default": "bilinear", "discrete": "nearest"}

# (key of config.json, field of DetectorConfig, default of transformers)
DETECTOR_FIELDS: tuple[tuple[str, str, Any], ...] = (
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
V2_FIELDS: tuple[tuple[str, str, Any], ...] = (
    ("decoder_offset_scale", "offset_scale", 0.5),
    ("decoder_method", "sampling", "default"),
)
RESNET_FIELDS: tuple[tuple[str, str, Any], ...] = (
    ("num_channels", "num_channels", 3),
    ("embedding_size", "embedding_size", 64),
    ("hidden_sizes", "hidden_sizes", (256, 512, 1024, 2048)),
    ("depths", "depths", (3, 4, 6, 3)),
    ("layer_type", "layer_type", "bottleneck"),
    ("hidden_act", "hidden_act", "relu"),
    ("downsample_in_first_stage", "downsample_in_first_stage", False),
    ("downsample_in_bottleneck", "downsample_in_bottleneck", False),
)

# Keys whose values follow from the other keys; they are compared with what follows.
DERIVED_KEYS = words("encoder_in_channels decoder_in_channels feat_strides anchor_image_size decoder_n_levels")

DETECTOR_KEYS = (
    words("model_type backbone_config id2label num_labels") | DERIVED_KEYS | {key for key, _, _ in DETECTOR_FIELDS}
)
V2_KEYS = DETECTOR_KEYS | {key for key, _, _ in V2_FIELDS}
RESNET_KEYS = words("model_type out_indices out_features") | {key for key, _, _ in RESNET_FIELDS}

# Keys that would give another network, with the values that do not.
FIXED_DETECTOR_KEYS: dict[str, tuple[Any, ...]] = {
    **FIXED_KEYS,
    # With an eval_size, transformers leaves the positions out of the encoder; no published checkpoint has one.
    "eval_size": (None,),
    "learn_initial_query": (False,),
    "with_box_refine": (True,),
    "use_focal_loss": (True,),
}

# Counts that lists are made from; they are compared with the tensors first.
_COUNTS = ("num_labels", "encoder_layers", "decoder_layers", "num_feature_levels")

_TRAINING = "used only in training"
_TRAINING_KEYS = words(
    "dropout activation_dropout attention_dropout num_denoising label_noise_ratio box_noise_scale matcher_alpha "
    "matcher_gamma matcher_class_cost matcher_bbox_cost matcher_giou_cost auxiliary_loss focal_loss_alpha "
    "focal_loss_gamma weight_loss_vfl weight_loss_bbox weight_loss_giou eos_coefficient initializer_range "
    "initializer_bias_prior_prob"
)
IGNORED_DETECTOR_KEYS: dict[str, str] = {
    **IGNORED_KEYS,
    **dict.fromkeys(_TRAINING_KEYS, _TRAINING),
    "disable_custom_kernels": "only chooses how transformers computes",
    "freeze_backbone_batch_norms": "BatchNorm uses its running statistics in both cases",
}
IGNORED_RESNET_KEYS = IGNORED_DETECTOR_KEYS | IGNORED_BACKBONE_KEYS
KNOWN_KEYS = {*V2_KEYS, *IGNORED_DETECTOR_KEYS, *FIXED_DETECTOR_KEYS}
KNOWN_BACKBONE_KEYS = {*RESNET_KEYS, *IGNORED_RESNET_KEYS, *FIXED_DETECTOR_KEYS}

# preprocessor_config.json: size, rescale_factor, do_normalize, image_mean and image_std are used; these keys must have
# one of these values; all others are ignored.
ALLOWED_PREPROCESSOR: dict[str, tuple[Any, ...]] = {
    "do_resize": (None, True),
    "do_rescale": (None, True),
    "resample": (None, 2),
    "pad_size": (None,),
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

# transformers gives some parts other names in memory than in its files, and has the heads in two places.
# (pattern, the name in the file)
ALIASES: tuple[tuple[str, str], ...] = (
    (r"model\.encoder\.aifi\.", "model.encoder.encoder."),
    (r"(?<=\.layers\.)(\d+)\.mlp\.(?=fc[12]\.)", r"\1."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"^(?=(class|bbox)_embed\.)", "model.decoder."),
)


def parse_config(values: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, *, source: str) -> DetectorConfig:
    """The configuration in a Hub folder.

    Args:
        values: the content of config.json.
        preprocessor: the content of preprocessor_config.json; None if there is none.
        source: the file, for the error message.

    Raises:
        ValueError: if the model is not an RT-DETR; or listing at once everything that this library does not know or
            cannot do.
    """
    backbone = values.get("backbone_config")
    if values.get("model_type") not in tuple(VERSIONS) or not isinstance(backbone, Mapping):
        raise ValueError(
            f"{source}: not a detector: expected model_type {' or '.join(map(repr, VERSIONS))} with a "
            f"backbone_config, got {shorten(values.get('model_type'))} with {shorten(backbone)}"
        )
    if backbone.get("model_type") != RESNET_TYPE:
        raise ValueError(
            f"{source}: expected a backbone_config of model_type {RESNET_TYPE!r}, "
            f"got {shorten(backbone.get('model_type'))}"
        )
    version = VERSIONS[values["model_type"]]
    try:
        keys = V2_KEYS if version == 2 else DETECTOR_KEYS
        problems = [*key_problems(values, keys, IGNORED_DETECTOR_KEYS, "", FIXED_DETECTOR_KEYS)]
        problems += key_problems(backbone, RESNET_KEYS, IGNORED_RESNET_KEYS, "backbone_config.", FIXED_DETECTOR_KEYS)
        for key, allowed in ALLOWED_PREPROCESSOR.items():
            value = (preprocessor or {}).get(key)
            if value not in allowed:
                problems.append(f"{PREPROCESSOR_FILE}: {key}: expected {allowed[-1]!r}, got {shorten(value)}")
        for key in ("encoder_activation_function", "activation_function", "decoder_activation_function"):
            if str(values.get(key, "relu")) not in DETECTOR_ACTIVATIONS:
                problems.append(f"{key}: expected one of {', '.join(DETECTOR_ACTIVATIONS)}, got {shorten(values[key])}")
        if problems:
            raise ValueError("; ".join(problems))
        fields = _fields(values, backbone, DETECTOR_FIELDS + (V2_FIELDS if version == 2 else ()))
        config = DetectorConfig(version=version, **fields, **images_config(preprocessor or {}))
        _compare(values, config)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{source}: {printable(error, LONGEST_MESSAGE)}") from error
    return config


def _fields(values: Mapping[str, Any], backbone: Mapping[str, Any], table: tuple) -> dict[str, Any]:
    fields = {field: values.get(key, default) for key, field, default in table}
    fields |= {field: backbone.get(key, default) for key, field, default in RESNET_FIELDS}
    for name, value in fields.items():
        if isinstance(value, list | tuple):
            fields[name] = tuple(value)
        elif name.endswith("_act"):
            fields[name] = DETECTOR_ACTIVATIONS.get(value, value)
        elif name == "sampling":
            fields[name] = SAMPLINGS.get(value, value)
    fields["out_indices"] = read_out_indices(backbone, len(fields["depths"]))
    fields["labels"] = read_labels(values)
    return fields


def images_config(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `DetectorConfig` that the content of preprocessor_config.json gives."""
    size = preprocessor.get("size") or {"height": 640, "width": 640}
    if not isinstance(size, Mapping) or set(size) != {"height", "width"}:
        raise ValueError(f"{PREPROCESSOR_FILE}: size: expected a height and a width, got {shorten(size)}")
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
    derived = {
        "encoder_in_channels": [config.hidden_sizes[index - 1] for index in config.out_indices],
        "decoder_in_channels": [config.encoder_hidden_size] * len(config.out_indices),
        "feat_strides": list(config.strides),
        "anchor_image_size": list(config.image_size),
        "decoder_n_levels": config.num_levels,
    }
    for key, expected in derived.items():
        value = values.get(key)
        value = list(value) if isinstance(value, tuple) else value
        if value is not None and value != expected:
            raise ValueError(f"{key}: expected {expected}, as follows from the other keys, got {shorten(value)}")


@functools.lru_cache(maxsize=8)
def detector_shapes(config: DetectorConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of an `RtDetr`, by flat name."""
    return parameters.shapes(abstract_detector(config))


def with_file_names(tensors: Tensors, *, source: str) -> dict[str, LazyTensor]:
    """The tensors under the names that they have in the files of `transformers`.

    Args:
        tensors: under those names, or the ones that models have in memory.
        source: where they come from, for the error message.

    Raises:
        ValueError: if a tensor is there under both names, with different numbers.
    """
    result, problems = {}, []
    for name, tensor in tensors.items():
        file_name = name
        for pattern, replacement in ALIASES:
            file_name = re.sub(pattern, replacement, file_name)
        if file_name == name or file_name not in tensors:
            result[file_name] = tensor
        elif not np.array_equal(np.asarray(tensor), np.asarray(tensors[file_name])):
            problems.append(f"{name}: expected the same numbers as {file_name}, which is the same tensor")
    parameters.raise_problems(problems, source=source)
    return result


def make_documents(config: DetectorConfig, *, param_dtype: DTypeLike) -> dict[str, dict[str, Any]]:
    """The content of config.json and preprocessor_config.json for a detector.

    `num_denoising` is 0: the embedding of the noisy training queries is not kept, and transformers would miss it.

    Args:
        config: of the detector.
        param_dtype: the dtype of the stored weights.
    """

    def take(table: tuple[tuple[str, str, Any], ...]) -> dict[str, Any]:
        return {key: _hub_value(field, getattr(config, field)) for key, field, _ in table}

    model_type = next(name for name, version in VERSIONS.items() if version == config.version)
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.version]],
        "model_type": model_type,
        "backbone_config": {
            "model_type": RESNET_TYPE,
            **take(RESNET_FIELDS),
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
        **take(DETECTOR_FIELDS),
    }
    if config.version == 2:
        values |= {"decoder_n_levels": config.num_levels, **take(V2_FIELDS)}
    normalized = set(config.image_mean) != {0.0} or set(config.image_std) != {1.0}
    preprocessor = {
        "image_processor_type": "RTDetrImageProcessor",
        "do_resize": True,
        "size": {"height": config.image_size[0], "width": config.image_size[1]},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": config.rescale_factor,
        "do_normalize": normalized,
        "do_pad": False,
    }
    if normalized:
        preprocessor |= {"image_mean": list(config.image_mean), "image_std": list(config.image_std)}
    return {CONFIG_FILE: values, PREPROCESSOR_FILE: preprocessor}


def _hub_value(field: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    for ending, table in (("_act", DETECTOR_ACTIVATIONS), ("sampling", SAMPLINGS)):
        if field.endswith(ending):
            return next(name for name, own in table.items() if own == value)
    return int(value) if field == "temperature" else value


def _read_config(
    path: Path, tensors: Tensors, *, image_size: tuple[int, int] | None = None, strict: bool = True
) -> DetectorConfig:
    path = config_path(path)
    values = read_json(path)
    if not strict:
        parts = {"backbone_config": KNOWN_BACKBONE_KEYS}
        values = known_keys(values, KNOWN_KEYS, parts, source=str(path), strict=False)
    check_counts(values, _COUNTS, tensors, str(path))
    if isinstance(values.get("backbone_config"), Mapping):
        check_counts(values["backbone_config"], ("depths",), tensors, str(path))
    return parse_config(values, read_preprocessor(path.parent), source=str(path))


RTDETR = Format(
    name="rtdetr",
    network="detector",
    mark="model.enc_output.0.weight",
    model_types=tuple(VERSIONS),
    read_config=_read_config,
    make_documents=make_documents,
    rules=detector_rules,
    ignored=(
        (r".+\.num_batches_tracked", STEP_COUNTER),
        (r"model\.denoising_class_embed\.weight", "makes the noisy queries, which only training has"),
    ),
    shapes=detector_shapes,
    prepare=with_file_names,
)
