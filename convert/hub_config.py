"""Between the config.json of the Hub (model_type "vitpose") and `VitPoseConfig`.

Every key is used, must have a certain value, or is ignored for a reason that stands below. Any other key is
an error: it may change what the network computes.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from vitpose_jax.skeletons import COCO, DATASETS, SKELETONS, Skeleton, flip_pairs_from_names
from vitpose_jax.vitpose.config import IMAGENET_MEAN, IMAGENET_STD, VitPoseConfig

MODEL_TYPE = "vitpose"
BACKBONE_TYPE = "vitpose_backbone"

# The labels of the published checkpoints: COCO's, under other names.
COCO_LABELS = tuple(
    name.replace("left_", "L_").replace("right_", "R_").title().replace(" ", "_") for name in COCO.keypoints
)

ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu"}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# `skeleton` and `experts` are our own: transformers keeps them without reading them.
USED = _words("model_type backbone_config scale_factor use_simple_decoder id2label num_labels edges skeleton experts")
USED_BACKBONE = _words(
    "model_type image_size patch_size num_channels hidden_size num_hidden_layers num_attention_heads mlp_ratio "
    "num_experts part_features hidden_act layer_norm_eps initializer_range qkv_bias out_indices out_features"
)

# Keys with which the network would be another one, and the values with which it is not.
FIXED: dict[str, tuple[Any, ...]] = {
    "backbone": (None,),
    "use_timm_backbone": (None, False),
    "pruned_heads": (None, {}),
}

_GENERATION = "belongs to text generation"
_BOOKKEEPING = "bookkeeping of transformers"
_OUTPUTS = "what transformers returns; asked for at the call here"
_TRAINING = "used in training alone"
_DTYPE = "chosen when the model is loaded"
IGNORED: dict[str, str] = {
    "label2id": "the inverse of id2label",
    "stage_names": "follow from the number of layers",
    "hidden_dropout_prob": _TRAINING,
    "attention_probs_dropout_prob": _TRAINING,
    "problem_type": _TRAINING,
    "finetuning_task": _TRAINING,
    "task_specific_params": _TRAINING,
    "dtype": _DTYPE,
    "torch_dtype": _DTYPE,
    "use_bfloat16": _DTYPE,
    **dict.fromkeys(
        _words("output_hidden_states output_attentions return_dict tie_last_hidden_states"),
        _OUTPUTS,
    ),
    **dict.fromkeys(
        _words(
            "_name_or_path name_or_path _commit_hash transformers_version architectures torchscript tf_legacy_loss "
            "attn_implementation _attn_implementation _attn_implementation_autoset experts_implementation "
            "chunk_size_feed_forward gradient_checkpointing use_pretrained_backbone backbone_kwargs"
        ),
        _BOOKKEEPING,
    ),
    **dict.fromkeys(
        _words(
            "add_cross_attention bad_words_ids begin_suppress_tokens bos_token_id cross_attention_hidden_size "
            "decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size "
            "eos_token_id exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id is_decoder "
            "is_encoder_decoder length_penalty max_length min_length no_repeat_ngram_size num_beam_groups "
            "num_beams num_return_sequences output_scores pad_token_id prefix remove_invalid_values "
            "repetition_penalty return_dict_in_generate sep_token_id suppress_tokens temperature "
            "tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p typical_p use_cache"
        ),
        _GENERATION,
    ),
}
# initializer_range stands in both; a backbone's is used, and the decoders here have one of their own.
IGNORED_TOP = IGNORED | {"initializer_range": "the backbone's is used"}
IGNORED_BACKBONE = IGNORED | {
    "id2label": "the backbone has no labels",
    "num_labels": "the backbone has no labels",
}

# Of preprocessor_config.json, image_mean and image_std are used and these must be so; the rest, `size` among it,
# is left: a crop is of the network's image_size here.
PREPROCESSOR: dict[str, Any] = {
    "do_affine_transform": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "normalize_factor": 200.0,
}


def from_hub(values: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, *, source: str) -> VitPoseConfig:
    """The configuration in a Hub folder.

    Args:
        values: of its config.json.
        preprocessor: of its preprocessor_config.json; None where it has none.
        source: the folder, for the error.

    Raises:
        ValueError: where it is not a ViTPose, or says something this library does not know or cannot do: all of
            that at once.
    """
    backbone = values.get("backbone_config")
    if values.get("model_type") != MODEL_TYPE or not isinstance(backbone, Mapping):
        raise ValueError(
            f"{source}: not a ViTPose: expected model_type {MODEL_TYPE!r} with a backbone_config, "
            f"got {values.get('model_type')!r} with {backbone!r}"
        )
    if backbone.get("model_type") != BACKBONE_TYPE:
        raise ValueError(
            f"{source}: not a ViTPose: expected a backbone_config of model_type {BACKBONE_TYPE!r}, "
            f"got {backbone.get('model_type')!r}"
        )
    try:
        problems = [*key_problems(values, USED, IGNORED_TOP, "")]
        problems += key_problems(backbone, USED_BACKBONE, IGNORED_BACKBONE, "backbone_config.")
        problems += _preprocessor_problems(preprocessor or {})
        if str(backbone.get("hidden_act", "gelu")) not in ACTIVATIONS:
            problems.append(f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, got {backbone['hidden_act']!r}")
        if problems:
            raise ValueError("; ".join(problems))
        return _config(values, backbone, preprocessor or {})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{source}: {error}") from error


def to_hub(config: VitPoseConfig, *, param_dtype: DTypeLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands in config.json and preprocessor_config.json for a model.

    Args:
        config: of a model with one head.
        param_dtype: in which the weights are stored.

    Raises:
        ValueError: for a model that the format of the Hub cannot describe.
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
    activation = next(name for name, ours in ACTIVATIONS.items() if ours == config.hidden_act)
    backbone = {
        "model_type": BACKBONE_TYPE,
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
        "model_type": MODEL_TYPE,
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
        **PREPROCESSOR,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }
    return values, preprocessor


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
        hidden_act=ACTIVATIONS[backbone.get("hidden_act", "gelu")],
        qkv_bias=backbone.get("qkv_bias", True),
        layer_norm_eps=float(backbone.get("layer_norm_eps", 1e-12)),
        experts=_experts(values, num_experts, skeleton),
        part_features=backbone.get("part_features", 256) if num_experts > 1 else 0,
        out_indices=out_indices(backbone, num_layers),
        decoder=decoder,
        # The classic decoder enlarges by 4 whatever the key says.
        scale_factor=values.get("scale_factor", 4) if decoder == "simple" else 4,
        skeletons=(skeleton,),
        image_mean=tuple(map(float, preprocessor.get("image_mean") or IMAGENET_MEAN)),
        image_std=tuple(map(float, preprocessor.get("image_std") or IMAGENET_STD)),
        initializer_range=float(backbone.get("initializer_range", 0.02)),
    )


def key_problems(
    values: Mapping[str, Any],
    used: frozenset[str],
    ignored: Mapping[str, str],
    prefix: str,
    fixed: Mapping[str, tuple[Any, ...]] = FIXED,
) -> Iterator[str]:
    """One line for every key that has not the value it must have, or is not known."""
    for key, value in values.items():
        if key in fixed:
            if value not in fixed[key]:
                yield f"{prefix}{key}: expected {fixed[key][-1]!r}, got {value!r}"
        elif key not in used and key not in ignored:
            yield f"{prefix}{key}: unknown, and it may matter; got {value!r}"


def _preprocessor_problems(values: Mapping[str, Any]):
    for key, expected in PREPROCESSOR.items():
        value = values.get(key)
        if value is not None and not math.isclose(value, expected, rel_tol=1e-6):
            yield f"preprocessor_config.json: {key}: expected {expected!r}, got {value!r}"


def _pair(value: int | list[int] | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def out_indices(backbone: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """Which of the stages 0 ("stem") to `num_layers` the keys out_indices and out_features name; else the last."""
    stages = ["stem", *(f"stage{number}" for number in range(1, num_layers + 1))]
    indices, features = backbone.get("out_indices"), backbone.get("out_features")
    if features is not None:
        unknown = [name for name in features if name not in stages]
        if unknown:
            raise ValueError(f"out_features: expected names from {stages[0]} to {stages[-1]}, got {unknown}")
        named = tuple(map(stages.index, features))
    if indices is None:
        return named if features is not None else (num_layers,)
    # Negative ones count from the last block backwards.
    counted = tuple(index + num_layers + 1 if index < 0 else index for index in indices)
    if features is not None and named != counted:
        raise ValueError(f"out_indices {indices} and out_features {features} do not name the same blocks")
    return counted


def _experts(values: Mapping[str, Any], num_experts: int, skeleton: Skeleton) -> tuple[str, ...]:
    if num_experts <= 1:
        return ()
    if "experts" in values:
        if len(values["experts"]) != num_experts:
            raise ValueError(f"experts: expected {num_experts} names, got {values['experts']}")
        return tuple(values["experts"])
    published = [known.name for known in DATASETS]
    names = [*published, *(f"expert{number}" for number in range(len(published), num_experts))][:num_experts]
    # The head of a Hub checkpoint is that of its first expert, unless its name says otherwise.
    return tuple(names) if skeleton.name in names else (skeleton.name, *names[1:])


def _skeleton(values: Mapping[str, Any]) -> Skeleton:
    if "skeleton" in values:
        return Skeleton.from_dict(values["skeleton"])
    names = labels(values)
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


def labels(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes that a config.json gives, in their order."""
    if values.get("id2label") is None:
        # transformers leaves out two labels, its default.
        return tuple(f"LABEL_{index}" for index in range(values.get("num_labels", 2)))
    by_index = {int(index): str(label) for index, label in values["id2label"].items()}
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError(f"id2label: expected the indices 0 to {len(by_index) - 1}, got {sorted(by_index)}")
    return tuple(by_index[index] for index in range(len(by_index)))
