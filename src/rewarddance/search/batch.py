"""Prompts that are searched in step: who makes their pictures, who ranks them, what it has cost, what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewarddance.search.budget import Cost, CountingGenerator, CountingJudge, Meter
from rewarddance.search.judging import Candidate, Groups, Judging
from rewarddance.types import Prompt


def noise_seed(seed: int, prompt: int, number: int) -> int:
    """The seed of the `number`-th noise of a prompt: the same in every method, whatever else is searched with it."""
    return int(np.random.SeedSequence([seed, 20, prompt, number]).generate_state(1)[0])


class Batch:
    """P prompts, each with the same number of pictures at any time; rows of latents are prompt by prompt.

    prompts: what the judge is asked about. places: the prompts' numbers in the whole search, which their noises depend
    on. width: how many pictures of each prompt are made together, at most. keep: how many of each are kept in `found`,
    best first. rounds: how often the method has done what it is for,
    rather than drawn plain samples with what is left.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        places: Sequence[int],
        generator: CountingGenerator,
        judge: CountingJudge,
        judging: Judging,
        meter: Meter,
        *,
        seed: int,
        width: int,
        keep: int,
    ) -> None:
        self.prompts, self.places, self.generator, self.judge = list(prompts), list(places), generator, judge
        self.judging, self.meter, self.seed, self.width, self.keep = judging, meter, seed, width, keep
        self.steps = generator.num_steps
        self.drawn = self.rounds = 0
        self.found: list[list[Candidate]] = [[] for _ in prompts]
        self.first: list[Candidate] = []
        self._encoded: tuple[tuple[Prompt, ...], Any] = ((), None)

    # -- what it costs ------------------------------------------------------------------------------------------

    def plain(self, count: int) -> Cost:
        """The cost of `count` plain samples."""
        return Cost(count * self.steps, self.judging.asks(count, self.judging.seen))

    def max_affordable(self, cost: Callable[[int], Cost], most: int | None = None, least: int | None = None) -> int:
        """The largest width whose cost can be afforded; as long as nothing was found, at least 1 (see `Meter`)."""
        if least is None:
            least = 0 if self.found[0] else 1
        return self.meter.max_affordable(cost, self.width if most is None else min(most, self.width), least)

    # -- making pictures ----------------------------------------------------------------------------------------

    def seeds(self, count: int) -> list[list[int]]:
        """The seeds of each prompt's next `count` noises, [P][count]."""
        numbers = range(self.drawn, self.drawn + count)
        self.drawn += count
        return [[noise_seed(self.seed, place, number) for number in numbers] for place in self.places]

    def init_noise(self, seeds: Sequence[Sequence[int]]) -> Tensor:
        """The latents [P * N, ...] of pure noise from seeds [P][N]."""
        return self.generator.init_noise([seed for own in seeds for seed in own])

    def condition(self, prompts: Sequence[Sequence[Prompt]]) -> Any:
        """The conditioning of prompts [P][N]; what was encoded last is not encoded again."""
        flat = tuple(prompt for of_prompt in prompts for prompt in of_prompt)
        if self._encoded[0] != flat:
            self._encoded = ((), None)  # the old one goes before the new one comes
            self._encoded = (flat, self.generator.encode(flat))
        return self._encoded[1]

    def denoised(self, x_t: Tensor, start: int, stop: int, prompts: Sequence[Sequence[Prompt]] | None = None) -> Tensor:
        """The latents after steps `start` .. `stop` - 1; prompts: what each row is drawn from, if not its prompt."""
        condition = self.condition(prompts or self.repeated(len(x_t) // len(self.prompts)))
        for step in range(start, stop):
            x_t = self.generator.advance(x_t, self.generator.predict(x_t, step, condition), step)
        return x_t

    def repeated(self, count: int) -> list[list[Prompt]]:
        return [[prompt] * count for prompt in self.prompts]

    def candidates(self, x_0: Tensor, origins: Sequence[Sequence[dict[str, Any]]]) -> Groups:
        """Clean latents [P * N, ...] as pictures, [P][N]; origins [P][N] go with them.

        Each is a copy: a part of the batch would keep all of it in memory for as long as it is kept itself.
        """
        pixels = iter(self.generator.decode(x_0))
        return [[Candidate(next(pixels).clone(), origin) for origin in own] for own in origins]

    def sample(self, count: int, prompts: Sequence[Prompt] | None = None) -> Groups:
        """`count` plain samples a prompt [P][count]; prompts: what they are drawn from, if not the search's."""
        is_first = self.drawn == 0 and prompts is None
        seeds = self.seeds(count)
        origins = [[{"noise": seed} for seed in own] for own in seeds]
        rows = None if prompts is None else [[prompt] * count for prompt in prompts]
        found = self.candidates(self.denoised(self.init_noise(seeds), 0, self.steps, rows), origins)
        if is_first:
            self.first = [own[0] for own in found]
        return found

    # -- ranking them -------------------------------------------------------------------------------------------

    def offer(self, new: Groups) -> list[list[Candidate]]:
        """Rank finished pictures [P][N] with those found, and keep the best; returns all of them, best first."""
        merged = self.judging.ranked(self.found, new)
        self.found = [own[: self.keep] for own in merged]
        return merged

    def best(self, new: Groups, count: int) -> list[list[int]]:
        """The numbers of the best `count` of each prompt's pictures [P][N], best first, compared with no others."""
        order = self.judging.afresh().ranked([[] for _ in new], new)
        return [[own.index(one) for one in best[:count]] for own, best in zip(map(list, new), order, strict=True)]

    def rows(self, numbers: Sequence[Sequence[int]], count: int) -> Tensor:
        """The rows of latents [P * count, ...] that the numbers [P][any] of each prompt's are."""
        return torch.tensor([p * count + number for p, own in enumerate(numbers) for number in own])
