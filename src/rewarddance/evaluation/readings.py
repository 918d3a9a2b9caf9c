"""A judge's answers on a test set, read once from end to end in batches; every measure is then taken from these."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rewarddance.evaluation.agreement import both_orders
from rewarddance.evaluation.bias import AMOUNTS, LOOKS, changed, looks
from rewarddance.evaluation.statistics import numbered
from rewarddance.protocols import RewardModel
from rewarddance.types import Preference, Question


@dataclass(frozen=True, eq=False)
class Readings:
    """What a judge said of n pairs, and what is known of them.

    forward, backward [n]: margins with the second picture as the candidate, and with the first. looks [n, 2, 4]: LOOKS
    of the first and the second. pictures [n]: digests of both and of the condition. probed [k]: numbers of the pairs
    that were asked again with the candidate changed, moved [k, 4, 2]: their forward margins with more and less of each
    look. scores [k, 2]: of the same pairs, both pictures' own scores, from a judge that gives them; else None.
    """

    prompts: tuple[str, ...]
    sources: tuple[str, ...]
    criteria: tuple[str, ...]
    share: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    looks: np.ndarray
    pictures: tuple[tuple[str, str, str], ...]
    probed: np.ndarray
    moved: np.ndarray
    scores: np.ndarray | None

    @cached_property
    def units(self) -> np.ndarray:
        """The number of each pair's prompt [n]."""
        return numbered(self.prompts)

    @property
    def margin(self) -> np.ndarray:
        """Half the difference of the two orders' margins [n]: what a judge says whatever place it likes."""
        return (self.forward - self.backward) / 2

    @property
    def level(self) -> np.ndarray:
        """How high it answers about each probed pair [k], whichever picture is better: the mean of both answers."""
        both = np.stack([self.forward, self.backward], 1)[self.probed] if self.scores is None else self.scores
        return both.mean(1)


def read(
    judge: RewardModel,
    pairs: Sequence[Preference],
    alone: bool,
    batch_size: int,
    probed: np.ndarray,
    tick: Callable[[int], None] = lambda _: None,
) -> Readings:
    """Ask a judge about every pair in both orders, and about those with the numbers `probed` again with changes.

    alone: it gives each picture a score of its own. batch_size: pairs that are in memory together. tick: called with
    the number of pairs done. Raises InputError naming a picture that cannot be read, RewardError naming a question
    without an answer, ValueError where there are no pairs or none is probed.
    """
    told: list[tuple[str, str, str, float, tuple[str, str, str]]] = []
    margins, seen, moved, scores = [], [], [], []
    for start in range(0, len(pairs), batch_size):
        batch = [pairs[i] for i in range(start, min(start + batch_size, len(pairs)))]
        told += [(p.prompt, p.source, p.criterion, p.share, _digests(p)) for p in batch]
        margins.append(np.stack(both_orders(judge, batch)))
        seen += [[looks(p.first), looks(p.second)] for p in batch]
        again = [batch[i - start] for i in probed if start <= i < start + len(batch)]
        if again:
            moved.append(_moved(judge, again))
            scores += [_scores(judge, again)] if alone else []
        tick(len(batch))
    forward, backward = np.concatenate(margins, 1)
    prompts, sources, criteria, share, pictures = zip(*told, strict=True)
    return Readings(
        prompts=prompts,
        sources=sources,
        criteria=criteria,
        share=np.array(share),
        forward=forward,
        backward=backward,
        looks=np.array(seen),
        pictures=pictures,
        probed=probed,
        moved=np.concatenate(moved),
        scores=np.concatenate(scores) if alone else None,
    )


def _moved(judge: RewardModel, pairs: Sequence[Preference]) -> np.ndarray:
    """Forward margins [k, looks, 2] with the candidate changed by AMOUNTS, up and down."""
    questions = [
        Question(p.prompt, changed(p.second, look, sign * AMOUNTS[look]), p.first, condition=p.condition)
        for p in pairs
        for look in LOOKS
        for sign in (1, -1)
    ]
    return judge(questions).margin.double().cpu().numpy().reshape(len(pairs), len(LOOKS), 2)


def _scores(judge: RewardModel, pairs: Sequence[Preference]) -> np.ndarray:
    """Each picture's own score [k, 2]."""
    questions = [Question(p.prompt, pixels, condition=p.condition) for p in pairs for pixels in (p.first, p.second)]
    return judge(questions).margin.double().cpu().numpy().reshape(len(pairs), 2)


def _digests(pair: Preference) -> tuple[str, str, str]:
    condition = "" if pair.condition is None else _digest(pair.condition)
    return _digest(pair.first), _digest(pair.second), condition


def _digest(pixels: Tensor) -> str:
    values = pixels.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.blake2b(values.tobytes() + str(values.shape).encode(), digest_size=12).hexdigest()


def groups_of(readings: Readings, groups: int, size: int, rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """Up to `groups` prompts with three or more distinct pictures, and up to `size` of each.

    A picture is told by its pair's number and its place there, 0 the first. Pictures from different conditions are not
    of one group.
    """
    found: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for number, (prompt, (first, second, condition)) in enumerate(
        zip(readings.prompts, readings.pictures, strict=True)
    ):
        own = found.setdefault((prompt, condition), {})
        own.setdefault(first, (number, 0))
        own.setdefault(second, (number, 1))
    whole = [list(own.values()) for own in found.values() if len(own) >= 3]
    chosen = sorted(rng.permutation(len(whole))[:groups])
    return [[whole[i][k] for k in sorted(rng.permutation(len(whole[i]))[:size])] for i in chosen]


def group_pictures(pairs: Sequence[Preference], group: Iterable[tuple[int, int]]) -> tuple[list[Tensor], Tensor | None]:
    """The pictures of a group, and the condition that they were made from."""
    chosen = [(pairs[number], place) for number, place in group]
    return [pair.second if place else pair.first for pair, place in chosen], chosen[0][0].condition
