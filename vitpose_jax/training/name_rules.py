"""Ordered rules over flat parameter names: they decide what is frozen, decayed, scaled or sharded.

A rule is (pattern, value). A parameter gets the value of the first rule whose pattern matches its whole name, so
special rules stand before general ones. Every parameter needs a rule.

Patterns are regular expressions of which only a part is allowed, so that matching a name takes a bounded time: a
pattern such as `(a+)+$` would need longer than a lifetime for a name of 60 characters.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from vitpose_jax.storage.text import join, printable, shorten

T = TypeVar("T")

LONGEST_PATTERN = 500
LONGEST_NAME = 255
# A repeat can end at any character of a name, an optional piece is there or not, and so on: the product of these
# choices bounds the number of steps. Three repeats are allowed.
MOST_CHOICES = LONGEST_NAME**3

# A pattern in pieces: an escaped character, a set, the start of a group, its end, a repeat, an optional piece, any
# other character.
_PIECES = re.compile(
    r"(?P<escape>\\.)|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<group>\(\?[:!=]|\(\?P<\w+>|\()|(?P<end>\))"
    r"|(?P<repeat>[*+]|\{\d*,?\d*\})|(?P<optional>\?)|(?P<other>.)",
    re.DOTALL,
)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression that takes a bounded time.

    Allowed are characters, sets, groups, alternatives, `^`, `$`, escapes such as `\\d`, repeats (`*`, `+`, `{2,5}`) of
    a single character or set, and `?`. A group cannot be repeated, and there are no references to groups. Each
    alternative may have three repeats; `?` and alternatives in groups count, too (`MOST_CHOICES`).

    Args:
        pattern: at most `LONGEST_PATTERN` characters.

    Raises:
        ValueError: if the pattern is not valid, or has a part that is not allowed.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"expected a pattern of at most {LONGEST_PATTERN} characters, got {len(pattern)}")
    choices, after_group, depth, previous = [1], False, 0, None
    for piece in _PIECES.finditer(pattern):
        kind, text = piece.lastgroup, piece[0]
        if kind == "escape" and text[1].isdigit():
            raise ValueError(f"pattern {shorten(pattern)}: expected no reference to a group, got {text}")
        if kind == "repeat":
            if after_group:
                raise ValueError(f"pattern {shorten(pattern)}: expected a single character before {text}, got a group")
            choices[-1] *= LONGEST_NAME
        elif kind == "optional" and previous != "repeat":  # else it says that the repeat is short
            choices[-1] *= 2
        elif kind == "other" and text == "|":
            choices = [*choices[:-1], choices[-1] * 2] if depth else [*choices, 1]
        depth += {"group": 1, "end": -1}.get(kind or "", 0)
        after_group = kind == "end" or (kind == "optional" and after_group)
        previous = kind
    if max(choices) > MOST_CHOICES:
        raise ValueError(f"pattern {shorten(pattern)}: expected three repeats or fewer, got too many choices")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern {shorten(pattern)}: not a regular expression ({printable(error)})") from error


def match_start(pattern: re.Pattern[str], name: str) -> bool:
    """Whether a pattern matches the start of a name, of which the first `LONGEST_NAME` characters count."""
    return pattern.match(name, 0, LONGEST_NAME) is not None


def match_rules(rules: Sequence[tuple[str, T]], names: Iterable[str]) -> dict[str, T]:
    """The value of every name.

    Args:
        rules: (regular expression, value); the first that matches a whole name counts. `compile_pattern` says which
            expressions are allowed.
        names: flat parameter names, "backbone.blocks.attention.qkv.kernel".

    Returns:
        The value by name, in the order of the names.

    Raises:
        ValueError: for a pattern that is not allowed; or listing the names that no rule matches, and the rules that
            match no name (a misspelt rule would do nothing, silently). A rule may match only names that an earlier
            rule already matches.
    """
    patterns = [compile_pattern(pattern) for pattern, _ in rules]
    matches = {name: [index for index, pattern in enumerate(patterns) if pattern.fullmatch(name)] for name in names}
    used = {index for indices in matches.values() for index in indices}
    uncovered = [name for name, indices in matches.items() if not indices]
    idle = [pattern for index, (pattern, _) in enumerate(rules) if index not in used]
    problems = []
    if uncovered:
        problems.append(f"expected a rule for every parameter, got none for {join(uncovered)}")
    if idle:
        problems.append(f"expected every rule to match a parameter, got none matched by {join(idle)}")
    if problems:
        raise ValueError("rules: " + "; ".join(problems))
    return {name: rules[indices[0]][1] for name, indices in matches.items()}
