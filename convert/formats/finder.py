"""The formats of the person finder: its native folder, and a file with the weights of NanoDet-g.

The native folder is like that of a pose model: config.json holds the fields of `FinderConfig` with
`"model_type": "vitpose_jax_finder"` and a format version, model.safetensors every parameter under its flat name, with
kernels as int8 or in floating point.

The other is a file of NanoDet-g's kernels (height, width, in, out) with BatchNorm folded in, one class, for images with
channels B, G, R: the weights that the bundled finder was trained from.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jax.typing import DTypeLike

from vitpose_jax.finder.config import FinderConfig, SecondStageConfig
from vitpose_jax.finder.modeling import abstract_finder
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, read_json

from .format import Format, Rule, Tensors, config_path, known_keys
from .hub_keys import check_counts
from .native import HEADER, VERSION, dequantize_tensors, field_names, parse_fields

FINDER_MODEL_TYPE = "vitpose_jax_finder"


@functools.lru_cache(maxsize=8)
def finder_shapes(config: FinderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a `PersonFinder`, by flat name."""
    return parameters.shapes(abstract_finder(config))


def parse_config(values: Mapping[str, Any], *, source: str) -> FinderConfig:
    """The configuration in a config.json of a person finder.

    Args:
        values: the content of the file.
        source: the file, for the error message.

    Raises:
        ValueError: if the file is of another format or version, or its fields are missing, unknown or contradictory.
    """
    return parse_fields(values, FINDER_MODEL_TYPE, FinderConfig.from_dict, source=source)


def make_documents(config: FinderConfig, *, param_dtype: DTypeLike | None = None) -> dict[str, dict[str, Any]]:
    """The content of config.json; the dtype is not recorded, because the tensors have it."""
    return {CONFIG_FILE: {"model_type": FINDER_MODEL_TYPE, "format": VERSION, **config.to_dict()}}


def _read_config(
    path: Path, tensors: Tensors, *, image_size: tuple[int, int] | None = None, strict: bool = True
) -> FinderConfig:
    path = config_path(path)
    values = read_json(path)
    if values.get("format") == VERSION:
        known = {*HEADER, *field_names(FinderConfig)}
        parts = {"second_stage": field_names(SecondStageConfig)}
        values = known_keys(values, known, parts, source=str(path), strict=strict)
    check_counts(values, ("depths",), tensors, str(path))
    return parse_config(values, source=str(path))


def _rules(config: FinderConfig) -> Iterable[Rule]:
    # Names and arrays are the model's own.
    return ((name, name, "same") for name in finder_shapes(config))


def _default_config(
    path: Path, tensors: Tensors, *, image_size: tuple[int, int] | None = None, strict: bool = True
) -> FinderConfig:
    return FinderConfig()


def _nanodet_rules(config: FinderConfig) -> Iterable[Rule]:
    pairs = [("stem", "stem"), *((f"lateral.{index}", f"laterals.{index}") for index in range(len(config.widths) - 1))]
    for index, depth in enumerate(config.depths):
        source, target = f"stage{index + 1}", f"stages.{index}"
        pairs += [(f"{source}.in", f"{target}.enter"), (f"{source}.out", f"{target}.leave")]
        for block in range(depth):
            pairs += [(f"{source}.block{block}.0", f"{target}.first.{block}")]
            pairs += [(f"{source}.block{block}.1", f"{target}.second.{block}")]
    for index in range(len(config.widths) - 1):
        pairs += [(f"head.{index}.in", f"heads.{index}.hidden"), (f"head.{index}.out", f"heads.{index}.out")]
    for source, target in pairs:
        yield f"{source}.kernel", f"{target}.kernel", "bgr" if source == "stem" else "same"
        yield f"{source}.bias", f"{target}.bias", "same"


FINDER = Format(
    name="finder",
    network="detector",
    mark="laterals.0.kernel",
    model_types=(FINDER_MODEL_TYPE,),
    read_config=_read_config,
    make_documents=make_documents,
    rules=_rules,
    shapes=finder_shapes,
    prepare=dequantize_tensors,
    pytorch=False,
)

NANODET = Format(
    name="nanodet",
    network="detector",
    mark="lateral.0.kernel",
    read_config=_default_config,
    rules=_nanodet_rules,
    shapes=finder_shapes,
)
