"""Text from files in error messages: short, on one line, and without control characters.

A name in a file may be any text. Printed as it is, it could move the cursor of a terminal or fill it.
"""

import reprlib
from collections.abc import Iterable

LONGEST_NAME = 200
LONGEST_MESSAGE = 4000
MOST_PROBLEMS = 20


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        # Python converts no more than some thousand digits.
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"a whole number of {x.bit_length()} bits"


_SHORT = _Short()


def printable(text: object, longest: int = LONGEST_NAME) -> str:
    """A text as it may be printed: control characters are escaped, a text of more characters is cut in the middle."""
    text = str(text)
    if len(text) > longest:
        text = f"{text[: longest // 2]}...{text[-(longest // 2) :]}"
    return text if text.isprintable() else repr(text)[1:-1]


def shorten(value: object) -> str:
    """The repr of a value from a file, cut if it is long or nested deeply."""
    return printable(_SHORT.repr(value))


def join(names: Iterable[object], separator: str = ", ", most: int = MOST_PROBLEMS) -> str:
    """Printable names with a separator: the first `most`, and how many more there are."""
    names = list(names)
    shown = separator.join(map(printable, names[:most]))
    return shown if len(names) <= most else f"{shown}{separator}and {len(names) - most} more"
