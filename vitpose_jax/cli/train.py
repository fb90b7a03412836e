"""`vitpose-jax train`: a training run from a TOML file."""

import pathlib
import sys
from typing import Annotated

import typer

from vitpose_jax.cli.common import say


def train(
    config: Annotated[pathlib.Path, typer.Argument(help="A .toml file, or the config.json of a run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values to replace: batch_size=32 optim.learning_rate=1e-4 ...")
    ] = None,
    output: Annotated[pathlib.Path | None, typer.Option(help="Output folder.", metavar="DIR")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="One of several processes: call jax.distributed.initialize().")
    ] = False,
) -> None:
    """Train or fine-tune a model."""
    from vitpose_jax.training.config import read_config

    # Quoted as in TOML: a folder may be named like a number.
    replaced = [*(overrides or []), *([f"output='{output}'"] if output else [])]
    settings = read_config(config, replaced)

    if settings.task == "second_stage":
        if resume or distributed:
            raise ValueError('--resume, --distributed: not with task = "second_stage"')
        from vitpose_jax.training.second_stage.fit import fit_second_stage

        print(fit_second_stage(settings, report=say))
        return

    import jax

    if distributed:
        jax.distributed.initialize()
    from vitpose_jax.training.loop import fit

    result = fit(settings, resume=resume, progress=sys.stderr.isatty())
    if jax.process_index() == 0:
        print(f"step {result.step}: {result.model or result.checkpoint}")
        if not result.finished:
            say(f"stopped after step {result.step}; to resume: {_resume_command()}")
    if not result.finished:
        raise typer.Exit(130)


def _resume_command() -> str:
    """This command with --resume."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return " ".join(["vitpose-jax", *arguments, "--resume"])
