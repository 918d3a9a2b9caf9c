"""A knockout finds the best of N in N - 1 comparisons, whatever the judge's bias to a place."""

from __future__ import annotations

import pytest
import torch
from tiny import BrightnessJudge, comparing, judge_folder, pictures

from rewarddance.errors import InputError
from rewarddance.reward.loading import load_reward
from rewarddance.reward.ranking import knockout, tournament


def candidates(*brightness: float) -> list[torch.Tensor]:
    return [torch.full((1, 3, 2, 2), value) for value in brightness]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
def test_a_knockout_asks_n_minus_1_comparisons_twice_and_keeps_the_best(n):
    rng = torch.Generator().manual_seed(n)
    group = candidates(*torch.rand(n, generator=rng).tolist())
    judge = BrightnessJudge(bias=30.0)
    (found,) = knockout(judge, ["p"], [group])
    assert judge.asked == 2 * (n - 1)
    assert found.won.sum() == n - 1
    assert found.order[0] == torch.stack(group).mean(dim=(1, 2, 3, 4)).argmax()
    assert sorted(found.order.tolist()) == list(range(n))


def test_the_order_is_by_round_and_then_by_how_closely_it_was_lost():
    # 0.9 beats 0.8, 0.3 beats 0.1; then 0.9 beats 0.3: of the first round's losers 0.8 lost by less than 0.1 did
    (found,) = knockout(BrightnessJudge(), ["p"], [candidates(0.8, 0.9, 0.1, 0.3)])
    assert found.order.tolist() == [1, 3, 0, 2]
    assert found.won.tolist() == [0, 2, 0, 1]


def test_the_odd_one_out_does_not_pass_twice_in_a_row():
    # 5: the last passes the first round and then has to meet a winner; it is dark and must not reach the final
    judge = BrightnessJudge()
    (found,) = knockout(judge, ["p"], [candidates(0.5, 0.4, 0.6, 0.3, 0.1)])
    assert found.won[4] == 0 and found.order.tolist()[:2] == [2, 0]


def test_a_draw_goes_to_the_lower_index():
    (found,) = knockout(BrightnessJudge(5.0), ["p"], [candidates(0.5, 0.5, 0.5)])
    assert found.order[0] == 0


def test_groups_of_different_sizes_are_asked_together_as_they_are_alone():
    groups = [candidates(0.3, 0.9, 0.2), candidates(0.5), candidates(0.5, 0.1, 0.8, 0.7, 0.6)]
    calls = []

    @comparing
    def judge(questions):
        calls.append(len(questions))
        return BrightnessJudge(1.0)(questions)

    together = knockout(judge, ["p", "q", "r"], groups)
    assert calls == [2 * 1 + 2 * 2, 2 * 1 + 2 * 1, 2 * 1]
    for own, group in zip(together, groups, strict=True):
        (alone,) = knockout(BrightnessJudge(1.0), ["p"], [group])
        assert torch.equal(own.order, alone.order) and torch.equal(own.won, alone.won)


def test_a_judge_that_orders_all_pictures_gives_the_tournaments_winner():
    rng = torch.Generator().manual_seed(3)
    groups = [candidates(*torch.rand(9, generator=rng).tolist()) for _ in range(4)]
    judge = BrightnessJudge(2.0)
    for short, full in zip(knockout(judge, "pqrs", groups), tournament(judge, "pqrs", groups), strict=True):
        assert short.order[0] == full.order[0]


def test_margins_are_there_for_those_who_met_and_for_nobody_else():
    (found,) = knockout(BrightnessJudge(1.0), ["p"], [candidates(0.8, 0.9, 0.1, 0.3)])
    met = {(0, 1), (2, 3), (1, 3)}
    for a in range(4):
        for b in range(4):
            assert torch.isnan(found.margins[a, b]) == ((min(a, b), max(a, b)) not in met)
    torch.testing.assert_close(found.margins[0, 1], torch.tensor(0.2), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.margins[1, 0], torch.tensor(1.8), atol=1e-4, rtol=0)


def test_a_round_encodes_each_picture_once_for_all_its_comparisons(monkeypatch):
    judge = load_reward(str(judge_folder()), instruction="t2i-brief")
    counts, encode = [], judge.vlm.family.encode
    monkeypatch.setattr(judge.vlm.family, "encode", lambda shown: counts.append(len(shown)) or encode(shown))
    groups = [list(pictures(4)), list(pictures(3, seed=1))]
    knockout(judge, ["a red circle", "two crosses"], groups)
    assert counts == [4 + 2, 2 + 2]


def test_a_judge_ranks_by_knockout_where_it_is_asked_to():
    judge, shown = load_reward(str(judge_folder()), instruction="t2i-brief"), list(pictures(5))
    (cup,) = knockout(judge, ["a red circle"], [shown])
    found = judge.rank("a red circle", shown, method="knockout")
    assert torch.equal(found.order, cup.order) and torch.equal(found.wins, cup.won.float())
    with pytest.raises(InputError, match="no way of ranking named 'swiss'"):
        judge.rank("a red circle", shown, method="swiss")
