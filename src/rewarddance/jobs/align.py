"""What `rewarddance align` does: load a generator and its rewards, make the references, and run the algorithm."""

from __future__ import annotations

from typing import Any

from rewarddance.alignment.grpo_step import GrpoRecipe, train_grpo
from rewarddance.alignment.nft_step import train_nft
from rewarddance.alignment.policy import against_base
from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.references import bank_refresher, build_references
from rewarddance.alignment.refl_step import train_refl
from rewarddance.alignment.rewards import Reward, judging_of
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
    policy = recipe.policy
    recipe.check_processes(process_group.world_size(), process_group.device().type)
    device, judge_device = recipe.devices()
    distinct = {(prompt.text, prompt.negative, prompt.image_path): prompt for prompt in read_prompts(recipe.prompts)}
    prompts = list(distinct.values())
    drawing = {"num_inference_steps": recipe.num_inference_steps, "guidance_scale": recipe.guidance_scale}
    drawing |= {"device": device, "dtype": find_dtype(recipe.dtype)}
    generator = load_generator(recipe.generator, **{**drawing, **recipe.generator_options})
    generator.check_prompts(prompts)
    generator.check_lora((policy or recipe.refl).lora_targets)
    judge, *others = (
        load_reward(name, judge_device, find_dtype(recipe.judge_dtype)) for name in (recipe.judge, *recipe.more_judges)
    )
    rewards = [Reward(judge, judging_of(judge, policy.judging if policy else None))]
    weights = recipe.more_judges.values()
    rewards += [Reward(other, judging_of(other, None), one) for other, one in zip(others, weights, strict=True)]
    held_out = load_reward(recipe.held_out, judge_device, find_dtype(recipe.judge_dtype)) if recipe.held_out else None
    if isinstance(policy, GrpoRecipe):  # what cannot be is refused before the folder is claimed
        policy.check(generator)
    elif policy is None:
        recipe.refl.first_grad_steps(generator.num_steps)
    with main_process_first():
        folder = writable_folder(recipe.output)
        keep_recipe(recipe, folder / "config.yaml")
        if is_main_process():
            keep_prompts(prompts, folder / "prompts.jsonl")
    bank = None
    if policy is None or rewards[0].judging == "references":
        place = folder / "references"
        bank = build_references(generator, judge, prompts, recipe.references, place, recipe.seed)
    with reporting(recipe.report_to, folder, recipe) as trackers:
        metrics = Metrics(folder / "metrics.jsonl", trackers)
        loop = policy or recipe.refl
        at_once = min(recipe.references.batch_size, loop.generator_batch or loop.prompts_per_step * loop.group_size)
        shown = generator, prompts, recipe.grid_prompts, folder, metrics, recipe.algorithm, recipe.seed, at_once
        if policy is not None:
            probe = against_base(generator, rewards[0], prompts, policy, recipe.seed)
            probe = with_grids(probe, *shown)
            common = generator, rewards, prompts
            if isinstance(policy, GrpoRecipe):
                aligned = train_grpo(*common, policy, folder, metrics, recipe.seed, probe, bank)
            else:
                aligned = train_nft(*common, policy, folder, metrics, recipe.seed, probe, bank)
        else:
            place = folder / "references"
            redraw = bank_refresher(generator, judge, prompts, recipe.references, place, recipe.seed)
            aligned = train_refl(
                generator, judge, bank or [], recipe.refl, folder, metrics, recipe.seed,
                with_grids(dict, *shown), held_out, redraw,
            )  # fmt: skip
    if not is_main_process():
        return {}
    return {aligned.name: str(aligned), "prompts": len(prompts), "alarms": len(read_alarms(folder))}
