"""`search`: better pictures from the same weights, by any method, with any generator and any reward."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from rewarddance.errors import InputError, RewardDanceError, SearchIncomplete, shown, without_frames
from rewarddance.generators.sampling import sample
from rewarddance.protocols import Generator, RewardModel, needs_reference
from rewarddance.runtime.config import Recipe, parse_recipe
from rewarddance.runtime.item_faults import as_fault
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
    """The recipe of a method, and the function that runs it on a batch with such a recipe."""

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
    """A method's recipe from its name and keys. Raises InputError naming a method or a key that is not known."""
    if name not in METHODS:
        raise InputError(f"there is no search method named {name!r}.", f"Say {', '.join(METHODS)}.")
    return parse_recipe(METHODS[name].options, options, f"the options of {name}")


class SearchResult(NamedTuple):
    """One prompt's result.

    pictures: the winner and its runners-up, best first.
    first: the prompt's first plain sample, for comparison.
    judging: how the pictures were compared, which says what their scores are.
    rounds: how often the method itself ran; at 0 the budget was too small for it, and these are plain samples.
    held_out: by how much the held-out reward prefers the winner to the first plain sample: half the difference of both
    orders' margins.
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

    options: a recipe of one of METHODS.
    judging: None is a knockout for a reward that needs a reference, else alone.
    batch_size: pictures that are made together, of all prompts: this bounds the memory.
    prompts_at_once: prompts that share such a batch.
    held_out: another reward. It chooses nothing and takes nothing of the budget; see `SearchResult.held_out`.

    Raises InputError for options that do not go together.
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
        counts = {"prompts_at_once": prompts_at_once, "batch_size": batch_size, "runners_up": runners_up}
        for name, count in counts.items():
            if not isinstance(count, int) or isinstance(count, bool):
                raise InputError(f"{name} is {shown(count)}, which is no whole number.", "Give one.")
        if rewrite is not None and not callable(rewrite):
            raise InputError(f"rewrite is {shown(rewrite)}, and no function.", "Give one of a prompt and a reason.")
        if not 1 <= prompts_at_once <= batch_size:
            raise InputError(
                f"{prompts_at_once} prompts at once do not go into a batch of {batch_size} pictures.",
                "Give a larger batch_size, or fewer prompts_at_once.",
            )
        if judging is not None and judging not in JUDGING:
            raise InputError(f"there is no judging named {judging!r}.", f"Say {', '.join(JUDGING)}.")
        if not isinstance(seed, int) or seed < 0:
            raise InputError(f"the seed {shown(seed)} is no whole number from 0 on.", "Give one.")
        if not isinstance(budget, Budget):
            raise InputError(f"{shown(budget)} is no budget.", "Write samples=16, or give a Budget.")
        if runners_up < 0:
            raise InputError(f"there cannot be {runners_up} runners-up.", "Say 0 or more.")
        if rewrite is not None and not isinstance(options, Refine):
            raise InputError("only the method refine rewrites prompts.", "Leave out rewrite, or choose that method.")
        kind = getattr(getattr(reward, "config", None), "kind", None)
        gives_reasons = hasattr(reward, "explain") and kind in (None, *EXPLAINING)
        if isinstance(options, Refine) and not gives_reasons:
            name = f"a {kind} reward" if hasattr(reward, "explain") else "this reward"
            raise InputError(f"{name} gives no reasons to refine with.", "Take a pairwise or a pointwise judge.")
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
    def __call__(self, prompts: Sequence[str | Prompt], indices: Sequence[int]) -> list[SearchResult]:
        """Search for prompts in step; indices: their numbers in the whole search, which their noises depend on.

        With a limit in seconds, the first call makes pictures before the clock starts, to learn what they take: twice
        as many together each time, up to a whole batch or to about the seconds that these prompts have.
        """
        prompts = as_prompts(prompts)
        if self.budget.seconds is not None and not self.generator.evaluations:
            self._warm_up(prompts, indices)
        before = totals(self.generator, self.judge)
        batch = self._batch(prompts, indices)
        rewrite = {"rewrite": self.rewrite} if self.rewrite is not None else {}
        self.method.run(batch, self.options, **rewrite)
        spent, self._since = batch.meter.spent(), before
        first_samples = batch.first or self._first(prompts, indices)
        margins = self.held_out_margins(prompts, first_samples, [kept[0] for kept in batch.kept])
        return [
            SearchResult(prompt, tuple(kept[: self.kept]), first, spent, self.judging, batch.rounds, margin)
            for prompt, kept, first, margin in zip(prompts, batch.kept, first_samples, margins, strict=True)
        ]

    def attempt(self, prompts: Sequence[str | Prompt], indices: Sequence[int]) -> list[SearchResult | RewardDanceError]:
        """What was found for each prompt, or why nothing; one that fails does not take the others with it.

        Raises what is of no prompt: memory that is not enough, a process that stopped.
        """
        try:
            return [*self(prompts, indices)]
        except Exception as error:
            fault = as_fault(error)
            if len(prompts) == 1:
                if fault is not error:
                    fault.__cause__ = error
                return [fault]
            del fault  # its frames hold the batch's pictures
        half = len(prompts) // 2
        return self.attempt(prompts[:half], indices[:half]) + self.attempt(prompts[half:], indices[half:])

    def held_out_margins(
        self, prompts: Sequence[Prompt], first_samples: Sequence[Candidate], winners: Sequence[Candidate]
    ) -> list[float | None]:
        """The held-out reward's margin of each winner over the first sample; 0 where they are the same picture."""
        if self.held_out is None:
            return [None] * len(prompts)
        groups = []
        for first, winner in zip(first_samples, winners, strict=True):
            pictures = [first] if first.origin == winner.origin else [first, winner]
            groups.append([Candidate(picture.pixels, {}) for picture in pictures])
        JUDGING["first"](CountingJudge(self.held_out), prompts).rank([[] for _ in prompts], groups)
        return [group[-1].score for group in groups]

    def _batch(self, prompts: Sequence[Prompt], indices: Sequence[int]) -> Batch:
        meter = Meter(self.budget, self.generator, self.judge, len(prompts), self._since)
        judging = JUDGING[self.judging](self.judge, prompts)
        keep = max(2, self.kept)  # a critique compares the best two
        return Batch(
            prompts, indices, self.generator, self.judge, judging, meter, seed=self.seed, width=self.width, keep=keep
        )

    def _warm_up(self, prompts: Sequence[Prompt], indices: Sequence[int]) -> None:
        batch = self._batch(prompts, indices)
        clock, limit = self.generator.clock, len(prompts) * (self.budget.seconds or 0.0)
        start, count = clock(), 1
        batch.add(batch.sample(1))  # the first picture is slow, and a knockout of one asks nothing
        while True:
            self._since = totals(self.generator, self.judge)
            batch.add(batch.sample(count))
            count *= 2
            if count > self.width or 2 * (clock() - start) > limit:
                return

    def _first(self, prompts: Sequence[Prompt], indices: Sequence[int]) -> list[Candidate]:
        """The first plain samples, where the method made none. They are not judged and take nothing of the budget."""
        seeds = [noise_seed(self.seed, index, 0) for index in indices]
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
) -> list[SearchResult]:
    """The best picture of each prompt that a budget gives, its runners-up, and what they cost.

    method: a name in METHODS, or a recipe of one (`Paths(copies=8)`). budget: for each prompt; see `Budget`. options:
    as in `Search`. tick: called with how many prompts each batch finished. Fewer prompts share a batch among fewer.

    Raises SearchIncomplete where some prompts failed, once all others were searched for.
    """
    recipe = read_method(method, {}) if isinstance(method, str) else method
    limits = read_budget(budget) if isinstance(budget, str) else budget
    at_once = min(prompts_at_once, max(1, len(prompts))) if isinstance(prompts_at_once, int) else prompts_at_once
    run = Search(generator, reward, recipe, limits, prompts_at_once=at_once, **options)
    answers, failed = list[SearchResult | RewardDanceError](), list[tuple[int, RewardDanceError]]()
    for start in range(0, len(prompts), at_once):
        indices = range(start, min(start + at_once, len(prompts)))
        for answer in run.attempt([prompts[index] for index in indices], indices):
            if isinstance(answer, RewardDanceError):
                failed.append((len(answers), without_frames(answer) if failed else answer))
            answers.append(answer)
        raise_common(answers)
        tick(len(indices))
    if failed:
        number, first = failed[0]
        if len(failed) == len(answers):
            raise first
        raise SearchIncomplete(
            f"{len(failed)} of {len(answers)} prompts failed, the first at number {number + 1} "
            f"({shown(as_prompts(prompts)[number].text, 50)}): {first.what}",
            f"{first.remedy} What was found for the others is in this error's results.".strip(),
            answers,
        ) from first
    return [answer for answer in answers if isinstance(answer, SearchResult)]


def raise_common(answers: Sequence[SearchResult | RewardDanceError]) -> None:
    """Raise the first error where all prompts so far, two at least, failed with one remedy: it is not the prompts."""
    failed = [answer for answer in answers if isinstance(answer, RewardDanceError)]
    if len(failed) == len(answers) > 1 and len({error.remedy for error in failed}) == 1:
        raise failed[0]
