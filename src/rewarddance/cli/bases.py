"""The bundled checkpoints, made again; some begin with others that are bundled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarddance.cli.app import app, example, given_path, quiet, recipe_file
from rewarddance.errors import InputError

BASES = (
    "judge",
    "judge-small",
    "judge-sizes",
    "generator",
    "unet",
    "clip",
    "video-judge",
    "video-generator",
    "edit-judge",
    "editor",
    "reward",
)


@app.command(epilog=example("rewarddance bases judge --output /tmp/bases"))
def bases(
    which: Annotated[str, typer.Argument(help=f"{', '.join(BASES)} or all.")] = "all",
    output: Annotated[Path, typer.Option(help="Where the checkpoint folders are written.", parser=given_path)] = Path(
        "bases"
    ),
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    begin: Annotated[
        Path | None, typer.Option(help="A judge base that gets its last stage anew (minutes), instead of all stages.")
    ] = None,
) -> None:
    """Make the bundled ShapeWorld checkpoints again, from nothing (hours on two cores)."""
    quiet()
    if which not in (*BASES, "all"):
        raise InputError(f"there is no base named {which!r}.", f"Say {', '.join(BASES)} or all.")
    if begin is not None and which not in ("judge", "judge-small"):
        raise InputError("begin is for one judge base.", "Say judge or judge-small, or leave begin out.")
    import torch

    from rewarddance.jobs.bundled_reward import NAME, make_bundled_reward
    from rewarddance.jobs.quickstart import QuickstartRecipe
    from rewarddance.runtime.checkpoint import writable_folder
    from rewarddance.runtime.config import load_recipe
    from rewarddance.shapeworld.training.clip import make_clip_base
    from rewarddance.shapeworld.training.edit_generator import make_edit_base
    from rewarddance.shapeworld.training.edit_judge import make_edit_judge_base
    from rewarddance.shapeworld.training.generator import make_generator_base
    from rewarddance.shapeworld.training.judge import STEPS, make_judge_base
    from rewarddance.shapeworld.training.judge_sizes import make_judge_sizes
    from rewarddance.shapeworld.training.unet import VAE, make_unet_base
    from rewarddance.shapeworld.training.video_generator import make_video_generator_base
    from rewarddance.shapeworld.training.video_judge import make_video_judge_base

    torch.set_num_threads(threads)
    writable_folder(output)
    for name in STEPS:
        if which in (name.removeprefix("shapeworld-"), "all"):
            make_judge_base(output / name, log=typer.echo, size=name, begin=begin)
    if which in ("judge-sizes", "all"):  # goes on where it was cut off
        make_judge_sizes(output, log=typer.echo)
    if which in ("generator", "all"):
        make_generator_base(output / "shapeworld-generator", log=typer.echo)
    if which in ("video-judge", "all"):
        make_video_judge_base(output / "shapeworld-video-judge", log=typer.echo)
    if which in ("video-generator", "all"):
        make_video_generator_base(output / "shapeworld-video-generator", log=typer.echo)
    if which in ("edit-judge", "all"):  # goes on where it was cut off
        make_edit_judge_base(output / "shapeworld-edit-judge", log=typer.echo)
    if which in ("editor", "all"):  # goes on where it was cut off
        make_edit_base(output / "shapeworld-editor", log=typer.echo)
    if which in ("unet", "all"):
        flow = output / "shapeworld-generator"  # whose VAE it takes: the one just made, or else the bundled one
        make_unet_base(output / "shapeworld-unet", log=typer.echo, vae=flow if which == "all" else VAE)
    if which in ("clip", "all"):
        make_clip_base(output / "shapeworld-clip", log=typer.echo)
    if which in ("reward", "all"):  # of the bundled judge base and generator
        make_bundled_reward(output / NAME, load_recipe(QuickstartRecipe, recipe_file("quickstart.yaml")))
