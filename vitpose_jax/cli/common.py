"""What the commands share: choices that are typed out, lines to standard error, the bar of progress."""

import enum
import sys
from collections.abc import Iterable


class Decode(enum.StrEnum):
    """How heatmaps become points."""

    udp = "udp"
    transformers = "transformers"
    quarter = "quarter"
    argmax = "argmax"


class DType(enum.StrEnum):
    """In which the network computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def say(message: str) -> None:
    """A line on standard error, under the program's name."""
    print(f"vitpose-jax: {message}", file=sys.stderr)


def progress_bar(results: Iterable, total: int) -> Iterable:
    """The results of so many images, with a bar on standard error where that is a terminal."""
    from tqdm import tqdm

    return tqdm(results, total=total, unit="image", disable=total == 1 or not sys.stderr.isatty())
