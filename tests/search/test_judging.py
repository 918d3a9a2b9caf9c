"""Every kind of judging finds the best, asks as many questions as it announced, and none twice."""

from __future__ import annotations

import pytest
import torch
from gaussian import Bright
from tiny import TinyGenerator

from rewarddance.errors import InputError
from rewarddance.protocols import needs_reference
from rewarddance.reward.ranking import tournament
from rewarddance.search.best_of_n import Random
from rewarddance.search.judging import JUDGING, Candidate, Judging
from rewarddance.search.recipe import Budget
from rewarddance.search.run import Search
from rewarddance.types import Prompt, as_prompts

NAMES = sorted(JUDGING)


def groups(*brightness: list[float]) -> list[list[Candidate]]:
    return [[Candidate(torch.full((1, 3, 2, 2), value), {"value": value}) for value in group] for group in brightness]


def values(ranking: list[Candidate]) -> list[float]:
    return [candidate.origin["value"] for candidate in ranking]


def rank_rounds(judging: Judging) -> list[list[Candidate]]:
    """The best two of each prompt after all of ROUNDS."""
    kept: list[list[Candidate]] = [[], []]
    for first, second in ROUNDS:
        kept = [ranking[:2] for ranking in judging.rank(kept, groups(first, second))]
    return kept


ROUNDS = [([0.4, 0.2], [0.1, 0.3]), ([0.5, 0.3, 0.1], [0.2, 0.0, 0.9]), ([0.45], [0.8])]


@pytest.mark.parametrize("bias", [0.0, 7.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_best_of_all_rounds_comes_first_whatever_the_judges_bias(name, bias):
    judge = Bright(bias)
    judging = JUDGING[name](judge, as_prompts(["p", "q"]))
    kept: list[list[Candidate]] = [[], []]
    for first, second in ROUNDS:
        before, expected = len(judge.questions), judging.question_count(len(first), judging.seen)
        kept = [ranking[:2] for ranking in judging.rank(kept, groups(first, second))]
        assert len(judge.questions) - before == 2 * expected
    assert [values(best_two)[0] for best_two in kept] == [0.5, 0.9]
    assert judging.seen == 6
    assert all(candidate.score is not None for best_two in kept for candidate in best_two)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "knockout"])
def test_all_but_a_knockout_know_the_runner_up(name):
    kept = rank_rounds(JUDGING[name](Bright(), as_prompts(["p", "q"])))
    assert [values(best_two) for best_two in kept] == [[0.5, 0.45], [0.9, 0.8]]
    assert all(best.score > second.score for best, second in kept)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_asked_twice(name):
    judge = Bright()
    rank_rounds(JUDGING[name](judge, as_prompts(["p", "q"])))
    questions = [(q.prompt.text, id(q.candidate), id(q.reference)) for q in judge.questions]
    assert len(set(questions)) == len(questions)


def test_a_knockout_over_rounds_takes_n_minus_1_comparisons():
    judge = Bright()
    judging = JUDGING["knockout"](judge, [Prompt("p")])
    rankings: list[list[Candidate]] = [[]]
    for group in ([0.1], [0.4, 0.2, 0.6], [0.5], [0.3, 0.7, 0.0]):
        rankings = judging.rank(rankings, groups(group))
    assert len(judge.questions) == 2 * (8 - 1)
    assert values(rankings[0])[0] == 0.7


def test_a_tournament_over_rounds_is_the_tournament_of_all():
    rng = torch.Generator().manual_seed(0)
    (group,) = groups(torch.rand(7, generator=rng).tolist())
    judging = JUDGING["tournament"](Bright(3.0), [Prompt("p")])
    judging.rank([[]], [group[:3]])
    (ranking,) = judging.rank([[]], [group[3:]])
    (expected,) = tournament(Bright(3.0), ["p"], [[candidate.pixels for candidate in group]])
    assert [group.index(candidate) for candidate in ranking] == expected.order.tolist()
    assert [candidate.score for candidate in group] == expected.wins.tolist()


def test_judging_without_memory_knows_nothing_of_earlier_pictures():
    judging = JUDGING["first"](Bright(), [Prompt("p")])
    judging.rank([[]], groups([0.9, 0.1]))
    (ranking,) = judging.without_memory().rank([[]], groups([0.3, 0.4]))
    assert values(ranking) == [0.4, 0.3]
    assert [candidate.score for candidate in ranking] == pytest.approx([0.1, 0.0])


@pytest.mark.parametrize(("needs_reference", "name"), [(True, "knockout"), (False, "alone")])
def test_a_reward_that_needs_a_reference_judges_by_knockout_others_alone(needs_reference, name):
    judge = Bright()
    judge.needs_reference = needs_reference
    assert Search(TinyGenerator(), judge, Random(), Budget(samples=1)).judging == name


def test_a_reward_that_does_not_say_if_it_needs_a_reference_is_refused():
    with pytest.raises(InputError, match="does not say whether it needs a reference") as caught:
        needs_reference(lambda questions: Bright()(questions))
    assert "as_reward" in caught.value.remedy and "needs_reference" in caught.value.remedy
