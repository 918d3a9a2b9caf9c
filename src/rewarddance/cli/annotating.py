"""Commands that collect votes from people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarddance.annotate.recipe import ExportRecipe
from rewarddance.cli.app import app, example, given_path, print_result, quiet, votes
from rewarddance.cli.options import recipe_command
from rewarddance.jobs.recipes import AnnotateRun


@recipe_command(
    app,
    AnnotateRun,
    arguments=("input",),
    example="rewarddance annotate prompts.txt --generator my-generator --store votes.sqlite --host 0.0.0.0 "
    "--people anna,ben",
)
def annotate(run: AnnotateRun) -> None:
    """Let people vote on pairs in a page, until SIGTERM or Ctrl-C; the same command again goes on.

    A row is {"prompt", "media_a", "media_b"} with "model_a", "model_b" and "image" (what both were made from) if
    wanted, or {"prompt", "candidate", "model"}, whose pictures are paired. In a folder the prompt of a.png is in a.txt.

    The page is on this machine alone; on a network, everybody gets a link of their own (--people). An answer that was
    acknowledged is in the store, once, whatever is killed.

    --judge J --retrain 100: after each 100 votes a judge learns from them, and chooses the next pairs.

    --compare new,old: a blind comparison with a stopping rule that is stated before the first vote.
    """
    quiet()
    from rewarddance.jobs.annotate import run_annotation

    run_annotation(run, lambda what: typer.echo(what))


@votes.command("report", epilog=example("rewarddance votes report votes.sqlite --output votes.html"))
def report_votes(
    store: Annotated[Path, typer.Argument(help="The store of votes.")],
    output: Annotated[
        Path | None, typer.Option(help="The page to write. Default: beside the store.", parser=given_path)
    ] = None,
) -> None:
    """Say what people said: votes an hour, agreement, who is reliable, side bias, models ranked, pairs that divide.

    Of a comparison (annotate --compare) the page is its report: good, same, bad, and the rule by which it ended.
    """
    quiet()
    from rewarddance.annotate.report import write_report

    print_result(write_report(store, output or store.with_suffix(".html")))


@recipe_command(
    votes,
    ExportRecipe,
    arguments=("store",),
    example="rewarddance votes export votes.sqlite --output votes.jsonl",
)
def export(recipe: ExportRecipe) -> None:
    """Write the votes into a preferences file to train on, or for Label Studio or Argilla.

    A tie and "both bad" are a share of 0.5. Of votes by criteria each is a row with its criterion.
    """
    quiet()
    from rewarddance.annotate.exporting import export_votes

    print_result(export_votes(recipe))
