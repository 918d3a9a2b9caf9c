"""Commands that use a judge, and that say how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarddance.cli.app import app, example, print_result, quiet
from rewarddance.cli.options import recipe_command
from rewarddance.jobs.recipes import BenchRun, DistilRun, EvaluateRun, ExportRun, ScoreRun, SearchRun, ServeRun


@recipe_command(
    app,
    ScoreRun,
    arguments=("input",),
    example="rewarddance score pictures --judge my-judge --reference plain.png --output scores.jsonl",
)
def score(run: ScoreRun) -> None:
    """Score pictures and videos of any number; run again to continue an interrupted run.

    A row is {"prompt", "candidate"} with "reference", "instruction" and "image" (what the prompt comes with) if wanted;
    other keys are carried along. Paths are relative to the file. In a folder the prompt of a.png is in a.txt, or
    --prompt.

    A candidate with a reference: is it better? Without one: how good is it by itself? (A pairwise judge cannot say.)

    "candidates": [...] with a reference: each against it. Without one: each by itself, or, by a pairwise judge, all
    pairs in both orders. Their scores are lists, and "order" ranks them, best first.

    Rows that cannot be scored go with the reason to OUTPUT.failed.jsonl, and the exit code is 1.
    """
    quiet()
    from rewarddance.jobs.score import run_scoring

    if (scored := run_scoring(run)) is not None:
        print_result(scored, "rows")


@recipe_command(app, ServeRun, arguments=("judge",), example="rewarddance serve my-judge --port 8000 --device cuda")
def serve(run: ServeRun) -> None:
    """Serve a judge over HTTP, until SIGTERM or Ctrl-C; what is in flight then is still answered.

    Questions of all clients go into the judge's batches. load_reward("http://127.0.0.1:8000") is the same judge at the
    other end, with gradients; OpenAI's client, transformers', UniRL's and Flow-Factory's protocols are answered, too:
    docs/guides/serving.md.

    Only this machine may ask, unless a token is in the environment.
    """
    quiet()
    from rewarddance.jobs.serve import run_server

    run_server(run, lambda what: typer.echo(what))


@recipe_command(
    app,
    SearchRun,
    arguments=("prompts",),
    extra="options",
    example="rewarddance search prompts.txt --generator shapeworld-generator --num-inference-steps 12 "
    "--judge my-judge --method paths --budget samples=16 --output found copies=8",
)
def search(run: SearchRun) -> None:
    """Search for the best picture of each prompt within a budget; run again to continue an interrupted search.

    The budget is what each prompt may take; "samples=16" is the generator's cost of 16 plain samples, "seconds=30" has
    the judge's time in it too. Each row of results.jsonl has the winner, its runners-up and the first plain sample with
    their pictures and scores, and what was spent. docs/guides/search.md has the methods and their options.

    Prompts that fail go with the reason to results.jsonl.failed.jsonl, and the exit code is 1.
    """
    quiet()
    from rewarddance.jobs.search import run_search

    if (found := run_search(run)) is not None:
        print_result(found, "prompts")


@recipe_command(
    app,
    EvaluateRun,
    arguments=("judge",),
    example="rewarddance evaluate runs/my-judge/reward --tests id=held_out.jsonl --tests ood=new.jsonl exam.probes=60",
)
def evaluate(run: EvaluateRun) -> None:
    """Examine a judge on test sets: accuracy, calibration, contradictions and biases, with intervals over prompts.

    Leaves evaluation.json and evaluation.html in the folder. A test set called id counts as in domain, one called ood
    as out of domain. What a kind of judge cannot be asked is said in words.

    --stress: how hackable the reward is before anything is trained against it: what its own gradient wins, and what
    crops, text, blur, frozen frames and other changes win that make no picture better.

    Pairs that cannot be judged go with the reason to evaluation.failed.jsonl, and the exit code is 1.
    """
    quiet()
    from rewarddance.jobs.evaluate import run_evaluation

    if (found := run_evaluation(run)) is not None:
        print_result(found, "pairs")


@recipe_command(
    app,
    BenchRun,
    arguments=("benchmark", "prompts"),
    example="rewarddance bench geneval evaluation_metadata.jsonl --pictures my-pictures --detector owlv2",
)
def bench(run: BenchRun) -> None:
    """Object-level scores of pictures: GenEval, GenEval 2 or TIFA; run again to continue an interrupted run.

    PROMPTS is the benchmark's own file. A table with intervals over prompts goes to stderr and to scores.md, the
    figures to scores.json, a row a picture to results.jsonl. docs/guides/benchmarks.md has detectors, colours and
    questions.

    Pictures that cannot be scored go with the reason to results.jsonl.failed.jsonl, and the exit code is 1.
    """
    quiet()
    from rewarddance.jobs.bench import run_bench, tables_of

    result = run_bench(run)
    typer.echo(tables_of(result), err=True)
    print_result(result, "pictures")


@recipe_command(
    app,
    ExportRun,
    arguments=("judge", "output"),
    example="rewarddance export runs/my-judge/reward served-judge",
)
def export(run: ExportRun) -> None:
    """Write a judge as a folder that vllm serve, transformers serve and pipeline("decision") take unmodified.

    A trained judge's own folder is one already; this is for other checkpoints, for a LoRA, and to change how a judge is
    asked. Where its tokenizer has several spellings of yes or no, "noul_is_exact" is false: transformers' P("yes") is
    then exact as a choice of all of them, or with --one-spelling.
    """
    quiet()
    from rewarddance.jobs.export import run_export

    print_result(run_export(run))


@recipe_command(
    app,
    DistilRun,
    arguments=("preferences",),
    example="rewarddance distil pairs.jsonl --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-VL-32B-Instruct "
    "--output reasons.jsonl",
)
def distil(run: DistilRun) -> None:
    """Let a larger model say why one picture of each pair is better; run again to continue or to retry failures.

    Answers that agree with the votes are kept. For reasons.jsonl the others go to reasons.disagreed.jsonl and, with
    what went wrong, to reasons.failed.jsonl; where there are failures the exit code is 1.
    """
    quiet()
    from rewarddance.jobs.distil import distil

    print_result(distil(run), "answers")


@app.command(epilog=example("rewarddance gsb scores.jsonl --by category"))
def gsb(
    scores: Annotated[Path, typer.Argument(help='What `score` wrote, or rows {"prompt", "share"} of votes.')],
    same: Annotated[float, typer.Option(help="Within this of 0.5 a pair counts as equal.", min=0, max=0.5)] = 0.0,
    by: Annotated[str | None, typer.Option(help="Also apart by this key of the rows.")] = None,
) -> None:
    """Good, same, bad: (good - bad) / all pairs of a candidate and its reference, with an interval over prompts."""
    from rewarddance.evaluation.gsb import gsb_of_file

    figures = gsb_of_file(scores, same, by).items()
    print_result({name: figure._asdict() | {"gsb": figure.gsb._asdict()} for name, figure in figures})


@app.command(epilog=example("rewarddance report runs/quickstart-seed0"))
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[MORE]...", help="Further searches for the same prompts.")
    ] = None,
) -> None:
    """Write a run's HTML report again from its files, of the quickstart's or of `rewarddance align`'s.

    Of searches (one or several for the same prompts, of any method and budget): what each spent and what the held-out
    judge says of its winners, in a table and a figure, and the winners beside the first samples.
    """
    from rewarddance.report.alignment_page import write_alignment_page
    from rewarddance.report.run_page import write_report
    from rewarddance.report.search_page import is_search, write_search_page

    if more or is_search(run):
        typer.echo(write_search_page([run, *(more or [])]))
        return
    is_quickstart = any((run / name).exists() for name in ("summary.json", "stages.json"))
    aligned = not is_quickstart and (run / "metrics.jsonl").exists()
    typer.echo(write_alignment_page(run) if aligned else write_report(run))
