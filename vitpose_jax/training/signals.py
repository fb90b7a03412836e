"""Signals to end a training, which wait for a moment at which it can end."""

import contextlib
import signal
import threading
import types
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """A list of the signals that came. A second Ctrl-C interrupts at once. Other threads catch none.

    A signal that this process ignores, as shells make programs in the background ignore Ctrl-C, stays ignored.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, frame: types.FrameType | None) -> None:
        signals.append(number)
        signal.signal(number, handlers[number])

    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in handlers:
        signal.signal(number, note)
    try:
        yield signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def delayed_signals() -> Iterator[None]:
    """Signals that come take effect at the end of the `with`; a second one of a kind at once.

    For what must not be left in the middle: orbax works in threads, which complain when the program ends without them.
    """
    with caught_signals() as signals:
        yield
    for number in signals:
        signal.raise_signal(number)
