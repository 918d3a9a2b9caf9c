"""What the votes of a store say: of the people who cast them, and of the models they are about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rewarddance.annotate.cast import CastVote, weighed
from rewarddance.annotate.store import Store
from rewarddance.evaluation.bradley_terry import Rank, ranking
from rewarddance.evaluation.krippendorff import Alpha, alpha
from rewarddance.evaluation.statistics import Interval, interval

_BREAK = 1800.0
"""Seconds without a vote that are a break."""
_NAMED = 12
"""Pairs that are shown, those that divide people most."""


class Annotator(NamedTuple):
    """One person.

    reliability: how often their votes seem to be right, by the votes of all (0.5 is a coin's).
    tests: of test pairs, how many they answered rightly, and how many they were asked.
    left: share of the left side among their choices.
    seconds: the median of a vote.
    ties: share of votes for neither.
    """

    name: str
    votes: int
    reliability: float
    tests: tuple[int, int]
    left: Interval | None
    seconds: float | None
    ties: float


class Divided(NamedTuple):
    """A pair that people do not agree on: its number, prompt, criterion, and how many voted for a, neither and b."""

    pair: int
    prompt: str
    criterion: str
    a: int
    neither: int
    b: int


class VoteFigures(NamedTuple):
    """What all votes say.

    votes: that stand, those on test pairs left out; wanted: in all.
    hours: in which people voted, breaks left out.
    alpha, ranking: by criterion.
    left: share of the left side among choices, over pairs.
    seconds: the median of a vote.
    both_bad: share of votes that say so.
    """

    votes: int
    pairs: int
    wanted: int
    hours: float
    votes_an_hour: float | None
    alpha: dict[str, Alpha]
    left: Interval | None
    seconds: float | None
    both_bad: float
    annotators: list[Annotator]
    ranking: dict[str, list[Rank]]
    divided: list[Divided]


def figures_of(store: Store, votes: Sequence[CastVote]) -> VoteFigures | None:
    """The figures of a store's votes; None where there are none."""
    ordinary = [vote for vote in votes if vote.right is None]
    if not ordinary:
        return None
    times = np.sort([vote.at for vote in ordinary])
    gaps = np.diff(times)
    hours = float(gaps[gaps < _BREAK].sum() / 3600)
    criteria = list(dict.fromkeys(vote.criterion for vote in ordinary))
    by_criterion = {name: [vote for vote in ordinary if vote.criterion == name] for name in criteria}
    return VoteFigures(
        votes=len(ordinary),
        pairs=len({vote.pair for vote in ordinary}),
        wanted=store.count("wanted"),
        hours=hours,
        votes_an_hour=len(ordinary) / hours if hours > 1 / 60 else None,
        alpha={
            name: alpha([v.pair for v in criterion_votes], [v.share for v in criterion_votes])
            for name, criterion_votes in by_criterion.items()
        },
        left=_left(ordinary),
        seconds=_median(ordinary),
        both_bad=float(np.mean([vote.answer == "bad" for vote in ordinary])),
        annotators=_annotators(ordinary, [vote for vote in votes if vote.right is not None]),
        ranking={name: ranks for name, criterion_votes in by_criterion.items() if (ranks := _ranking(criterion_votes))},
        divided=_divided(ordinary),
    )


def _left(votes: Sequence[CastVote]) -> Interval | None:
    sided = [vote for vote in votes if vote.side]
    return (
        interval([float(v.side == "left") for v in sided], units=[v.pair for v in sided], share=True) if sided else None
    )


def _median(votes: Sequence[CastVote]) -> float | None:
    taken = [vote.seconds for vote in votes if vote.seconds is not None]
    return float(np.median(taken)) if taken else None


def _annotators(votes: Sequence[CastVote], tests: Sequence[CastVote]) -> list[Annotator]:
    accuracy, votes_of = weighed(votes).accuracy, defaultdict(list)
    for vote in votes:
        votes_of[vote.person].append(vote)
    tested = {name: [vote for vote in tests if vote.person == name] for name in votes_of}
    return [
        Annotator(
            name,
            len(cast),
            accuracy[name],
            (sum(vote.share == vote.right for vote in tested[name]), len(tested[name])),
            _left(cast),
            _median(cast),
            float(np.mean([vote.share == 0.5 for vote in cast])),
        )
        for name, cast in sorted(votes_of.items(), key=lambda item: -len(item[1]))
    ]


def _ranking(votes: Sequence[CastVote]) -> list[Rank]:
    """The models, best first; [] where fewer than two are named."""
    named = [vote for vote in votes if vote.model_a and vote.model_b and vote.model_a != vote.model_b]
    models = sorted({name for vote in named for name in (vote.model_a, vote.model_b)})
    if len(models) < 2:
        return []
    place = {model: number for number, model in enumerate(models)}
    units = np.unique([vote.prompt for vote in named], return_inverse=True)[1]
    sides = [place[vote.model_a] for vote in named], [place[vote.model_b] for vote in named]
    return ranking(models, *sides, [vote.share for vote in named], units)


def _divided(votes: Sequence[CastVote]) -> list[Divided]:
    cast: defaultdict[tuple[int, str], list[CastVote]] = defaultdict(list)
    for vote in votes:
        cast[vote.pair, vote.criterion].append(vote)
    spread = {
        key: float(np.var([vote.share for vote in pair_votes]))
        for key, pair_votes in cast.items()
        if len(pair_votes) > 1
    }
    most_divided = sorted((key for key in spread if spread[key] > 0), key=lambda key: (-spread[key], key))
    return [
        Divided(
            pair,
            cast[pair, criterion][0].prompt,
            criterion,
            *(sum(vote.share == value for vote in cast[pair, criterion]) for value in (0.0, 0.5, 1.0)),
        )
        for pair, criterion in most_divided[:_NAMED]
    ]
