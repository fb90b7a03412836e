"""The command line: parses, calls, prints. Everything that imports jax is imported inside the commands."""

from typing import Annotated

import typer

from vitpose_jax import __version__
from vitpose_jax.cli import checkpoints, demo, detect, evaluate, predict, train
from vitpose_jax.cli.common import say

app = typer.Typer(
    help="ViTPose and ViTPose++ in JAX: keypoints of people and animals in images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)


COMMANDS = (
    demo.demo,
    predict.predict,
    detect.detect,
    evaluate.evaluate,
    train.train,
    checkpoints.convert,
    checkpoints.info,
    checkpoints.init,
)
for command in COMMANDS:
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: one line on standard error and a non-zero exit for a user's mistake."""
    try:
        app(arguments, prog_name="vitpose-jax")
    except (ValueError, OSError, ImportError) as error:
        say(f"error: {error}")
        raise SystemExit(1) from None
    except RuntimeError as error:
        # Out of memory, no such device; jax is not imported here to name its errors.
        if type(error).__name__ != "JaxRuntimeError":
            raise
        say(f"error: {error}")
        raise SystemExit(1) from None
