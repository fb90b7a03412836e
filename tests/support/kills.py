"""Programs that are ended at a random moment, in processes that start in no time.

A server process imports the package and never uses JAX; each program is forked from it.
"""

import contextlib
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import threading
import time
from typing import NamedTuple

PROGRAMS = multiprocessing.get_context("forkserver")
PROGRAMS.set_forkserver_preload(
    [
        "tests.support.kills",
        "vitpose_jax.bulk.detect",
        "vitpose_jax.bulk.predict",
        "vitpose_jax.cli",
        "vitpose_jax.evaluation.detected",
        "vitpose_jax.training.loop",
        "vitpose_jax.video.run",
        "faster_coco_eval",
    ]
)
ENDINGS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
# What an ended program returns; 0 if it was done before.
STATUS = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}


class Moment(NamedTuple):
    """When and how a program is ended: after a number of seconds, or at its n-th change of a file."""

    ending: signal.Signals
    seconds: float | None = None
    change: int | None = None


class Ended(NamedTuple):
    """A program that ended: its status, its standard error, its seconds, and how often it changed a file."""

    status: int | None
    errors: str
    seconds: float
    changes: int


def moments(count: int, seed: int, whole: Ended) -> list[Moment]:
    """Random moments in a program that was not ended: half of them by the clock, half at a change of a file."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        ending = ENDINGS[number % len(ENDINGS)]
        if number % 2:
            made.append(Moment(ending, change=rng.randint(1, whole.changes)))
        else:
            made.append(Moment(ending, seconds=rng.uniform(0, whole.seconds)))
    return made


def run(arguments: list[object], folder: pathlib.Path, moment: Moment | None = None) -> Ended:
    """Run `vitpose-jax` and end it.

    Args:
        arguments: of the command line.
        folder: its changes are counted; the program's standard error goes to a file beside it.
        moment: None to let it end by itself.
    """
    log = folder.with_name(f"{folder.name}.stderr")
    ours, theirs = PROGRAMS.Pipe()
    process = PROGRAMS.Process(target=_program, args=([*map(str, arguments)], folder, log, moment, theirs))
    process.start()
    theirs.close()
    ours.recv()  # under way
    start = time.monotonic()
    if moment is not None and moment.seconds is not None:
        process.join(moment.seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, moment.ending)
    process.join(120)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{arguments} did not end: {log.read_text()}")
    seconds = time.monotonic() - start
    try:
        changes = ours.recv()
    except EOFError:
        changes = 0
    return Ended(process.exitcode, log.read_text(), seconds, changes)


def _program(arguments: list[str], folder: pathlib.Path, log: pathlib.Path, moment: Moment | None, pipe) -> None:
    """In the forked process: the command line, with slow images and steps, and with files written often."""
    import vitpose_jax.estimator
    from vitpose_jax import detector
    from vitpose_jax.bulk import results
    from vitpose_jax.cli import main
    from vitpose_jax.training import setup
    from vitpose_jax.video import writer

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["vitpose-jax", *arguments]
    results.WRITE_SECONDS, results.WRITE_FRACTION = 0.0, 1.0
    # Other batches round in another way.
    vitpose_jax.estimator.MAX_BATCH_CPU = 1
    for module in (vitpose_jax.estimator, detector):
        module.load_image = _slowed(module.load_image)
    writer.VideoWriter.add = _slowed(writer.VideoWriter.add)
    make_step = setup.make_train_step
    setup.make_train_step = lambda *values, **options: _slowed(make_step(*values, **options))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    count, lock = 0, threading.Lock()

    def audit(event: str, values: tuple) -> None:
        nonlocal count
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
            return
        if event == "open" and not (isinstance(values[1], str) and values[1][:1] in "wxa"):
            return
        if not str(values[0]).startswith(str(folder)):
            return
        with lock:
            count += 1
            hit = moment is not None and count == moment.change
        if hit:
            os.kill(os.getpid(), moment.ending)

    sys.addaudithook(audit)
    pipe.send("under way")
    try:
        main(arguments)
    finally:
        for ending in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ending, signal.SIG_IGN)
        pipe.send(count)
        sys.stderr.flush()


def _slowed(function):
    def run(*values, **options):
        time.sleep(0.01)
        return function(*values, **options)

    return run
