"""A process that was forked after JAX was used: JAX's threads are not in it, and it would wait for them for ever."""

import os


class _Process:
    used = False
    forked = False


def check_not_forked() -> None:
    """Check that JAX can compute in this process, and note that it does.

    Raises:
        RuntimeError: if the process was forked from one that had used a model of this package.
    """
    if _Process.forked:
        raise RuntimeError(
            "this process was forked after JAX was used, and JAX would hang in it; "
            'start workers with multiprocessing.get_context("spawn")'
        )
    _Process.used = True


def _after_fork() -> None:
    _Process.forked = _Process.used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
