"""The two loops as runs of their own: train a judge on a preferences file, align a generator with a trained judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from rewarddance.alignment.references import ReferenceRecipe, build_references
from rewarddance.alignment.train import ReflRecipe, train_refl
from rewarddance.data.preferences import PreferenceSet
from rewarddance.data.prompts import read_prompts
from rewarddance.evaluation.agreement import accuracy
from rewarddance.evaluation.examine import ExamRecipe
from rewarddance.generators.pipelines import load_generator
from rewarddance.lab.evaluate import document, training_facts
from rewarddance.protocols import RewardModel
from rewarddance.reward.kinds import load_reward
from rewarddance.reward.train import JudgeRecipe, train_judge
from rewarddance.runtime.checkpoint import writable_folder
from rewarddance.runtime.config import Recipe, keep_recipe
from rewarddance.runtime.tracking import Metrics


class TrainRun(Recipe):
    """`rewarddance train`: preferences is a JSONL file; tests are further ones, by name; exam: how the trained judge is
    examined on them, for its model card."""

    preferences: Path
    tests: dict[str, Path] = Field(default_factory=dict)
    output: Path
    seed: int = 0
    judge: JudgeRecipe = JudgeRecipe()
    exam: ExamRecipe = ExamRecipe()


class AlignRun(Recipe):
    """`rewarddance align`: prompts is a .txt or .jsonl file; judge is a trained reward's folder.

    guidance_scale, generator_options: of `load_generator`, which knows what each family does with them.
    """

    generator: str
    num_inference_steps: int = Field(default=28, ge=2)
    guidance_scale: float | None = Field(default=None, ge=0)
    generator_options: dict[str, Any] = Field(default_factory=dict)
    judge: str
    prompts: Path
    output: Path
    seed: int = 0
    references: ReferenceRecipe = ReferenceRecipe()
    refl: ReflRecipe = ReflRecipe()


def run_training(recipe: TrainRun) -> dict[str, Any]:
    """Train, examine on every test set, and say where the reward is, with its model card. An interrupted run goes on
    where it stopped."""
    training = PreferenceSet(recipe.preferences, for_training=True)
    tests = {name: list(PreferenceSet(path)) for name, path in recipe.tests.items()}
    folder = writable_folder(recipe.output)
    keep_recipe(recipe, folder / "config.yaml")

    def watch(judge: RewardModel) -> dict[str, float]:
        return {f"accuracy_{name}": accuracy(judge, pairs).mean for name, pairs in tests.items()}

    judge = train_judge(recipe.judge, training, folder, Metrics(folder / "metrics.jsonl"), recipe.seed, watch)
    facts = training_facts(recipe.judge, recipe.preferences, len(training), recipe.seed)
    return {"reward": str(folder / "reward"), **document(judge, folder / "reward", facts, recipe.tests, recipe.exam)}


def run_alignment(recipe: AlignRun) -> dict[str, Any]:
    """Build the reference bank and run ReFL; returns where the LoRA is. An interrupted run goes on where it stopped."""
    prompts = list(dict.fromkeys(prompt.text for prompt in read_prompts(recipe.prompts)))
    drawing = {"num_inference_steps": recipe.num_inference_steps, "guidance_scale": recipe.guidance_scale}
    generator = load_generator(recipe.generator, **{**drawing, **recipe.generator_options})
    judge = load_reward(recipe.judge)
    folder = writable_folder(recipe.output)
    keep_recipe(recipe, folder / "config.yaml")
    bank = build_references(generator, judge, prompts, recipe.references, folder / "references", recipe.seed)
    train_refl(generator, judge, bank, recipe.refl, folder, Metrics(folder / "metrics.jsonl"), recipe.seed)
    return {"lora": str(folder / "lora"), "prompts": len(prompts)}
