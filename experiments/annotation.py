"""Which pairs people are asked about: a judge's accuracy by the number of votes, for each policy of handing out.

Simulated people vote on pairs that a store of votes hands out, as `rewarddance annotate` does. All policies of a seed
have the same pairs to choose from, and the same people, who would say the same of the same pair. After each number of
votes a judge is trained anew on them, each vote weighed by how often its voter seems to be right, and chooses on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field, model_validator

from experiments.annotation_table import PolicyRun, annotation_report
from experiments.grid import Cell, Experiment, GridRecipe, Report
from experiments.trained_judges import by_prompt, train
from rewarddance.annotate.choosing import SCORES, margins_of
from rewarddance.annotate.handing_out import hand_out
from rewarddance.annotate.recipe import HandingOut, Policy
from rewarddance.annotate.store import Pair, Store
from rewarddance.annotate.voting import vote
from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.data.votes import weigh
from rewarddance.reward.judge import Judge
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.shapeworld.annotators import AnnotatorRecipe
from rewarddance.shapeworld.preferences import PreferenceRecipe, generate, pair_up
from rewarddance.types import Preference

TESTS = ("id", "ood")
VOTES = "votes.json"


class AnnotationRecipe(GridRecipe):
    """What is compared, and how.

    policies: of handing out; "random" is what the others are compared with.
    votes: numbers of votes after which a judge is trained and tested, and chooses.
    overlap, overlap_votes: as of `rewarddance annotate`.
    judges: members of the ensemble whose disagreement is looked at.
    preferences: the pairs to choose from, and who votes: all of the crowd could.
    """

    policies: tuple[Policy, ...] = ("random", "least_voted", "least_sure", "disagreement", "ranking")
    votes: tuple[int, ...] = Field(default=(60, 120, 240, 480), min_length=2)
    overlap: float = Field(default=0.1, ge=0, le=1)
    overlap_votes: int = Field(default=3, ge=1)
    judges: int = Field(default=3, ge=2)
    preferences: PreferenceRecipe = PreferenceRecipe(annotators=AnnotatorRecipe(votes=10, crowd=10, careless=0.2))

    @model_validator(mode="after")
    def _can_be_compared(self) -> AnnotationRecipe:
        if self.policies[0] != "random" or len(self.policies) < 2:
            raise ValueError("policies begin with random, and others follow that are compared with it")
        if list(self.votes) != sorted(set(self.votes)):
            raise ValueError("votes are to grow")
        if self.preferences.annotators.votes != self.preferences.annotators.crowd:
            raise ValueError(
                "annotators.votes and annotators.crowd are to be the same: who is asked is not known before"
            )
        return self


class Pool(NamedTuple):
    """A seed's pairs to choose from, what each person [pairs, people] would say of each, and the test sets."""

    pairs: list[Preference]
    rows: PreferenceSet
    says: np.ndarray
    tests: dict[str, list[Preference]]


class Annotation(Experiment[AnnotationRecipe]):
    name, recipe_kind, row_kinds, counted = "annotation", AnnotationRecipe, PolicyRun, PolicyRun

    def checkpoints(self) -> list[str]:
        return [self.recipe.generator, self.recipe.judge.base]

    def cells(self) -> list[Cell]:
        return [
            Cell(PolicyRun, {"seed": seed, "policy": policy})
            for seed in self.recipe.seeds
            for policy in self.recipe.policies
        ]

    def prepare(self, group: int) -> Pool:
        return gather(self.recipe, group, self.seed_folder(group))

    def measure(self, cell: Cell, shared: Pool) -> PolicyRun:
        """Ask for votes, train, test and choose, until all votes are cast."""
        began, (seed, policy) = time.monotonic(), cell.key.values()
        folder = self.seed_folder(seed) / policy
        shutil.rmtree(folder, ignore_errors=True)
        crowd = Crowd(self.recipe, shared, policy, seed, folder)
        accuracy: dict[str, list[list[float]]] = {test: [] for test in TESTS}
        pairs, wrong = [], []
        for count in self.recipe.votes:
            crowd.vote_until(count)
            labelled, right = crowd.labelled()
            judges = crowd.learn(labelled, folder / f"votes-{count}")
            for test in TESTS:
                accuracy[test].append(by_prompt(judges[0], shared.tests[test]))
            pairs.append(len(labelled))
            wrong.append(round(1 - right, 4))
            if policy in SCORES and count != self.recipe.votes[-1]:
                crowd.choose(judges)
            shutil.rmtree(folder / f"votes-{count}")
        crowd.store.close()
        shutil.rmtree(folder)
        seconds = round(time.monotonic() - began, 1)
        votes = list(self.recipe.votes)
        return PolicyRun(**cell.key, votes=votes, pairs=pairs, wrong=wrong, accuracy=accuracy, seconds=seconds)

    def report(self) -> Report:
        return annotation_report(self.recipe.policies, self.rows.of(PolicyRun))


class Crowd:
    """The simulated people of a cell, in turns, and the judges that learn from them."""

    def __init__(self, recipe: AnnotationRecipe, pool: Pool, policy: Policy, seed: int, folder: Path) -> None:
        self.recipe, self.pool, self.policy, self.seed = recipe, pool, policy, seed
        rule = HandingOut(policy=policy, overlap=recipe.overlap, overlap_votes=recipe.overlap_votes, seed=seed)
        self.store = Store(folder / "votes.sqlite", rule)
        self.store.db.execute("PRAGMA synchronous=OFF")  # a cell that was cut off begins anew
        rows = [pool.rows.row(n) for n in range(len(pool.rows))]
        models = [row.source.partition("/") for row in rows]
        self.store.add_pairs(
            Pair(row.prompt, row.media_a, row.media_b, model_a=first, model_b=second)
            for row, (first, _, second) in zip(rows, models, strict=True)
        )
        self.rng, self.turn = np.random.default_rng([seed, 11]), 0
        self.people = []
        for person in range(pool.says.shape[1]):
            self.store.invite(str(person))
            self.people.append(person + 1)

    def vote_until(self, count: int) -> None:
        """Everybody in turn answers one pair, until so many votes are cast in all."""
        while self.store.count("votes") < count:
            person = self.people[self.turn % len(self.people)]
            self.turn += 1
            now = float(self.turn)
            with self.store.transaction() as db:
                (ask,) = hand_out(self.store, person, 1, now, self.rng)
                row = db.execute("SELECT pair, swapped FROM asks WHERE id = ?", (ask["id"],)).fetchone()
                said = float(self.pool.says[row["pair"] - 1, person - 1])
                answer = "tie" if said == 0.5 else "right" if (said > 0.5) != bool(row["swapped"]) else "left"
                vote(self.store, person, ask["id"], answer, "", criteria=("",), now=now, seconds=None)

    def labelled(self) -> tuple[list[Preference], float]:
        """The pairs that were voted on with their shares, each vote weighed; and how many shares are on the side of
        most who look."""
        cast = self.store.db.execute(
            "SELECT pair, person, v.answer FROM votes v JOIN asks ON asks.id = v.ask"
        ).fetchall()
        pair = np.array([row["pair"] - 1 for row in cast])
        value = np.array([{"a": 0.0, "b": 1.0}.get(row["answer"], 0.5) for row in cast])
        voted, index = np.unique(pair, return_inverse=True)
        share = weigh(index, np.array([row["person"] - 1 for row in cast]), value).share
        careless = round(self.recipe.preferences.annotators.careless * self.pool.says.shape[1])
        truth = np.sign(self.pool.says[voted, careless:].mean(1) - 0.5)
        side = np.sign(share - 0.5)
        sided = (truth != 0) & (side != 0)
        right = float((truth == side)[sided].mean())
        pairs = [replace(self.pool.pairs[n], share=float(s)) for n, s in zip(voted, share, strict=True)]
        return pairs, right

    def learn(self, pairs: Sequence[Preference], folder: Path) -> list[Judge]:
        """A judge; for "disagreement" several, which differ in their seeds and in the votes they saw (bagging)."""
        members = self.recipe.judges if self.policy == "disagreement" else 1
        judges = []
        for member in range(members):
            rng = np.random.default_rng([self.seed, 12, member])
            seen = pairs if member == 0 else [pairs[n] for n in rng.integers(len(pairs), size=len(pairs))]
            judges.append(train(self.recipe.judge, seen, folder / str(member), self.seed + 1000 * member)[0])
        return judges

    def choose(self, judges: Sequence[Judge]) -> None:
        scores = SCORES[self.policy](margins_of(judges, self.pool.pairs))
        self.store.set_scores([(place + 1, float(score)) for place, score in enumerate(scores)])


def gather(recipe: AnnotationRecipe, seed: int, folder: Path) -> Pool:
    """A seed's pairs and what everybody would say of them; made once, then read."""
    if not (folder / VOTES).exists():
        _make(recipe, seed, folder)
    says = np.array(json.loads((folder / VOTES).read_text(encoding="utf-8")))
    sets = {name: PreferenceSet(folder / "preferences" / f"{name}.jsonl") for name in ("pool", *TESTS)}
    return Pool(list(sets["pool"]), sets["pool"], says, {name: list(sets[name]) for name in TESTS})


def _make(recipe: AnnotationRecipe, seed: int, folder: Path) -> None:
    preferences = recipe.preferences
    shutil.rmtree(folder / "preferences", ignore_errors=True)
    generator = recipe.load_generator()
    counts = {"train": preferences.train_prompts, "held_out": preferences.id_prompts, "unseen": preferences.ood_prompts}
    pools = {split: generate(generator, split, n, preferences.samples, seed) for split, n in counts.items()}
    for name, split in zip(TESTS, ("held_out", "unseen"), strict=True):
        pairs = pair_up(pools[split], split, preferences.test_pairs, preferences, seed, exact=True)
        write_preferences(pairs, folder / "preferences" / f"{name}.jsonl")
    people = preferences.annotators.crowd
    rows = pair_up(pools["train"], "train", preferences.pairs, preferences, seed, exact=False, early="some")
    says = np.zeros((len(rows) // people, people))
    for number, row in enumerate(rows):  # the votes of a pair stand one after the other
        says[number // people, int(row.annotator)] = row.share
    write_preferences([replace(row, annotator="") for row in rows[::people]], folder / "preferences" / "pool.jsonl")
    write_text_atomically(folder / VOTES, json.dumps(says.tolist()) + "\n")  # last: without it all is made anew


EXPERIMENT = Annotation
