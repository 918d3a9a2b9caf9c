"""The paper's tables; each command goes on where it was cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarddance.cli.app import Overrides, example, lab, quiet


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
    quiet()
    from experiments.judges import JudgesRecipe, compare_judges
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
    quiet()
    from experiments.search import SearchingRecipe, compare_searches
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
    quiet()
    from experiments.disagreement import DisagreementRecipe, compare_labels
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
    quiet()
    from experiments.references import ReferencesRecipe, compare_references
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
    quiet()
    from experiments.alignment import AlignmentRecipe, compare_alignments
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
    quiet()
    from experiments.hacking import HackingRecipe, compare_hacks
    from rewarddance.runtime.config import load_recipe

    typer.echo(compare_hacks(load_recipe(HackingRecipe, recipe, overrides or []), output))


@lab.command("seeds", epilog=example("rewarddance lab seeds runs/quickstart-seed0 runs/quickstart-seed1"))
def lab_seeds(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs that differ in their seed.")],
) -> None:
    """Runs of the main job put together over seeds, as Markdown: judges, gains, good, same, bad, and categories."""
    quiet()
    from experiments.seeds import over_seeds

    typer.echo(over_seeds(runs))


@lab.command("gradient", epilog=example("rewarddance lab gradient runs/quickstart-seed0"))
def lab_gradient(
    run: Annotated[Path, typer.Argument(help="A run of the main job whose judge is trained.")],
    prompts: Annotated[int, typer.Option(min=6, help="Held-out prompts.")] = 48,
    samples: Annotated[int, typer.Option(min=2, help="Samples a prompt.")] = 4,
    size: Annotated[float, typer.Option(min=1e-6, help="How far, as a share of x_0's length.")] = 0.3,
) -> None:
    """At which steps of the sampler the judge's gradient leads to better samples, by the oracle. Trains nothing."""
    quiet()
    from experiments.gradient import probe_gradient, told
    from rewarddance.jobs.quickstart import resume_run

    found = resume_run(run)
    typer.echo(told(probe_gradient(found, prompts, samples, size), found.recipe.num_inference_steps, size))
