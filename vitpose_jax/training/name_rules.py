"""Ordered rules over flat parameter names: they decide what is frozen, decayed, scaled or sharded.

A rule is (pattern, value). A parameter gets the value of the first rule whose pattern matches its whole name, so
special rules stand before general ones. Every parameter needs a rule.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def match_rules(rules: Sequence[tuple[str, T]], names: Iterable[str]) -> dict[str, T]:
    """The value of every name.

    Args:
        rules: (regular expression, value); the first that matches a whole name counts.
        names: flat parameter names, "backbone.blocks.attention.qkv.kernel".

    Returns:
        The value by name, in the order of the names.

    Raises:
        ValueError: listing the names that no rule matches, and the rules that match no name (a misspelt rule would do
            nothing, silently). A rule may match only names that an earlier rule already matches.
    """
    patterns = [re.compile(pattern) for pattern, _ in rules]
    matches = {name: [index for index, pattern in enumerate(patterns) if pattern.fullmatch(name)] for name in names}
    used = {index for indices in matches.values() for index in indices}
    uncovered = [name for name, indices in matches.items() if not indices]
    idle = [pattern for index, (pattern, _) in enumerate(rules) if index not in used]
    problems = []
    if uncovered:
        problems.append(f"expected a rule for every parameter, got none for {', '.join(uncovered)}")
    if idle:
        problems.append(f"expected every rule to match a parameter, got none matched by {', '.join(idle)}")
    if problems:
        raise ValueError("rules: " + "; ".join(problems))
    return {name: rules[indices[0]][1] for name, indices in matches.items()}
