"""Commands that train: the main job, a judge, a generator, and what a recipe needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarddance.cli.app import Overrides, app, example, given_path, print_result, quiet, recipe_file
from rewarddance.cli.options import recipe_command
from rewarddance.errors import InputError
from rewarddance.jobs.recipes import PlanRun
from rewarddance.runtime.config import MOST_WORKERS

_SKIP = "Leave out rows that cannot be used, and list them in faulty.jsonl; else a run with one does not begin."


@app.command(epilog=example("rewarddance quickstart --seed 1 refl.steps=40"))
def quickstart(
    overrides: Overrides = None,
    *,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random. Default: the recipe's.")] = None,
    task: Annotated[
        str | None, typer.Option(help="t2i (pictures), t2v (videos), i2v (from a first picture) or edit (of a source).")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Pictures with a longer ReFL before DiffusionNFT.")] = False,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file instead of the task's own.")] = None,
    name: Annotated[str | None, typer.Option(help="The run's folder is runs/<name>.")] = None,
    output: Annotated[Path, typer.Option(help="Where run folders stand.", parser=given_path)] = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish an interrupted run, by default the last one.")
    ] = False,
) -> None:
    """The main job on ShapeWorld: preferences, judge, references, ReFL, DiffusionNFT, best of N, report."""
    quiet()
    from rewarddance.jobs.quickstart import QuickstartRecipe, announce, resume_run, start_run
    from rewarddance.jobs.quickstart import quickstart as run_all
    from rewarddance.report.run_page import summary_table
    from rewarddance.runtime.config import load_recipe
    from rewarddance.runtime.tracking import console

    if resume:
        if overrides or full or any(given is not None for given in (seed, recipe, task)):
            raise InputError(
                "--resume takes no task, recipe, seed, keys or --full.", "A resumed run keeps the config it began with."
            )
        run = resume_run(output / name if name else _last_run(output))
    else:
        extra = [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]
        chosen = load_recipe(QuickstartRecipe, recipe_of_task(task, full, recipe), extra)
        kind = "" if chosen.task == "t2i" else f"{chosen.task}-"
        run = start_run(chosen, output / (name or _fresh_name(output, f"quickstart-{kind}seed{chosen.seed}")))
    summary = run_all(run)
    console.print(summary_table(summary))
    console.print(summary["hacking"]["sentence"])
    announce(run)


def recipe_of_task(task: str | None, full: bool, recipe: Path | None) -> Path:
    """The file of a quickstart's recipe: the given one, or the task's own. Raises InputError for what contradicts."""
    from rewarddance.shapeworld.tasks import TASKS

    if recipe is not None and (task is not None or full):
        raise InputError("a recipe says its own task and length.", "Leave --recipe out, or --task and --full.")
    if task is not None and task not in TASKS:
        raise InputError(f"there is no task {task!r}.", f"Say {', '.join(TASKS)}.")
    if full and task not in (None, "t2i"):
        raise InputError(f"--full is of pictures, and the task is {task}.", "Leave --full or --task out.")
    kind = "full" if full else task
    return recipe or recipe_file("quickstart.yaml" if kind in (None, "t2i") else f"quickstart_{kind}.yaml")


@app.command(epilog=example("rewarddance train recipes/shapeworld_judge.yaml judge.learning_rate=3e-4"))
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Overrides = None,
    skip_faulty: Annotated[bool, typer.Option("--skip-faulty", help=_SKIP)] = False,
) -> None:
    """Train a judge on a preferences file; run again to continue an interrupted one.

    On several GPUs: torchrun --nproc-per-node N -m rewarddance train RECIPE.
    """
    quiet()
    from rewarddance.jobs.train import TrainRun, run_training
    from rewarddance.runtime.config import load_recipe

    result = run_training(load_recipe(TrainRun, recipe, _with_skip(overrides, skip_faulty)))
    if result:  # of several processes one speaks
        print_result(result)


@app.command(epilog=example("rewarddance align recipes/shapeworld_refl.yaml refl.steps=60"))
def align(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Overrides = None,
    skip_faulty: Annotated[bool, typer.Option("--skip-faulty", help=_SKIP)] = False,
) -> None:
    """Align a generator with a trained judge; run again to continue an interrupted one.

    By the gradient through the judge (algorithm: refl), by asking it alone (grpo, nft, awm, dgpo, crd, online_dpo), or
    by votes on pictures without a judge (dpo). docs/guides/aligning.md says what each does.

    Groups that have no reward go with the reason to failed_groups.jsonl, and the exit code is 1.

    On several GPUs: torchrun --nproc-per-node N -m rewarddance align RECIPE.
    """
    quiet()
    from rewarddance.alignment.recipe import AlignRun
    from rewarddance.jobs.align import run_alignment
    from rewarddance.runtime.config import load_recipe
    from rewarddance.runtime.process_group import init_process_group

    with init_process_group():  # so that of several processes one says what is wrong with the recipe
        aligned = run_alignment(load_recipe(AlignRun, recipe, _with_skip(overrides, skip_faulty)))
    if aligned is not None:
        print_result(aligned.as_json(), "groups")


@app.command(epilog=example("rewarddance references recipes/shapeworld_refl.yaml --ray local --workers 2"))
def references(
    recipe: Annotated[Path, typer.Argument(help="A recipe file of align.")],
    overrides: Overrides = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster, or local: make them there.")] = None,
    workers: Annotated[
        int, typer.Option(help="Processes of Ray, with generator and judge each.", min=1, max=MOST_WORKERS)
    ] = 1,
    skip_faulty: Annotated[bool, typer.Option("--skip-faulty", help=_SKIP)] = False,
) -> None:
    """Make the reference bank of an align recipe before it runs; run again to continue an interrupted one.

    `rewarddance align` with the same recipe then takes it from the run's folder. With --ray it is made by workers on
    other machines, and is the same bank; all must see the folder.
    """
    quiet()
    from rewarddance.alignment.recipe import AlignRun
    from rewarddance.jobs.fleet import Fleet
    from rewarddance.jobs.references import run_references
    from rewarddance.runtime.config import load_recipe

    if workers > 1 and ray is None:
        raise InputError("--workers are those of Ray.", "Say where it is: --ray local, or a cluster's address.")
    run = load_recipe(AlignRun, recipe, _with_skip(overrides, skip_faulty))
    fleet = None if ray is None else Fleet.join(ray, workers, run.device)
    if (made := run_references(run, fleet)) is not None:
        print_result(made)


@recipe_command(
    app,
    PlanRun,
    arguments=("recipe",),
    extra="overrides",
    example="rewarddance plan recipes/judges/internvl3-8b.yaml --gpus 4 --gpu h100",
)
def plan(run: PlanRun) -> None:
    """Say what a recipe needs, without weights: parameters, tokens, memory by part, operations, time.

    The recipe's own step is run on shapes alone, in seconds and on any machine. A judge is a folder with config.json
    or one of the public InternVL3, Qwen3-VL and InternVL2.5-26B-MPO; a generator is a diffusers folder or one of the
    public ones that the recipes name. Weights may be missing. A search is planned by a file with its options. Where it
    does not fit, changes are tried, micro-batches first, and the first that fits is named; the exit code is then 1, or
    0 where the changed recipe was written to --output.
    """
    quiet()
    from rewarddance.jobs.plan import check_new_recipe, plan_recipe, write_fitting
    from rewarddance.planning.table import print_plan

    if run.output:
        check_new_recipe(run.output)
    memory_plan = plan_recipe(run.recipe, run.overrides, run)
    if run.json_output:
        print_result(memory_plan.as_json())
    else:
        print_plan(memory_plan)
    if run.output:
        write_fitting(memory_plan, run.recipe, run.overrides, run.output)
    elif not memory_plan.fits:
        raise typer.Exit(1)


def _with_skip(overrides: list[str] | None, skip_faulty: bool) -> list[str]:
    return [*(overrides or []), *(["skip_faulty=true"] if skip_faulty else [])]


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
