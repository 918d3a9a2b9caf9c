"""The votes of a store that stand, each with its pair and its annotator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rewarddance.annotate.store import Store
from rewarddance.data.votes import weigh

SHARES = {"a": 0.0, "b": 1.0, "tie": 0.5, "bad": 0.5}
"""The share of a vote for b, by answer."""


class CastVote(NamedTuple):
    """One vote.

    pair: its number in the store. criterion: "" where there is one question. answer: a, b, tie or bad. left: a was on
    the left. at: when, in seconds since 1970. seconds: that it took, by the browser. right: of a test pair the share
    that is right.
    """

    pair: int
    person: str
    criterion: str
    answer: str
    left: bool
    at: float
    seconds: float | None
    prompt: str
    a: Path
    b: Path
    image: Path | None
    model_a: str
    model_b: str
    source: str
    right: float | None
    fps: tuple[float | None, float | None]

    @property
    def share(self) -> float:
        return SHARES[self.answer]

    @property
    def side(self) -> str | None:
        """The side that was chosen, left or right; None of a tie."""
        if self.answer not in ("a", "b"):
            return None
        return "left" if (self.answer == "a") == self.left else "right"


def read_votes(store: Store) -> list[CastVote]:
    """All votes that stand, in the order in which they were cast; skips are none."""
    rows = store.db.execute(
        "SELECT asks.pair, people.name, v.criterion, v.answer, asks.swapped, v.at, v.seconds, p.prompt, "
        "ma.path AS a, mb.path AS b, mi.path AS image, p.model_a, p.model_b, p.source, p.answer AS correct, "
        "ma.fps AS fps_a, mb.fps AS fps_b FROM votes v JOIN asks ON asks.id = v.ask JOIN people ON people.id = person "
        "JOIN pairs p ON p.id = asks.pair JOIN media ma ON ma.id = p.a JOIN media mb ON mb.id = p.b "
        "LEFT JOIN media mi ON mi.id = p.image WHERE v.withdrawn IS NULL AND v.answer <> 'skip' ORDER BY v.id"
    )
    return [
        CastVote(
            pair=row["pair"],
            person=row["name"],
            criterion=row["criterion"],
            answer=row["answer"],
            left=not row["swapped"],
            at=row["at"],
            seconds=row["seconds"],
            prompt=row["prompt"],
            a=Path(row["a"]),
            b=Path(row["b"]),
            image=Path(row["image"]) if row["image"] else None,
            model_a=row["model_a"],
            model_b=row["model_b"],
            source=row["source"],
            right=row["correct"],
            fps=(row["fps_a"], row["fps_b"]),
        )
        for row in rows
    ]


class Weighed(NamedTuple):
    """share: by pair and criterion, each vote weighed. accuracy: how often each person seems to be right."""

    share: dict[tuple[int, str], float]
    accuracy: dict[str, float]


def weighed(votes: Sequence[CastVote]) -> Weighed:
    """Dawid and Skene's weighing (data/votes.py) of at least one vote."""
    keys = list(dict.fromkeys((vote.pair, vote.criterion) for vote in votes))
    people = list(dict.fromkeys(vote.person for vote in votes))
    place = {key: number for number, key in enumerate(keys)}
    pair = np.array([place[vote.pair, vote.criterion] for vote in votes])
    person = np.array([people.index(vote.person) for vote in votes])
    weighing = weigh(pair, person, np.array([vote.share for vote in votes]))
    shares = dict(zip(keys, weighing.share.tolist(), strict=True))
    return Weighed(shares, dict(zip(people, weighing.accuracy.tolist(), strict=True)))
