"""Which preferences each step of training reads, and which of them a process reads in which part of the step.

A function of (seed, step) alone: nothing about it is carried from step to step, and a batch holds the same pairs
however many processes and parts share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from rewarddance.errors import InputError, RewardDanceError
from rewarddance.runtime.ahead import ahead
from rewarddance.runtime.process_group import device
from rewarddance.types import Preference


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one process reads at once of a step's batch.

    start: number of its first pair within the batch.
    is_whole_batch: no other process or part reads any of this batch.
    counts: False where the batch had no pair left for it. It then holds one that is read, because all processes must
        do the same, but its loss does not count.
    """

    pairs: tuple[Preference, ...]
    step: int
    start: int = 0
    is_whole_batch: bool = True
    counts: bool = True


class MicroBatches(Dataset):
    """The micro-batches of one process: `parts` for each of the run's `steps`, numbered from 0.

    Each epoch goes through all preferences in a new order; its last batch may be a smaller one. rank, count: number of
    this process, and how many there are. pixel_noise: see `jittered`.
    """

    def __init__(
        self,
        preferences: Sequence[Preference],
        batch_size: int,
        steps: int,
        seed: int,
        *,
        parts: int = 1,
        rank: int = 0,
        count: int = 1,
        pixel_noise: float = 0.0,
    ) -> None:
        self.preferences, self.batch_size, self.steps, self.seed = preferences, batch_size, steps, seed
        self.parts, self.rank, self.count, self.pixel_noise = parts, rank, count, pixel_noise
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[MicroBatch] | RewardDanceError:
        """An error comes as a value: raised in a worker process, it would come back as a traceback."""
        batch = self.batch(step)
        try:
            return [self._read(batch, step, part * self.count + self.rank) for part in range(self.parts)]
        except RewardDanceError as error:
            return error

    def after(self, done: int, workers: int) -> Iterator[list[MicroBatch]]:
        """Those of each step, after the first `done` steps.

        workers: processes that read ahead; without any a thread reads the next step's while a step is taken.
        """
        loader = DataLoader(Subset(self, range(done, self.steps)), batch_size=None, num_workers=workers)
        for micro_batches in ahead(map(pinned, loader) if device().type == "cuda" else iter(loader)):
            if isinstance(micro_batches, RewardDanceError):
                raise micro_batches
            yield micro_batches

    def batch(self, step: int) -> list[int]:
        """Numbers of the preferences of a step's whole batch."""
        epoch, place = divmod(step, math.ceil(len(self.preferences) / self.batch_size))
        if epoch != self._epoch:
            rng = torch.Generator().manual_seed(self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.preferences), generator=rng)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size].tolist()

    def _read(self, batch: list[int], step: int, share: int) -> MicroBatch:
        """One share of a batch; all parts of all processes have nearly equal ones."""
        shares = self.parts * self.count
        start, end = share * len(batch) // shares, (share + 1) * len(batch) // shares
        pairs = tuple(self._pair(i) for i in (batch[start:end] or batch[:1]))
        micro_batch = MicroBatch(pairs, step, start, is_whole_batch=shares == 1, counts=end > start)
        return jittered(micro_batch, self.pixel_noise, self.seed)

    def _pair(self, index: int) -> Preference:
        """Raises InputError naming the line of a file whose pictures cannot be read."""
        try:
            return self.preferences[index]
        except RewardDanceError as error:
            where = getattr(self.preferences, "where", None)
            if where is None:
                raise
            raise InputError(
                f"{where(index)}: {error.what}",
                "Put a readable file in its place, and run the same again: it goes on. `rewarddance data check` finds "
                "all such files; without this line it would be another run.",
            ) from error


def pinned(micro_batches: list[MicroBatch] | RewardDanceError) -> list[MicroBatch] | RewardDanceError:
    """The same with pictures in memory that a GPU copies from while the host goes on; one that is shared stays so."""
    if isinstance(micro_batches, RewardDanceError):
        return micro_batches
    copies: dict[int, Tensor] = {}

    def copy(pixels: Tensor) -> Tensor:
        if id(pixels) not in copies:
            copies[id(pixels)] = pixels.pin_memory()
        return copies[id(pixels)]

    def of(pair: Preference) -> Preference:
        image = pair.prompt.image
        prompt = pair.prompt if image is None else replace(pair.prompt, image=copy(image))
        return replace(pair, prompt=prompt, first=copy(pair.first), second=copy(pair.second))

    return [replace(part, pairs=tuple(map(of, part.pairs))) for part in micro_batches]


def split_by_tokens(
    pairs: Sequence[Preference], lengths: Sequence[int], max_batch_tokens: int
) -> list[Sequence[Preference]]:
    """N pairs, in order, in parts of at most `max_batch_tokens` padded tokens; a longer pair is its own part.

    lengths [2 N]: tokens of the first question of each pair, then of the second of each.
    """
    parts, start, longest = [], 0, 0
    for number, row in enumerate(map(max, lengths[: len(pairs)], lengths[len(pairs) :])):
        longest = max(longest, row)
        if number > start and 2 * (number - start + 1) * longest > max_batch_tokens:
            parts.append(pairs[start:number])
            start, longest = number, row
    return [*parts, pairs[start:]]


def jittered(micro_batch: MicroBatch, deviation: float, seed: int) -> MicroBatch:
    """Its pairs with Gaussian noise of this standard deviation on their pixels.

    The noise depends on seed and step and, where the batch is split, on each pair's place in the batch.
    """
    if not deviation:
        return micro_batch
    step_seed = seed * 1_000_003 + micro_batch.step
    whole_rng = torch.Generator().manual_seed(step_seed)

    def noisy(pixels: Float[Tensor, "T C H W"], rng: torch.Generator) -> Float[Tensor, "T C H W"]:
        return (pixels + deviation * torch.randn(pixels.shape, generator=rng)).clamp(0, 1)

    pairs = []
    for place, pair in enumerate(micro_batch.pairs, start=micro_batch.start):
        pair_rng = torch.Generator().manual_seed((step_seed * 1_000_003 + place) % 2**63)
        rng = whole_rng if micro_batch.is_whole_batch else pair_rng
        pairs.append(replace(pair, first=noisy(pair.first, rng), second=noisy(pair.second, rng)))
    return replace(micro_batch, pairs=tuple(pairs))
