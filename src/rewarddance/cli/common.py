"""What the commands share: where they are registered, how results are printed, where recipes are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rewarddance.errors import InputError

app = typer.Typer(
    name="rewarddance",
    help="Train a generative reward model, align a generator with it, search with it, and see whether it was hacked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
lab = typer.Typer(help="The paper's tables, measured on ShapeWorld.", no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(lab, name="lab")

data = typer.Typer(help="Preferences from public sets, checked.", no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(data, name="data")

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


def print_json(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, indent=2))


def quiet() -> None:
    """The libraries' own bars and advice stay out of ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
