"""`search`: better pictures from the same weights, by any method, with any generator and any reward."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from rewarddance.errors import InputError
from rewarddance.generators.sampling import sample
from rewarddance.protocols import Generator, RewardModel, needs_reference
from rewarddance.runtime.config import Recipe, parse_recipe
from rewarddance.search.batch import Batch, noise_seed
from rewarddance.search.best_of_n import Random, search_best_of_n
from rewarddance.search.budget import Clock, CountingGenerator, CountingJudge, Meter, Spent, totals
from rewarddance.search.judging import JUDGING, Candidate
from rewarddance.search.over_paths import Paths, search_over_paths
from rewarddance.search.pruning import Pruning, search_pruning
from rewarddance.search.recipe import Budget, JudgingName, read_budget
from rewarddance.search.refine import Refine, Rewrite, search_refine
from rewarddance.search.zero_order import ZeroOrder, search_zero_order
from rewarddance.types import Prompt, as_prompts


class Method(NamedTuple):
    """Its options, and what does it."""

    options: type[Recipe]
    run: Callable[..., None]


METHODS: dict[str, Method] = {
    "best_of_n": Method(Random, search_best_of_n),
    "zero_order": Method(ZeroOrder, search_zero_order),
    "paths": Method(Paths, search_over_paths),
    "pruning": Method(Pruning, search_pruning),
    "refine": Method(Refine, search_refine),
}
"""A new method is one file and one line here."""
EXPLAINING = ("pairwise", "pointwise")
"""Kinds of judges that give reasons."""


def read_method(name: str, options: dict[str, Any]) -> Recipe:
    """A method's options from its name and keys. Raises InputError naming the method or the key that is not known."""
    if name not in METHODS:
        raise InputError(f"there is no search method named {name!r}.", f"Say {', '.join(METHODS)}.")
    return parse_recipe(METHODS[name].options, options, f"the options of {name}")


class Found(NamedTuple):
    """One prompt's result. pictures: the winner and its runners-up, best first. first: the prompt's first plain sample,
    for comparison. judging: how they were compared, which says what their scores are. rounds: how often the method did
    what it is for; at 0 the budget was too small for it, and these are plain samples. held_out: by how much the
    held-out reward prefers the winner to the first plain sample, half the difference of both orders' margins.
    """

    prompt: Prompt
    pictures: tuple[Candidate, ...]
    first: Candidate
    spent: Spent
    judging: JudgingName
    rounds: int
    held_out: float | None = None

    @property
    def winner(self) -> Candidate:
        return self.pictures[0]


class Search:
    """A generator, a reward, a method and a budget; called with prompts, batch by batch.

    options: a recipe of one of METHODS. judging: None is a knockout for a reward that needs a reference, else alone.
    batch_size: pictures that are made together, of all prompts, and so what bounds the memory; prompts_at_once: prompts
    that share them.
    held_out: another reward, which chooses nothing and costs nothing of the budget, but says what it thinks of the
    winners (`Found.held_out`). Raises InputError for options that do not go together.
    """

    def __init__(
        self,
        generator: Generator,
        reward: RewardModel,
        options: Recipe,
        budget: Budget,
        *,
        judging: JudgingName | None = None,
        seed: int = 0,
        runners_up: int = 2,
        batch_size: int = 64,
        prompts_at_once: int = 8,
        rewrite: Rewrite | None = None,
        clock: Clock = time.perf_counter,
        held_out: RewardModel | None = None,
    ) -> None:
        if not 1 <= prompts_at_once <= batch_size:
            raise InputError(
                f"{prompts_at_once} prompts at once do not go into a batch of {batch_size} pictures.",
                "Give a larger batch_size, or fewer prompts_at_once.",
            )
        if runners_up < 0:
            raise InputError(f"there cannot be {runners_up} runners-up.", "Say 0 or more.")
        if rewrite is not None and not isinstance(options, Refine):
            raise InputError("only the method refine rewrites prompts.", "Leave out rewrite, or choose that method.")
        kind = getattr(getattr(reward, "config", None), "kind", None)
        gives_reasons = hasattr(reward, "explain") and kind in (None, *EXPLAINING)
        if isinstance(options, Refine) and not gives_reasons:
            what = f"a {kind} reward" if hasattr(reward, "explain") else "this reward"
            raise InputError(f"{what} gives no reasons to refine with.", "Take a pairwise or a pointwise judge.")
        self.method = next(method for method in METHODS.values() if method.options is type(options))
        self.generator, self.judge = CountingGenerator(generator, clock), CountingJudge(reward, clock)
        self.options, self.budget, self.seed, self.rewrite = options, budget, seed, rewrite
        self.held_out = held_out
        self.judging: JudgingName = judging or ("knockout" if needs_reference(reward) else "alone")
        if self.judging == "alone" and needs_reference(reward):
            raise InputError(
                "a pairwise reward cannot judge a picture by itself.", "Say first, knockout or tournament."
            )
        self.kept, self.width = runners_up + 1, batch_size // prompts_at_once
        self._since = totals(self.generator, self.judge)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str | Prompt], places: Sequence[int]) -> list[Found]:
        """Search for prompts in step; places: their numbers in the whole search, which their noises depend on.

        Where there is a limit in seconds, the first call makes pictures before the clock starts, to learn what they
        take: more and more together, up to a whole batch or to about the seconds of these prompts.
        """
        prompts = as_prompts(prompts)
        if self.budget.seconds is not None and not self.generator.evaluations:
            self._warm_up(prompts, places)
        began = totals(self.generator, self.judge)
        batch = self._batch(prompts, places)
        extra = {"rewrite": self.rewrite} if self.rewrite is not None else {}
        self.method.run(batch, self.options, **extra)
        spent, self._since = batch.meter.spent(), began
        first = batch.first or self._first(prompts, places)
        said = self._held_out(prompts, first, [own[0] for own in batch.found])
        return [
            Found(prompt, tuple(own[: self.kept]), one, spent, self.judging, batch.rounds, margin)
            for prompt, own, one, margin in zip(prompts, batch.found, first, said, strict=True)
        ]

    def _held_out(
        self, prompts: Sequence[Prompt], first: Sequence[Candidate], winners: Sequence[Candidate]
    ) -> list[float | None]:
        """What the held-out reward says of each winner against the prompt's first sample; 0 where they are the same."""
        if self.held_out is None:
            return [None] * len(prompts)
        shown = [
            [Candidate(one.pixels, {}) for one in ((a,) if a.origin == b.origin else (a, b))]
            for a, b in zip(first, winners, strict=True)
        ]
        JUDGING["first"](CountingJudge(self.held_out), prompts).ranked([[] for _ in prompts], shown)
        return [own[-1].score for own in shown]

    def _batch(self, prompts: Sequence[Prompt], places: Sequence[int]) -> Batch:
        meter = Meter(self.budget, self.generator, self.judge, len(prompts), self._since)
        judging = JUDGING[self.judging](self.judge, prompts)
        keep = max(2, self.kept)  # a critique compares the best two
        return Batch(
            prompts, places, self.generator, self.judge, judging, meter, seed=self.seed, width=self.width, keep=keep
        )

    def _warm_up(self, prompts: Sequence[Prompt], places: Sequence[int]) -> None:
        batch = self._batch(prompts, places)
        clock, limit = self.generator.clock, len(prompts) * (self.budget.seconds or 0.0)
        began, count = clock(), 1
        batch.offer(batch.sample(1))  # what is slow only once, and a knockout of one asks nothing
        while True:
            self._since = totals(self.generator, self.judge)
            batch.offer(batch.sample(count))
            count *= 2
            if count > self.width or 2 * (clock() - began) > limit:
                return

    def _first(self, prompts: Sequence[Prompt], places: Sequence[int]) -> list[Candidate]:
        """The first plain samples, where the method made none; nobody has judged them, and they count as no cost."""
        seeds = [noise_seed(self.seed, place, 0) for place in places]
        pictures = sample(self.generator.generator, prompts, seeds, len(seeds))
        return [Candidate(pixels.clone(), {"noise": seed}) for pixels, seed in zip(pictures, seeds, strict=True)]


def search(
    generator: Generator,
    reward: RewardModel,
    prompts: Sequence[str | Prompt],
    method: str | Recipe = "best_of_n",
    budget: Budget | str = "samples=16",
    *,
    prompts_at_once: int = 8,
    tick: Callable[[int], None] = lambda n: None,
    **options: Any,
) -> list[Found]:
    """The best picture of each prompt that a budget gives, its runners-up, and what they cost.

    method: a name of METHODS, or its options (`Paths(copies=8)`). budget: for each prompt; see `Budget`. options: as in
    `Search`. tick: hears how many prompts each batch finished. A shorter list of prompts shares the batch among fewer.
    """
    chosen = read_method(method, {}) if isinstance(method, str) else method
    limit = read_budget(budget) if isinstance(budget, str) else budget
    at_once = min(prompts_at_once, max(1, len(prompts)))
    run = Search(generator, reward, chosen, limit, prompts_at_once=at_once, **options)
    found = []
    for start in range(0, len(prompts), at_once):
        places = range(start, min(start + at_once, len(prompts)))
        found += run([prompts[place] for place in places], places)
        tick(len(places))
    return found
