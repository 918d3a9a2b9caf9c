"""The command line. Heavy libraries load inside the commands, so that help is quick."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rewarddance.errors import InputError, RewardDanceError

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


@app.command(epilog=example("rewarddance quickstart --seed 1 refl.steps=40"))
def quickstart(
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random. Default: the recipe's.")] = None,
    task: Annotated[str | None, typer.Option(help="t2i (pictures), t2v (films) or i2v (from a first picture).")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file instead of the task's own.")] = None,
    name: Annotated[str | None, typer.Option(help="The run's folder is runs/<name>.")] = None,
    output: Annotated[Path, typer.Option(help="Where run folders stand.")] = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish an interrupted run, by default the last one.")
    ] = False,
) -> None:
    """The main job on ShapeWorld: preferences, judge, references, ReFL, best of N, report; of pictures or of films."""
    _quiet()
    from rewarddance.evaluation.report import summary_table
    from rewarddance.lab.quickstart import QuickstartRecipe, announce, resume_run, start_run
    from rewarddance.lab.quickstart import quickstart as run_all
    from rewarddance.runtime.config import load_recipe
    from rewarddance.runtime.tracking import console

    if resume:
        if overrides or seed is not None or recipe is not None or task is not None:
            raise InputError(
                "--resume takes no task, recipe, seed or keys.", "A resumed run keeps the config it began with."
            )
        run = resume_run(output / name if name else _last_run(output))
    else:
        extra = [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]
        if recipe is not None and task is not None:
            raise InputError("a recipe says its own task.", "Leave --task or --recipe out.")
        own = {"t2i": "quickstart.yaml", "t2v": "quickstart_t2v.yaml", "i2v": "quickstart_i2v.yaml"}
        if task is not None and task not in own:
            raise InputError(f"there is no task {task!r}.", f"Say {', '.join(own)}.")
        chosen = load_recipe(QuickstartRecipe, recipe or recipe_file(own[task or "t2i"]), extra)
        kind = "" if chosen.task == "t2i" else f"{chosen.task}-"
        run = start_run(chosen, output / (name or _fresh_name(output, f"quickstart-{kind}seed{chosen.seed}")))
    summary = run_all(run)
    console.print(summary_table(summary))
    console.print(summary["hacking"]["sentence"])
    announce(run)


@app.command(epilog=example("rewarddance train recipes/shapeworld_judge.yaml judge.learning_rate=3e-4"))
def train(recipe: Annotated[Path, typer.Argument(help="A recipe file.")], overrides: Overrides = None) -> None:
    """Train a judge on a preferences file; run again to continue an interrupted one.

    On several GPUs: torchrun --nproc-per-node N -m rewarddance train RECIPE.
    """
    _quiet()
    from rewarddance.lab.runs import TrainRun, run_training
    from rewarddance.runtime.config import load_recipe

    result = run_training(load_recipe(TrainRun, recipe, overrides or []))
    if result:  # of several processes one speaks
        _print(result)


@app.command(epilog=example("rewarddance align recipes/shapeworld_refl.yaml refl.steps=60"))
def align(recipe: Annotated[Path, typer.Argument(help="A recipe file.")], overrides: Overrides = None) -> None:
    """Align a generator with a trained judge; run again to continue an interrupted one.

    By the gradient through the judge (algorithm: refl), or by asking it alone: Flow-GRPO (grpo) or DiffusionNFT (nft).

    On several GPUs: torchrun --nproc-per-node N -m rewarddance align RECIPE.
    """
    _quiet()
    from rewarddance.lab.runs import AlignRun, run_alignment
    from rewarddance.runtime.config import load_recipe
    from rewarddance.runtime.distributed import joined

    with joined():  # so that of several processes one says what is wrong with the recipe
        result = run_alignment(load_recipe(AlignRun, recipe, overrides or []))
    if result:
        _print(result)


@app.command(epilog=example("rewarddance plan recipes/judges/internvl3-8b.yaml --gpus 4 --gpu h100"))
def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe file of train or align.")],
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="GPUs, each with a process.", min=1)] = 1,
    gpu: Annotated[str, typer.Option(help="h100, h200, h20, a100, a100-40, l40s or rtx4090.")] = "h100",
    gpu_memory: Annotated[float | None, typer.Option(help="GiB of memory, instead of that GPU's.")] = None,
    utilisation: Annotated[float, typer.Option(help="Share of the GPU's peak that is reached.", min=0.01, max=1)] = 0.4,
    picture: Annotated[str, typer.Option(metavar="HxW", help="Pictures, where the recipe's files are not here.")] = (
        "1024x1024"
    ),
    prompt_words: Annotated[int, typer.Option(help="Words of a prompt, where they are not here.", min=1)] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in bytes and seconds.")] = False,
) -> None:
    """Say what a recipe needs, without weights: parameters, tokens, memory by part, operations, time.

    The recipe's own step is run on shapes alone, in seconds and on any machine. A judge is a folder with config.json
    or one of the public InternVL3 and Qwen3-VL; a generator is a diffusers folder. Weights may be missing. Where it
    does not fit, changes of the recipe are tried, and the first that fits is named; the exit code is then 1.
    """
    _quiet()
    from rewarddance.lab.planning import PlanOptions, plan_recipe
    from rewarddance.lab.planning_table import print_plan
    from rewarddance.runtime.config import parse_recipe

    size = picture.lower().split("x")
    if len(size) != 2:
        raise InputError(f"--picture {picture} is no height and width.", "Write e.g. 1024x1024.")
    options = {
        "gpus": gpus,
        "gpu": gpu,
        "gpu_memory": gpu_memory,
        "utilisation": utilisation,
        "picture": size,
        "prompt_words": prompt_words,
    }
    found = plan_recipe(recipe, overrides or [], parse_recipe(PlanOptions, options, "the command line"))
    if as_json:
        _print(found.as_json())
    else:
        print_plan(found)
    if not found.fits:
        raise typer.Exit(1)


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

    A row is {"prompt", "candidate"} with "reference", "instruction" and "condition" if wanted; other keys are carried
    along. Paths are relative to the file. In a folder the prompt of a.png is in a.txt, or --prompt.

    A candidate with a reference: is it better? Without one: how good is it by itself? (A pairwise judge cannot say.)

    "candidates": [...] with a reference: each against it. Without one: each by itself, or, by a pairwise judge, all
    pairs in both orders. Their scores are lists, and "order" ranks them, best first.

    Rows that cannot be scored go with the reason to OUTPUT.failed.jsonl, and the exit code is 1.
    """
    _quiet()
    from rewarddance.lab.scoring import ScoreRun
    from rewarddance.lab.scoring import score as score_all

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
    result = score_all(run, strict)
    _print(result)
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
    _quiet()
    from rewarddance.lab.distil import DistilRecipe
    from rewarddance.lab.distil import distil as ask
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
    _print(result)
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
    _quiet()
    from rewarddance.runtime.config import parse_recipe, read_overrides
    from rewarddance.search.budget import read_budget
    from rewarddance.search.folder import SearchRun, search_file

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
    _print(result)
    if result["failed"]:
        typer.echo(f"{result['failed']} of {result['prompts']} prompts failed; {result['failures']} says why", err=True)
        raise typer.Exit(1)


@data.command(
    "import",
    epilog=example(
        "rewarddance data import hpdv3 HPDv3/train.json --output data/hpdv3.jsonl --split train=0.9,test=0.1"
    ),
)
def import_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which set, by the names above.")],
    source: Annotated[list[Path], typer.Argument(metavar="SOURCE", help="Its .json, .jsonl, .csv, .parquet files.")],
    output: Annotated[Path, typer.Option(help="The .jsonl or .parquet file to write.")],
    media_root: Annotated[
        Path | None, typer.Option(help="What paths of media are relative to. Default: the source's folder.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train=0.9,test=0.1: by prompt, into <output>.train.jsonl and so on.")
    ] = None,
    criterion: Annotated[str | None, typer.Option(help="Keep this one only, of sets that vote by several.")] = None,
    decode: Annotated[bool, typer.Option(help="Look at all media to their end, not only whether they exist.")] = True,
) -> None:
    """Bring a public set into a preferences file; run again to continue an interrupted import.

    hpdv3, hpdv2, imagerewarddb, pickapic-v1, pickapic-v2, videogen-rewardbench, rapidata, genai-bench,
    omnirewardbench, mmrb2 (for evaluation only), messages (with images, as in LLaMA-Factory and ms-swift).

    Media stay where they are; those inside a Parquet file are written beside the output. What cannot be used goes with
    the reason to OUTPUT.quarantine.jsonl, and the exit code is 1.
    """
    _quiet()
    from rewarddance.data.importing import ImportRecipe, import_preferences, quarantined
    from rewarddance.data.splits import parse_split

    recipe = ImportRecipe(
        name=name,
        files=tuple(source),
        output=output,
        media_root=media_root,
        split=None if split is None else parse_split(split),
        criterion=criterion,
        decode=decode,
    )
    result = import_preferences(recipe)
    _print(result)
    if result["quarantined"]:
        for sentence in quarantined(result):
            typer.echo(sentence, err=True)
        raise typer.Exit(1)


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
    _quiet()
    from rewarddance.data.check import check, faulty

    report = check(files, benchmark, decode)
    _print(report)
    if faults := faulty(report):
        typer.echo("; ".join(faults), err=True)
        raise typer.Exit(1)


@data.command("weigh", epilog=example("rewarddance data weigh votes.jsonl --output weighed.jsonl"))
def weigh_data(
    votes: Annotated[Path, typer.Argument(metavar="VOTES", help="A preferences file, a vote a row, with annotators.")],
    output: Annotated[Path, typer.Option(help="The .jsonl or .parquet file to write.")],
) -> None:
    """Make one row of the votes on each pair: its share, each vote weighed by how often its annotator seems right.

    How often that is follows from the votes alone: who agrees with the others as a coin would is not heard.
    """
    _quiet()
    from rewarddance.data.votes import weigh_votes

    _print(weigh_votes(votes, output))


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
    _quiet()
    from rewarddance.evaluation.examine import ExamRecipe
    from rewarddance.lab.evaluate import EvaluateRun, named_tests
    from rewarddance.lab.evaluate import evaluate as examine

    exam = ExamRecipe(batch_size=batch_size, probes=probes, seed=seed)
    asked = {"kind": kind, "orders": orders, "instruction": instruction, "device": device, "dtype": dtype}
    options = {"judge": judge, "tests": named_tests(test), "output": output, "exam": exam, **asked}
    result = examine(EvaluateRun.model_validate(options), card)
    _print(result)
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

    _print(
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
    from rewarddance.evaluation.hacking_page import write_hacking_page
    from rewarddance.evaluation.report import write_report
    from rewarddance.evaluation.search_page import is_search, write_search_page

    if more or is_search(run):
        typer.echo(write_search_page([run, *(more or [])]))
        return
    aligned = not (run / "summary.json").exists() and (run / "metrics.jsonl").exists()
    typer.echo(write_hacking_page(run) if aligned else write_report(run))


BASES = ("judge", "judge-small", "generator", "unet", "clip", "video-judge", "video-generator")


@app.command(epilog=example("rewarddance bases judge --output /tmp/bases"))
def bases(
    which: Annotated[str, typer.Argument(help=f"{', '.join(BASES)} or all.")] = "all",
    output: Annotated[Path, typer.Option(help="Where the checkpoint folders are written.")] = Path("bases"),
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    begin: Annotated[
        Path | None, typer.Option(help="A judge base that gets its last stage anew (minutes), instead of all stages.")
    ] = None,
) -> None:
    """Make the bundled ShapeWorld checkpoints again, from nothing (hours on two cores)."""
    _quiet()
    if which not in (*BASES, "all"):
        raise InputError(f"there is no base named {which!r}.", f"Say {', '.join(BASES)} or all.")
    if begin is not None and which not in ("judge", "judge-small"):
        raise InputError("begin is for one judge base.", "Say judge or judge-small, or leave begin out.")
    import torch

    from rewarddance.runtime.checkpoint import writable_folder
    from rewarddance.shapeworld.clip_base import make_clip_base
    from rewarddance.shapeworld.generator_base import make_generator_base
    from rewarddance.shapeworld.judge_base import SIZES, make_judge_base
    from rewarddance.shapeworld.motion.generator_base import make_video_generator_base
    from rewarddance.shapeworld.motion.judge_base import make_video_judge_base
    from rewarddance.shapeworld.unet_base import VAE, make_unet_base

    torch.set_num_threads(threads)
    writable_folder(output)
    for name in SIZES:
        if which in (name.removeprefix("shapeworld-"), "all"):
            make_judge_base(output / name, say=typer.echo, size=name, begin=begin)
    if which in ("generator", "all"):
        make_generator_base(output / "shapeworld-generator", say=typer.echo)
    if which in ("video-judge", "all"):
        make_video_judge_base(output / "shapeworld-video-judge", say=typer.echo)
    if which in ("video-generator", "all"):
        make_video_generator_base(output / "shapeworld-video-generator", say=typer.echo)
    if which in ("unet", "all"):
        flow = output / "shapeworld-generator"  # whose VAE it takes: the one just made, or else the bundled one
        make_unet_base(output / "shapeworld-unet", say=typer.echo, vae=flow if which == "all" else VAE)
    if which in ("clip", "all"):
        make_clip_base(output / "shapeworld-clip", say=typer.echo)


@lab.command(epilog=example("rewarddance lab judges recipes/lab_judges.yaml --output runs/lab-judges"))
def judges(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="The folder of the table and of what it is made from.")] = Path(
        "runs/lab-judges"
    ),
) -> None:
    """Kinds of reward and contexts, trained and zero-shot, at every size, over seeds; run again to go on.

    judges.md and judges.svg in the folder are written anew after each cell, results.json beside them.
    """
    _quiet()
    from rewarddance.lab.judges import JudgesRecipe, compare_judges
    from rewarddance.runtime.config import load_recipe

    typer.echo(compare_judges(load_recipe(JudgesRecipe, recipe, overrides or []), output))


@lab.command("search", epilog=example("rewarddance lab search recipes/lab_search.yaml --output runs/lab-search"))
def lab_search(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="The folder of the table and of what it is made from.")] = Path(
        "runs/lab-search"
    ),
) -> None:
    """Search methods in equal seconds, with a weak and a strong judge, over seeds; run again to go on.

    Also oracle and proxy as N grows, and knockouts against tournaments. searching.md, searching.svg and winners.png in
    the folder are written anew after each cell, results.json beside them.
    """
    _quiet()
    from rewarddance.lab.searching import SearchingRecipe, compare_searches
    from rewarddance.runtime.config import load_recipe

    typer.echo(compare_searches(load_recipe(SearchingRecipe, recipe, overrides or []), output))


@lab.command(epilog=example("rewarddance lab disagreement recipes/lab_disagreement.yaml --output runs/lab-votes"))
def disagreement(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="The folder of the table and of what it is made from.")] = Path(
        "runs/lab-disagreement"
    ),
) -> None:
    """Judges taught shares of votes against judges taught hard majorities, by how many votes are wrong, over seeds.

    Run again to go on. disagreement.md in the folder is written anew after each cell, results.json beside it.
    """
    _quiet()
    from rewarddance.lab.disagreement import DisagreementRecipe, compare_labels
    from rewarddance.runtime.config import load_recipe

    typer.echo(compare_labels(load_recipe(DisagreementRecipe, recipe, overrides or []), output))


@lab.command(
    "references", epilog=example("rewarddance lab references recipes/lab_references.yaml --output runs/lab-refs")
)
def lab_references(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="The folder of the table and of what it is made from.")] = Path(
        "runs/lab-references"
    ),
) -> None:
    """ReFL with good and bad references, on one generator or several, over seeds (the paper's Table 8).

    Run again to go on. references.md in the folder is written anew after each cell, results.json beside it.
    """
    _quiet()
    from rewarddance.lab.references import ReferencesRecipe, compare_references
    from rewarddance.runtime.config import load_recipe

    typer.echo(compare_references(load_recipe(ReferencesRecipe, recipe, overrides or []), output))


@lab.command(
    "alignment", epilog=example("rewarddance lab alignment recipes/lab_alignment.yaml --output runs/lab-align")
)
def lab_alignment(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="The folder of the table and of what it is made from.")] = Path(
        "runs/lab-alignment"
    ),
) -> None:
    """ReFL, Flow-GRPO and DiffusionNFT at equal seconds with the same judge, by the oracle, over seeds.

    Run again to go on. alignment.md and alignment.svg in the folder are written anew after each cell, results.json
    beside them.
    """
    _quiet()
    from rewarddance.lab.alignment import AlignmentRecipe, compare_alignments
    from rewarddance.runtime.config import load_recipe

    typer.echo(compare_alignments(load_recipe(AlignmentRecipe, recipe, overrides or []), output))


@lab.command("hacking", epilog=example("rewarddance lab hacking recipes/lab_hacking.yaml --output runs/lab-hacking"))
def lab_hacking(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="The folder of the table and of what it is made from.")] = Path(
        "runs/lab-hacking"
    ),
) -> None:
    """Runs made to be hacked, with safeguards and without, and honest ones: do alarms ring, and in time?

    And the spread of the reward by the judge's kind and size. Run again to go on. hacking.md and hacking.svg in the
    folder are written anew after each run, results.json beside them.
    """
    _quiet()
    from rewarddance.lab.hacking import HackingRecipe, compare_hacks
    from rewarddance.runtime.config import load_recipe

    typer.echo(compare_hacks(load_recipe(HackingRecipe, recipe, overrides or []), output))


def recipe_file(name: str) -> Path:
    """A recipe that comes with the project: in the installed package, or beside the sources."""
    here = Path(__file__).parent
    for folder in (here / "recipes", here.parent.parent / "recipes"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"the recipe {name} is not installed.", "Give one with --recipe.")


def _fresh_name(output: Path, name: str) -> str:
    """`name`, or `name`-2, -3, ... where that run exists."""
    if not (output / name).exists():
        return name
    number = 2
    while (output / f"{name}-{number}").exists():
        number += 1
    return f"{name}-{number}"


def _last_run(output: Path) -> Path:
    """The run under `output` that was started last."""
    runs = [folder for folder in output.glob("*") if (folder / "config.yaml").exists()] if output.is_dir() else []
    if not runs:
        raise InputError(f"there is no run to resume in {output}.", "Start one without --resume.")
    return max(runs, key=lambda folder: (folder / "config.yaml").stat().st_mtime)


def _print(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, indent=2))


def _quiet() -> None:
    """The libraries' own bars and advice stay out of ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)


def main() -> None:
    """Errors that the user can mend end in one message and exit code 2; an interrupt says how to go on."""
    try:
        app(standalone_mode=True)
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


if __name__ == "__main__":
    main()
