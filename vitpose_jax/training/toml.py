"""Tables of TOML or JSON as frozen dataclasses: keys and types are checked, and all problems are raised at once.

    read_table        a file as nested dicts and lists
    apply_override    "optim.learning_rate=1e-4" replaces one value in them
    build             a dataclass, with the dataclasses inside it

Why no library: dacite and msgspec stop at the first problem, cattrs converts "3" to a number, and pydantic's messages
would have to be rewritten, at half the length of this file. No value is run as code.
"""

import dataclasses
import difflib
import math
import pathlib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from vitpose_jax.storage.tensors import parse_json, read_text
from vitpose_jax.storage.text import printable, shorten

T = TypeVar("T")

# Bytes of a file. A training's file has a few thousand.
LARGEST_FILE = 2**20

# Whole numbers have 64 bits, as TOML says.
_LARGEST = 2**63

# Stands for a value whose problem is already in the list.
_INVALID: Any = object()


def read_table(path: str | pathlib.Path) -> dict[str, Any]:
    """The table in a file: JSON if its name ends in ".json", else TOML.

    Raises:
        ValueError: naming the file, if it is missing, too large, not valid or not a table.
    """
    path = pathlib.Path(path)
    content = read_text(path, LARGEST_FILE)
    if path.suffix == ".json":
        table = parse_json(content, source=str(path))
        if not isinstance(table, dict):
            raise ValueError(f"{path}: expected a table, got {shorten(table)}")
        return table
    try:
        return tomllib.loads(content)
    except RecursionError as error:
        raise ValueError(f"{path}: not valid TOML (nested too deeply)") from error
    except ValueError as error:  # also numbers with too many digits
        raise ValueError(f"{path}: not valid TOML ({printable(error)})") from error


def apply_override(table: dict[str, Any], override: str) -> None:
    """Replace one value of a table, in place.

    Args:
        table: nested tables and lists.
        override: "key=value". A dot leads into a table, or with an index into a list ("data.0.ratio=2"). The value is
            written as in TOML; anything else is a string.

    Raises:
        ValueError: if the override is not "key=value", or its key leads nowhere.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override}: expected key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    *parents, last = key.split(".")
    parent: Any = table
    for name in parents:
        parent = parent.setdefault(name, {}) if isinstance(parent, dict) else _item(parent, name, override)
    if isinstance(parent, list):
        _item(parent, last, override)
        parent[int(last)] = value
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        raise ValueError(f"{override}: expected a table at {'.'.join(parents)}, got {shorten(parent)}")


def _item(values: Any, index: str, override: str) -> Any:
    digits = index.isascii() and index.isdigit() and len(index) < 10
    if not isinstance(values, list) or not digits or int(index) >= len(values):
        raise ValueError(f"{override}: expected a table, or the index of an item in a list, at {index}")
    return values[int(index)]


def build(kind: type[T], table: Any, problems: Iterable[str] = (), *, where: str = "") -> T:
    """A dataclass from a table; nested tables become the dataclasses of its fields.

    Args:
        kind: the dataclass; its annotations are the types.
        table: values by field name. A value may already be the dataclass of its field.
        problems: problems that are already known.
        where: the key of the table and a dot, if it is part of another ("skeletons.0.").

    Raises:
        ValueError: listing all problems: keys that are unknown (with the nearest known one) or missing, values of
            another type, and what the dataclasses themselves raise.
    """
    problems = list(problems)
    value = _build(kind, table, where, problems)
    if problems:
        raise ValueError("; ".join(problems))
    return value


def unknown_keys(table: Mapping[str, Any], names: Iterable[str], where: str = "") -> list[str]:
    """One problem for each key of a table that is not in `names`; `where` stands before the key ("optim.")."""
    names = list(names)
    problems = []
    for name in table:
        if name not in names:
            near = difflib.get_close_matches(name[:100], names, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
            problems.append(f"unknown key {where}{printable(name)}; {hint}")
    return problems


def _build(kind: type, table: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(table, Mapping):
        problems.append(f"{where.rstrip('.')}: expected a table, got {shorten(table)}")
        return _INVALID
    before = len(problems)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    problems += unknown_keys(table, fields, where)
    for name, field in fields.items():
        if name not in table and field.default is field.default_factory is dataclasses.MISSING:
            problems.append(f"missing key {where}{name}")
    values = {
        name: _convert(value, hints[name], f"{where}{name}", problems)
        for name, value in table.items()
        if name in fields
    }
    # The outermost class compares its parts with each other: it needs all of them.
    if len(problems) > (before if where else 0):
        return _INVALID
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        problems.append(f"{where.rstrip('.')}: {error}" if where else str(error))
        return _INVALID


def _convert(value: Any, hint: Any, where: str, problems: list[str]) -> Any:
    """A value as a type says; `_INVALID`, and one more problem, if it is of another type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        for argument in arguments:
            if argument is not type(None) and _fits(value, argument):
                return _convert(value, argument, where, problems)
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, value, f"{where}.", problems)
    elif _fits(value, hint):
        if origin is tuple:
            kinds = arguments[:1] * len(value) if arguments[-1:] == (Ellipsis,) else arguments
            if len(kinds) != len(value):
                problems.append(f"{where}: expected {len(kinds)} values, got {shorten(value)}")
                return _INVALID
            items = [
                _convert(item, kind, f"{where}.{index}", problems)
                for index, (item, kind) in enumerate(zip(value, kinds, strict=True))
            ]
            return _INVALID if any(item is _INVALID for item in items) else tuple(items)
        if origin is dict:
            table = {
                name: _convert(item, arguments[1], f"{where}.{printable(name)}", problems)
                for name, item in value.items()
            }
            return _INVALID if any(item is _INVALID for item in table.values()) else table
        return hint(value) if hint is float else value
    problems.append(f"{where}: expected {_describe(hint)}, got {shorten(value)}")
    return _INVALID


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; what is inside a list or a table is not looked at."""
    kind = typing.get_origin(hint) or hint
    if kind is Literal:
        return value in typing.get_args(hint)
    if kind is float:
        return _fits(value, int) or (isinstance(value, float) and math.isfinite(value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    if kind is tuple:
        return isinstance(value, list | tuple)
    if dataclasses.is_dataclass(kind):
        return isinstance(value, Mapping | kind)
    if kind is dict:
        return isinstance(value, Mapping)
    return isinstance(value, kind)


def _describe(hint: Any) -> str:
    kind = typing.get_origin(hint) or hint
    if kind in (types.UnionType, typing.Union):
        return " or ".join(_describe(part) for part in typing.get_args(hint) if part is not type(None))
    if kind is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", tuple: "a list"}
    return names.get(kind, "a table")
