"""Judges that learn from different votes on the same pictures of a seed: few, biased, poisoned, or in other ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from experiments.coloured import Coloured
from experiments.grid import GridRecipe, Row, Rows, check_folder_names, remove_checkpoints
from experiments.trained_judges import train, with_options
from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.evaluation.agreement import agreement
from rewarddance.protocols import RewardModel
from rewarddance.reward.judge import Judge
from rewarddance.reward.loading import load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.checkpoint import COMPLETE, replacing
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import console
from rewarddance.shapeworld.annotators import AnnotatorRecipe
from rewarddance.shapeworld.preferences import Pool, PreferenceRecipe, generate, pair_up
from rewarddance.types import Preference

TEST, VOTES = "test", "votes.jsonl"


class JudgeChoice(Recipe):
    """A reward that generators are aligned with.

    size: what it is called in the table, beside its kind.
    training: what is different from `judge`.
    annotators: who votes on its pairs, where not those of `preferences`.
    train_prompts: how many prompts' pairs it learns from, at most.
    poisoned: share of its pairs whose votes somebody has turned round.
    redness: logits that it is given for red (see `Coloured`), after its training.
    rewards: by seed, a reward that is trained already.
    """

    size: str = "large"
    training: dict[str, Any] = Field(default_factory=dict)
    annotators: AnnotatorRecipe | None = None
    train_prompts: int | None = Field(default=None, ge=1)
    poisoned: float = Field(default=0.0, ge=0, le=1)
    redness: float = 0.0
    rewards: dict[int, str] = Field(default_factory=dict)

    @property
    def votes(self) -> tuple[Any, ...]:
        """What its votes depend on."""
        return self.annotators, self.train_prompts, self.poisoned


class JudgesRecipe(GridRecipe):
    """What experiments with several judges share. judges: by name."""

    judges: dict[str, JudgeChoice] = Field(min_length=1)

    @model_validator(mode="after")
    def _judges_can_be_trained(self) -> JudgesRecipe:
        check_folder_names(self.judges)
        if TEST in self.judges:
            raise ValueError(f"{TEST!r} is the name of the pairs that judges are tested on")
        for name in self.judges:
            self.training(name)
        return self

    def training(self, name: str) -> JudgeRecipe:
        """How a judge is trained. Raises InputError naming the wrong key."""
        return with_options(self.judge, self.judges[name].training, f"the judge {name!r}")

    def judge_checkpoints(self) -> list[str]:
        """What the judges begin with, and those that are given."""
        given = [reward for choice in self.judges.values() for reward in choice.rewards.values()]
        return [*(self.training(name).base for name in self.judges), *given]


class JudgeAccuracy(Row):
    """A seed's judge. pairs: it learned from, None where it was given; accuracy: on the seed's held-out pairs."""

    row: Literal["judge"] = "judge"
    judge: str
    pairs: int | None
    accuracy: float


class SeedJudges:
    """A seed's judges, given or each trained once in `folder`; its accuracy on the seed's test pairs is a row."""

    def __init__(self, recipe: JudgesRecipe, rows: Rows, folder: Path, seed: int) -> None:
        self.recipe, self.rows, self.folder, self.seed = recipe, rows, folder, seed

    def load(self, name: str) -> RewardModel:
        """A judge by its name, trained if need be."""
        judge, redness = self._trained(name), self.recipe.judges[name].redness
        return Coloured(judge, redness) if redness else judge

    def _trained(self, name: str) -> Judge:
        folder, given = self.folder / "judges" / name, self.recipe.judges[name].rewards.get(self.seed)
        if given is None and not (folder / "reward").is_dir():
            console.print(f"the judge {name}, seed {self.seed}", soft_wrap=True)
            train(self.recipe.training(name), PreferenceSet(self.votes(name)), folder, self.seed)
            remove_checkpoints(folder)
        reward = given or str(folder / "reward")
        if not self.rows.of(JudgeAccuracy, seed=self.seed, judge=name):
            pairs = None if given else len(PreferenceSet(self.votes(name)))
            accuracy = float(agreement(load_reward(reward), list(PreferenceSet(self.test_pairs()))).mean())
            self.rows.add(JudgeAccuracy(seed=self.seed, judge=name, pairs=pairs, accuracy=accuracy))
        return load_reward(reward)

    def votes(self, name: str) -> Path:
        """The file of the votes that a judge learns from, made once."""
        folder, choice, preferences = self.folder / "preferences" / name, self.recipe.judges[name], self.preferences
        if not (folder / COMPLETE).exists():
            voters = {} if choice.annotators is None else {"annotators": choice.annotators}
            voted, some = preferences.model_copy(update=voters), self._pictures[: choice.train_prompts]
            pairs = pair_up(some, "train", preferences.pairs, voted, self.seed, exact=False, early="some")
            with replacing(folder) as written:
                write_preferences(poisoned(pairs, choice.poisoned, self.seed), written / VOTES)
        return folder / VOTES

    def test_pairs(self) -> Path:
        """The file of the pairs that test the seed's judges, ordered by the oracle; made once."""
        folder, preferences = self.folder / "preferences" / TEST, self.preferences
        if not (folder / COMPLETE).exists():
            generator = self.recipe.load_generator()
            pools = generate(generator, "held_out", preferences.id_prompts, preferences.samples, self.seed)
            exact = pair_up(pools, "held_out", preferences.test_pairs, preferences, self.seed, exact=True)
            with replacing(folder) as written:
                write_preferences(exact, written / VOTES)
        return folder / VOTES

    @property
    def preferences(self) -> PreferenceRecipe:
        return self.recipe.preferences

    @cached_property
    def _pictures(self) -> list[Pool]:
        """The generator's pictures of the training prompts, which all judges of the seed see."""
        preferences = self.preferences
        generator = self.recipe.load_generator()
        return generate(generator, "train", preferences.train_prompts, preferences.samples, self.seed)


def poisoned(pairs: Sequence[Preference], share: float, seed: int) -> list[Preference]:
    """The pairs, with the votes on a random share of them turned round."""
    turned = np.random.default_rng([seed, 11]).permutation(len(pairs))[: round(share * len(pairs))]
    chosen = {int(i) for i in turned}
    return [replace(pair, share=1 - pair.share) if i in chosen else pair for i, pair in enumerate(pairs)]
