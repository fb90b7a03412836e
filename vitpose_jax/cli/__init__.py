"""The command line: parses, calls, prints. Everything that imports jax is imported inside the commands."""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from vitpose_jax import __version__
from vitpose_jax.cli import bulk, checkpoints, demo, detect, evaluate, export, predict, train, video, web
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
    bulk.bulk,
    video.video,
    detect.detect,
    evaluate.evaluate,
    train.train,
    web.web,
    checkpoints.convert,
    checkpoints.info,
    checkpoints.init,
    export.export,
)
for command in COMMANDS:
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: one line on standard error and a non-zero exit for a user's mistake."""
    try:
        with _ending_on_signals():
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
def _ending_on_signals() -> Iterator[None]:
    """A signal to terminate ends the program as Ctrl-C does: what is done is kept. A second one ends it at once.

    Python drops an exception that is raised in a callback, and JAX has one for the garbage collector. So the signal of
    an exception that was dropped is sent again; once more if it comes while that is being done.
    """

    signals: list[int] = []
    in_hook = False

    def end(number: int, _: object) -> None:
        if in_hook:
            send_later(number)
            return
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        if in_hook:
            send_later(number)
            return
        signals.append(number)
        signal.default_int_handler(number, frame)

    def send_later(number: int) -> None:
        def send() -> None:
            time.sleep(0.01)
            os.kill(os.getpid(), number)

        # Not a `threading.Timer`: it takes locks, which this thread may hold where a signal comes.
        _thread.start_new_thread(send, ())

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:
        nonlocal in_hook
        if not isinstance(dropped.exc_value, KeyboardInterrupt | SystemExit):
            hook(dropped)
            return
        in_hook = True
        number = signal.SIGINT
        if isinstance(dropped.exc_value, SystemExit):
            number = signal.SIGTERM
            signal.signal(number, end)
        # Later: this callback would drop it, too.
        send_later(number)
        in_hook = False

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Any] = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored
        handlers[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        yield
    except SystemExit as ending:
        if ending.code == 128 + signal.SIGTERM:
            say("terminated; what is done is kept")
        raise
    except (ValueError, RuntimeError):
        # JAX makes an error of its own of one that comes while it compares arguments.
        if signals:
            say("interrupted; what is done is kept")
            raise SystemExit(128 + signals[-1]) from None
        raise
    finally:
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
