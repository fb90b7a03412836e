"""The record that describes a checkpoint format.

A format is how a project writes the tensors of a network: their names, the layouts of their arrays, and the place of
the configuration. Its record says:

    recognised by    mark (a tensor), model_types (in config.json)
    configuration    read_config, make_documents (the way back)
    tensors          prepare, then rules, then finish; ignored

To add a format, write a module with a `Format` and add that to a tuple in `formats/__init__.py`.

A rule is (source, target, transform), and is read in both directions. The source is a name in the checkpoint, in
which {layer} and {expert} stand for indices. The target is a name in the Flax model. The brackets of a target say
which part of it the source tensor fills:

    [layer]             target[layer]: the blocks are stacked along the first axis
    [layer, expert]     target[layer, expert]
    [layer, query]      the first third of target[layer] on the last axis; [layer, key] and [layer, value]
                        are the second and the last third

The transform is a name in `transforms.py`. A rule whose target the model does not have does not apply: the same rules
serve both decoders, with and without experts.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import CONFIG_FILE, LazyTensor
from vitpose_jax.storage.text import join, shorten
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import abstract_vitpose

# (source, target, transform)
Rule = tuple[str, str, str]
# (pattern that matches the whole name of a tensor, why the model does not need that tensor)
Ignored = tuple[tuple[str, str], ...]
Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, LazyTensor]

# Reasons to ignore a tensor that several formats have.
CLASS_TOKEN = "never read: the network has no class token"
STEP_COUNTER = "counts training steps, which BatchNorm with a fixed momentum does not use"
MOVING_AVERAGE = "counts the updates of a moving average of the weights"

# What to do about unknown keys of a config.json.
HOW_TO_PASS_OVER = "strict=False or --lenient passes over them"


@functools.lru_cache(maxsize=8)
def vitpose_shapes(config: VitPoseConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a `VitPose`, by flat name."""
    return parameters.shapes(abstract_vitpose(config))


def as_stored(tensors: Tensors, *, source: str) -> Tensors:
    """The tensors unchanged: most formats need no preparation."""
    return tensors


def read_only(config: Any, *, param_dtype: Any) -> dict[str, dict[str, Any]]:
    """The `make_documents` of a format that is only read."""
    raise ValueError("this format is only read, not written")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """What the library knows about one checkpoint format.

    Attributes:
        name: as in `Description.format` and error messages.
        network: kind of network, for error messages: "ViTPose" or "detector".
        mark: name of a tensor that tells the format from the others.
        model_types: values of "model_type" in config.json that name this format; () for a format without a config.json.
        read_config: (path, tensors, **hints) -> configuration. `path` is the folder or file; the hints of a whole
            model are `image_size` and `strict`, those of a backbone `config`, the configuration to start from. Raises
            ValueError for a configuration that the library does not know or cannot do.
        make_documents: (config, param_dtype=dtype) -> JSON objects by file name, config.json among them. Raises
            ValueError for a model that the format cannot describe. `read_only` if the format is only read.
        rules: where each tensor goes. A function of the configuration, if the names depend on it. In a plain
            tuple, the number in a target "heads.0" is the index of the head in the configuration's skeletons.
        ignored: tensors that the model does not need, with the reason; or a function of the configuration.
        shapes: config -> the shape of every target, by flat name.
        prepare: (tensors, source=where) -> the tensors that the rules name, still lazy.
        finish: the last step when a backbone is read: arrays by target name -> arrays of the model.
        pytorch: whether PyTorch reads the files. If so, all tensors are written in one dtype, with step counters for
            BatchNorm. If not, names, arrays and dtypes are the model's.
    """

    name: str
    network: str = "ViTPose"
    mark: str
    model_types: tuple[str, ...] = ()
    read_config: Callable[..., Any]
    make_documents: Callable[..., dict[str, dict[str, Any]]] = read_only
    rules: tuple[Rule, ...] | Callable[[Any], Iterable[Rule]]
    ignored: Ignored | Callable[[Any], Ignored] = ()
    shapes: Callable[[Any], Shapes] = vitpose_shapes
    prepare: Callable[..., Tensors] = as_stored
    finish: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    pytorch: bool = True


def known_keys(
    values: Mapping[str, Any],
    known: Collection[str],
    parts: Mapping[str, Collection[str]] | None = None,
    *,
    source: str,
    strict: bool,
) -> dict[str, Any]:
    """The known keys of a config.json; one message names the others, and what they hold.

    Args:
        values: the content of the file.
        known: the keys that this library knows.
        parts: keys whose value is an object, or a list of objects, with the keys known in it.
        source: the file, for the message.
        strict: whether the message is an error or a warning.

    Raises:
        ValueError: for unknown keys, if `strict`.
    """
    unknown: list[str] = []

    def keep(part: Any, known: Collection[str], prefix: str) -> Any:
        if isinstance(part, list):
            return [keep(one, known, prefix) for one in part]
        if not isinstance(part, Mapping):
            return part
        unknown.extend(f"{prefix}{key} ({shorten(value)})" for key, value in part.items() if key not in known)
        return {key: value for key, value in part.items() if key in known}

    result = keep(values, known, "")
    for key, known_in_part in (parts or {}).items():
        if key in result:
            result[key] = keep(result[key], known_in_part, f"{key}.")
    if unknown and strict:
        raise ValueError(f"{source}: unknown keys, which may matter: {join(unknown)}; {HOW_TO_PASS_OVER}")
    if unknown:
        warnings.warn(f"{source}: passed over unknown keys, which may matter: {join(unknown)}", stacklevel=2)
    return result


def config_path(path: Path) -> Path:
    """The config.json in a folder, or beside a file.

    Raises:
        ValueError: if there is none.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder}: missing {CONFIG_FILE}; only a file of the original format works without one")
    return folder / CONFIG_FILE
