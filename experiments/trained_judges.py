"""The judges of an experiment: trained under a seed as the quickstart trains its own, and tested prompt by prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.grid import remove_checkpoints
from rewarddance.data.preferences import PreferenceSet
from rewarddance.evaluation.agreement import agreement
from rewarddance.jobs.quickstart import QuickstartRecipe, Run, gather_preferences
from rewarddance.protocols import RewardModel
from rewarddance.report.run_folder import read_metrics
from rewarddance.reward.judge import USED_BY, Judge
from rewarddance.reward.loading import load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import train_judge
from rewarddance.runtime.checkpoint import writable_folder
from rewarddance.runtime.config import parse_recipe
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Preference


def with_options(judge: JudgeRecipe, options: dict[str, Any], where: str, base: str | None = None) -> JudgeRecipe:
    """How a judge of other options is trained: `judge`, without what the kind has no use for, and the options over it.

    base: its checkpoint where the options have none. Raises InputError naming `where` and the key that is not right.
    """
    kind = options.get("kind", judge.kind)
    shared = {key: value for key, value in judge.model_dump().items() if kind in USED_BY.get(key, (kind,))}
    return parse_recipe(JudgeRecipe, shared | ({"base": base} if base else {}) | options, where)


def seed_preferences(recipe: QuickstartRecipe, folder: Path) -> dict[str, PreferenceSet]:
    """The preferences of a run, made in its folder once: train, and the test sets id, early and ood."""
    run = Run(writable_folder(folder), recipe)
    counts = run.stage("preferences", lambda: gather_preferences(run))
    return {name: PreferenceSet(folder / "preferences" / f"{name}.jsonl") for name in counts}


def train(recipe: JudgeRecipe, pairs: Sequence[Preference], folder: Path, seed: int) -> tuple[Judge, float]:
    """The judge, and the processor's seconds that its training took, those before an interruption too."""
    logged = [row["seconds"] for row in read_metrics(folder) if row["kind"] == "evaluation"]
    before, began = (logged[-1] if logged else 0.0), time.process_time()

    def spent(_: RewardModel) -> dict[str, float]:
        return {"seconds": before + time.process_time() - began}

    judge = train_judge(recipe, pairs, folder, Metrics(folder / "metrics.jsonl"), seed, spent)
    return judge, spent(judge)["seconds"]


def judge_of_seed(recipe: QuickstartRecipe, given: dict[int, str], folder: Path) -> Judge:
    """The judge that is `given` for a seed, or one trained in `folder`, once, as the quickstart would train it."""
    if recipe.seed in given:
        return load_reward(given[recipe.seed])
    if not (folder / "judge" / "reward").exists():
        train(recipe.judge, seed_preferences(recipe, folder)["train"], folder / "judge", recipe.seed)
        remove_checkpoints(folder / "judge")
    return load_reward(str(folder / "judge" / "reward"))


def check_given(judges: dict[int, str], seeds: Sequence[int]) -> None:
    """Raises ValueError where a judge is given for a seed that is not among them."""
    if unknown := sorted(set(judges) - set(seeds)):
        raise ValueError(f"there is a judge for seed {unknown[0]}, which is not among the seeds")


def judge_checkpoints(judge: JudgeRecipe, given: dict[int, str], seeds: Sequence[int]) -> list[str]:
    """The checkpoints of the judges of all seeds, given or trained."""
    return [*given.values(), *([] if set(seeds) <= set(given) else [judge.base])]


def by_prompt(judge: RewardModel, pairs: Sequence[Preference]) -> list[float]:
    """Each prompt's share of pairs that the judge orders rightly, in the order in which the prompts come.

    Pairs of one prompt show the same few pictures: the prompts, not the pairs, are independent.
    """
    right: dict[str, list[float]] = {}
    for pair, is_right in zip(pairs, agreement(judge, pairs).tolist(), strict=True):
        right.setdefault(pair.prompt.text, []).append(is_right)
    return [sum(answers) / len(answers) for answers in right.values()]
