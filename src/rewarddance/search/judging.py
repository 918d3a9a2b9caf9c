"""How the pictures of a search are compared: each by itself, each with one of them, by knockout, or all with all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewarddance.protocols import RewardModel
from rewarddance.reward.ranking import knockout, ranked
from rewarddance.search.recipe import JudgingName
from rewarddance.types import Pixels, Prompt, Question


@dataclass(eq=False)
class Candidate:
    """One picture in a search. origin: what makes it again: the noise's seed, the round, ... score: see `Judging`.

    latent: the noise that it began from, where the search goes on from there; else empty.
    """

    pixels: Pixels
    origin: dict[str, Any]
    latent: Tensor = field(default_factory=lambda: torch.empty(0))
    score: float | None = None


Groups = Sequence[Sequence[Candidate]]
"""Candidates of each of P prompts, [P][any number]."""


@dataclass
class Judging(ABC):
    """Ranks the pictures of P prompts that are searched in step, and remembers what it needs of those it has seen."""

    judge: RewardModel
    prompts: Sequence[Prompt]
    seen: int = 0
    """How many pictures of each prompt were ranked so far."""

    @abstractmethod
    def _merged(self, kept: Groups, new: Groups) -> list[list[Candidate]]: ...

    @abstractmethod
    def asks(self, new: int, seen: int) -> int:
        """How many questions a prompt's `new` pictures take after `seen` others."""

    def ranked(self, kept: Groups, new: Groups) -> list[list[Candidate]]:
        """The candidates of each prompt, best first, with their scores set; `kept` came out of this before."""
        found = self._merged(kept, new)
        self.seen += len(new[0])
        return found

    def afresh(self) -> Judging:
        """The same way to judge, without memory: for pictures that are not compared with those before."""
        return type(self)(self.judge, self.prompts)


class Alone(Judging):
    """Each picture by itself; the score is the judge's margin. Not for pairwise judges."""

    def _merged(self, kept: Groups, new: Groups) -> list[list[Candidate]]:
        asked = [Question(prompt, one.pixels) for prompt, own in zip(self.prompts, new, strict=True) for one in own]
        margins = iter(self.judge(asked).margin.float().tolist())
        for one in (one for own in new for one in own):
            one.score = next(margins)
        return [_by_score([*old, *own]) for old, own in zip(kept, new, strict=True)]

    def asks(self, new: int, seen: int) -> int:
        return new


@dataclass
class AgainstFirst(Judging):
    """Each picture with the prompt's first, in both orders; the score is half the difference of the two margins."""

    first: list[Candidate] = field(default_factory=list)

    def _merged(self, kept: Groups, new: Groups) -> list[list[Candidate]]:
        if not self.first:
            self.first = [own[0] for own in new]
        asked = [
            (prompt, one, first)
            for prompt, own, first in zip(self.prompts, new, self.first, strict=True)
            for one in own
            if one is not first
        ]
        questions = [Question(p, a.pixels, b.pixels) for p, c, r in asked for a, b in ((c, r), (r, c))]
        margins = self.judge(questions).margin.float().view(-1, 2)
        for first in self.first:
            first.score = 0.0
        for (_, one, _), score in zip(asked, ((margins[:, 0] - margins[:, 1]) / 2).tolist(), strict=True):
            one.score = score
        return [_by_score([*old, *own]) for old, own in zip(kept, new, strict=True)]

    def asks(self, new: int, seen: int) -> int:
        return 2 * (new if seen else new - 1)


class ByKnockout(Judging):
    """The best so far and the new pictures in a knockout, N - 1 comparisons in all; the score is how many each won.

    Only the best has been compared with every other's conqueror: the order of the rest is a guess.
    """

    def _merged(self, kept: Groups, new: Groups) -> list[list[Candidate]]:
        groups = [[*old[:1], *own] for old, own in zip(kept, new, strict=True)]
        pictures = [[one.pixels for one in group] for group in groups]
        results = knockout(self.judge, self.prompts, pictures)
        found = []
        for group, old, result in zip(groups, kept, results, strict=True):
            for one, won in zip(group, result.won.tolist(), strict=True):
                one.score = (one.score or 0.0) + won
            found.append([*(group[i] for i in result.order.tolist()), *old[1:]])
        return found

    def asks(self, new: int, seen: int) -> int:
        return 2 * (new if seen else new - 1)


@dataclass
class ByTournament(Judging):
    """Every picture with every other, in both orders; the score is its wins. All pictures have to be kept."""

    margins: dict[tuple[int, int, int], float] = field(default_factory=dict)
    """The judge's margins, by prompt, number of the candidate, and number of the reference."""
    members: list[list[Candidate]] = field(default_factory=list)

    def _merged(self, kept: Groups, new: Groups) -> list[list[Candidate]]:
        before = self.members or [[] for _ in new]
        self.members = [[*old, *own] for old, own in zip(before, new, strict=True)]
        pairs = [
            (p, c, r)
            for p, own in enumerate(self.members)
            for c in range(len(own))
            for r in range(len(own))
            if c != r and max(c, r) >= self.seen
        ]
        asked = [Question(self.prompts[p], self.members[p][c].pixels, self.members[p][r].pixels) for p, c, r in pairs]
        self.margins |= dict(zip(pairs, self.judge(asked).margin.float().tolist(), strict=True))
        return [self._order(p, own) for p, own in enumerate(self.members)]

    def _order(self, p: int, own: list[Candidate]) -> list[Candidate]:
        n = len(own)
        ranking = ranked(n, torch.tensor([self.margins[p, c, r] for c in range(n) for r in range(n) if c != r]))
        for one, wins in zip(own, ranking.wins.tolist(), strict=True):
            one.score = wins
        return [own[i] for i in ranking.order.tolist()]

    def asks(self, new: int, seen: int) -> int:
        n = seen + new
        return n * (n - 1) - seen * (seen - 1)


JUDGING: dict[JudgingName, type[Judging]] = {
    "alone": Alone,
    "first": AgainstFirst,
    "knockout": ByKnockout,
    "tournament": ByTournament,
}


def _by_score(found: list[Candidate]) -> list[Candidate]:
    return sorted(found, key=lambda one: -(one.score or 0.0))
