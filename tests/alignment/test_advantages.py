"""Who is better than the others of the prompt, and by how much."""

from __future__ import annotations

import pytest
import torch
from tiny import BrightnessJudge, comparing

from rewarddance.alignment.group_rewards import Reward, advantages, combine, judging_of, preferred, scores
from rewarddance.errors import InputError, RewardError
from rewarddance.reward.ranking import win_rates
from rewarddance.types import Verdict


def test_advantages_are_standard_scores_of_each_prompt():
    found = advantages(torch.tensor([[1.0, 2.0, 3.0], [10.0, 10.0, 40.0]]))
    assert torch.allclose(found.values.mean(1), torch.zeros(2), atol=1e-6)
    assert torch.allclose(found.values.std(1, correction=0), torch.ones(2))
    assert found.zero_std_groups == 0


def test_under_a_global_spread_a_prompt_with_less_of_it_teaches_less():
    found = advantages(torch.tensor([[0.0, 0.1], [0.0, 10.0]]), "global").values
    assert found[1, 1] / found[0, 1] == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize("spread", ["prompt", "global"])
def test_a_group_without_spread_teaches_nothing_and_is_counted(spread):
    found = advantages(torch.tensor([[0.3, 0.3, 0.3], [0.0, 1.0, 2.0]]), spread)
    assert (
        found.zero_std_groups == 1 and torch.equal(found.values[0], torch.zeros(3)) and found.values[1].abs().sum() > 1
    )


def test_scores_that_are_all_small_teach_as_large_ones_do():
    scores = torch.tensor([[0.3, 0.3, 0.3], [0.0, 1.0, 2.0]])
    large, small = advantages(scores), advantages(1e-8 * scores)
    assert small.zero_std_groups == 1
    torch.testing.assert_close(small.values, large.values)
    assert advantages(torch.zeros(2, 3)).zero_std_groups == 2


def test_several_rewards_are_normalised_apart_so_that_none_starves_another():
    loud, quiet = torch.tensor([[0.0, 100.0, 200.0]]), torch.tensor([[0.02, 0.01, 0.0]])
    both = combine([advantages(loud), advantages(quiet)], [1.0, 1.0])
    assert torch.allclose(both.values, torch.zeros(1, 3), atol=1e-4)
    assert torch.allclose(
        combine([advantages(loud), advantages(quiet)], [3.0, 1.0]).values, advantages(loud).values, atol=1e-4
    )
    flat = advantages(torch.ones(1, 3))
    assert combine([flat, advantages(loud)], [1.0, 1.0]).zero_std_groups == 0
    assert combine([flat], [1.0]).zero_std_groups == 1 and both.zero_std_groups == 0


def test_win_rates_do_not_know_a_judges_leaning_to_either_place():
    strength = torch.tensor([[2.0, 0.0, -1.0]])
    margins = strength.unsqueeze(2) - strength.unsqueeze(1)
    found = win_rates(margins)
    assert found.argsort(1, descending=True).tolist() == [[0, 1, 2]]
    assert found.mean().item() == pytest.approx(0.5)
    leaning = win_rates(torch.full((1, 3, 3), 4.0))
    assert torch.allclose(leaning, torch.full((1, 3), 0.5))


GREYS = [[torch.full((1, 3, 2, 2), level) for level in (0.1, 0.5, 0.9)]] * 2


def test_samples_are_scored_within_the_group_against_references_or_alone():
    references = [[torch.full((1, 3, 2, 2), 0.5)] * 3] * 2
    judge = BrightnessJudge()
    against = scores(Reward(judge, "references"), ["a", "b"], GREYS, references)
    assert torch.allclose(against.values, torch.tensor([[-3.2, 0.0, 3.2]] * 2), atol=1e-5)
    within = scores(Reward(judge, "group"), ["a", "b"], GREYS)
    assert within.values.argsort(1).tolist() == [[0, 1, 2]] * 2 and within.margins.shape == (2, 3, 3)
    assert within.margins[0, 2, 0].item() == pytest.approx(6.4, rel=1e-5)

    @comparing
    def alone(questions):
        assert all(question.reference is None for question in questions)
        return Verdict(torch.stack([question.candidate.mean() for question in questions]))

    assert torch.allclose(scores(Reward(alone, "alone"), ["a", "b"], GREYS).values, torch.tensor([[0.1, 0.5, 0.9]] * 2))


def test_the_better_of_two_is_preferred_however_the_judge_is_asked():
    dark, light = (torch.full((1, 3, 2, 2), level) for level in (0.2, 0.6))
    pairs = [[light, dark], [dark, light], [light, light.clone()]]
    for judging in ("group", "references"):
        found = preferred(Reward(BrightnessJudge(), judging), ["a", "b", "c"], pairs).tolist()
        assert found == pytest.approx([found[0], 1 - found[0], 0.5]) and found[0] > 0.9

    @comparing
    def alone(questions):
        return Verdict(torch.stack([question.candidate.mean() for question in questions]))

    found = preferred(Reward(alone, "alone"), ["a", "b", "c"], pairs)
    assert found.tolist() == pytest.approx(torch.tensor([0.4, -0.4, 0.0]).sigmoid().tolist())


def test_a_score_that_is_not_finite_names_its_prompt():
    @comparing
    def broken(questions):
        return Verdict(torch.tensor([float("nan") if question.prompt.text == "b" else 0.0 for question in questions]))

    with pytest.raises(RewardError, match="the judge gave 'b' a score that is not finite"):
        scores(Reward(broken, "alone"), ["a", "b"], GREYS)


def test_a_judge_that_compares_is_asked_within_the_group_and_never_alone():
    judge = BrightnessJudge()
    judge.needs_reference = False
    assert judging_of(judge, None) == "alone"
    judge.needs_reference = True
    assert judging_of(judge, None) == "group" and judging_of(judge, "references") == "references"
    with pytest.raises(InputError, match="cannot score one sample by itself"):
        judging_of(judge, "alone")
