"""The algorithms that align a generator, listed by name, and the one way to run any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from rewarddance.alignment.awm import AwmRecipe
from rewarddance.alignment.crd import CrdRecipe
from rewarddance.alignment.dgpo import DgpoRecipe
from rewarddance.alignment.dpo import DpoRecipe, dpo_updates
from rewarddance.alignment.failed_groups import FailedGroups
from rewarddance.alignment.flow_grpo import GrpoRecipe, grpo_updates
from rewarddance.alignment.forward_process import forward_updates
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.joint import joint_judge
from rewarddance.alignment.nft import NftRecipe
from rewarddance.alignment.online_dpo import OnlineDpoRecipe
from rewarddance.alignment.references import (
    ReferenceBank,
    ReferenceRecipe,
    bank_refresher,
    build_references,
    failed_references,
)
from rewarddance.alignment.refl import refl_updates
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.train import Alignment, Figures, Trainable, TrainRecipe, Updates, train
from rewarddance.data.faults import FaultyRow
from rewarddance.data.preferences import PreferenceSet
from rewarddance.errors import InputError
from rewarddance.protocols import Generator, RewardModel
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Prompt, as_prompts


@dataclass(frozen=True)
class Algorithm:
    """title: on the progress bar. recipe: its keys, which say what it needs of a judge and of references. updates: of a
    step."""

    title: str
    recipe: type[TrainRecipe]
    updates: Updates


ALGORITHMS = {
    "refl": Algorithm("ReFL", ReflRecipe, refl_updates),
    "grpo": Algorithm("GRPO", GrpoRecipe, grpo_updates),
    "nft": Algorithm("NFT", NftRecipe, forward_updates),
    "awm": Algorithm("AWM", AwmRecipe, forward_updates),
    "dgpo": Algorithm("DGPO", DgpoRecipe, forward_updates),
    "crd": Algorithm("CRD", CrdRecipe, forward_updates),
    "dpo": Algorithm("DPO", DpoRecipe, dpo_updates),
    "online_dpo": Algorithm("Online DPO", OnlineDpoRecipe, forward_updates),
}


class AlgorithmConfig(Recipe):
    """Which algorithm aligns: ReFL goes through the judge's gradient; the others only ask it.

    algorithm: refl; grpo, which is Flow-GRPO; nft, which is DiffusionNFT, awm, dgpo, crd and online_dpo, which noise
        finished samples again. dpo learns from votes on pictures, and asks no judge.
    refl, grpo, nft, awm, dgpo, crd, online_dpo, dpo: keys of the algorithm.
    references: of the bank, which ReFL and `judging: references` need.
    """

    algorithm: Literal["refl", "grpo", "nft", "awm", "dgpo", "crd", "online_dpo", "dpo"] = "refl"
    references: ReferenceRecipe = ReferenceRecipe()
    refl: ReflRecipe = ReflRecipe()
    grpo: GrpoRecipe = GrpoRecipe()
    nft: NftRecipe = NftRecipe()
    awm: AwmRecipe = AwmRecipe()
    dgpo: DgpoRecipe = DgpoRecipe()
    crd: CrdRecipe = CrdRecipe()
    online_dpo: OnlineDpoRecipe = OnlineDpoRecipe()
    dpo: DpoRecipe = DpoRecipe()

    @model_validator(mode="after")
    def _only_the_algorithms_own_keys(self) -> AlgorithmConfig:
        for name, algorithm in ALGORITHMS.items():
            if name != self.algorithm and getattr(self, name) != algorithm.recipe():
                raise ValueError(f"algorithm is {self.algorithm}, so {name} says nothing: leave it out")
        if not self.asks_references and self.references != ReferenceRecipe():
            with_them = "refl" if self.algorithm == "dpo" else f"refl, or for {self.algorithm}.judging: references"
            raise ValueError(f"references are for {with_them}; {self.algorithm} has none here: leave them out")
        return self

    @property
    def asks_references(self) -> bool:
        """Are samples judged against references, of which a bank is made first?"""
        return self.algorithm == "refl" or getattr(self.chosen, "judging", None) == "references"

    @property
    def chosen(self) -> TrainRecipe:
        """The algorithm's own recipe."""
        return getattr(self, self.algorithm)


def algorithm_of(recipe: TrainRecipe) -> Algorithm:
    """The algorithm that has this kind of recipe."""
    return next(algorithm for algorithm in ALGORITHMS.values() if isinstance(recipe, algorithm.recipe))


def check_parts(recipe: TrainRecipe, generator: Generator, judge: RewardModel | None) -> None:
    """Raises InputError where the algorithm cannot align this generator, or cannot do it by this judge, or by none."""
    if isinstance(recipe, DpoRecipe):
        recipe.check_votes(generator, judge)
    elif judge is None:
        raise InputError("no judge is given, and the algorithm asks one.", "Give one, or take dpo with preferences.")
    else:
        recipe.check(generator, judge)


def check_beginning(recipe: TrainRecipe, generator: Trainable, begin_with: Path | None) -> None:
    """Raises InputError where training cannot go on from the LoRA in the folder `begin_with`."""
    if begin_with is None:
        return
    if not recipe.lora_rank:
        raise InputError("training of all weights cannot begin with a LoRA.", "Give a lora_rank, or leave it out.")
    generator.check_lora_goes_on(begin_with, recipe.lora_rank, recipe.alpha, recipe.lora_targets)


def read_votes(recipe: TrainRecipe, faults: list[FaultyRow] | None = None) -> PreferenceSet:
    """The preferences of dpo; see `PreferenceSet` for faults. Raises InputError where they cannot be used."""
    assert isinstance(recipe, DpoRecipe) and recipe.preferences is not None
    return PreferenceSet(recipe.preferences, for_training=True, faults=faults)


def as_rewards(
    recipe: TrainRecipe, generator: Generator, judges: RewardModel | Mapping[str, tuple[RewardModel, float]]
) -> list[Reward]:
    """One judge, or several by name with their weights, as the algorithm asks each of them.

    Raises InputError naming the one by which it cannot align the generator, and where all weights are 0.
    """
    if not isinstance(judges, Mapping):
        check_parts(recipe, generator, judges)
        return [Reward(judges, recipe.judging_of(judges))]
    if not any(weight for _, weight in judges.values()):
        raise InputError("all rewards have the weight 0, so there is nothing to learn.", "Give one of them a weight.")
    rewards = []
    for name, (judge, weight) in judges.items():
        try:
            check_parts(recipe, generator, judge)
            rewards.append(Reward(judge, recipe.judging_of(judge), weight, name))
        except InputError as error:
            raise InputError(f"the reward {name}: {error.what}", error.remedy) from error
    return rewards


def prepare_alignment(
    config: AlgorithmConfig,
    generator: Trainable,
    judge: RewardModel | Mapping[str, tuple[RewardModel, float]] | None,
    prompts: Sequence[str | Prompt],
    *,
    references_folder: Path,
    seed: int = 0,
    held_out: RewardModel | None = None,
    begin_with: Path | None = None,
    preferences: PreferenceSet | None = None,
) -> Alignment:
    """What `align_generator` takes. Where samples are judged against references, the bank is made (or read) first.

    judge: one, or several by name with their weights; None where the algorithm learns from preferences. Several choose
    the references together (`JointReward`).
    begin_with: the folder of a LoRA to go on from.
    preferences: the votes of dpo, where they have been read already (`read_votes`).
    Prompts of which no references can be made are left out, and are among the run's `failed`.
    Raises InputError for what cannot be, before anything is made.
    """
    rewards = []
    if judge is None:
        check_parts(config.chosen, generator, None)
    else:
        rewards = as_rewards(config.chosen, generator, judge)
    check_beginning(config.chosen, generator, begin_with)
    if judge is None:
        if preferences is None:
            preferences = read_votes(config.chosen)
        return Alignment(generator, [], prompts, config.chosen, seed, begin_with=begin_with, preferences=preferences)
    bank, failed = None, FailedGroups()
    if rewards[0].judging == "references":
        chooses = joint_judge(rewards)
        place: dict[str, Any] = {"folder": references_folder, "seed": seed}
        references = build_references(generator, chooses, prompts, config.references, **place)
        failed = FailedGroups(failed_references(references_folder, as_prompts(prompts)))
        prompts = [prompt_references.prompt for prompt_references in references]
        redraw = bank_refresher(generator, chooses, prompts, config.references, first=references, **place)
        bank = ReferenceBank(references, redraw)
    return Alignment(generator, rewards, prompts, config.chosen, seed, bank, held_out, begin_with, failed)


def align_generator(run: Alignment, *, folder: Path, metrics: Metrics, probe: Callable[[], Figures] = dict) -> Path:
    """Train the run's generator by the algorithm whose recipe it has; see `train`.

    Raises InputError for what cannot be, before anything is done.
    """
    for judge in [reward.judge for reward in run.rewards] or [None]:
        check_parts(run.recipe, run.generator, judge)
    if run.rewards and run.rewards[0].judging == "references" and not (run.bank and run.bank.references):
        raise InputError("the reference bank is empty.", "Give at least one prompt.")
    algorithm = algorithm_of(run.recipe)
    return train(run, algorithm.updates, algorithm.title, folder=folder, metrics=metrics, probe=probe)
