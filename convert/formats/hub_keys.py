"""Keys of config.json that `transformers` writes for pose networks and for detectors.

Every key is used, must have a certain value, or is ignored for a reason given below. Any other key is an error,
because it may change what the network computes, unless the checkpoint is opened with strict=False.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitpose_jax.storage.tensors import LazyTensor, read_json
from vitpose_jax.storage.text import join, printable, shorten

from .format import HOW_TO_PASS_OVER

PREPROCESSOR_FILE = "preprocessor_config.json"

# Name of an activation in transformers: name here.
HUB_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu"}

# Keys that would give another network, with the values that do not.
FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "backbone": (None,),
    "use_timm_backbone": (None, False),
    "pruned_heads": (None, {}),
}


def words(text: str) -> frozenset[str]:
    """The words of a text, for long lists of keys."""
    return frozenset(text.split())


_GENERATION = "belongs to text generation"
_BOOKKEEPING = "a record that transformers keeps"
_OUTPUTS = "chooses what transformers returns"
_TRAINING = "used only in training"
_DTYPE = "chosen when the model is loaded"
IGNORED_KEYS: dict[str, str] = {
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
        words("output_hidden_states output_attentions return_dict tie_last_hidden_states"),
        _OUTPUTS,
    ),
    **dict.fromkeys(
        words(
            "_name_or_path name_or_path _commit_hash transformers_version architectures torchscript tf_legacy_loss "
            "attn_implementation _attn_implementation _attn_implementation_autoset experts_implementation "
            "chunk_size_feed_forward gradient_checkpointing use_pretrained_backbone backbone_kwargs"
        ),
        _BOOKKEEPING,
    ),
    **dict.fromkeys(
        words(
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
IGNORED_BACKBONE_KEYS = IGNORED_KEYS | {
    "id2label": "the backbone has no labels",
    "num_labels": "the backbone has no labels",
}


def key_problems(
    values: Mapping[str, Any],
    used: frozenset[str],
    ignored: Mapping[str, str],
    prefix: str,
    fixed: Mapping[str, tuple[Any, ...]] = FIXED_KEYS,
) -> Iterator[str]:
    """One line for every key that is unknown or has a value other than those in `fixed`."""
    for key, value in values.items():
        if key in fixed:
            if value not in fixed[key]:
                yield f"{prefix}{key}: expected {fixed[key][-1]!r}, got {shorten(value)}"
        elif key not in used and key not in ignored:
            yield (f"{prefix}{printable(key)}: unknown, and it may matter; got {shorten(value)} ({HOW_TO_PASS_OVER})")


def check_counts(
    values: Mapping[str, Any], keys: Iterable[str], tensors: Mapping[str, LazyTensor], source: str
) -> None:
    """Check that no count of a config.json is larger than the number of tensors, or than every side of a tensor.

    Such a count cannot be right, and lists of that length would be made before the tensors are compared.

    Args:
        values: the content of the file, or a part of it.
        keys: of the counts: a number or a list of numbers each.
        tensors: of the checkpoint.
        source: the file, for the error message.

    Raises:
        ValueError: naming the key.
    """
    largest = max([len(tensors), *(side for tensor in tensors.values() for side in tensor.shape)], default=0)
    for key in keys:
        value = values.get(key)
        for count in value if isinstance(value, list) else [value]:
            if isinstance(count, int) and count > largest:
                raise ValueError(
                    f"{source}: {key}: expected at most {largest}, as the tensors are, got {shorten(count)}"
                )


def read_preprocessor(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's preprocessor_config.json; None if there is none."""
    path = folder / PREPROCESSOR_FILE
    return read_json(path) if path.is_file() else None


def read_out_indices(backbone: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """The stages that the keys out_indices and out_features name, 0 ("stem") to `num_layers`; by default the last.

    Raises:
        ValueError: if a stage is unknown, or the two keys name different stages.
    """
    stages = ["stem", *(f"stage{number}" for number in range(1, num_layers + 1))]
    indices, features = backbone.get("out_indices"), backbone.get("out_features")
    for key in ("out_indices", "out_features"):
        if backbone.get(key) is not None and not isinstance(backbone[key], list | tuple):
            raise ValueError(f"{key}: expected a list, got {shorten(backbone[key])}")
    if indices is not None and not all(type(index) is int for index in indices):
        raise ValueError(f"out_indices: expected whole numbers, got {shorten(indices)}")
    if features is not None:
        unknown = [name for name in features if name not in stages]
        if unknown:
            raise ValueError(f"out_features: expected names from {stages[0]} to {stages[-1]}, got {shorten(unknown)}")
        named = tuple(map(stages.index, features))
    if indices is None:
        return named if features is not None else (num_layers,)
    # Negative indices count backwards from the last block.
    counted = tuple(index + num_layers + 1 if index < 0 else index for index in indices)
    if features is not None and named != counted:
        raise ValueError(f"out_indices {indices} and out_features {features} do not name the same blocks")
    return counted


def read_labels(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes in a config.json, by index.

    Raises:
        ValueError: if the indices have gaps.
    """
    if values.get("id2label") is None:
        # Two labels are the default of transformers, which it does not write.
        return tuple(f"LABEL_{index}" for index in range(values.get("num_labels", 2)))
    if not isinstance(values["id2label"], Mapping):
        raise ValueError(f"id2label: expected labels by index, got {shorten(values['id2label'])}")
    by_index = {int(index): str(label) for index, label in values["id2label"].items()}
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError(f"id2label: expected the indices 0 to {len(by_index) - 1}, got [{join(sorted(by_index))}]")
    return tuple(by_index[index] for index in range(len(by_index)))
