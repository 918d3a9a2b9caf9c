"""The algorithms that align a generator, listed by name, and the one way to run any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from rewarddance.alignment.awm import AwmRecipe
from rewarddance.alignment.crd import CrdRecipe
from rewarddance.alignment.dgpo import DgpoRecipe
from rewarddance.alignment.failed_groups import FailedGroups
from rewarddance.alignment.flow_grpo import GrpoRecipe, grpo_updates
from rewarddance.alignment.forward_process import forward_updates
from rewarddance.alignment.group_rewards import Reward, judging_of
from rewarddance.alignment.nft import NftRecipe
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
from rewarddance.errors import InputError
from rewarddance.generators.finetuning import LORA_FILE
from rewarddance.protocols import RewardModel
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
}


class AlgorithmConfig(Recipe):
    """Which algorithm aligns: ReFL goes through the judge's gradient; the others only ask it.

    algorithm: refl; grpo, which is Flow-GRPO; nft, which is DiffusionNFT, awm, dgpo and crd, which noise finished
        samples again.
    refl, grpo, nft, awm, dgpo, crd: keys of the algorithm.
    references: of the bank, which ReFL and `judging: references` need.
    """

    algorithm: Literal["refl", "grpo", "nft", "awm", "dgpo", "crd"] = "refl"
    references: ReferenceRecipe = ReferenceRecipe()
    refl: ReflRecipe = ReflRecipe()
    grpo: GrpoRecipe = GrpoRecipe()
    nft: NftRecipe = NftRecipe()
    awm: AwmRecipe = AwmRecipe()
    dgpo: DgpoRecipe = DgpoRecipe()
    crd: CrdRecipe = CrdRecipe()

    @model_validator(mode="after")
    def _only_the_algorithms_own_keys(self) -> AlgorithmConfig:
        for name, algorithm in ALGORITHMS.items():
            if name != self.algorithm and getattr(self, name) != algorithm.recipe():
                raise ValueError(f"algorithm is {self.algorithm}, so {name} says nothing: leave it out")
        return self

    @property
    def chosen(self) -> TrainRecipe:
        """The algorithm's own recipe."""
        return getattr(self, self.algorithm)


def algorithm_of(recipe: TrainRecipe) -> Algorithm:
    """The algorithm that has this kind of recipe."""
    return next(algorithm for algorithm in ALGORITHMS.values() if isinstance(recipe, algorithm.recipe))


def prepare_alignment(
    config: AlgorithmConfig,
    generator: Trainable,
    judge: RewardModel,
    prompts: Sequence[str | Prompt],
    *,
    references_folder: Path,
    seed: int = 0,
    more_judges: Sequence[tuple[RewardModel, float]] = (),
    held_out: RewardModel | None = None,
    begin_with: Path | None = None,
) -> Alignment:
    """What `align_generator` takes. Where samples are judged against references, the bank is made (or read) first.

    more_judges: further judges for policy gradients, with their weights beside the first one's 1.
    begin_with: the folder of a LoRA to go on from.
    Prompts of which no references can be made are left out, and are among the run's `failed`.
    Raises InputError for what cannot be, before anything is made.
    """
    config.chosen.check(generator, judge)
    if begin_with is not None and not config.chosen.lora_rank:
        raise InputError("training of all weights cannot begin with a LoRA.", "Give a lora_rank, or leave it out.")
    if begin_with is not None and not (begin_with / LORA_FILE).is_file():
        raise InputError(f"there is no LoRA in {begin_with}.", f"Give a folder that holds {LORA_FILE}.")
    rewards = [Reward(judge, config.chosen.judging_of(judge))]
    rewards += [Reward(other, judging_of(other, None), weight) for other, weight in more_judges]
    bank, failed = None, FailedGroups()
    if rewards[0].judging == "references":
        place: dict[str, Any] = {"folder": references_folder, "seed": seed}
        references = build_references(generator, judge, prompts, config.references, **place)
        failed = FailedGroups(failed_references(references_folder, as_prompts(prompts)))
        prompts = [own.prompt for own in references]
        redraw = bank_refresher(generator, judge, prompts, config.references, first=references, **place)
        bank = ReferenceBank(references, redraw)
    return Alignment(generator, rewards, prompts, config.chosen, seed, bank, held_out, begin_with, failed)


def align_generator(run: Alignment, *, folder: Path, metrics: Metrics, probe: Callable[[], Figures] = dict) -> Path:
    """Train the run's generator by the algorithm whose recipe it has; see `train`.

    Raises InputError for what cannot be, before anything is done.
    """
    run.recipe.check(run.generator, run.rewards[0].judge)
    if run.rewards[0].judging == "references" and not (run.bank and run.bank.references):
        raise InputError("the reference bank is empty.", "Give at least one prompt.")
    algorithm = algorithm_of(run.recipe)
    return train(run, algorithm.updates, algorithm.title, folder=folder, metrics=metrics, probe=probe)
