"""Checked fields of JSON files.

Every error is a ValueError that names the file and the entry (`where`), what was expected and what came instead.
"""

import json
import math
import numbers
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: if the file is not JSON.
        OSError: if it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error


def need(entry: Any, key: str, where: str) -> Any:
    """The value of a required key."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: expected an object with {key!r}, got {shorten(entry)}")
    if key not in entry:
        raise ValueError(f"{where}: expected the key {key!r}, got {', '.join(map(str, entry)) or 'none'}")
    return entry[key]


def need_list(entry: Any, key: str, where: str) -> list:
    """The list under a required key."""
    value = need(entry, key, where)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: expected a list for {key!r}, got {shorten(value)}")
    return list(value)


def need_id(entry: Any, key: str, where: str) -> int | str:
    """The id under a required key: an integer or a name."""
    value = need(entry, key, where)
    if not isinstance(value, numbers.Integral | str):
        raise ValueError(f"{where}: expected an id for {key!r}, got {shorten(value)}")
    return value if isinstance(value, str) else int(value)


def need_integer(entry: Any, key: str, where: str) -> int:
    """The integer under a required key."""
    value = need(entry, key, where)
    if not isinstance(value, numbers.Integral):
        raise ValueError(f"{where}: expected an integer for {key!r}, got {shorten(value)}")
    return int(value)


def to_numbers(values: Any, shape: tuple[int, ...], where: str) -> Float[np.ndarray, "..."]:
    """Finite numbers in a given shape, (-1,) for any count. They may come nested in another way."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: expected numbers, got {shorten(values)}") from error
    if shape != (-1,) and array.size != math.prod(shape):
        raise ValueError(f"{where}: expected {math.prod(shape)} numbers, got {array.size}")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: expected finite numbers, got {shorten(values)}")
    return array.reshape(shape)


def to_number(value: Any, where: str) -> float:
    """One finite number."""
    if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
        return float(value)  # the usual case, ten times faster
    return float(to_numbers(value, (), where))


def shorten(value: Any) -> str:
    """The beginning of a value, for an error message."""
    return str(value)[:80]
