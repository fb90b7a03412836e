"""Checked fields of JSON files.

Values are taken for what they plainly mean: 139.0 and "139" for the integer 139, "0" for false, null for a missing
value. Every error is a ValueError that names the file and the entry (`where`), what was expected and what came instead.
"""

import json
import math
import numbers
import pathlib
import re
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
        # Bytes: json finds the encoding, also with a byte order mark.
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError(f"{path}: expected JSON that is nested less deeply") from None
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
    """The id under a required key: an integer or a name. A name of digits stays a name."""
    value = need(entry, key, where)
    number = value if isinstance(value, str) else _integer(value)
    if number is None or number == "":
        raise ValueError(f"{where}: expected an id for {key!r}, got {shorten(value)}")
    return number


def need_integer(entry: Any, key: str, where: str) -> int:
    """The integer under a required key, of 64 bits."""
    value = need(entry, key, where)
    number = _integer(value)
    if number is None or not -(2**63) <= number < 2**63:
        raise ValueError(f"{where}: expected an integer for {key!r}, got {shorten(value)}")
    return number


def to_flag(value: Any, where: str) -> bool:
    """True or false: a boolean, 0 or 1, their names; null is false."""
    text = "0" if value is None else str(value).strip().lower()
    if text not in _FLAGS:
        raise ValueError(f"{where}: expected 0 or 1, got {shorten(value)}")
    return _FLAGS[text]


_FLAGS = {**dict.fromkeys(("0", "0.0", "false"), False), **dict.fromkeys(("1", "1.0", "true"), True)}


def _integer(value: Any) -> int | None:
    """An integer, also as a whole float or as its digits; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and float(value).is_integer():
        return int(float(value))
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value.strip()):
        return int(value)
    return None


def to_numbers(values: Any, shape: tuple[int, ...], where: str, *, finite: bool = True) -> Float[np.ndarray, "..."]:
    """Numbers in a given shape, (-1,) for any count. They may come nested in another way; null is NaN."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: expected numbers, got {shorten(values)}") from error
    if shape != (-1,) and array.size != math.prod(shape):
        raise ValueError(f"{where}: expected {math.prod(shape)} numbers, got {array.size}")
    if finite and not np.isfinite(array).all():
        raise ValueError(f"{where}: expected finite numbers, got {shorten(values)}")
    return array.reshape(shape)


def to_number(value: Any, where: str) -> float:
    """One finite number."""
    if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
        return float(value)  # the usual case, ten times faster
    return float(to_numbers(value, (), where))


def shorten(value: Any) -> str:
    """The beginning of a value, for an error message of one line."""
    try:
        text = repr(value) if isinstance(value, str) else str(value)
        return " ".join(text.split())[:80]
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        return f"a {type(value).__name__} that cannot be shown"
