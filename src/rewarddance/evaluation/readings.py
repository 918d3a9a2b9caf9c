"""A judge's answers on a test set, read once from end to end in batches; every measure is then taken from these."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from rewarddance.errors import InputError, RewardDanceError
from rewarddance.evaluation.agreement import both_orders
from rewarddance.evaluation.bias import AMOUNTS, LOOKS, changed, looks
from rewarddance.evaluation.statistics import numbered
from rewarddance.protocols import RewardModel
from rewarddance.types import Preference, Prompt, Question


@runtime_checkable
class Pairs(Protocol):
    """A test set: its pairs by number, each read when it is asked for, and not before."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Preference: ...


class Failure(NamedTuple):
    """A pair without an answer: its number in the test set, and why."""

    pair: int
    reason: str
    remedy: str


@dataclass(frozen=True, eq=False)
class Readings:
    """What a judge said of n pairs, and what is known of them.

    number [n]: of each pair in the test set. forward, backward [n]: margins with the second picture as the candidate,
    and with the first. looks [n, 2, 4]: LOOKS of the first and the second. pictures [n, 3]: digests of both and of the
    prompt's. probed [k]: places among the n of pairs that were asked again with the candidate changed; moved
    [k, 4, 2]: their forward margins with more and with less of each look; scores [k, 2]: both pictures' own scores,
    from a judge that gives them, else [k, 0].
    """

    number: np.ndarray
    prompts: tuple[str, ...]
    sources: tuple[str, ...]
    criteria: tuple[str, ...]
    share: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    looks: np.ndarray
    pictures: np.ndarray
    probed: np.ndarray
    moved: np.ndarray
    scores: np.ndarray

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
        both = self.scores if self.scores.size else np.stack([self.forward, self.backward], 1)[self.probed]
        return both.mean(1)


def read(
    judge: RewardModel,
    pairs: Pairs,
    alone: bool,
    batch_size: int,
    probed: Iterable[int],
    tick: Callable[[int], None] = lambda _: None,
) -> tuple[Readings, list[Failure]]:
    """Ask a judge about every pair in both orders, and about those with the numbers `probed` again with changes.

    alone: it gives each picture a score of its own. batch_size: pairs that are in memory together. tick: called with
    the number of pairs done. A pair that cannot be read or answered is a Failure and takes no other with it. Raises
    InputError with the first one's reason where none can.
    """
    parts: list[Readings] = []
    failed: list[Failure] = []
    chosen = frozenset(probed)
    for start in range(0, len(pairs), batch_size):
        numbers, batch = [], []
        stop = min(start + batch_size, len(pairs))
        for number in range(start, stop):
            try:
                batch.append(pairs[number])
                numbers.append(number)
            except RewardDanceError as error:
                failed.append(Failure(number, error.what, error.remedy))
        parts += _answered(judge, numbers, batch, alone, chosen, failed)
        tick(stop - start)
    if not parts:
        raise InputError(
            f"none of the {len(pairs)} pairs can be judged; the first: {failed[0].reason}", failed[0].remedy
        )
    return _joined(parts), sorted(failed)


def _answered(
    judge: RewardModel,
    numbers: Sequence[int],
    pairs: Sequence[Preference],
    alone: bool,
    probed: frozenset[int],
    failed: list[Failure],
) -> list[Readings]:
    """One reading of the pairs; where the judge cannot, they are asked by halves until the one it cannot is alone."""
    if not pairs:
        return []
    try:
        return [_reading(judge, numbers, pairs, alone, probed)]
    except RewardDanceError as error:
        if len(pairs) == 1:
            failed.append(Failure(numbers[0], error.what, error.remedy))
            return []
    half = len(pairs) // 2
    return [
        part
        for own in (slice(half), slice(half, None))
        for part in _answered(judge, numbers[own], pairs[own], alone, probed, failed)
    ]


def _reading(
    judge: RewardModel, numbers: Sequence[int], pairs: Sequence[Preference], alone: bool, probed: frozenset[int]
) -> Readings:
    forward, backward = both_orders(judge, pairs)
    places = [place for place, number in enumerate(numbers) if number in probed]
    again = [pairs[place] for place in places]
    turned = [
        Question(p.prompt, changed(p.second, look, sign * AMOUNTS[look]), p.first)
        for p in again
        for look in LOOKS
        for sign in (1, -1)
    ]
    single = [Question(p.prompt, shown) for p in again for shown in (p.first, p.second)]
    margins = judge([*turned, *single] if alone else turned).margin.double().cpu().numpy()
    return Readings(
        number=np.array(numbers),
        prompts=tuple(sys.intern(p.prompt.text) for p in pairs),
        sources=tuple(sys.intern(p.source) for p in pairs),
        criteria=tuple(sys.intern(p.criterion) for p in pairs),
        share=np.array([p.share for p in pairs]),
        forward=forward,
        backward=backward,
        looks=np.array([[looks(p.first), looks(p.second)] for p in pairs]),
        pictures=np.array(
            [[_digest(shown) for shown in (p.first, p.second, p.prompt.image)] for p in pairs], np.uint64
        ),
        probed=np.array(places, int),
        moved=margins[: len(turned)].reshape(len(again), len(LOOKS), 2),
        scores=margins[len(turned) :].reshape(len(again), 2 if alone else 0),
    )


def _joined(parts: Sequence[Readings]) -> Readings:
    found = {}
    for name in Readings.__dataclass_fields__:
        own = [getattr(part, name) for part in parts]
        found[name] = sum(own, ()) if isinstance(own[0], tuple) else np.concatenate(own)
    starts = np.cumsum([0, *(len(part.share) for part in parts[:-1])])
    found["probed"] = np.concatenate([part.probed + start for part, start in zip(parts, starts, strict=True)])
    return Readings(**found)


def _digest(pixels: Tensor | None) -> int:
    """A number that two pictures share if they are the same, and no others but by a chance of 2^-64; 0 for none."""
    if pixels is None:
        return 0
    values = pixels.detach().float().cpu().contiguous().numpy()
    return int.from_bytes(blake2b(values.tobytes() + str(values.shape).encode(), digest_size=8).digest(), "little")


Place = tuple[int, int]
"""Where a picture is: among the pairs that were read, and 0 the first or 1 the second of its pair."""


def groups_of(found: Readings, groups: int, size: int, rng: np.random.Generator) -> list[list[Place]]:
    """Up to `groups` prompts with three or more distinct pictures, and up to `size` of each.

    Pictures of prompts that come with different pictures are not of one group.
    """
    shown: dict[tuple[str, int], dict[int, Place]] = {}
    for at, (prompt, (first, second, image)) in enumerate(zip(found.prompts, found.pictures.tolist(), strict=True)):
        own = shown.setdefault((prompt, image), {})
        own.setdefault(first, (at, 0))
        own.setdefault(second, (at, 1))
    whole = [list(own.values()) for own in shown.values() if len(own) >= 3]
    chosen = sorted(rng.permutation(len(whole))[:groups])
    return [[whole[i][k] for k in sorted(rng.permutation(len(whole[i]))[:size])] for i in chosen]


def group_pictures(pairs: Pairs, found: Readings, group: Iterable[Place]) -> tuple[list[Tensor], Prompt]:
    """The pictures of a group, read again, and their prompt."""
    chosen = [(pairs[int(found.number[at])], place) for at, place in group]
    return [pair.second if place else pair.first for pair, place in chosen], chosen[0][0].prompt
