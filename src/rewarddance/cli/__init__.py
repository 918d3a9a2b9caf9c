"""The command line. Heavy libraries load inside the commands, so that help is quick."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from rewarddance.cli import annotating, bases, judging, preferences, runs  # noqa: F401  their commands register themselves
from rewarddance.cli.app import app
from rewarddance.errors import RewardDanceError, as_ours
from rewarddance.runtime.allocator import keep_freed_memory

DEBUG = "--debug"
"""Taken anywhere on the command line, by every command: shows the traceback of an error."""


def main(commands: Callable[..., Any] = app) -> None:
    """Whatever a library raises ends in one message and exit code 2; an interrupt says how to go on.

    commands: typer's application, or what `typer.main.get_command` makes of one.
    0: all was done. 1: it went through, and some rows failed, which are listed. 2: an error; a run that had begun
    goes on with the same command.
    """
    keep_freed_memory()
    words = sys.argv[1:]
    debug = DEBUG in words
    sys.argv = [sys.argv[0], *(word for word in words if word != DEBUG)]
    try:
        commands(standalone_mode=True)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        if stop.code == 130:  # typer's, of an interrupt
            _interrupted()
        if not (place := _foreign_place(stop)):
            raise
        _fail(RewardDanceError(f"{place} ended the process: sys.exit({stop.code!r}).", "Let it raise an error."), debug)
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
    except Exception as error:
        _fail(error, debug)


def _interrupted() -> NoReturn:
    typer.echo("interrupted; give --resume (quickstart) or the same command again to go on", err=True)
    sys.exit(130)


def _fail(error: Exception, debug: bool) -> NoReturn:
    """Say what is wrong and what to do about it, and end with exit code 2."""
    if debug:
        traceback.print_exception(error)
    ours = error if isinstance(error, RewardDanceError) else as_ours(error)
    typer.secho(f"error: {ours.what}", fg=typer.colors.RED, err=True)
    if ours.remedy:
        typer.echo(f"       {ours.remedy}", err=True)
    sys.exit(2)


def _foreign_place(stop: SystemExit) -> str:
    """The line that ended the process, where that is neither the command line's nor ours: of a user's function, or of a
    library. Its exit code says nothing about what was done."""
    frames = [*traceback.walk_tb(stop.__traceback__)]
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in frames]
    foreign = names and names[-1].partition(".")[0] not in ("typer", "click", "rich", __name__.partition(".")[0])
    return f"{frames[-1][0].f_code.co_filename}, line {frames[-1][1]}," if foreign else ""
