"""Blind comparison of two models by people: good, same, bad, with a stopping rule stated before the first vote.

One value a pair, the first vote on it: 1 where the new model is better, -1 where the old one is, 0 for neither. The
comparison ends when the confidence sequence of their mean (evaluation/sequential.py) excludes 0, or when all its pairs
have a vote. Whoever looks at it earlier, and however often, does not spoil it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rewarddance.annotate.cast import CastVote, read_votes
from rewarddance.annotate.store import Store
from rewarddance.evaluation.gsb import Gsb, gsb
from rewarddance.evaluation.sequential import Moment, confidence_sequence, first_decision

ERROR = 0.05
"""The chance that a difference is found, at any time, where there is none."""
DECIDED = "decided"


class Comparison(NamedTuple):
    """Where a comparison stands.

    new, old: the models. planned: pairs in all. gsb: counts, and (good - bad) / all with an ordinary interval, which
    holds for who looks once, at the end; None before the first vote. moments: the confidence sequence after each pair.
    """

    new: str
    old: str
    planned: int
    gsb: Gsb | None
    moments: list[Moment]

    @property
    def decision(self) -> Moment | None:
        """When it was decided, or None."""
        return first_decision(self.moments)

    @property
    def ended(self) -> bool:
        return self.decision is not None or len(self.moments) >= self.planned

    @property
    def rule(self) -> str:
        """The stopping rule, as it is stated before the first vote."""
        return (
            f"Up to {self.planned} pairs in random order, sides drawn at random, one vote on each. It ends as soon as "
            f"the {100 - 100 * ERROR:.0f} % confidence sequence of good minus bad (normal mixture, "
            f"narrowest at {self.planned} pairs; Howard et al., 2021) excludes 0, or when all pairs have a vote. "
            f"Where there is no difference, it finds one with a chance of {100 * ERROR:.0f} % at most."
        )


def standing(store: Store) -> Comparison:
    """Where the comparison of a store stands. Raises ValueError where it is none."""
    models = store.handing_out.compare
    if models is None:
        raise ValueError("the store is no comparison of two models")
    new, old = models
    planned = store.db.execute("SELECT count(*) FROM pairs WHERE answer IS NULL").fetchone()[0]
    first: dict[int, CastVote] = {}
    for vote in read_votes(store):
        if vote.right is None:
            first.setdefault(vote.pair, vote)
    values = [2 * (vote.share if vote.model_b == new else 1 - vote.share) - 1 for vote in first.values()]
    figure = gsb((np.array(values) + 1) / 2, [vote.prompt for vote in first.values()]) if values else None
    moments = confidence_sequence(np.array(values), ERROR, max(planned, 2)) if values else []
    return Comparison(new, old, planned, figure, moments)


def note_decision(store: Store) -> None:
    """Write down whether the comparison is decided; then no further pair is handed out. Within a transaction."""
    decision = standing(store).decision
    if decision is None:
        store.db.execute("DELETE FROM settings WHERE key = ?", (DECIDED,))
    else:
        store.set(DECIDED, decision.n)
