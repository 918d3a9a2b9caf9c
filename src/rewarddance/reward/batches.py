"""Which preferences each step of training reads, and which of them a process reads in which part of the step.

A function of (seed, step) alone: nothing about it is carried from step to step, and a batch holds the same pairs
however many processes and parts share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from rewarddance.errors import RewardDanceError
from rewarddance.types import Preference


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one process reads at once of a step's batch.

    place: number of its first pair within the batch. counts: False where the batch had no pair left for it; it then
    holds one that is read, because all processes must do the same, but teaches nothing.
    """

    pairs: tuple[Preference, ...]
    step: int
    place: int
    counts: bool = True


class MicroBatches(Dataset):
    """The portions of one process in order, `parts` for each of the run's `steps`.

    Each epoch goes through all preferences in a new order; its last batch may be a smaller one. rank, count: number of
    this process, and how many there are.
    """

    def __init__(
        self,
        preferences: Sequence[Preference],
        batch_size: int,
        steps: int,
        seed: int,
        parts: int = 1,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        self.preferences, self.batch_size, self.steps, self.seed = preferences, batch_size, steps, seed
        self.parts, self.rank, self.count = parts, rank, count
        self.steps_an_epoch = math.ceil(len(preferences) / batch_size)
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        return self.steps * self.parts

    def __getitem__(self, number: int) -> MicroBatch | RewardDanceError:
        """An error comes as a value: raised in a worker process, it would come back as a traceback."""
        step, part = divmod(number, self.parts)
        batch, share = self.batch(step), part * self.count + self.rank
        low, high = (at * len(batch) // (self.parts * self.count) for at in (share, share + 1))
        counts = high > low
        try:
            pairs = tuple(self.preferences[i] for i in (batch[low:high] if counts else batch[:1]))
        except RewardDanceError as error:
            return error
        return MicroBatch(pairs, step, low, counts)

    def batch(self, step: int) -> list[int]:
        """Numbers of the preferences of a step's whole batch."""
        epoch, at = divmod(step, self.steps_an_epoch)
        if epoch != self._epoch:
            rng = torch.Generator().manual_seed(self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.preferences), generator=rng)
        return self._order[at * self.batch_size : (at + 1) * self.batch_size].tolist()


def jittered(portion: MicroBatch, deviation: float, seed: int, whole: bool) -> tuple[Preference, ...]:
    """The portion's pairs with Gaussian noise of this deviation on their pixels.

    It depends on seed and step and, within the step, on the pair's place in the batch. whole: the portion is all of the
    batch, whose noise is then drawn in one go.
    """
    if not deviation:
        return portion.pairs
    of_step = seed * 1_000_003 + portion.step
    together = torch.Generator().manual_seed(of_step)

    def noisy(pixels: Float[Tensor, "T C H W"], rng: torch.Generator) -> Float[Tensor, "T C H W"]:
        return (pixels + deviation * torch.randn(pixels.shape, generator=rng)).clamp(0, 1)

    pairs = []
    for place, pair in enumerate(portion.pairs, start=portion.place):
        own = together if whole else torch.Generator().manual_seed((of_step * 1_000_003 + place) % 2**63)
        pairs.append(replace(pair, first=noisy(pair.first, own), second=noisy(pair.second, own)))
    return tuple(pairs)
