"""The application that the commands are registered with, and what they share."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rewarddance.errors import InputError

ORDER = ("quickstart", "annotate", "votes", "train", "references", "align", "plan", "score", "serve", "search")
ORDER += ("evaluate", "bench", "export", "distil", "gsb", "report", "data", "bases")


class Reflowed(TyperGroup):
    """Help wraps a docstring's paragraphs anew: Typer keeps the lines of all but the first, cut for another width."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.help:
            command.help = "\n\n".join(" ".join(part.split()) for part in command.help.split("\n\n"))
        return command


class InOrder(Reflowed):
    """The help names the commands in the order in which a user meets them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    name="rewarddance",
    cls=InOrder,
    help="Train a generative reward model, align a generator with it, search with it, and see whether it was hacked.",
    epilog="Exit codes: 0, all was done; 1, it went through, and some rows failed, which are listed; 2, an error: "
    "where a run had begun, the same command goes on. With --debug every command shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data = typer.Typer(
    cls=Reflowed, help="Preferences from public sets, checked.", no_args_is_help=True, rich_markup_mode="rich"
)
app.add_typer(data, name="data")
votes = typer.Typer(
    cls=Reflowed, help="What people said, seen and exported.", no_args_is_help=True, rich_markup_mode="rich"
)
app.add_typer(votes, name="votes")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("rewarddance"))
        raise typer.Exit


_VERSION = typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version, and end.")


@app.callback()
def _options(_: Annotated[bool, _VERSION] = False) -> None: ...


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to set.")]


def example(text: str) -> str:
    return f"[bold]Example:[/bold] [cyan]{text}[/cyan]"


def recipe_file(name: str) -> Path:
    """A recipe that comes with the project: in the installed package, or beside the sources."""
    package = Path(__file__).parent.parent
    for folder in (package / "recipes", package.parent.parent / "recipes"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"the recipe {name} is not installed.", "Give one with --recipe.")


def given_path(text: str | Path) -> Path:
    """A path of the command line. Raises InputError where it names nothing: it would be the folder one happens to be
    in."""
    if not str(text).strip():
        raise InputError("a path of the command line is empty.", "Say which file or folder is meant.")
    return Path(text)


def print_result(result: dict[str, Any], items: str = "") -> None:
    """The result as JSON; where some of its items failed, that too on stderr, and exit code 1, or 2 where all did."""
    typer.echo(json.dumps(result, indent=2))
    if result.get("skipped"):
        typer.echo(f"{result['skipped']} rows were left out; {result['faulty']} says why", err=True)
    if not result.get("failed"):
        if result.get("skipped"):
            raise typer.Exit(1)
        return
    if items:
        total = f"{result['failed']} of {result[items]} {items}" if items in result else f"{items}: {result['failed']}"
        typer.echo(f"{total} failed; {result['failures']} says why", err=True)
    raise typer.Exit(2 if items and result["failed"] == result.get(items) else 1)


def quiet() -> None:
    """The libraries' own bars and advice stay out of ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
