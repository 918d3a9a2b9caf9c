"""Questions of all clients, gathered into the judge's batches.

A question waits a few milliseconds for company, as long as others keep coming. While the judge works the next batch
gathers by itself, so that under load nothing waits for the clock. Questions with the same prompt, reference and
instruction go into one batch where they can: the judge reads what they share once. One that fails, fails alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError, RewardDanceError, RewardError, as_ours, reworded, without_frames
from rewarddance.protocols import RewardModel, check_margins
from rewarddance.reward.remote.wire import Answer, picture_of
from rewarddance.serve.metrics import ServerMetrics
from rewarddance.serve.pictures import Busy
from rewarddance.serve.recipe import ServeOptions
from rewarddance.types import Question

log = logging.getLogger("rewarddance.serve")
Outcome = Answer | RewardDanceError
_STEPS = 4
"""How often within the longest wait it is seen whether anybody came."""
_LONGEST_PAUSE = 30.0
"""Seconds after which a client that is turned away is told to come again, at most."""


class Waiting:
    """A question in the queue. wanted: the roles of the pictures whose gradient is asked for."""

    def __init__(self, question: Question, wanted: tuple[str, ...], future: asyncio.Future[Outcome]) -> None:
        self.question, self.wanted, self.future = question, wanted, future
        shown = (question.reference, question.prompt.image)
        self.shared = (question.prompt.text, *map(id, shown), question.instruction)


class Batcher:
    """The queue before one reward model, and the thread that asks it."""

    def __init__(self, reward: RewardModel, options: ServeOptions, metrics: ServerMetrics) -> None:
        self.reward, self.options, self.metrics = reward, options, metrics
        self._queue: dict[int, Waiting] = {}
        self._numbers = count()
        self._arrived = asyncio.Event()
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="rewarddance-judge")
        self._seconds_each = 0.0

    @property
    def waiting(self) -> int:
        """Questions that wait."""
        return len(self._queue)

    async def ask(self, questions: Sequence[Question], wanted: Sequence[tuple[str, ...]]) -> list[Outcome]:
        """The outcome of each question. Cancelled, what was not begun is not computed.

        Raises Busy where the queue has no room for them.
        """
        if len(self._queue) + len(questions) > self.options.queue:
            pause = min(_LONGEST_PAUSE, max(1.0, len(self._queue) * self._seconds_each))
            raise Busy(f"{len(self._queue)} questions wait already, of {self.options.queue}.", pause)
        loop, numbers, futures = asyncio.get_running_loop(), [], []
        for question, roles in zip(questions, wanted, strict=True):
            futures.append(loop.create_future())
            numbers.append(next(self._numbers))
            self._queue[numbers[-1]] = Waiting(question, roles, futures[-1])
        self._arrived.set()
        try:
            return await asyncio.gather(*futures)
        finally:
            dropped = [self._queue.pop(number) for number in numbers if number in self._queue]
            self.metrics.questions.labels("dropped").inc(len(dropped))

    async def run(self) -> None:
        """Answer what waits, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await self._company()
            batch = self._take()
            if not batch:
                continue
            begun = time.monotonic()
            outcomes = await loop.run_in_executor(self._engine, self._answer, batch)
            took = time.monotonic() - begun
            self._seconds_each = 0.9 * self._seconds_each + 0.1 * took / len(batch)
            self.metrics.batch.observe(len(batch))
            self.metrics.judging.observe(took)
            for waiting, outcome in zip(batch, outcomes, strict=True):
                kind = "failed" if isinstance(outcome, RewardDanceError) else "answered"
                if waiting.future.done():  # whoever asked has hung up
                    kind = "dropped"
                else:
                    waiting.future.set_result(outcome)
                self.metrics.questions.labels(kind).inc()

    def close(self) -> None:
        self._engine.shutdown(wait=True, cancel_futures=True)

    async def _company(self) -> None:
        """Wait for others, as long as they keep coming and no longer than a question may wait."""
        longest = self.options.wait_ms / 1000
        end = time.monotonic() + longest
        while longest and len(self._queue) < self.options.max_batch and time.monotonic() < end:
            before = len(self._queue)
            await asyncio.sleep(longest / _STEPS)
            if len(self._queue) <= before:
                return

    def _take(self) -> list[Waiting]:
        """The next batch: the question that waits longest, all that share its beginning, and so on.

        Questions whose gradient is wanted are not mixed with others, for which nothing need be kept.
        """
        groups: dict[tuple, list[int]] = {}
        differentiated: bool | None = None
        for number, waiting in self._queue.items():
            if differentiated is None:
                differentiated = bool(waiting.wanted)
            if bool(waiting.wanted) == differentiated:
                groups.setdefault(waiting.shared, []).append(number)
        most = self.options.gradient_batch if differentiated else self.options.max_batch
        chosen = [number for group in groups.values() for number in group][:most]
        batch = [self._queue.pop(number) for number in chosen]
        if not self._queue:
            self._arrived.clear()
        return [waiting for waiting in batch if not waiting.future.done()]

    # -- in the judge's thread -----------------------------------------------------------------------------------------

    def _answer(self, batch: Sequence[Waiting]) -> list[Outcome]:
        """The outcomes of a batch. Where it fails it is asked again by halves, until what fails is alone."""
        try:
            return _gradients(self.reward, batch) if batch[0].wanted else _margins(self.reward, batch)
        except Exception as error:
            if len(batch) > 1:
                half = len(batch) // 2
                return self._answer(batch[:half]) + self._answer(batch[half:])
            if isinstance(error, RewardDanceError):
                # It was alone here, and the client knows its number there.
                return [without_frames(reworded(error, error.what.replace("question 0", "the question")))]
            log.exception("the judge failed on the prompt %r", batch[0].question.prompt.text)
            ours = as_ours(error)
            return [RewardError(ours.what, ours.remedy)]


@torch.no_grad()
def _margins(reward: RewardModel, batch: Sequence[Waiting]) -> list[Outcome]:
    margin = _margin(reward, [waiting.question for waiting in batch])
    return [_finite(waiting, Answer(value)) for waiting, value in zip(batch, margin.float().tolist(), strict=True)]


@torch.enable_grad()
def _gradients(reward: RewardModel, batch: Sequence[Waiting]) -> list[Outcome]:
    """Margins and gradients. Each question has pictures of its own, so one backward pass gives each its own."""
    leaves: list[dict[str, Tensor]] = []
    questions = []
    for waiting in batch:
        question, leaf_of = waiting.question, {}
        for role in waiting.wanted:
            pixels = picture_of(question, role)
            assert pixels is not None
            leaf_of[role] = pixels.detach().clone().requires_grad_()
        prompt = replace(question.prompt, image=leaf_of["condition"]) if "condition" in leaf_of else question.prompt
        others = {role: leaf for role, leaf in leaf_of.items() if role != "condition"}
        questions.append(replace(question, prompt=prompt, **others))
        leaves.append(leaf_of)
    margin = _margin(reward, questions)
    if not margin.requires_grad:
        raise InputError("the reward gives no gradient in its pictures.", "Align with grpo or nft instead.")
    flat = [leaf for leaf_of in leaves for leaf in leaf_of.values()]
    raw_gradients = torch.autograd.grad(margin.sum(), flat, allow_unused=True)
    gradients = iter(torch.zeros_like(leaf) if g is None else g for g, leaf in zip(raw_gradients, flat, strict=True))
    answers = []
    for waiting, leaf_of, value in zip(batch, leaves, margin.tolist(), strict=True):
        answers.append(_finite(waiting, Answer(value, {role: next(gradients).cpu() for role in leaf_of})))
    return answers


def _margin(reward: RewardModel, questions: Sequence[Question]) -> Float[Tensor, " B"]:
    """Raises RewardError where the reward did not answer with one margin for each question."""
    verdict = reward(questions)
    check_margins(verdict, len(questions))
    return verdict.margin


def _finite(waiting: Waiting, answer: Answer) -> Outcome:
    """The answer, or the error that it is none."""
    values = (torch.tensor(answer.margin), *answer.gradients.values())
    if all(bool(torch.isfinite(value).all()) for value in values):
        return answer
    return RewardError(
        f"the judge gave no finite margin or gradient for the prompt {waiting.question.prompt.text!r}.",
        "Look at its picture for values that are not finite, and at the judge's weights and precision.",
    )
