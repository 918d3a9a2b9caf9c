"""A judge that learns while people vote: after each N votes it is trained anew on all of them, and chooses the next.

It works beside the server, in a process of its own, which may be killed at any time: the votes of a round are written
down before it is trained, training goes on from its checkpoints, and a round whose scores are in the store is over.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from rewarddance.annotate.cast import read_votes
from rewarddance.annotate.choosing import SCORES, margins_of
from rewarddance.annotate.exporting import pair_rows, share_rows
from rewarddance.annotate.recipe import Policy
from rewarddance.annotate.store import Store
from rewarddance.data.preferences import PreferenceRow, PreferenceSet, rows_into
from rewarddance.errors import RewardDanceError
from rewarddance.protocols import RewardModel
from rewarddance.reward.instructions import load_tree
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.checkpoint import writable_folder
from rewarddance.runtime.config import Recipe, Seed, parse_recipe
from rewarddance.runtime.lock import locked
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Preference

LEARNED = "learned"
"""What the store says of the last round."""
_PAUSE = 2.0
"""Seconds between two looks at the store."""


class LearningPlan(Recipe):
    """How a judge learns from a store of votes.

    judge: it begins with these weights in each round, so that a round does not depend on the rounds before.
    retrain: votes of a round. judges: members of the ensemble that "disagreement" asks. training: keys of JudgeRecipe.
    folder: of the rounds.
    """

    store: Path
    judge: str
    policy: Policy
    retrain: int = Field(ge=1)
    judges: int = Field(default=3, ge=2)
    training: dict[str, Any] = Field(default_factory=dict)
    folder: Path
    seed: Seed = 0

    @property
    def recipe(self) -> JudgeRecipe:
        """Raises InputError naming a key of `training` that is not right."""
        return parse_recipe(JudgeRecipe, {"base": self.judge} | self.training, "training")

    @property
    def members(self) -> int:
        return self.judges if self.policy == "disagreement" else 1


class WaitingPairs(Sequence[Preference]):
    """The pairs of a store that wait for votes, read when asked for. ids: their numbers in the store."""

    def __init__(self, store: Store) -> None:
        rows = store.db.execute(
            "SELECT p.id, prompt, ma.path AS a, mb.path AS b, mi.path AS image FROM pairs p JOIN media ma ON ma.id = a "
            "JOIN media mb ON mb.id = b LEFT JOIN media mi ON mi.id = image WHERE answer IS NULL AND taken < wanted"
        ).fetchall()
        self.ids = [row["id"] for row in rows]
        self._rows = [
            PreferenceRow(r["prompt"], Path(r["a"]), Path(r["b"]), 0.5, image=Path(r["image"]) if r["image"] else None)
            for r in rows
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Preference:  # type: ignore[override]
        return self._rows[index].load()


def score_waiting(store: Store, judges: Sequence[RewardModel], policy: Policy) -> None:
    """Let judges say which of the pairs that wait are asked next."""
    waiting = WaitingPairs(store)
    scores = SCORES[policy](margins_of(judges, waiting))
    store.set_scores([(pair, float(score)) for pair, score in zip(waiting.ids, scores, strict=True)])


def due(store: Store, retrain: int) -> int | None:
    """The number of votes of the round that is due, the last multiple of `retrain`; None where none is."""
    votes = store.count("votes") // retrain * retrain
    learned = store.get(LEARNED) or {"votes": 0}
    return votes if votes > learned["votes"] else None


def learn(plan: LearningPlan, say: Callable[[str], object], alive: Callable[[], bool]) -> None:
    """Learn round after round while `alive`. A round that fails is said and not tried again before the next N votes."""
    store = Store(plan.store)
    try:
        with locked(writable_folder(plan.folder)):
            failed = 0
            while alive():
                votes = due(store, plan.retrain)
                if votes is None or votes == failed:
                    time.sleep(_PAUSE)
                    continue
                try:
                    say(f"learning from {votes} votes")
                    learn_round(plan, store, votes)
                    say(f"learned from {votes} votes; the next pairs are its choice")
                except RewardDanceError as error:
                    failed = votes
                    say(f"could not learn from {votes} votes: {error}")
    finally:
        store.close()


def learn_round(plan: LearningPlan, store: Store, votes: int) -> Path:
    """Train on the votes that there are when the round begins, score the pairs that wait, and say so in the store.

    The judge learns and is asked its one question. Where people vote by criteria, a pair's share is the mean over them
    with the tree's weights.
    Returns the reward's folder. Raises InputError where the votes cannot be learned from.
    """
    from rewarddance.reward.train import train_judge  # a page without a judge opens without it

    folder = writable_folder(plan.folder / f"votes-{votes:06d}-{store.get('id')}")  # of this store and no earlier one
    pairs = folder / "votes.jsonl"
    if not pairs.exists():
        cast, tree = [vote for vote in read_votes(store) if vote.right is None], store.handing_out.criteria
        rows = pair_rows(cast, folder, load_tree(tree).leaf_weights) if tree else share_rows(cast, folder)
        with rows_into(folder / ".unfinished-votes.jsonl") as write:
            for row in rows:
                write(row)
        (folder / ".unfinished-votes.jsonl").replace(pairs)
    preferences = PreferenceSet(pairs, for_training=True)
    judges = []
    for member in range(plan.members):
        member_folder, rng = folder / f"judge-{member}", np.random.default_rng([plan.seed, member])
        training_pairs: Sequence[Preference] = preferences if member == 0 else Drawn(preferences, rng)
        metrics = Metrics(member_folder / "metrics.jsonl")
        judges.append(train_judge(plan.recipe, training_pairs, member_folder, metrics, plan.seed + member))
        for checkpoint in member_folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
    if plan.policy in SCORES:
        score_waiting(store, judges, plan.policy)
    reward = folder / "judge-0" / "reward"
    with store.transaction():
        store.set(LEARNED, {"votes": votes, "judge": str(reward)})
    return reward


class Drawn(Sequence[Preference]):
    """As many preferences, drawn with replacement: what members of an ensemble differ in (bagging)."""

    def __init__(self, preferences: Sequence[Preference], rng: np.random.Generator) -> None:
        self._preferences = preferences
        self._chosen = rng.integers(len(preferences), size=len(preferences))

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Preference:  # type: ignore[override]
        return self._preferences[int(self._chosen[index])]


def score_once(plan: LearningPlan, store: Store) -> None:
    """Before the first round, let the judge as it is choose, where the policy asks one judge alone."""
    from rewarddance.reward.loading import load_reward

    if plan.policy == "least_sure" and store.get(LEARNED) is None:
        score_waiting(store, [load_reward(plan.judge)], plan.policy)


def work(plan: LearningPlan, threads: int, parent: int) -> None:
    """The process beside the server: learns politely, until the server is gone."""
    import torch

    os.nice(10)
    torch.set_num_threads(threads)
    learn(plan, lambda text: print(text, flush=True), lambda: os.getppid() == parent)
