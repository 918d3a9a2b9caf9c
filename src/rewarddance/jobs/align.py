"""What `rewarddance align` does: load a generator and its rewards, make the references, and run the algorithm."""

from __future__ import annotations

from functools import partial
from typing import Any

from rewarddance.alignment.algorithms import align_generator, prepare_alignment
from rewarddance.alignment.policy import PolicyRecipe, against_base
from rewarddance.alignment.recipe import AlignRun
from rewarddance.data.prompts import keep_prompts, read_prompts
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.sample_grids import with_grids
from rewarddance.report.run_folder import read_alarms
from rewarddance.reward.loading import load_reward
from rewarddance.runtime import process_group
from rewarddance.runtime.checkpoint import writable_folder
from rewarddance.runtime.config import keep_recipe
from rewarddance.runtime.devices import find_dtype
from rewarddance.runtime.process_group import init_process_group, is_main_process, main_process_first
from rewarddance.runtime.trackers import check_trackers, reporting
from rewarddance.runtime.tracking import Metrics


def run_alignment(recipe: AlignRun) -> dict[str, Any]:
    """Align; returns where the LoRA or the generator is. An interrupted run goes on.

    The reference bank is built first where the algorithm judges against references. Several processes align together,
    and all but the first return nothing.
    """
    with init_process_group():
        return _align(recipe)


def _align(recipe: AlignRun) -> dict[str, Any]:
    check_trackers(recipe.report_to)
    recipe.check_processes(process_group.world_size(), process_group.device().type)
    device, judge_device = recipe.devices()
    distinct = {(prompt.text, prompt.negative, prompt.image_path): prompt for prompt in read_prompts(recipe.prompts)}
    prompts = list(distinct.values())
    sampling = {"num_inference_steps": recipe.num_inference_steps, "guidance_scale": recipe.guidance_scale}
    sampling |= {"device": device, "dtype": find_dtype(recipe.dtype)}
    generator = load_generator(recipe.generator, **{**sampling, **recipe.generator_options})
    generator.check_prompts(prompts)
    generator.check_lora(recipe.chosen.lora_targets)
    load = partial(load_reward, device=judge_device, dtype=find_dtype(recipe.judge_dtype))
    judge = load(recipe.judge)
    more_judges = [(load(name), weight) for name, weight in recipe.more_judges.items()]
    held_out = load(recipe.held_out) if recipe.held_out else None
    recipe.chosen.check(generator, judge)  # what cannot be is refused before the folder is claimed
    recipe.chosen.judging_of(judge)
    with main_process_first():
        folder = writable_folder(recipe.output)
        keep_recipe(recipe, folder / "config.yaml")
        if is_main_process():
            keep_prompts(prompts, folder / "prompts.jsonl")
    run = prepare_alignment(
        recipe,
        generator,
        judge,
        prompts,
        references_folder=folder / "references",
        seed=recipe.seed,
        more_judges=more_judges,
        held_out=held_out,
    )
    with reporting(recipe.report_to, folder, recipe) as trackers:
        metrics, loop = Metrics(folder / "metrics.jsonl", trackers), run.recipe
        at_once = min(recipe.references.batch_size, loop.generator_batch or loop.prompts_per_step * loop.group_size)
        probe = with_grids(
            against_base(run) if isinstance(loop, PolicyRecipe) else dict,
            generator,
            prompts,
            metrics,
            count=recipe.grid_prompts,
            phase=recipe.algorithm,
            seed=recipe.seed,
            batch_size=at_once,
        )
        aligned = align_generator(run, folder=folder, metrics=metrics, probe=probe)
    if not is_main_process():
        return {}
    return {aligned.name: str(aligned), "prompts": len(prompts), "alarms": len(read_alarms(folder))}
