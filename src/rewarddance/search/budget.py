"""What a search may spend and what it has spent: generator evaluations, questions to the judge, seconds.

A generator evaluation is one picture's latent through one sampler step (with guidance the network runs twice in it). A
question is what crosses the seam to the judge. Seconds are wall-clock time: generator, judge and everything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.generators.sampling import for_sampling
from rewarddance.protocols import Generator, RewardModel, checked_verdict, needs_reference
from rewarddance.search.recipe import Budget
from rewarddance.types import PixelBatch, Prompt, Question, Scales, Verdict

Clock = Callable[[], float]


class Cost(NamedTuple):
    """What a step of a search would cost for one prompt."""

    evaluations: int
    questions: int


class Spent(NamedTuple):
    """What a prompt's search took. pictures: how many were decoded. seconds: in all, and of generator and judge."""

    evaluations: int
    pictures: int
    questions: int
    seconds: float
    generator_seconds: float
    judge_seconds: float


class _Timed:
    """Adds up the seconds spent inside `_timing`."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seconds = clock, 0.0

    @contextmanager
    def _timing(self) -> Iterator[None]:
        start = self.clock()
        try:
            yield
        finally:
            self.seconds += self.clock() - start


class CountingGenerator(_Timed):
    """A Generator that counts and times the calls of the one it wraps."""

    def __init__(self, generator: Generator, clock: Clock = time.perf_counter) -> None:
        super().__init__(clock)
        self.generator, self.evaluations, self.pictures = generator, 0, 0

    @property
    def num_steps(self) -> int:
        return self.generator.num_steps

    def encode(self, prompts: Sequence[Prompt]) -> Any:
        with self._timing():
            return self.generator.encode(prompts)

    def init_noise(self, seeds: Sequence[int]) -> Tensor:
        with self._timing():
            return self.generator.init_noise(seeds)

    def predict(self, x_t: Tensor, step: int, condition: Any) -> Tensor:
        self.evaluations += len(x_t)
        with self._timing():
            return self.generator.predict(x_t, step, condition)

    def for_sampling(self) -> Any:
        return for_sampling(self.generator)

    def advance(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        with self._timing():
            return self.generator.advance(x_t, prediction, step)

    def predict_x0(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        with self._timing():
            return self.generator.predict_x0(x_t, prediction, step)

    def scales(self, step: int) -> Scales:
        return self.generator.scales(step)

    def decode(self, x_0: Tensor) -> PixelBatch:
        self.pictures += len(x_0)
        with self._timing():
            return _synchronized(self.generator.decode(x_0))


class CountingJudge(_Timed):
    """A RewardModel that counts and times the questions to the one it wraps.

    Raises RewardError where its margins are not finite, or are not one a question.
    """

    def __init__(self, judge: RewardModel, clock: Clock = time.perf_counter) -> None:
        super().__init__(clock)
        self.judge, self.questions = judge, 0

    @property
    def needs_reference(self) -> bool:
        return needs_reference(self.judge)

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        if not questions:  # a budget of one picture asks nothing, and not every reward takes an empty list
            return Verdict(torch.zeros(0))
        self.questions += len(questions)
        with self._timing():
            verdict = checked_verdict(self.judge(questions), questions)
            _synchronized(verdict.margin)
        return verdict

    def explain(self, questions: Sequence[Question]) -> Verdict:
        """Verdicts with reasons. Raises InputError where the judge has none."""
        explain = getattr(self.judge, "explain", None)
        if explain is None:
            raise InputError("this reward gives no reasons.", "Choose a method that needs none, or a pairwise judge.")
        if not questions:
            return Verdict(torch.zeros(0), ())
        self.questions += len(questions)
        with self._timing():
            return checked_verdict(explain(questions), questions)


def _synchronized(tensor: Tensor) -> Tensor:
    if tensor.is_cuda:  # kernels run asynchronously, and the clock is to count them
        torch.cuda.synchronize(tensor.device)
    return tensor


class Totals(NamedTuple):
    """What the counters of a generator and a judge have reached."""

    evaluations: int
    pictures: int
    questions: int
    generator_seconds: float
    judge_seconds: float

    def since(self, before: Totals) -> Totals:
        return Totals(
            self.evaluations - before.evaluations,
            self.pictures - before.pictures,
            self.questions - before.questions,
            self.generator_seconds - before.generator_seconds,
            self.judge_seconds - before.judge_seconds,
        )


def totals(generator: CountingGenerator, judge: CountingJudge) -> Totals:
    return Totals(generator.evaluations, generator.pictures, judge.questions, generator.seconds, judge.seconds)


class Meter:
    """What P prompts that are searched in step have spent, and what each of them can still afford.

    since: the counters' state at the time from which on work counts for estimates of seconds; it may be before these
    prompts.
    Raises InputError where a limit is below the cost of one plain sample.
    """

    def __init__(
        self, budget: Budget, generator: CountingGenerator, judge: CountingJudge, prompts: int, since: Totals
    ) -> None:
        self.budget, self.generator, self.judge, self.prompts, self.since = budget, generator, judge, prompts, since
        self.start_time, self.before = generator.clock(), totals(generator, judge)
        steps = generator.num_steps
        limits = [budget.evaluations, None if budget.samples is None else budget.samples * steps]
        self.evaluations = min((limit for limit in limits if limit is not None), default=None)
        if self.evaluations is not None and self.evaluations < steps:
            raise InputError(
                f"a budget of {self.evaluations} evaluations does not give one picture, which takes {steps}.",
                "Give a larger budget, or fewer num_inference_steps.",
            )

    def spent(self) -> Spent:
        """So far, for each of the prompts."""
        done = totals(self.generator, self.judge).since(self.before)
        evaluations, pictures, questions = (round(count / self.prompts) for count in done[:3])
        seconds = self.generator.clock() - self.start_time
        making, judging = done.generator_seconds / self.prompts, done.judge_seconds / self.prompts
        return Spent(evaluations, pictures, questions, seconds / self.prompts, making, judging)

    def max_affordable(self, cost: Callable[[int], Cost], most: int, least: int = 0) -> int:
        """The largest width up to `most` whose cost is still in the budget; `least` where there is none."""
        spent = self.spent()
        return next((width for width in range(most, least, -1) if self._affords(cost(width), spent)), least)

    def _affords(self, cost: Cost, spent: Spent) -> bool:
        budget = self.budget
        if self.evaluations is not None and spent.evaluations + cost.evaluations > self.evaluations:
            return False
        if budget.questions is not None and spent.questions + cost.questions > budget.questions:
            return False
        return budget.seconds is None or spent.seconds + self.estimate_seconds(cost) <= budget.seconds

    def estimate_seconds(self, cost: Cost) -> float:
        """The seconds that a cost will take, by what evaluations and questions have taken so far."""
        done = totals(self.generator, self.judge).since(self.since)
        making = done.generator_seconds / max(1, done.evaluations)
        return cost.evaluations * making + cost.questions * done.judge_seconds / max(1, done.questions)
