"""The experiments as commands; those on a recipe go on where they were cut off."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from rewarddance.cli import main
from rewarddance.cli.app import Overrides, example, given_path, quiet
from rewarddance.errors import InputError

app = typer.Typer(
    name="python -m experiments",
    help="The paper's tables and ours, measured on ShapeWorld. Run from the root of the repository, with the package "
    "installed there (pip install -e .).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
GRIDS = {
    "algorithms": "Every way to align at equal seconds, by the oracle: algorithms, budgets and judges, over seeds.",
    "annotation": "Which pairs people are asked about: a judge's accuracy by votes, for each policy, over seeds.",
    "disagreement": "Judges taught shares of votes against judges taught hard majorities, by how many votes are wrong.",
    "hacking": "Runs made to be hacked, with safeguards and without, and honest ones: do alarms ring, and in time?",
    "judges": "Kinds of reward and contexts, trained and zero-shot, at every size, over seeds.",
    "pareto": "Two rewards that pull apart, at several weights: how much of the one is paid for with the other.",
    "references": "ReFL with good and bad references, on one generator or several, over seeds (the paper's Table 8).",
    "scaling": "Judges of several sizes and contexts: accuracy, gains by alignment and search, spread, hackability.",
    "search": "Search methods in equal seconds, with a weak and a strong judge, over seeds; best of N as N grows.",
}
"""The experiments that `grid.Experiment` runs, each a module of its name."""


def _read(name: str, recipe: Path, overrides: list[str]) -> Any:
    """An experiment's recipe. Raises InputError, which says of which other experiment it is one."""
    from rewarddance.runtime.config import load_recipe

    def read(of: str) -> Any:
        return load_recipe(import_module(f"experiments.{of}").EXPERIMENT.recipe_kind, recipe, overrides)

    try:
        return read(name)
    except InputError as error:
        for other in sorted(GRIDS.keys() - {name}):
            if _is_read(read, other):
                what = f"{recipe} is a recipe of the experiment {other}, and not of {name}: {error.what}"
                raise InputError(what, f"Run `python -m experiments {other} {recipe}`.") from error
        raise


def _is_read(read: Callable[[str], Any], name: str) -> bool:
    try:
        read(name)
    except InputError:
        return False
    return True


def _add_grid(name: str, text: str) -> None:
    files = f"{name}.md, its figures and results.json in the folder are written anew after each cell."
    head = f"{text} Run again to go on.\n\n{files}"

    @app.command(name, help=head, epilog=example(f"python -m experiments {name} recipes/experiments/{name}.yaml"))
    def run(
        recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
        overrides: Overrides = None,
        output: Annotated[
            Path | None,
            typer.Option(
                help="The folder of the tables and of all that they are made from; by default in runs/, by the recipe.",
                parser=given_path,
            ),
        ] = None,
        quick: Annotated[
            bool, typer.Option(help="The smallest numbers: all of it runs in minutes, and its figures mean nothing.")
        ] = False,
        rows: Annotated[
            Path | None,
            typer.Option(help="Rows measured before, which a new folder begins with."),
        ] = None,
    ) -> None:
        quiet()
        experiment = import_module(f"experiments.{name}").EXPERIMENT
        read = _read(name, recipe, overrides or [])
        if quick and not hasattr(read, "quick"):
            raise InputError(f"the experiment {name} has no quick form.", "Lower the numbers of its recipe.")
        read = read.quick() if quick else read
        own = Path("runs") / (recipe.stem.replace("_", "-") + ("-quick" if quick else ""))
        typer.echo(experiment(read, output or own, rows).run())


for _name, _text in GRIDS.items():
    _add_grid(_name, _text)


@app.command(epilog=example("python -m experiments seeds runs/quickstart-seed0 runs/quickstart-seed1"))
def seeds(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs that differ in their seed.")],
) -> None:
    """Quickstart runs put together over seeds, as Markdown: judges, gains, good, same, bad, and categories."""
    quiet()
    from experiments.seeds import over_seeds

    typer.echo(over_seeds(runs))


@app.command(epilog=example("python -m experiments gradient runs/quickstart-seed0"))
def gradient(
    run: Annotated[Path, typer.Argument(help="A run of the quickstart whose judge is trained.")],
    prompts: Annotated[int, typer.Option(min=6, help="Held-out prompts.")] = 48,
    samples: Annotated[int, typer.Option(min=2, help="Samples a prompt.")] = 4,
    size: Annotated[float, typer.Option(min=1e-6, help="How far, as a share of x_0's length.")] = 0.3,
) -> None:
    """At which steps of the sampler the judge's gradient leads to better samples, by the oracle. Trains nothing."""
    quiet()
    from experiments.gradient import as_markdown, probe_gradient
    from rewarddance.jobs.quickstart import resume_run

    resumed = resume_run(run)
    effects = probe_gradient(resumed, prompts, samples, size)
    typer.echo(as_markdown(effects, resumed.recipe.num_inference_steps, size))


@app.command(
    epilog=example("python -m experiments pictures runs/quickstart-seed0 --hacked runs/pushed --guarded runs/guarded")
)
def pictures(
    run: Annotated[Path, typer.Argument(help="A finished run of the quickstart.")],
    hacked: Annotated[Path | None, typer.Option(help="A run with the oracle's probes whose reward was hacked.")] = None,
    guarded: Annotated[Path | None, typer.Option(help="The same with safeguards.")] = None,
    output: Annotated[Path, typer.Option(help="The folder to write into.", parser=given_path)] = Path("docs/images"),
) -> None:
    """README's two pictures: samples before and after, and oracle against P(yes) of a hacked and a guarded run."""
    quiet()
    from experiments.pictures import write_pictures

    for path in write_pictures(run, hacked, guarded, output):
        typer.echo(path)


if __name__ == "__main__":
    main(app)
