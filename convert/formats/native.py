"""The native format: a folder with config.json and model.safetensors.

config.json holds the fields of `VitPoseConfig` with `"model_type": "vitpose_jax"` and a format version;
model.safetensors holds every parameter and running statistic under its flat name (`parameters.flatten`). Kernels may
be stored as int8 (`storage/int8.py`) or int4 (`storage/int4.py`). They are read as float32, or as they are by a model
that keeps them so in memory (`vitpose/quantized.py`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jax.typing import DTypeLike

from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage import int4, int8, parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, LazyTensor, read_json
from vitpose_jax.storage.text import LONGEST_MESSAGE, printable, shorten
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.quantized import DTYPES, dequantized

from .format import Format, Rule, Tensors, config_path, known_keys, vitpose_shapes

NATIVE_MODEL_TYPE = "vitpose_jax"
VERSION = 1
# The keys of a config.json beside those of the configuration.
HEADER = ("model_type", "format")

Config = TypeVar("Config")


def parse_config(values: Mapping[str, Any], *, source: str) -> VitPoseConfig:
    """The configuration in a config.json of the native format.

    Args:
        values: the content of the file.
        source: the file, for the error message.

    Raises:
        ValueError: if the file is of another format or version, or its fields are missing, unknown or contradictory.
    """
    return parse_fields(values, NATIVE_MODEL_TYPE, VitPoseConfig.from_dict, source=source)


def parse_fields(
    values: Mapping[str, Any], model_type: str, from_dict: Callable[[dict[str, Any]], Config], *, source: str
) -> Config:
    """A configuration from the fields of a config.json, beside which are its model_type and a format version.

    Args:
        values: the content of the file.
        model_type: the expected one.
        from_dict: from the fields to the configuration.
        source: the file, for the error message.

    Raises:
        ValueError: as `parse_config`.
    """
    for key, expected in (("model_type", model_type), ("format", VERSION)):
        if values.get(key) != expected:
            raise ValueError(f"{source}: expected {key} {expected!r}, got {shorten(values.get(key))}")
    fields = {name: value for name, value in values.items() if name not in HEADER}
    try:
        return from_dict(fields)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{source}: {printable(error, LONGEST_MESSAGE)}") from error


def field_names(config_class: type) -> set[str]:
    """The names of the fields of a dataclass."""
    return {field.name for field in dataclasses.fields(config_class)}


def make_documents(config: VitPoseConfig, *, param_dtype: DTypeLike | None = None) -> dict[str, dict[str, Any]]:
    """The content of config.json; the dtype is not recorded, because the tensors have it."""
    return {CONFIG_FILE: {"model_type": NATIVE_MODEL_TYPE, "format": VERSION, **config.to_dict()}}


def dequantize_tensors(tensors: Tensors, *, source: str) -> dict[str, LazyTensor]:
    """The tensors of a native file, with each int8 or int4 kernel and its scale combined to one float32 tensor.

    Args:
        tensors: as they are stored.
        source: where they come from, for the error message.

    Raises:
        ValueError: listing at once all scales that are missing or have a wrong shape.
    """
    parameters.raise_problems([*int8.problems(tensors), *int4.problems(tensors)], source=source)
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype in DTYPES.values():
            result[name] = dequantized(tensor, result.pop(name + int8.SCALE))
    return result


def _read_config(
    path: Path, tensors: Tensors, *, image_size: tuple[int, int] | None = None, strict: bool = True
) -> VitPoseConfig:
    path = config_path(path)
    values = read_json(path)
    known, parts = {*HEADER, *field_names(VitPoseConfig)}, {"skeletons": field_names(Skeleton)}
    if values.get("format") == VERSION:
        values = known_keys(values, known, parts, source=str(path), strict=strict)
    return parse_config(values, source=str(path))


def _rules(config: VitPoseConfig) -> Iterable[Rule]:
    # Names and arrays are the model's own.
    return ((name, name, "same") for name in vitpose_shapes(config))


NATIVE = Format(
    name="native",
    mark="backbone.patch_embed.pos_embed",
    model_types=(NATIVE_MODEL_TYPE,),
    read_config=_read_config,
    make_documents=make_documents,
    rules=_rules,
    prepare=dequantize_tensors,
    pytorch=False,
)

# A folder of adapters and its base together (adapters.py) are a native model.
ADAPTER = dataclasses.replace(
    NATIVE, name="adapter", mark="backbone.blocks.attention.qkv.kernel.lora_a", model_types=("vitpose_jax_adapter",)
)
