"""The command line. Heavy libraries load inside the commands, so that help is quick."""

from __future__ import annotations

import sys

import typer

from rewarddance.cli import bases, judging, preferences, runs  # noqa: F401  their commands register themselves
from rewarddance.cli.app import app
from rewarddance.errors import RewardDanceError
from rewarddance.runtime.allocator import keep_freed_memory


def main(commands: typer.Typer = app) -> None:
    """Errors that the user can mend end in one message and exit code 2; an interrupt says how to go on."""
    keep_freed_memory()
    try:
        commands(standalone_mode=True)
    except RewardDanceError as error:
        typer.secho(f"error: {error.what}", fg=typer.colors.RED, err=True)
        if error.remedy:
            typer.echo(f"       {error.remedy}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # typer makes 130 of an interrupt
            raise
        typer.echo("interrupted; give --resume (quickstart) or the same command again to go on", err=True)
        sys.exit(130)
