"""Every way to judge finds the best, asks what it said it would, and nothing twice."""

from __future__ import annotations

import pytest
import torch
from gaussian import Bright
from tiny import TinyGenerator

from rewarddance.errors import InputError
from rewarddance.protocols import needs_reference
from rewarddance.reward.ranking import tournament
from rewarddance.search.best_of_n import Random
from rewarddance.search.judging import JUDGING, Candidate
from rewarddance.search.recipe import Budget
from rewarddance.search.run import Search
from rewarddance.types import Prompt, as_prompts

NAMES = sorted(JUDGING)


def groups(*brightness: list[float]) -> list[list[Candidate]]:
    return [[Candidate(torch.full((1, 3, 2, 2), value), {"value": value}) for value in own] for own in brightness]


def values(found: list[Candidate]) -> list[float]:
    return [one.origin["value"] for one in found]


ROUNDS = [([0.4, 0.2], [0.1, 0.3]), ([0.5, 0.3, 0.1], [0.2, 0.0, 0.9]), ([0.45], [0.8])]


@pytest.mark.parametrize("bias", [0.0, 7.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_best_of_all_rounds_comes_first_whatever_the_judges_bias(name, bias):
    judge = Bright(bias)
    judging = JUDGING[name](judge, as_prompts(["p", "q"]))
    found: list[list[Candidate]] = [[], []]
    for first, second in ROUNDS:
        before, expected = len(judge.asked), judging.asks(len(first), judging.seen)
        found = [own[:2] for own in judging.ranked(found, groups(first, second))]
        assert len(judge.asked) - before == 2 * expected
    assert [values(own)[0] for own in found] == [0.5, 0.9]
    assert judging.seen == 6
    assert all(one.score is not None for own in found for one in own)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "knockout"])
def test_all_but_a_knockout_know_the_runner_up(name):
    judging = JUDGING[name](Bright(), as_prompts(["p", "q"]))
    found: list[list[Candidate]] = [[], []]
    for first, second in ROUNDS:
        found = [own[:2] for own in judging.ranked(found, groups(first, second))]
    assert [values(own) for own in found] == [[0.5, 0.45], [0.9, 0.8]]
    scores = [[one.score for one in own] for own in found]
    assert all(best > second for best, second in scores)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_asked_twice(name):
    judge = Bright()
    judging = JUDGING[name](judge, as_prompts(["p", "q"]))
    found: list[list[Candidate]] = [[], []]
    for first, second in ROUNDS:
        found = [own[:2] for own in judging.ranked(found, groups(first, second))]
    asked = [(q.prompt.text, id(q.candidate), id(q.reference)) for q in judge.asked]
    assert len(set(asked)) == len(asked)


def test_a_knockout_over_rounds_takes_n_minus_1_comparisons():
    judge = Bright()
    judging = JUDGING["knockout"](judge, [Prompt("p")])
    found: list[list[Candidate]] = [[]]
    for own in ([0.1], [0.4, 0.2, 0.6], [0.5], [0.3, 0.7, 0.0]):
        found = judging.ranked(found, groups(own))
    assert len(judge.asked) == 2 * (8 - 1)
    assert values(found[0])[0] == 0.7


def test_a_tournament_over_rounds_is_the_whole_one():
    rng = torch.Generator().manual_seed(0)
    (everyone,) = groups(torch.rand(7, generator=rng).tolist())
    judging = JUDGING["tournament"](Bright(3.0), [Prompt("p")])
    judging.ranked([[]], [everyone[:3]])
    (found,) = judging.ranked([[]], [everyone[3:]])
    (whole,) = tournament(Bright(3.0), ["p"], [[one.pixels for one in everyone]])
    assert [everyone.index(one) for one in found] == whole.order.tolist()
    assert [one.score for one in everyone] == whole.wins.tolist()


def test_afresh_knows_nothing_of_those_before():
    judging = JUDGING["first"](Bright(), [Prompt("p")])
    judging.ranked([[]], groups([0.9, 0.1]))
    (found,) = judging.afresh().ranked([[]], groups([0.3, 0.4]))
    assert values(found) == [0.4, 0.3]
    assert [one.score for one in found] == pytest.approx([0.1, 0.0])


@pytest.mark.parametrize(("needs_reference", "name"), [(True, "knockout"), (False, "alone")])
def test_a_reward_that_needs_a_reference_is_asked_by_knockout_others_alone(needs_reference, name):
    judge = Bright()
    judge.needs_reference = needs_reference
    assert Search(TinyGenerator(), judge, Random(), Budget(samples=1)).judging == name


def test_a_reward_that_does_not_say_whether_it_needs_a_reference_is_refused():
    with pytest.raises(InputError, match="does not say whether it needs a reference") as caught:
        needs_reference(lambda questions: Bright()(questions))
    assert "as_reward" in caught.value.remedy and "needs_reference" in caught.value.remedy
