"""Commands that use a judge, and that say how good it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rewarddance.cli.common import app, example, print_json, quiet
from rewarddance.errors import InputError


@app.command(epilog=example("rewarddance score pictures --judge my-judge --reference plain.png --output scores.jsonl"))
def score(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A folder of pictures and videos, or a .jsonl or .parquet file.")
    ],
    judge: Annotated[str, typer.Option(help="A trained reward's folder, a model's, or a bundled name.")],
    output: Annotated[Path, typer.Option(help="The .jsonl or .parquet file to write.")],
    prompt: Annotated[str | None, typer.Option(help="Prompt of the rows that have none.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Picture or video that rows without a reference get.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="pairwise, pointwise, regressive or clip. Default: the judge's own.")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="Instruction of rows without. Default: the judge's.")] = None,
    orders: Annotated[
        str | None, typer.Option(help="both: ask in both orders and average. Default: the judge's own.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows read, asked and written together.", min=1)] = 32,
    max_frames: Annotated[int, typer.Option(help="Frames of a longer video, evenly spaced.", min=1)] = 16,
    explain: Annotated[bool, typer.Option("--explain", help="With the judge's reasons, which takes longer.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be scored.")] = False,
) -> None:
    """Score pictures and videos of any number; run again to continue an interrupted run.

    A row is {"prompt", "candidate"} with "reference", "instruction" and "image" if wanted; other keys are carried
    along. Paths are relative to the file. In a folder the prompt of a.png is in a.txt, or --prompt.

    A candidate with a reference: is it better? Without one: how good is it by itself? (A pairwise judge cannot say.)

    "candidates": [...] with a reference: each against it. Without one: each by itself, or, by a pairwise judge, all
    pairs in both orders. Their scores are lists, and "order" ranks them, best first.

    Rows that cannot be scored go with the reason to OUTPUT.failed.jsonl, and the exit code is 1.
    """
    quiet()
    from rewarddance.jobs.score import ScoreRun, run_scoring

    run = ScoreRun(
        input=source,
        output=output,
        judge=judge,
        kind=kind,
        orders=orders,
        instruction=instruction,
        prompt=prompt,
        reference=reference,
        batch_size=batch_size,
        max_frames=max_frames,
        device=device,
        explain=explain,
    )
    result = run_scoring(run, strict)
    print_json(result)
    if result["failed"]:
        typer.echo(f"{result['failed']} of {result['rows']} rows failed; {result['failures']} says why", err=True)
        raise typer.Exit(1)


@app.command(
    epilog=example(
        "rewarddance distil pairs.jsonl --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-VL-32B-Instruct "
        "--output reasons.jsonl"
    )
)
def distil(
    preferences: Annotated[Path, typer.Argument(help="A preferences file.")],
    endpoint: Annotated[str, typer.Option(help="Address of an OpenAI-compatible server, up to /v1.")],
    model: Annotated[str, typer.Option(help="The teacher's name there.")],
    output: Annotated[Path, typer.Option(help="The preferences file with reasons to write.")],
    instruction: Annotated[str, typer.Option(help="The question asked: a template's name or file.")] = "t2i",
    orders: Annotated[str, typer.Option(help="both, or forward: no reasons with the pictures swapped.")] = "both",
    api_key_env: Annotated[str, typer.Option(help="The environment variable that holds the key.")] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(help="Questions at once.", min=1)] = 8,
    retries: Annotated[int, typer.Option(help="Further tries where the server is busy or breaks off.", min=0)] = 5,
    timeout: Annotated[float, typer.Option(help="Seconds for one answer.")] = 120.0,
    body: Annotated[str, typer.Option(help="Further fields of each request, as JSON.")] = "{}",
) -> None:
    """Let a larger model say why one picture of each pair is better; run again to continue or to retry failures.

    Answers that agree with the votes are kept. The others go to OUTPUT.disagreed.jsonl and, with what went wrong, to
    OUTPUT.failed.jsonl; where there are failures the exit code is 1.
    """
    quiet()
    from rewarddance.jobs.distil import DistilRecipe
    from rewarddance.jobs.distil import distil as ask
    from rewarddance.runtime.config import parse_recipe

    try:
        fields = json.loads(body)
    except ValueError as error:
        raise InputError(f"--body is not JSON: {error}.", "Give an object, such as '{\"temperature\": 0}'.") from error
    options = {
        "preferences": preferences,
        "endpoint": endpoint,
        "model": model,
        "output": output,
        "instruction": instruction,
        "orders": orders,
        "api_key_env": api_key_env,
        "concurrency": concurrency,
        "retries": retries,
        "timeout": timeout,
        "body": fields,
    }
    result = ask(parse_recipe(DistilRecipe, options, "the command line"))
    print_json(result)
    if result["failed"]:
        raise typer.Exit(1)


@app.command(
    epilog=example(
        "rewarddance search prompts.txt --generator shapeworld-generator --steps 12 --judge my-judge --method paths "
        "--budget samples=16 --output found copies=8"
    )
)
def search(
    prompts: Annotated[Path, typer.Argument(help="A .txt file with a prompt a line, or .jsonl.")],
    generator: Annotated[str, typer.Option(help="A diffusers folder, a bundled name or an id of the model hub.")],
    judge: Annotated[str, typer.Option(help="A trained reward's folder, a model's, or a bundled name.")],
    output: Annotated[Path, typer.Option(help="The folder for pictures and results.jsonl.")],
    budget: Annotated[
        str, typer.Option(help="For each prompt: samples=N, evaluations=N, questions=N or seconds=N, or several.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the method.")
    ] = None,
    method: Annotated[str, typer.Option(help="best_of_n, zero_order, paths, pruning or refine.")] = "best_of_n",
    judging: Annotated[
        str | None, typer.Option(help="alone, first, knockout or tournament. Default: as suits the judge.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="pairwise, pointwise, regressive or clip. Default: the judge's own.")
    ] = None,
    steps: Annotated[int, typer.Option(help="The generator's inference steps.", min=1)] = 28,
    guidance_scale: Annotated[float | None, typer.Option(help="The generator's guidance.", min=0)] = None,
    generator_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Another one, such as height=512; repeatable.")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Another judge, which says how often it prefers the winners to first samples.")
    ] = None,
    runners_up: Annotated[int, typer.Option(help="Pictures kept beside the winner.", min=0)] = 2,
    seed: Annotated[int, typer.Option(help="Seed of all noises.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Pictures made together, of all prompts.", min=1)] = 64,
    prompts_at_once: Annotated[int, typer.Option(help="Prompts that share a batch.", min=1)] = 8,
    judge_batch: Annotated[
        int | None, typer.Option(help="Questions that a judge looks at together. Default: its own.", min=1)
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16, of generator and judge.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")] = None,
) -> None:
    """Search for the best picture of each prompt within a budget; run again to continue an interrupted search.

    The budget is what each prompt may take; "samples=16" is the generator's cost of 16 plain samples, "seconds=30" has
    the judge's time in it too. Each row of results.jsonl has the winner, its runners-up and the first plain sample with
    their pictures and scores, and what was spent. docs/guides/search.md has the methods and their options.

    Prompts that fail go with the reason to results.jsonl.failed.jsonl, and the exit code is 1.
    """
    quiet()
    from rewarddance.jobs.search import SearchRun, search_file
    from rewarddance.runtime.config import parse_recipe, read_overrides
    from rewarddance.search.budget import read_budget

    options = {
        "prompts": prompts,
        "generator": generator,
        "judge": judge,
        "method": method,
        "budget": read_budget(budget).model_dump(exclude_none=True),
        "options": read_overrides(overrides or []),
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "generator_options": read_overrides(generator_option or []),
        "kind": kind,
        "judging": judging,
        "seed": seed,
        "runners_up": runners_up,
        "batch_size": batch_size,
        "prompts_at_once": prompts_at_once,
        "held_out": held_out,
        "judge_batch": judge_batch,
        "dtype": dtype,
        "device": device,
    }
    result = search_file(parse_recipe(SearchRun, options, "the command line"), output)
    print_json(result)
    if result["failed"]:
        typer.echo(f"{result['failed']} of {result['prompts']} prompts failed; {result['failures']} says why", err=True)
        raise typer.Exit(1)


@app.command(epilog=example("rewarddance evaluate runs/my-judge/reward --test id=held_out.jsonl --test ood=new.jsonl"))
def evaluate(
    judge: Annotated[str, typer.Argument(help="A trained reward's folder, a model's, or a bundled name.")],
    test: Annotated[list[str], typer.Option(metavar="NAME=FILE", help="A preferences file; may be given again.")],
    output: Annotated[
        Path | None, typer.Option(help="A folder. Default: evaluation, beside a trained reward's folder.")
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Also write README.md into the reward's folder.")] = False,
    kind: Annotated[
        str | None, typer.Option(help="pairwise, pointwise, regressive or clip. Default: the judge's own.")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="A task instruction. Default: the judge's own.")] = None,
    orders: Annotated[str | None, typer.Option(help="both: it averages both orders. Default: the judge's own.")] = None,
    probes: Annotated[int, typer.Option(help="Pairs of a set asked again with the candidate changed.", min=1)] = 200,
    batch_size: Annotated[int, typer.Option(help="Pairs read and asked together.", min=1)] = 32,
    seed: Annotated[int, typer.Option(help="Of halves, probes and meetings.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16, of the weights.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")] = None,
) -> None:
    """Examine a judge on test sets: accuracy, calibration, contradictions and biases, with intervals over prompts.

    Leaves evaluation.json and evaluation.html in the folder. A test set called id counts as in domain, one called ood
    as out of domain. What a kind of judge cannot be asked is said in words.

    Pairs that cannot be judged go with the reason to evaluation.failed.jsonl, and the exit code is 1.
    """
    quiet()
    from rewarddance.evaluation.examine import ExamRecipe
    from rewarddance.jobs.evaluate import EvaluateRun, named_tests, run_evaluation

    exam = ExamRecipe(batch_size=batch_size, probes=probes, seed=seed)
    own = {"kind": kind, "orders": orders, "instruction": instruction, "device": device, "dtype": dtype}
    options = {"judge": judge, "tests": named_tests(test), "output": output, "exam": exam, **own}
    result = run_evaluation(EvaluateRun.model_validate(options), card)
    print_json(result)
    if result["failed"]:
        typer.echo(f"pairs that could not be judged: {result['failed']}; {result['failures']} says why", err=True)
        raise typer.Exit(1)


@app.command(epilog=example("rewarddance gsb scores.jsonl --by category"))
def gsb(
    scores: Annotated[Path, typer.Argument(help='What `score` wrote, or rows {"prompt", "share"} of votes.')],
    same: Annotated[float, typer.Option(help="Within this of 0.5 a pair counts as equal.", min=0, max=0.5)] = 0.0,
    by: Annotated[str | None, typer.Option(help="Also apart by this key of the rows.")] = None,
) -> None:
    """Good, same, bad: (good - bad) / all pairs of a candidate and its reference, with an interval over prompts."""
    from rewarddance.evaluation.gsb import gsb_of_file

    print_json(
        {name: found._asdict() | {"gsb": found.gsb._asdict()} for name, found in gsb_of_file(scores, same, by).items()}
    )


@app.command(epilog=example("rewarddance report runs/quickstart-seed0"))
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[MORE]...", help="Further searches for the same prompts.")
    ] = None,
) -> None:
    """Write a run's HTML report again from its files; of `rewarddance align`'s, the page of signs of hacking.

    Of searches (one or several for the same prompts, of any method and budget): what each spent and what the held-out
    judge says of its winners, in a table and a figure, and the winners beside the first samples.
    """
    from rewarddance.report.hacking_page import write_hacking_page
    from rewarddance.report.run_page import write_report
    from rewarddance.report.search_page import is_search, write_search_page

    if more or is_search(run):
        typer.echo(write_search_page([run, *(more or [])]))
        return
    aligned = not (run / "summary.json").exists() and (run / "metrics.jsonl").exists()
    typer.echo(write_hacking_page(run) if aligned else write_report(run))
