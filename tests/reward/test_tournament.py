"""The all-pairs tournament finds the order of scores through a judge's bias to either place."""

from __future__ import annotations

import pytest
import torch
from tiny import BrightnessJudge, comparing

from rewarddance.reward.ranking import tournament


def candidates(*brightness: float) -> list[torch.Tensor]:
    return [torch.full((1, 3, 2, 2), value) for value in brightness]


@pytest.mark.parametrize("bias", [0.0, 50.0, -50.0])
def test_the_order_is_that_of_the_scores_whatever_the_judges_bias_to_a_place(bias):
    (ranking,) = tournament(BrightnessJudge(bias), ["p"], [candidates(0.3, 0.9, 0.1, 0.5)])
    assert ranking.order.tolist() == [1, 3, 0, 2]
    assert ranking.wins.tolist() == [1, 3, 0, 2]


def test_the_margins_are_the_judges_own_row_candidate_column_reference():
    (ranking,) = tournament(BrightnessJudge(2.0), ["p"], [candidates(0.25, 0.75, 0.5)])
    expected = torch.tensor([[0.0, -2.0, 0.0], [6.0, 0.0, 4.0], [4.0, 0.0, 0.0]])
    torch.testing.assert_close(ranking.margins, expected)


def test_ties_share_the_win_and_are_broken_by_the_lower_index():
    (ranking,) = tournament(BrightnessJudge(3.0), ["p"], [candidates(0.5, 0.2, 0.5, 0.5)])
    assert ranking.wins.tolist() == [2, 0, 2, 2]
    assert ranking.order.tolist() == [0, 2, 3, 1]


def test_equal_wins_are_broken_by_the_summed_margin():
    @comparing
    def circular(questions):
        """1 beats 0, 2 beats 1, 0 beats 2; the last most clearly."""
        from rewarddance.types import Verdict

        table = {(0.1, 0.2): -1.0, (0.2, 0.3): -1.0, (0.3, 0.1): -5.0}
        found = []
        for q in questions:
            pair = round(q.candidate.mean().item(), 1), round(q.reference.mean().item(), 1)
            found.append(table[pair] if pair in table else -table[pair[::-1]])
        return Verdict(torch.tensor(found))

    (ranking,) = tournament(circular, ["p"], [candidates(0.1, 0.2, 0.3)])
    assert ranking.wins.tolist() == [1, 1, 1]
    assert ranking.order.tolist() == [0, 1, 2]


def test_wins_add_up_to_the_number_of_pairs():
    rng = torch.Generator().manual_seed(0)
    (ranking,) = tournament(BrightnessJudge(), ["p"], [candidates(*torch.rand(7, generator=rng).tolist())])
    assert ranking.wins.sum() == 7 * 6 / 2
    assert sorted(ranking.wins.tolist()) == list(range(7))


def test_groups_of_different_sizes_are_ranked_together_as_they_are_alone():
    groups = [candidates(0.3, 0.9), candidates(0.5, 0.1, 0.8), candidates(0.4)]
    judge = BrightnessJudge(1.0)
    together = tournament(judge, ["p", "q", "r"], groups)
    assert judge.asked == 2 * 1 + 3 * 2
    for own, group in zip(together, groups, strict=True):
        (alone,) = tournament(BrightnessJudge(1.0), ["p"], [group])
        assert torch.equal(own.order, alone.order) and torch.equal(own.wins, alone.wins)
        assert torch.equal(own.margins, alone.margins)
    assert together[2].order.tolist() == [0] and together[2].wins.tolist() == [0]
