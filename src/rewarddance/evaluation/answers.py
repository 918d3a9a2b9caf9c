"""A judge's answers on a test set, asked once from end to end in batches; every measure is then taken from these."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from rewarddance.errors import InputError, RewardDanceError
from rewarddance.evaluation.agreement import both_orders
from rewarddance.evaluation.bias import PROBE_AMOUNTS, image_stats, perturbed
from rewarddance.evaluation.statistics import numbered
from rewarddance.protocols import RewardModel, checked_verdict
from rewarddance.types import Preference, Prompt, Question


@runtime_checkable
class Pairs(Protocol):
    """A test set: its pairs by number, each read when it is asked for, and not before."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Preference: ...


class Failure(NamedTuple):
    """A pair without an answer."""

    pair: int  # its number in the test set
    reason: str
    remedy: str


@dataclass(frozen=True, eq=False)
class Answers:
    """What a judge answered on n pairs, and what is known of them. k of them are probed: asked again with changes."""

    number: np.ndarray  # [n]: of each pair in the test set
    prompts: tuple[str, ...]
    sources: tuple[str, ...]
    criteria: tuple[str, ...]
    share: np.ndarray  # [n]: of the votes for the second picture
    forward: np.ndarray  # [n]: margins with the second picture as the candidate
    backward: np.ndarray  # [n]: margins with the first picture as the candidate
    image_stats: np.ndarray  # [n, 2, 4]: of the first and the second picture
    pictures: np.ndarray  # [n, 3]: digests of both pictures and of the prompt's
    probed: np.ndarray  # [k]: indices of the probed pairs among the n
    perturbed: np.ndarray  # [k, 4, 2]: forward margins with more and with less of each statistic
    scores: np.ndarray  # [k, 2]: both pictures' scores, from a judge that needs no reference; else [k, 0]

    @cached_property
    def units(self) -> np.ndarray:
        """The number of each pair's prompt [n]."""
        return numbered(self.prompts)

    @property
    def margin(self) -> np.ndarray:
        """Half the difference of the two orders' margins [n]: a liking for either position cancels in it."""
        return (self.forward - self.backward) / 2

    @property
    def level(self) -> np.ndarray:
        """How high the answers about each probed pair are [k], whichever picture is better: their mean."""
        both = self.scores if self.scores.size else np.stack([self.forward, self.backward], 1)[self.probed]
        return both.mean(1)


def ask(
    judge: RewardModel,
    pairs: Pairs,
    batch_size: int,
    probed: Iterable[int],
    tick: Callable[[int], None] = lambda _: None,
) -> tuple[Answers, list[Failure]]:
    """Ask a judge about every pair in both orders, and about those with the numbers `probed` again with changes.

    batch_size: pairs that are in memory together. tick: called with the number of pairs done. A pair that cannot be
    read or answered is a Failure and takes no other with it. Raises InputError with the first one's reason where none
    can.
    """
    parts: list[Answers] = []
    failed: list[Failure] = []
    chosen = frozenset(probed)
    for start in range(0, len(pairs), batch_size):
        batch: dict[int, Preference] = {}
        numbers = range(start, min(start + batch_size, len(pairs)))
        for number in numbers:
            try:
                batch[number] = pairs[number]
            except RewardDanceError as error:
                failed.append(Failure(number, error.what, error.remedy))
        parts += _ask_batch(judge, [*batch], [*batch.values()], chosen, failed)
        tick(len(numbers))
    if not parts:
        what = f"none of the {len(pairs)} pairs can be judged; the first: {failed[0].reason}"
        raise InputError(what, failed[0].remedy)
    return _concatenated(parts), sorted(failed)


def _ask_batch(
    judge: RewardModel,
    numbers: Sequence[int],
    pairs: Sequence[Preference],
    probed: frozenset[int],
    failed: list[Failure],
) -> list[Answers]:
    """The answers on a batch; where the judge fails, it is asked by halves until the pair it cannot answer is alone."""
    if not pairs:
        return []
    try:
        return [_answers(judge, numbers, pairs, probed)]
    except RewardDanceError as error:
        if len(pairs) == 1:
            failed.append(Failure(numbers[0], error.what, error.remedy))
            return []
    half = len(pairs) // 2
    return [
        part
        for half_batch in (slice(half), slice(half, None))
        for part in _ask_batch(judge, numbers[half_batch], pairs[half_batch], probed, failed)
    ]


def _answers(
    judge: RewardModel, numbers: Sequence[int], pairs: Sequence[Preference], probed: frozenset[int]
) -> Answers:
    forward, backward = both_orders(judge, pairs)
    indices = [i for i, number in enumerate(numbers) if number in probed]
    again = [pairs[i] for i in indices]
    questions = [
        Question(p.prompt, perturbed(p.second, name, sign * amount), p.first)
        for p in again
        for name, amount in PROBE_AMOUNTS.items()
        for sign in (1, -1)
    ]
    changed = len(questions)
    if not judge.needs_reference:
        questions += [Question(p.prompt, picture) for p in again for picture in (p.first, p.second)]
    margins = checked_verdict(judge(questions), questions).margin.double().cpu().numpy()
    return Answers(
        number=np.array(numbers),
        prompts=tuple(sys.intern(p.prompt.text) for p in pairs),
        sources=tuple(sys.intern(p.source) for p in pairs),
        criteria=tuple(sys.intern(p.criterion) for p in pairs),
        share=np.array([p.share for p in pairs]),
        forward=forward,
        backward=backward,
        image_stats=np.array([[image_stats(p.first), image_stats(p.second)] for p in pairs]),
        pictures=np.array([[_digest(x) for x in (p.first, p.second, p.prompt.image)] for p in pairs], np.uint64),
        probed=np.array(indices, int),
        perturbed=margins[:changed].reshape(len(again), len(PROBE_AMOUNTS), 2),
        scores=margins[changed:].reshape(len(again), 0 if judge.needs_reference else 2),
    )


def _concatenated(parts: Sequence[Answers]) -> Answers:
    columns = {}
    for name in (field.name for field in fields(Answers)):
        values = [getattr(part, name) for part in parts]
        columns[name] = sum(values, ()) if isinstance(values[0], tuple) else np.concatenate(values)
    starts = np.cumsum([0, *(len(part.share) for part in parts[:-1])])
    columns["probed"] = np.concatenate([part.probed + start for part, start in zip(parts, starts, strict=True)])
    return Answers(**columns)


def _digest(pixels: Tensor | None) -> int:
    """A number that two pictures share if they are the same, and no others but by a chance of 2^-64; 0 for none."""
    if pixels is None:
        return 0
    values = pixels.detach().float().cpu().contiguous().numpy()
    return int.from_bytes(blake2b(values.tobytes() + str(values.shape).encode(), digest_size=8).digest(), "little")


class Candidates(Sequence[Question]):
    """The second pictures of some pairs as candidates against the first: questions that are read when asked for.

    numbers: of the pairs in the test set.
    """

    def __init__(self, pairs: Pairs, numbers: Sequence[int]) -> None:
        self.pairs, self.numbers = pairs, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Question:  # type: ignore[override]
        pair = self.pairs[self.numbers[index]]
        return Question(pair.prompt, pair.second, pair.first, fps=(pair.fps[1], pair.fps[0]))


def of_most_prompts(answers: Answers, n: int, rng: np.random.Generator) -> list[int]:
    """The numbers of n answered pairs, drawn at random among those of as many prompts as there are, in order."""
    drawn, count_of, nth_of_prompt = rng.permutation(len(answers.number)), Counter[int](), []
    for index in drawn:
        nth_of_prompt.append(count_of[unit := int(answers.units[index])])
        count_of[unit] += 1
    first = np.argsort(nth_of_prompt, kind="stable")[:n]
    return sorted(answers.number[drawn[first]].tolist())


Group = list[tuple[int, int]]
"""Pictures of one prompt: the index of a pair among the answers, and 0 for its first or 1 for its second picture."""


def groups_of(answers: Answers, groups: int, size: int, rng: np.random.Generator) -> list[Group]:
    """Up to `groups` prompts with three or more distinct pictures, and up to `size` of each.

    Pictures of prompts that come with different pictures are not of one group.
    """
    by_prompt: dict[tuple[str, int], dict[int, tuple[int, int]]] = {}
    for i, (prompt, (first, second, image)) in enumerate(zip(answers.prompts, answers.pictures.tolist(), strict=True)):
        pictures = by_prompt.setdefault((prompt, image), {})
        pictures.setdefault(first, (i, 0))
        pictures.setdefault(second, (i, 1))
    large = [list(pictures.values()) for pictures in by_prompt.values() if len(pictures) >= 3]
    chosen = sorted(rng.permutation(len(large))[:groups])
    return [[large[i][k] for k in sorted(rng.permutation(len(large[i]))[:size])] for i in chosen]


def group_pictures(pairs: Pairs, answers: Answers, group: Group) -> tuple[list[Tensor], Prompt]:
    """The pictures of a group, read again, and their prompt."""
    chosen = [(pairs[int(answers.number[i])], side) for i, side in group]
    return [pair.second if side else pair.first for pair, side in chosen], chosen[0][0].prompt
