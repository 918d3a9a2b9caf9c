"""A batch of prompts that are searched in step: its generator, its judge, its budget, and the best pictures so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.generators.sampling import for_sampling
from rewarddance.search.budget import Cost, CountingGenerator, CountingJudge, Meter
from rewarddance.search.judging import Candidate, Groups, Judging
from rewarddance.types import Prompt


def noise_seed(seed: int, prompt: int, number: int) -> int:
    """The seed of the `number`-th noise of a prompt: the same in every method, whatever else is searched with it."""
    return int(np.random.SeedSequence([seed, 20, prompt, number]).generate_state(1)[0])


class Batch:
    """P prompts, each with the same number of pictures at any time; rows of latents are prompt by prompt.

    prompts: what the judge is asked about. indices: the prompts' numbers in the whole search, which their noises depend
    on. width: how many pictures of each prompt are made together, at most. keep: how many of each stay in `kept`, best
    first. first: each prompt's first plain sample. rounds: how often the method itself has run; drawing plain samples
    with what is left of the budget does not count.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        indices: Sequence[int],
        generator: CountingGenerator,
        judge: CountingJudge,
        judging: Judging,
        meter: Meter,
        *,
        seed: int,
        width: int,
        keep: int,
    ) -> None:
        self.prompts, self.indices, self.generator, self.judge = list(prompts), list(indices), generator, judge
        self.judging, self.meter, self.seed, self.width, self.keep = judging, meter, seed, width, keep
        self.steps = generator.num_steps
        self.seeds_used = self.rounds = 0
        self.kept: list[list[Candidate]] = [[] for _ in prompts]
        self.first: list[Candidate] = []
        self._encoded: tuple[tuple[Prompt, ...], Any] = ((), None)

    # -- what it costs ------------------------------------------------------------------------------------------

    def plain_cost(self, count: int) -> Cost:
        """The cost of `count` plain samples."""
        return Cost(count * self.steps, self.judging.question_count(count, self.judging.seen))

    def max_affordable(self, cost: Callable[[int], Cost], most: int | None = None, least: int | None = None) -> int:
        """The largest width whose cost can be afforded; at least 1 until there is a first picture (see `Meter`)."""
        if least is None:
            least = 0 if self.kept[0] else 1
        return self.meter.max_affordable(cost, self.width if most is None else min(most, self.width), least)

    def check_width(self, name: str, asked: int) -> None:
        """Raises InputError where an option asks for more pictures of a prompt together than there can be."""
        if asked > self.width:
            raise InputError(
                f"{name} is {asked}, and {self.width} pictures of a prompt are made together.",
                "Give a larger batch_size, fewer prompts_at_once, or a smaller number.",
            )

    # -- making pictures ----------------------------------------------------------------------------------------

    def next_seeds(self, count: int) -> list[list[int]]:
        """The seeds of each prompt's next `count` noises, [P][count]."""
        numbers = range(self.seeds_used, self.seeds_used + count)
        self.seeds_used += count
        return [[noise_seed(self.seed, index, number) for number in numbers] for index in self.indices]

    def init_noise(self, seeds: Sequence[Sequence[int]]) -> Tensor:
        """The latents [P * N, ...] of pure noise from seeds [P][N]."""
        return self.generator.init_noise([seed for seeds_of_prompt in seeds for seed in seeds_of_prompt])

    def condition(self, prompts: Sequence[Sequence[Prompt]]) -> Any:
        """The conditioning of prompts [P][N]; what was encoded last is not encoded again."""
        flat = tuple(prompt for row in prompts for prompt in row)
        if self._encoded[0] != flat:
            self._encoded = ((), None)  # freed before the next is computed
            self._encoded = (flat, self.generator.encode(flat))
        return self._encoded[1]

    def denoise(self, x_t: Tensor, start: int, stop: int, prompts: Sequence[Sequence[Prompt]] | None = None) -> Tensor:
        """The latents after steps `start` .. `stop` - 1; prompts: what each row is drawn from, if not the batch's."""
        condition = self.condition(prompts or self.repeated(len(x_t) // len(self.prompts)))
        with for_sampling(self.generator):
            for step in range(start, stop):
                x_t = self.generator.advance(x_t, self.generator.predict(x_t, step, condition), step)
        return x_t

    def predict(self, x_t: Tensor, step: int) -> Tensor:
        """The generator's prediction for each row at a step."""
        condition = self.condition(self.repeated(len(x_t) // len(self.prompts)))
        with for_sampling(self.generator):
            return self.generator.predict(x_t, step, condition)

    def repeated(self, count: int) -> list[list[Prompt]]:
        return [[prompt] * count for prompt in self.prompts]

    def candidates(self, x_0: Tensor, origins: Sequence[Sequence[dict[str, Any]]]) -> Groups:
        """Clean latents [P * N, ...] as candidates [P][N] with their origins [P][N].

        Pixels are copied: a view would keep the whole batch in memory.
        """
        pixels = iter(self.generator.decode(x_0))
        return [[Candidate(next(pixels).clone(), origin) for origin in group] for group in origins]

    def sample(self, count: int, prompts: Sequence[Prompt] | None = None) -> Groups:
        """`count` plain samples a prompt [P][count]; prompts: what they are drawn from, if not the batch's."""
        is_first = self.seeds_used == 0 and prompts is None
        seeds = self.next_seeds(count)
        origins = [[{"noise": seed} for seed in seeds_of_prompt] for seeds_of_prompt in seeds]
        rows = None if prompts is None else [[prompt] * count for prompt in prompts]
        groups = self.candidates(self.denoise(self.init_noise(seeds), 0, self.steps, rows), origins)
        if is_first:
            self.first = [group[0] for group in groups]
        return groups

    # -- ranking them -------------------------------------------------------------------------------------------

    def add(self, new: Groups) -> list[list[Candidate]]:
        """Rank new pictures [P][N] together with the kept ones and keep the best; returns all of them, best first."""
        rankings = self.judging.rank(self.kept, new)
        self.kept = [ranking[: self.keep] for ranking in rankings]
        return rankings

    def best_indices(self, groups: Groups, count: int) -> list[list[int]]:
        """Which `count` of each prompt's pictures [P][N] are the best, best first, compared with no others."""
        rankings = self.judging.without_memory().rank([[] for _ in groups], groups)
        return [indices_in(group, ranking)[:count] for group, ranking in zip(groups, rankings, strict=True)]

    def rows(self, chosen: Sequence[Sequence[int]], count: int) -> Tensor:
        """The rows of latents [P * count, ...] that hold the chosen pictures [P][any] of each prompt."""
        return torch.tensor([p * count + index for p, indices in enumerate(chosen) for index in indices])


def indices_in(group: Sequence[Candidate], ranking: Sequence[Candidate]) -> list[int]:
    """The places in a group of those of its candidates that are in a ranking, in the ranking's order."""
    places = {id(candidate): i for i, candidate in enumerate(group)}
    return [places[id(candidate)] for candidate in ranking if id(candidate) in places]
