"""A budget is read from text, what is spent is counted, and seconds are estimated."""

from __future__ import annotations

import pytest
import torch
from gaussian import Bright
from tiny import TinyGenerator, comparing

from rewarddance.errors import InputError
from rewarddance.protocols import Generator, RewardModel
from rewarddance.search.budget import Cost, CountingGenerator, CountingJudge, Meter, Totals, totals
from rewarddance.search.recipe import Budget, read_budget
from rewarddance.types import Prompt, Question


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(TinyGenerator):
    """Takes a second for each latent of each evaluation, and three for each decoded picture."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def predict(self, x_t, step, condition):
        self.clock.now += len(x_t)
        return super().predict(x_t, step, condition)

    def decode(self, x_0):
        self.clock.now += 3 * len(x_0)
        return super().decode(x_0)


class SlowJudge(Bright):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __call__(self, questions):
        self.clock.now += 2 * len(questions)
        return super().__call__(questions)


def make_and_judge(generator: CountingGenerator, judge: CountingJudge, pictures: int) -> None:
    """Draw plain samples and ask the judge about each."""
    x = generator.init_noise(range(pictures))
    condition = generator.encode([Prompt("a")] * pictures)
    for step in range(generator.num_steps):
        x = generator.advance(x, generator.predict(x, step, condition), step)
    judge([Question("a", pixels) for pixels in generator.decode(x)])


def test_a_budget_is_read_from_text():
    assert read_budget("samples=16") == Budget(samples=16)
    assert read_budget("evaluations=400, seconds=1.5") == Budget(evaluations=400, seconds=1.5)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("16", "'16' is not of the form"),
        ("samples=", "not of the form"),
        ("sample=4", "unknown key 'sample'"),
        ("samples=0", "'samples'"),
        ("samples=1,seconds=2,samples=3", "says samples twice"),
        ("seconds=-1", "'seconds'"),
        ("samples=2.5", "'samples'"),
    ],
)
def test_a_text_that_is_no_budget_is_refused_by_name(text, error):
    with pytest.raises(InputError, match=error):
        read_budget(text)


def test_a_budget_without_any_limit_is_refused():
    with pytest.raises(ValueError, match="needs one of samples, evaluations, questions, seconds"):
        Budget()


def test_counting_wrappers_are_the_protocols_and_change_no_answer():
    generator, judge = CountingGenerator(TinyGenerator()), CountingJudge(Bright())
    assert isinstance(generator, Generator) and isinstance(judge, RewardModel)
    plain, x = TinyGenerator(), TinyGenerator().init_noise([3, 4])
    condition = plain.encode(["a", "bb"])
    assert torch.equal(generator.predict(x, 1, condition), plain.predict(x, 1, condition))
    assert torch.equal(generator.decode(x), plain.decode(x))
    assert generator.scales(2) == plain.scales(2) and generator.num_steps == plain.num_steps
    assert judge.explain([Question("a", pixels) for pixels in plain.decode(x)]).reasons == ("too dark 0", "too dark 1")


def test_every_evaluation_picture_question_and_second_is_counted_once():
    clock = Clock()
    generator, judge = CountingGenerator(Slow(clock), clock), CountingJudge(SlowJudge(clock), clock)
    meter = Meter(Budget(samples=10), generator, judge, 2, totals(generator, judge))
    make_and_judge(generator, judge, 6)
    clock.now += 5  # neither the generator's nor the judge's
    assert totals(generator, judge) == Totals(24, 6, 6, 24 + 18, 12)
    assert meter.spent() == (12, 3, 3, (24 + 18 + 12 + 5) / 2, 21, 6)


def test_the_width_is_the_largest_that_every_limit_allows():
    generator, judge = CountingGenerator(TinyGenerator()), CountingJudge(Bright())

    def max_affordable(**limits) -> int:
        meter = Meter(Budget(**limits), generator, judge, 1, totals(generator, judge))
        return meter.max_affordable(lambda width: Cost(4 * width, width * width), 8)

    assert max_affordable(samples=5) == 5 == max_affordable(evaluations=23)
    assert max_affordable(questions=10) == 3
    assert max_affordable(samples=5, questions=4) == 2
    assert max_affordable(samples=100) == 8


def test_seconds_are_estimated_from_those_before():
    clock = Clock()
    generator, judge = CountingGenerator(Slow(clock), clock), CountingJudge(SlowJudge(clock), clock)
    since = totals(generator, judge)
    make_and_judge(generator, judge, 2)  # 8 + 6 and 4 seconds: 1.75 an evaluation, 2 a question
    meter = Meter(Budget(seconds=20), generator, judge, 1, since)
    assert meter.estimate_seconds(Cost(4, 1)) == pytest.approx(9)
    assert meter.max_affordable(lambda width: Cost(4 * width, width), 8) == 2
    make_and_judge(generator, judge, 1)
    assert meter.max_affordable(lambda width: Cost(4 * width, width), 8) == 1
    make_and_judge(generator, judge, 1)
    assert meter.max_affordable(lambda width: Cost(4 * width, width), 8) == 0
    assert meter.max_affordable(lambda width: Cost(4 * width, width), 8, least=1) == 1


def test_a_budget_below_one_picture_is_refused():
    generator, judge = CountingGenerator(TinyGenerator()), CountingJudge(Bright())
    with pytest.raises(InputError, match="3 evaluations does not give one picture, which takes 4"):
        Meter(Budget(evaluations=3), generator, judge, 1, totals(generator, judge))


def test_a_reward_without_reasons_says_so():
    with pytest.raises(InputError, match="gives no reasons"):
        CountingJudge(comparing(lambda questions: Bright()(questions))).explain([])
