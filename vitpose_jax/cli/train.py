"""`vitpose-jax train`: a training from a TOML file."""

import pathlib
import sys
from typing import Annotated

import typer

from vitpose_jax.cli.common import say


def train(
    config: Annotated[pathlib.Path, typer.Argument(help="A .toml file, or the config.json of a training.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Other values: batch_size=32 optim.learning_rate=1e-4 ...")
    ] = None,
    output: Annotated[pathlib.Path | None, typer.Option(help="Folder for all that is written.", metavar="DIR")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in the output folder.")] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="One of several processes: call jax.distributed.initialize().")
    ] = False,
) -> None:
    """Train a model, or fine-tune one."""
    from vitpose_jax.training.config import read_config

    # Without a TOML quote a path could be taken for a number.
    given = [*(overrides or []), *([f"output='{output}'"] if output else [])]
    found = read_config(config, given)

    import jax

    if distributed:
        jax.distributed.initialize()
    from vitpose_jax.training.loop import fit

    result = fit(found, resume=resume, progress=sys.stderr.isatty())
    if jax.process_index() == 0:
        print(f"step {result.step}: {result.model or result.checkpoint}")
        if not result.finished:
            say(f"stopped after step {result.step}; to go on: {_again()}")
    if not result.finished:
        raise typer.Exit(130)


def _again() -> str:
    """The command that goes on with this one."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return " ".join(["vitpose-jax", *arguments, "--resume"])
