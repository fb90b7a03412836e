"""The command line: parses, calls, prints. Everything that imports jax is imported inside the commands."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Annotated, NoReturn

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
        with _ending_on_sigterm():
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


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """A signal to terminate ends the program as Ctrl-C does: what is done is kept. A second one ends it at once."""

    def end(number: int, _: object) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        say("terminated; what is done is kept")
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
