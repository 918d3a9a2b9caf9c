"""Questions of many clients become the judge's batches; one that fails or is given up takes nobody with it."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import torch
from tiny import BrightnessJudge, pictures

from rewarddance.errors import InputError, RewardDanceError, RewardError
from rewarddance.reward.remote.wire import Answer
from rewarddance.serve.batching import Batcher
from rewarddance.serve.metrics import ServerMetrics
from rewarddance.serve.pictures import Busy
from rewarddance.serve.protocol import each as read_each
from rewarddance.serve.recipe import ServeOptions
from rewarddance.types import Question, Verdict


class Recorder:
    """The brightness of the candidate; keeps each batch's prompts, fails on some, and waits at a gate."""

    needs_reference = False

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        self.entered.set()
        self.gate.wait(60)
        self.batches.append([question.prompt.text for question in questions])
        if any(question.prompt.text == "broken" for question in questions):
            raise InputError("this prompt is broken.", "Correct it.")
        if any(question.prompt.text == "bug" for question in questions):
            raise ZeroDivisionError("of the judge's own")
        margins = [torch.nan if q.prompt.text == "nan" else float(q.candidate.mean()) for q in questions]
        return Verdict(torch.tensor(margins))


def running(work: Callable[[Batcher], Awaitable[Any]], reward: Any, **options: Any) -> Any:
    """What `work` returns beside a batcher that runs."""

    async def go() -> Any:
        batcher = Batcher(reward, ServeOptions(**options), ServerMetrics())
        task = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(work(batcher), 60)
        finally:
            task.cancel()
            batcher.close()

    return asyncio.run(go())


def question(text: str, seed: int = 0, reference: Any = None) -> Question:
    return Question(text, pictures(1, seed)[0], reference)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def each(batcher: Batcher, questions: Sequence[Question]) -> list[Any]:
    """Every question by a client of its own."""
    return [found for (found,) in await asyncio.gather(*(batcher.ask([q], [()]) for q in questions))]


def test_questions_of_many_clients_are_asked_together_and_answered_apart():
    reward, asked = Recorder(), [question(f"prompt {n}", n) for n in range(40)]
    outcomes = running(lambda batcher: each(batcher, asked), reward)
    assert [outcome.margin for outcome in outcomes] == pytest.approx([float(q.candidate.mean()) for q in asked])
    assert len(reward.batches) <= 3


def test_what_comes_while_the_judge_works_is_the_next_batch():
    reward = Recorder()

    async def work(batcher: Batcher) -> None:
        reward.gate.clear()
        first = asyncio.create_task(each(batcher, [question("first")]))
        await until(reward.entered.is_set)
        second = asyncio.create_task(each(batcher, [question(f"later {n}") for n in range(9)]))
        await until(lambda: batcher.waiting == 9)
        reward.gate.set()
        await asyncio.gather(first, second)

    running(work, reward)
    assert [len(batch) for batch in reward.batches] == [1, 9]


def test_a_failed_question_keeps_no_pictures():
    """Its error goes through frames that hold them: not until somebody collects garbage, which is rare."""
    reward = Recorder()
    asked = [question(text) for text in ("good", "broken", "nan")]
    held = [weakref.ref(q.candidate) for q in asked]
    gc.collect()
    gc.disable()
    try:
        outcomes = running(lambda batcher: each(batcher, asked), reward)
        asked.clear()
        assert [isinstance(outcome, RewardDanceError) for outcome in outcomes] == [False, True, True]
        assert [ref() for ref in held] == [None] * 3
    finally:
        gc.enable()


def test_a_question_that_cannot_be_read_keeps_nothing_of_its_request():
    class Content:
        """Stands for a body and what it was decoded to."""

    def broken(content: Content) -> Question:
        try:
            raise ValueError(content)
        except ValueError as error:
            raise InputError("this is no picture.", "Send one.") from error

    content = Content()
    held = weakref.ref(content)
    gc.collect()
    gc.disable()
    try:
        (error,) = read_each([functools.partial(broken, content)])
        del content
        assert isinstance(error, InputError) and held() is None
    finally:
        gc.enable()


def test_one_failed_question_fails_alone():
    reward = Recorder()
    texts = ["good", "broken", "good", "nan", "bug", *["good"] * 11]
    outcomes = running(lambda batcher: each(batcher, [question(text) for text in texts]), reward)
    assert [isinstance(outcome, Answer) for outcome in outcomes] == [text == "good" for text in texts]
    assert isinstance(outcomes[1], InputError) and "broken" in str(outcomes[1])
    assert isinstance(outcomes[3], RewardError) and "'nan'" in str(outcomes[3])
    assert isinstance(outcomes[4], RewardError) and "ZeroDivisionError" in str(outcomes[4])


def test_a_batch_is_filled_by_prompt_and_reference_and_nobody_starves():
    reward = Recorder()
    first, second = pictures(2)

    async def work(batcher: Batcher) -> None:
        asked = [question(f"p{n % 2}", n, (first, second)[n % 2]) for n in range(8)]
        await each(batcher, asked)

    running(work, reward, max_batch=4)
    assert reward.batches == [["p0"] * 4, ["p1"] * 4]


def test_what_is_given_up_is_not_computed():
    reward = Recorder()

    async def work(batcher: Batcher) -> int:
        reward.gate.clear()
        first = asyncio.create_task(each(batcher, [question("first")]))
        await until(reward.entered.is_set)
        second = asyncio.create_task(each(batcher, [question("given up"), question("given up")]))
        third = asyncio.create_task(each(batcher, [question("third")]))
        await until(lambda: batcher.waiting == 3)
        second.cancel()
        await asyncio.sleep(0)
        reward.gate.set()
        await asyncio.gather(first, third)
        return batcher.waiting

    assert running(work, reward) == 0
    assert reward.batches == [["first"], ["third"]]


def test_a_full_queue_says_when_to_come_again():
    reward = Recorder()

    async def work(batcher: Batcher) -> None:
        reward.gate.clear()
        tasks = [asyncio.create_task(each(batcher, [question("a")]))]
        await until(reward.entered.is_set)
        tasks.append(asyncio.create_task(each(batcher, [question("b") for _ in range(4)])))
        await until(lambda: batcher.waiting == 4)
        with pytest.raises(Busy) as busy:
            await each(batcher, [question("c")])
        assert busy.value.seconds >= 1
        reward.gate.set()
        await asyncio.gather(*tasks)

    running(work, reward, queue=4, max_questions=4)


def test_gradients_are_those_of_each_question_alone():
    a, b = pictures(2)

    async def work(batcher: Batcher) -> list[Answer | RewardDanceError]:
        asked = [Question("x", a, b), Question("x", b, a), Question("x", a, a)]
        return await batcher.ask(asked, [("candidate",), ("candidate", "reference"), ("reference",)])

    first, second, third = running(work, BrightnessJudge())
    slope = torch.full((1, 3, 32, 32), 8 / 3072)
    assert [*first.gradients] == ["candidate"] and [*third.gradients] == ["reference"]
    torch.testing.assert_close(first.gradients["candidate"], slope)
    torch.testing.assert_close(second.gradients["candidate"], slope)
    torch.testing.assert_close(second.gradients["reference"], -slope)
    torch.testing.assert_close(third.gradients["reference"], -slope)


def test_a_queue_that_a_request_may_not_fit_into_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        ServeOptions(queue=3)
