"""What training scripts put around the tensors of a checkpoint: keys, prefixes, and objects beside them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vitpose_jax.storage.tensors import LazyTensor
from vitpose_jax.storage.text import printable

from .formats.format import Format

# Keys under which scripts store the tensors. If a file has several, the first of this list counts.
KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "module",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema",
)

# Modules that wrap a model, in the names of its tensors: DataParallel, torch.compile, Lightning and training loops.
_PREFIX = r"(?:module|_orig_mod|model|net|ema)\."
_COMPILED = re.compile(r"(?:(?<=\.)|^)_orig_mod\.")


def unwrap(content: Any) -> Any:
    """The innermost mapping under one of `KEYS`; what is there if there is none."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in KEYS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return next((content[key] for key in KEYS if key in content), content)
        content = inner
    return content


def strip_prefixes(
    tensors: dict[str, LazyTensor], formats: Iterable[Format], *, source: str
) -> tuple[dict[str, LazyTensor], Format | None]:
    """The tensors under the names of a format, and the format: without the prefixes that wrappers add.

    Args:
        tensors: by name, with or without such prefixes.
        formats: the formats to expect.
        source: where the tensors come from, for the error message.

    Returns:
        The tensors unchanged, and None, if they have none of the formats.

    Raises:
        ValueError: if two tensors have the same name without their prefixes.
    """
    formats = tuple(formats)
    format = format_of(tensors, formats)
    if format is not None:
        return tensors, format
    names = {name: _COMPILED.sub("", name) for name in tensors}
    for prefix in ("", *_prefixes(names.values(), formats)):
        stripped = {name: short.removeprefix(prefix) for name, short in names.items()}
        format = format_of(stripped.values(), formats)
        if format is not None:
            result: dict[str, LazyTensor] = {}
            for name, short in stripped.items():
                if short in result:
                    raise ValueError(f"{source}: {printable(short)} is there twice, also as {printable(name)}")
                result[short] = tensors[name]
            return result, format
    return tensors, None


def format_of(names: Iterable[str], formats: Iterable[Format]) -> Format | None:
    """The format of tensors, recognised by their names; None if it is none of the formats."""
    names = set(names)
    return next((format for format in formats if format.mark in names), None)


def _prefixes(names: Iterable[str], formats: Iterable[Format]) -> list[str]:
    # Prefixes of a mark, up to four wrappers deep.
    pattern = re.compile(rf"((?:{_PREFIX}){{1,4}})(?:{'|'.join(re.escape(format.mark) for format in formats)})")
    matches = (pattern.fullmatch(name) for name in names)
    return sorted({match[1] for match in matches if match}, key=len)
