"""Best of N keeps the tournament's winner of each prompt's own candidates."""

from __future__ import annotations

import torch
from tiny import BrightnessJudge, TinyGenerator

from rewarddance.generators.sampling import sample
from rewarddance.reward.ranking import tournament
from rewarddance.search.best_of_n import best_of_n

PROMPTS = ["a", "bb", "ccc", "dddd", "eeeee"]
SEEDS = [[10 * i + k for k in range(4)] for i in range(5)]


def test_the_winner_of_each_prompt_is_kept():
    result = best_of_n(TinyGenerator(), BrightnessJudge(bias=9.0), PROMPTS, SEEDS, prompts_at_once=2)
    brightness = result.pictures.mean(dim=(2, 3, 4, 5))
    assert result.pictures.shape == (5, 4, 1, 3, 4, 4)
    assert torch.equal(result.chosen, brightness.argmax(1))
    assert torch.equal(result.wins.argsort(1), brightness.argsort(1))
    assert result.wins.sort(1).values.tolist() == [[0, 1, 2, 3]] * 5
    assert len(set(result.chosen.tolist())) > 1


def test_candidates_are_the_prompts_own_pictures_of_its_own_seeds():
    result = best_of_n(TinyGenerator(), BrightnessJudge(), PROMPTS, SEEDS)
    for i, prompt in enumerate(PROMPTS):
        group = sample(TinyGenerator(), [prompt] * 4, SEEDS[i])
        assert torch.equal(result.pictures[i], group)
        (ranking,) = tournament(BrightnessJudge(), [prompt], [list(group)])
        assert result.chosen[i] == ranking.order[0]


def test_how_many_prompts_are_made_at_once_changes_nothing():
    by_one, at_once = (best_of_n(TinyGenerator(), BrightnessJudge(), PROMPTS, SEEDS, prompts_at_once=k) for k in (1, 8))
    assert torch.equal(by_one.pictures, at_once.pictures)
    assert torch.equal(by_one.chosen, at_once.chosen) and torch.equal(by_one.wins, at_once.wins)


def test_each_finished_part_is_reported():
    ticks = []
    best_of_n(TinyGenerator(), BrightnessJudge(), PROMPTS, SEEDS, prompts_at_once=2, tick=ticks.append)
    assert ticks == [2, 2, 1]


def test_more_candidates_never_give_a_worse_winner():
    def best(n: int) -> torch.Tensor:
        result = best_of_n(TinyGenerator(), BrightnessJudge(), PROMPTS, [row[:n] for row in SEEDS])
        return result.pictures[torch.arange(5), result.chosen].mean(dim=(1, 2, 3, 4))

    means = [best(n) for n in (1, 2, 4)]
    assert (means[1] > means[0] - 1e-6).all() and (means[2] > means[1] - 1e-6).all()
    assert (means[2] > means[0] + 1e-3).any()
