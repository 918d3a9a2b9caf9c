"""Commands on preferences: public sets, checks, votes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarddance.cli.app import data, example, given_path, print_result, quiet
from rewarddance.cli.options import recipe_command
from rewarddance.data.recipe import ImportRecipe


@recipe_command(
    data,
    ImportRecipe,
    arguments=("name", "files"),
    example="rewarddance data import hpdv3 HPDv3/train.json --output data/hpdv3.jsonl --split train=0.9,test=0.1",
)
def import_(recipe: ImportRecipe) -> None:
    """Bring a public set into a preferences file; run again to continue an interrupted import.

    hpdv3, hpdv2, imagerewarddb, pickapic-v1, pickapic-v2, videogen-rewardbench, rapidata, genai-bench,
    omnirewardbench, editreward, mmrb2 and editscore-bench (for evaluation only), messages (with images, as in
    LLaMA-Factory and ms-swift); votes of label-studio, argilla and genai-arena.

    Media stay where they are; those inside a Parquet file are written beside the output. What cannot be used goes with
    the reason to OUTPUT.quarantine.jsonl, and the exit code is 1.
    """
    quiet()
    from rewarddance.data.importing import import_preferences, quarantine_lines

    result = import_preferences(recipe)
    print_result(result)
    if result["quarantined"]:
        for line in quarantine_lines(result):
            typer.echo(line, err=True)
        raise typer.Exit(1 if any(result["rows"].values()) else 2)


@data.command("check", epilog=example("rewarddance data check data/hpdv3.train.jsonl data/hpdv3.test.jsonl"))
def check_data(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Preferences files, the splits of one set.")],
    benchmark: Annotated[
        Path | None, typer.Option(help="Prompts, .txt or .jsonl, that training must not have seen.")
    ] = None,
    decode: Annotated[bool, typer.Option(help="Look at all media to their end, not only at their bytes.")] = True,
) -> None:
    """Count rows, doubles, leaks between files, the balance of labels, and overlap with a benchmark's prompts.

    The exit code is 1 where rows are broken, or prompts or pictures are in two files or in the benchmark.
    """
    quiet()
    from rewarddance.data.check import check, faulty

    report = check(files, benchmark, decode)
    print_result(report)
    if faults := faulty(report):
        typer.echo("; ".join(faults), err=True)
        raise typer.Exit(1)


@data.command("weigh", epilog=example("rewarddance data weigh votes.jsonl --output weighed.jsonl"))
def weigh_data(
    votes: Annotated[Path, typer.Argument(metavar="VOTES", help="A preferences file, a vote a row, with annotators.")],
    output: Annotated[Path, typer.Option(help="The .jsonl or .parquet file to write.", parser=given_path)],
) -> None:
    """Make one row of the votes on each pair: its share, each vote weighed by how often its annotator seems right.

    How often that is follows from the votes alone: who agrees with the others as a coin would is not heard.
    """
    quiet()
    from rewarddance.data.votes import weigh_votes

    print_result(weigh_votes(votes, output))
