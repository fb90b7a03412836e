"""Ordered rules over flat parameter names: what is frozen, decayed, scaled or sharded, and how.

A rule is (pattern, value). A parameter gets the value of the first rule whose pattern matches its whole name. So
a table reads from the special to the general, and says something about every parameter or is refused.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def match_rules(rules: Sequence[tuple[str, T]], names: Iterable[str]) -> dict[str, T]:
    """The value of every name.

    Args:
        rules: (regular expression, value), the first that matches a whole name decides.
        names: flat parameter names, "backbone.blocks.attention.qkv.kernel".

    Returns:
        name: value, in the order of the names.

    Raises:
        ValueError: listing at once the names that no rule matches, and the rules that match no name: a
            misspelt rule would else do nothing, silently. A rule may match only names that an earlier one took.
    """
    patterns = [re.compile(pattern) for pattern, _ in rules]
    matches = {name: [index for index, pattern in enumerate(patterns) if pattern.fullmatch(name)] for name in names}
    used = {index for found in matches.values() for index in found}
    uncovered = [name for name, found in matches.items() if not found]
    idle = [pattern for index, (pattern, _) in enumerate(rules) if index not in used]
    problems = []
    if uncovered:
        problems.append(f"expected a rule for every parameter, got none for {', '.join(uncovered)}")
    if idle:
        problems.append(f"expected every rule to match a parameter, got none matched by {', '.join(idle)}")
    if problems:
        raise ValueError("rules: " + "; ".join(problems))
    return {name: rules[found[0]][1] for name, found in matches.items()}
