"""Which pairs people are asked about: a reward's accuracy by the number of votes, for each policy of handing out.

Simulated people vote on pairs that a store of votes hands out, as `rewarddance annotate` does. All policies of a seed
have the same pairs to choose from, and the same people, who would say the same of the same pair. After each number of
votes a reward is fitted anew, each vote weighed by how often its voter seems to be right, and chooses on.

The reward is a linear head on a frozen judge base (kind regressive), fitted to its optimum in a moment, so that every
policy can be tried with several crowds. Only the base's reading of the pictures takes time.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator

from experiments.annotation_table import PolicyRun, annotation_report
from experiments.grid import Cell, Experiment, GridRecipe, Report
from experiments.preference_head import fit_head, hidden_states
from rewarddance.annotate.choosing import SCORES
from rewarddance.annotate.handing_out import hand_out
from rewarddance.annotate.recipe import HandingOut, Policy
from rewarddance.annotate.store import Pair, Store
from rewarddance.annotate.voting import vote
from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.data.votes import weigh
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.shapeworld.annotators import AnnotatorRecipe
from rewarddance.shapeworld.preferences import PreferenceRecipe, generate, pair_up

TESTS = ("id", "ood")
VOTES, STATES = "votes.json", "hidden_states.npz"


class AnnotationRecipe(GridRecipe):
    """What is compared, and how.

    policies: of handing out; "random" is what the others are compared with.
    votes: numbers of votes after which a head is fitted and tested, and chooses.
    overlap, overlap_votes: as of `rewarddance annotate`.
    crowds: of each policy under each seed; they differ in who is asked what, not in what they would say.
    heads: members of the ensemble whose disagreement is looked at.
    base: the judge whose hidden states the head reads.
    preferences: the pairs to choose from, and who votes: all of the crowd could.
    """

    policies: tuple[Policy, ...] = ("random", "least_voted", "least_sure", "disagreement", "ranking")
    votes: tuple[int, ...] = Field(default=(50, 100, 200, 400), min_length=2)
    overlap: float = Field(default=0.1, ge=0, le=1)
    overlap_votes: int = Field(default=3, ge=1)
    crowds: int = Field(default=4, ge=1)
    heads: int = Field(default=8, ge=2)
    base: str = "shapeworld-judge"
    preferences: PreferenceRecipe = PreferenceRecipe(annotators=AnnotatorRecipe(votes=10, crowd=10, careless=0.2))

    @model_validator(mode="after")
    def _can_be_compared(self) -> AnnotationRecipe:
        if self.policies[0] != "random" or len(self.policies) < 2:
            raise ValueError("policies begin with random, and others follow that are compared with it")
        if list(self.votes) != sorted(set(self.votes)):
            raise ValueError("votes are to grow")
        if self.preferences.annotators.votes != self.preferences.annotators.crowd:
            raise ValueError("annotators.votes is to be annotators.crowd: who is asked is not known before")
        return self


class Pool(NamedTuple):
    """A seed's pairs to choose from and its test pairs.

    rows: the pairs. says [pairs, people]: what each person would say of each. difference [pairs, D]: the hidden state
    of b minus that of a; tests: the same of the test sets, with their prompts and the oracle's order.
    """

    rows: PreferenceSet
    says: np.ndarray
    difference: np.ndarray
    tests: dict[str, tuple[np.ndarray, list[str], np.ndarray]]


class Annotation(Experiment[AnnotationRecipe]):
    name, recipe_kind, row_kinds, counted = "annotation", AnnotationRecipe, PolicyRun, PolicyRun

    def checkpoints(self) -> list[str]:
        return [self.recipe.generator, self.recipe.base]

    def cells(self) -> list[Cell]:
        """Seed by seed, so that an unfinished table is whole for the first seeds."""
        return [
            Cell(PolicyRun, {"seed": seed, "policy": policy})
            for seed in self.recipe.seeds
            for policy in self.recipe.policies
        ]

    def prepare(self, group: int) -> Pool:
        return gather(self.recipe, group, self.seed_folder(group))

    def measure(self, cell: Cell, shared: Pool) -> PolicyRun:
        """Ask for votes, fit, test and choose, until all votes are cast; the mean over crowds."""
        began, (seed, policy) = time.monotonic(), cell.key.values()
        folder = self.seed_folder(seed) / policy
        runs = []
        for number in range(self.recipe.crowds):
            shutil.rmtree(folder, ignore_errors=True)
            runs.append(Crowd(self.recipe, shared, policy, (seed, number), folder).run())
        shutil.rmtree(folder)
        accuracy = {test: np.mean([run.accuracy[test] for run in runs], axis=0).round(6).tolist() for test in TESTS}
        pairs, wrong = (np.mean([getattr(run, name) for run in runs], axis=0) for name in ("pairs", "wrong"))
        return PolicyRun(
            **cell.key,
            votes=list(self.recipe.votes),
            pairs=pairs.tolist(),
            wrong=wrong.round(4).tolist(),
            accuracy=accuracy,
            seconds=round(time.monotonic() - began, 1),
        )

    def report(self) -> Report:
        return annotation_report(self.recipe.policies, self.rows.of(PolicyRun))


class CrowdRun(NamedTuple):
    """By number of votes: accuracy of each test set's prompts, pairs voted on, and the share of wrong labels."""

    accuracy: dict[str, list[list[float]]]
    pairs: list[int]
    wrong: list[float]


class Crowd:
    """The simulated people of one run, in turns, and the heads that learn from them."""

    def __init__(
        self, recipe: AnnotationRecipe, pool: Pool, policy: Policy, seed: tuple[int, int], folder: Path
    ) -> None:
        self.recipe, self.pool, self.policy = recipe, pool, policy
        rule = HandingOut(
            policy=policy, overlap=recipe.overlap, overlap_votes=recipe.overlap_votes, seed=1000 * seed[0] + seed[1]
        )
        self.store = Store(folder / "votes.sqlite", rule)
        self.store.db.execute("PRAGMA synchronous=OFF")  # a cell that was cut off begins anew
        rows = [pool.rows.row(n) for n in range(len(pool.rows))]
        models = [row.source.partition("/") for row in rows]
        self.store.add_pairs(
            Pair(row.prompt, row.media_a, row.media_b, model_a=first, model_b=second)
            for row, (first, _, second) in zip(rows, models, strict=True)
        )
        self.rng, self.turn = np.random.default_rng([*seed, 11]), 0
        self.people = pool.says.shape[1]
        for person in range(self.people):
            self.store.invite(str(person))

    def run(self) -> CrowdRun:
        done = CrowdRun({test: [] for test in TESTS}, [], [])
        for count in self.recipe.votes:
            self.vote_until(count)
            voted, share = self.labels()
            heads = self.fit(voted, share)
            for test, (difference, prompts, order) in self.pool.tests.items():
                right = (difference @ heads[0] > 0) == (order > 0.5)
                done.accuracy[test].append(by_prompt(right, prompts))
            done.pairs.append(len(voted))
            done.wrong.append(self.wrong(voted, share))
            if self.policy in SCORES and count != self.recipe.votes[-1]:
                scores = SCORES[self.policy](heads @ self.pool.difference.T)
                self.store.set_scores([(place + 1, float(score)) for place, score in enumerate(scores)])
        self.store.close()
        return done

    def vote_until(self, count: int) -> None:
        """Everybody in turn answers one pair, until so many votes are cast in all."""
        while self.store.count("votes") < count:
            person = self.turn % self.people + 1
            self.turn += 1
            now = float(self.turn)
            with self.store.transaction() as db:
                (ask,) = hand_out(self.store, person, 1, now, self.rng)
                row = db.execute("SELECT pair, swapped FROM asks WHERE id = ?", (ask["id"],)).fetchone()
                said = float(self.pool.says[row["pair"] - 1, person - 1])
                answer = "tie" if said == 0.5 else "right" if (said > 0.5) != bool(row["swapped"]) else "left"
                vote(self.store, person, ask["id"], answer, "", criteria=("",), now=now, seconds=None)

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The pairs that were voted on, and their shares for b, each vote weighed."""
        cast = self.store.db.execute("SELECT pair, person, v.answer FROM votes v JOIN asks ON asks.id = v.ask")
        rows = [(row["pair"] - 1, row["person"] - 1, {"a": 0.0, "b": 1.0}.get(row["answer"], 0.5)) for row in cast]
        pair, person, value = map(np.array, zip(*rows, strict=True))
        voted, index = np.unique(pair, return_inverse=True)
        return voted, weigh(index, person, value).share

    def wrong(self, voted: np.ndarray, share: np.ndarray) -> float:
        """How many labels with a side are not on that of most people who look."""
        careless = round(self.recipe.preferences.annotators.careless * self.people)
        truth = np.sign(self.pool.says[voted, careless:].mean(1) - 0.5)
        side = np.sign(share - 0.5)
        sided = (truth != 0) & (side != 0)
        return float((truth != side)[sided].mean())

    def fit(self, voted: np.ndarray, share: np.ndarray) -> np.ndarray:
        """A head [1, D]; for "disagreement" several [k, D], of which all but the first see a resample (bagging)."""
        members = self.recipe.heads if self.policy == "disagreement" else 1
        draws = [np.arange(len(voted))] + [self.rng.integers(len(voted), size=len(voted)) for _ in range(members - 1)]
        return np.stack([fit_head(self.pool.difference[voted[drawn]], share[drawn]) for drawn in draws])


def by_prompt(right: np.ndarray, prompts: list[str]) -> list[float]:
    """Each prompt's share of pairs that are ordered rightly, in the order in which the prompts come."""
    found: dict[str, list[bool]] = {}
    for is_right, prompt in zip(right.tolist(), prompts, strict=True):
        found.setdefault(prompt, []).append(is_right)
    return [sum(answers) / len(answers) for answers in found.values()]


def gather(recipe: AnnotationRecipe, seed: int, folder: Path) -> Pool:
    """A seed's pairs, what everybody would say of them, and their hidden states; made once, then read."""
    if not (folder / VOTES).exists():
        _make(recipe, seed, folder)
    sets = {name: PreferenceSet(folder / "preferences" / f"{name}.jsonl") for name in ("pool", *TESTS)}
    if not (folder / STATES).exists():
        states = {name: hidden_states(recipe.base, list(rows)) for name, rows in sets.items()}
        np.savez(folder / f".unfinished-{STATES}", **states)  # type: ignore[arg-type]
        (folder / f".unfinished-{STATES}").replace(folder / STATES)
    with np.load(folder / STATES) as states:
        scale = states["pool"].std(0) + 1e-6
        difference = {name: states[name] / scale for name in sets}
    says = np.array(json.loads((folder / VOTES).read_text(encoding="utf-8")))
    tests = {}
    for name in TESTS:
        rows = [sets[name].row(n) for n in range(len(sets[name]))]
        tests[name] = difference[name], [row.prompt for row in rows], np.array([row.share for row in rows])
    return Pool(sets["pool"], says, difference["pool"], tests)


def _make(recipe: AnnotationRecipe, seed: int, folder: Path) -> None:
    preferences = recipe.preferences
    shutil.rmtree(folder / "preferences", ignore_errors=True)
    torch.manual_seed(seed)
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
    write_preferences(rows[::people], folder / "preferences" / "pool.jsonl")
    write_text_atomically(folder / VOTES, json.dumps(says.tolist()) + "\n")  # last: without it all is made anew


EXPERIMENT = Annotation
