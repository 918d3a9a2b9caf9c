"""How a search ranks its pictures: each by itself, each against the first one, by knockout, or by tournament."""

from __future__ import annotations

import itertools
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
    """One picture in a search.

    origin: what is needed to make it again, such as the seed of its noise. score: see the kinds of `Judging`. latent:
    its initial noise, where the method goes on from there; else empty.
    """

    pixels: Pixels
    origin: dict[str, Any]
    latent: Tensor = field(default_factory=lambda: torch.empty(0))
    score: float | None = None


Groups = Sequence[Sequence[Candidate]]
"""The candidates of each of P prompts, [P][N]."""


@dataclass
class Judging(ABC):
    """Ranks the pictures of P prompts round by round, and keeps what it needs of earlier rounds."""

    judge: RewardModel
    prompts: Sequence[Prompt]
    seen: int = 0
    """How many pictures of each prompt have been ranked so far."""

    @abstractmethod
    def _rank(self, kept: Groups, new: Groups) -> list[list[Candidate]]: ...

    @abstractmethod
    def question_count(self, new: int, seen: int) -> int:
        """How many questions it takes to rank a prompt's `new` pictures after `seen` others."""

    def rank(self, kept: Groups, new: Groups) -> list[list[Candidate]]:
        """Each prompt's candidates, best first, with their scores set; `kept`: what was kept of the last ranking."""
        rankings = self._rank(kept, new)
        self.seen += len(new[0])
        return rankings

    def without_memory(self) -> Judging:
        """A judging of the same kind that has seen nothing, for pictures not to be compared with earlier ones."""
        return type(self)(self.judge, self.prompts)


class Alone(Judging):
    """Each picture by itself; the score is the judge's margin. Not for pairwise judges."""

    def _rank(self, kept: Groups, new: Groups) -> list[list[Candidate]]:
        rows = [(prompt, candidate) for prompt, group in zip(self.prompts, new, strict=True) for candidate in group]
        margins = self.judge([Question(prompt, candidate.pixels) for prompt, candidate in rows]).margin
        for (_, candidate), margin in zip(rows, margins.tolist(), strict=True):
            candidate.score = margin
        return _by_score(kept, new)

    def question_count(self, new: int, seen: int) -> int:
        return new


@dataclass
class AgainstFirst(Judging):
    """Each picture with the prompt's first, in both orders; the score is half the difference of the two margins."""

    first: list[Candidate] = field(default_factory=list)

    def _rank(self, kept: Groups, new: Groups) -> list[list[Candidate]]:
        if not self.first:
            self.first = [group[0] for group in new]
        pairs = [
            (prompt, candidate, first)
            for prompt, group, first in zip(self.prompts, new, self.first, strict=True)
            for candidate in group
            if candidate is not first
        ]
        questions = [Question(p, a.pixels, b.pixels) for p, c, r in pairs for a, b in ((c, r), (r, c))]
        margins = self.judge(questions).margin.float().view(-1, 2)
        for first in self.first:
            first.score = 0.0
        for (_, candidate, _), score in zip(pairs, ((margins[:, 0] - margins[:, 1]) / 2).tolist(), strict=True):
            candidate.score = score
        return _by_score(kept, new)

    def question_count(self, new: int, seen: int) -> int:
        return 2 * (new if seen else new - 1)


class ByKnockout(Judging):
    """The best so far and the new pictures in a knockout, N - 1 comparisons in all; the score is how many each won.

    Only the winner is sure. The order of the others is a guess, for most of them never met.
    """

    def _rank(self, kept: Groups, new: Groups) -> list[list[Candidate]]:
        groups = [[*old[:1], *group] for old, group in zip(kept, new, strict=True)]
        results = knockout(self.judge, self.prompts, [[candidate.pixels for candidate in group] for group in groups])
        rankings = []
        for group, old, result in zip(groups, kept, results, strict=True):
            for candidate, won in zip(group, result.won.tolist(), strict=True):
                candidate.score = (candidate.score or 0.0) + won
            rankings.append([*(group[i] for i in result.order.tolist()), *old[1:]])
        return rankings

    def question_count(self, new: int, seen: int) -> int:
        return 2 * (new if seen else new - 1)


@dataclass
class ByTournament(Judging):
    """Every picture with every other, in both orders; the score is its wins. Keeps all pictures that it has seen."""

    margins: dict[tuple[int, int, int], float] = field(default_factory=dict)
    """The judge's margins by the numbers of prompt, candidate and reference."""
    groups: list[list[Candidate]] = field(default_factory=list)

    def _rank(self, kept: Groups, new: Groups) -> list[list[Candidate]]:
        before = self.groups or [[] for _ in new]
        self.groups = [[*old, *group] for old, group in zip(before, new, strict=True)]
        pairs = [
            (p, c, r)
            for p, group in enumerate(self.groups)
            for c, r in itertools.permutations(range(len(group)), 2)
            if max(c, r) >= self.seen
        ]
        questions = [Question(self.prompts[p], self.groups[p][c].pixels, self.groups[p][r].pixels) for p, c, r in pairs]
        self.margins |= dict(zip(pairs, self.judge(questions).margin.float().tolist(), strict=True))
        return [self._by_wins(p, group) for p, group in enumerate(self.groups)]

    def _by_wins(self, p: int, group: list[Candidate]) -> list[Candidate]:
        n = len(group)
        ranking = ranked(n, torch.tensor([self.margins[p, c, r] for c, r in itertools.permutations(range(n), 2)]))
        for candidate, wins in zip(group, ranking.wins.tolist(), strict=True):
            candidate.score = wins
        return [group[i] for i in ranking.order.tolist()]

    def question_count(self, new: int, seen: int) -> int:
        n = seen + new
        return n * (n - 1) - seen * (seen - 1)


JUDGING: dict[JudgingName, type[Judging]] = {
    "alone": Alone,
    "first": AgainstFirst,
    "knockout": ByKnockout,
    "tournament": ByTournament,
}


def _by_score(kept: Groups, new: Groups) -> list[list[Candidate]]:
    """Each prompt's kept and new candidates, those of the highest score first."""
    merged = ([*old, *group] for old, group in zip(kept, new, strict=True))
    return [sorted(group, key=lambda candidate: -(candidate.score or 0.0)) for group in merged]
