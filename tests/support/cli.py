"""The command line in this process."""

from vitpose_jax import cli


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """The exit status, and what was printed to standard output and to standard error."""
    try:
        cli.main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err
