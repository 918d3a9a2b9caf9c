"""The two loops as runs of their own: train a judge on a preferences file, align a generator with a trained judge."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from rewarddance.alignment.grpo_step import GrpoRecipe, train_grpo
from rewarddance.alignment.nft_step import NftRecipe, train_nft
from rewarddance.alignment.policy import against_base
from rewarddance.alignment.references import ReferenceRecipe, bank_refresher, build_references
from rewarddance.alignment.refl_step import ReflRecipe, train_refl
from rewarddance.alignment.rewards import Reward, judging_of
from rewarddance.data.preferences import PreferenceSet
from rewarddance.data.prompts import conditions_of, keep_prompts, read_prompts
from rewarddance.errors import InputError
from rewarddance.evaluation.agreement import agreement
from rewarddance.evaluation.examine import ExamRecipe
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.evaluate import document, training_facts
from rewarddance.jobs.sample_grids import with_grids
from rewarddance.protocols import RewardModel
from rewarddance.report.run_folder import read_alarms
from rewarddance.reward.judge import Judge
from rewarddance.reward.loading import load_reward
from rewarddance.reward.train import JudgeRecipe, check_training, train_judge
from rewarddance.runtime import process_group
from rewarddance.runtime.checkpoint import writable_folder
from rewarddance.runtime.config import Recipe, Seed, keep_recipe
from rewarddance.runtime.devices import find_device, find_dtype
from rewarddance.runtime.process_group import init_process_group, is_main_process, main_process_first
from rewarddance.runtime.trackers import check_trackers, reporting
from rewarddance.runtime.tracking import Metrics, console
from rewarddance.types import Preference


class TrainRun(Recipe):
    """`rewarddance train`: preferences is a JSONL file; tests are further ones, by name; exam: how the trained judge is
    examined on them, for its model card."""

    preferences: Path
    tests: dict[str, Path] = Field(default_factory=dict)
    output: Path
    seed: Seed = 0
    judge: JudgeRecipe = JudgeRecipe()
    exam: ExamRecipe = ExamRecipe()

    @model_validator(mode="after")
    def _can_choose(self) -> TrainRun:
        figures = [f"accuracy_{name}" for name in self.tests]
        if self.judge.keep_best and self.judge.keep_best not in figures:
            raise ValueError(
                f"judge.keep_best is {self.judge.keep_best!r}, and tests give {', '.join(figures) or 'none'}"
            )
        return self


class AlignRun(Recipe):
    """`rewarddance align`: prompts is a .txt or .jsonl file; judge is a trained reward's folder.

    algorithm: ReFL goes through the judge's gradient; Flow-GRPO ("grpo") and DiffusionNFT ("nft") only ask it, and
    further judges, if any are in `more_judges`, each with its weight beside the first one's 1. refl, grpo, nft: of the
    algorithm. held_out: folder of another trained reward, which gates ReFL's gradient and is watched.
    references: of the bank, which ReFL and `judging: references` need.
    guidance_scale, generator_options: of `load_generator`, which knows what each family does with them. dtype: what the
    generator computes in; judge_dtype: of the judge's weights. device, judge_device: cpu, cuda or cuda:1; by default
    cuda where there is one, and for the judge the generator's. Of several processes each has its own GPU for both.
    grid_prompts: how many prompts are drawn at each probe for a grid of samples (`with_grids`); 0 for none. report_to:
    trackers, by accelerate's names, beside metrics.jsonl.
    """

    generator: str
    num_inference_steps: int = Field(default=28, ge=2)
    guidance_scale: float | None = Field(default=None, ge=0)
    generator_options: dict[str, Any] = Field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    judge: str
    judge_dtype: Literal["float32", "bfloat16"] = "float32"
    judge_device: str | None = None
    more_judges: dict[str, float] = Field(default_factory=dict)
    held_out: str | None = None
    prompts: Path
    output: Path
    seed: Seed = 0
    grid_prompts: int = Field(default=4, ge=0)
    report_to: tuple[str, ...] = ()
    references: ReferenceRecipe = ReferenceRecipe()
    algorithm: Literal["refl", "grpo", "nft"] = "refl"
    refl: ReflRecipe = ReflRecipe()
    grpo: GrpoRecipe = GrpoRecipe()
    nft: NftRecipe = NftRecipe()

    @model_validator(mode="after")
    def _only_what_is_used(self) -> AlignRun:
        for name, default in (("refl", ReflRecipe()), ("grpo", GrpoRecipe()), ("nft", NftRecipe())):
            if name != self.algorithm and getattr(self, name) != default:
                raise ValueError(f"algorithm is {self.algorithm}, so {name} says nothing: leave it out")
        if self.more_judges and self.algorithm == "refl":
            raise ValueError("more_judges are for grpo and nft; ReFL follows one judge's gradient")
        if self.held_out and self.algorithm != "refl":
            raise ValueError("held_out gates the gradient of refl; of grpo and nft it is one of more_judges")
        if any(weight <= 0 for weight in self.more_judges.values()):
            raise ValueError("more_judges have weights above 0")
        return self

    @property
    def policy(self) -> GrpoRecipe | NftRecipe | None:
        """The policy gradient's recipe, if it is one that runs."""
        return {"refl": None, "grpo": self.grpo, "nft": self.nft}[self.algorithm]

    def devices(self) -> tuple[str, str]:
        """The generator's and the judge's. Raises InputError where one is not there, or not this process's alone."""
        there = process_group.device().type if process_group.world_size() > 1 else None
        for key, name in (("device", self.device), ("judge_device", self.judge_device)):
            if there and name not in (None, there, "cpu"):
                raise InputError(
                    f"{key} is {name}, and each of {process_group.world_size()} processes computes on its own "
                    f"({there}).",
                    f"Leave {key} out.",
                )
        own = find_device(self.device or there)
        return own, find_device(self.judge_device or own)


def run_training(recipe: TrainRun) -> dict[str, Any]:
    """Train, examine on every test set, and say where the reward is, with its model card. An interrupted run goes on
    where it stopped. Of several processes all train, the first one examines, and the others return nothing."""
    with init_process_group():
        with main_process_first():
            training = PreferenceSet(recipe.preferences, for_training=True)
            tests = {name: PreferenceSet(path) for name, path in recipe.tests.items()}
            for pairs in tests.values():
                _refuse_ties_alone(pairs)
            check_training(recipe.judge, bool(tests))
            folder = writable_folder(recipe.output)
            keep_recipe(recipe, folder / "config.yaml", binding=_has_begun(folder))

        def watch(judge: RewardModel) -> dict[str, float]:
            return {f"accuracy_{name}": streamed_accuracy(judge, pairs) for name, pairs in tests.items()}

        metrics, evaluate = Metrics(folder / "metrics.jsonl"), watch if tests else None
        judge = train_judge(recipe.judge, training, folder, metrics, recipe.seed, evaluate)
        if not is_main_process():
            return {}
    facts = training_facts(recipe.judge, recipe.preferences, len(training), recipe.seed)
    examined = recipe.tests if _at_hand(judge) else {}
    return {"reward": str(folder / "reward"), **document(judge, folder / "reward", facts, examined, recipe.exam)}


def _has_begun(folder: Path) -> bool:
    """Was a step taken here? A run that ended before, at a misspelt base say, binds nobody to its recipe."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "reward")) or any(folder.glob("checkpoint-*"))


def _refuse_ties_alone(pairs: PreferenceSet) -> None:
    """Raises InputError where a test set has no order to be right about: before the training, not at a checkpoint."""
    if all(pairs.row(i).share == 0.5 for i in range(len(pairs))):
        raise InputError(
            f"none of the {len(pairs)} pairs has an order in {pairs.path}.", "Give pairs whose share is not 0.5."
        )


def streamed_accuracy(judge: RewardModel, pairs: Sequence[Preference], at_once: int = 128) -> float:
    """Mean agreement on a set, not all ties, of which `at_once` pairs are in memory."""
    starts = range(0, len(pairs), at_once)
    parts = [agreement(judge, [pairs[i] for i in range(low, min(low + at_once, len(pairs)))]) for low in starts]
    return float(np.concatenate(parts).mean())


def _at_hand(judge: Judge) -> bool:
    """Puts a judge that was trained in pieces on the GPU, if one is enough for it."""
    if judge.model.device.type == process_group.device().type:
        return True
    gc.collect()  # the trainer, whose parts hold one another
    torch.cuda.empty_cache()
    needed, (free, _) = sum(w.nbytes for w in judge.model.parameters()), torch.cuda.mem_get_info()
    if free < 1.3 * needed:
        console.print("One GPU is too small to examine the judge; `rewarddance evaluate` does it where there is room.")
        return False
    judge.model.to(process_group.device())
    return True


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
    (policy or recipe.refl).check_processes()
    device, judge_device = recipe.devices()
    asked = list({(one.text, one.condition): one for one in read_prompts(recipe.prompts)}.values())
    prompts, conditions = [one.text for one in asked], conditions_of(asked)
    drawing = {"num_inference_steps": recipe.num_inference_steps, "guidance_scale": recipe.guidance_scale}
    drawing |= {"device": device, "dtype": find_dtype(recipe.dtype)}
    generator = load_generator(recipe.generator, **{**drawing, **recipe.generator_options})
    generator.check_pictures(prompts, [one.condition for one in asked])
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
            keep_prompts(asked, folder / "prompts.jsonl")
    bank = None
    if policy is None or rewards[0].judging == "references":
        place = folder / "references"
        bank = build_references(generator, judge, prompts, recipe.references, place, recipe.seed, conditions=conditions)
    with reporting(recipe.report_to, folder, recipe) as trackers:
        metrics = Metrics(folder / "metrics.jsonl", trackers)
        loop = policy or recipe.refl
        at_once = min(recipe.references.batch_size, loop.generator_batch or loop.prompts_per_step * loop.group_size)
        shown = generator, prompts, recipe.grid_prompts, folder, metrics, recipe.algorithm, recipe.seed, at_once
        if policy is not None:
            probe = against_base(generator, rewards[0], prompts, policy, recipe.seed, conditions)
            probe = with_grids(probe, *shown, conditions)
            common = generator, rewards, prompts
            if isinstance(policy, GrpoRecipe):
                aligned = train_grpo(*common, policy, folder, metrics, recipe.seed, probe, bank, conditions)
            else:
                aligned = train_nft(*common, policy, folder, metrics, recipe.seed, probe, bank, conditions)
        else:
            place = folder / "references"
            redraw = bank_refresher(generator, judge, prompts, recipe.references, place, recipe.seed, conditions)
            aligned = train_refl(
                generator, judge, bank or [], recipe.refl, folder, metrics, recipe.seed,
                with_grids(dict, *shown, conditions), held_out, redraw,
            )  # fmt: skip
    if not is_main_process():
        return {}
    return {aligned.name: str(aligned), "prompts": len(prompts), "alarms": len(read_alarms(folder))}
