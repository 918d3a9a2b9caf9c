"""Pruning gives up the trajectories whose predicted pictures are poor, and pays for no more than it may."""

from __future__ import annotations

import pytest
import torch
from gaussian import Bright
from tiny import TinyGenerator

from rewarddance.generators.sampling import predictions, sample
from rewarddance.search.batch import noise_seed
from rewarddance.search.pruning import Pruning, stages
from rewarddance.search.run import search


def test_stages_are_steps_between_the_first_and_the_last():
    assert stages(Pruning(), 12) == [3, 6]
    assert stages(Pruning(at=(0.01, 0.02, 0.99)), 12) == [1, 11]
    assert stages(Pruning(), 2) == [1]
    assert stages(Pruning(), 1) == []


def test_the_survivors_are_those_with_the_best_predictions():
    made, options = TinyGenerator(8), Pruning(at=(0.5,), keep=0.25, trajectories=8)
    # 8 trajectories for 5 steps and 2 for 3
    (found,) = search(made, Bright(), ["a"], options, "evaluations=46", runners_up=9)
    seeds = [noise_seed(0, 0, number) for number in range(8)]
    early, final = predictions(TinyGenerator(8), ["a"] * 8, seeds, [4] * 8)
    best = early.mean(dim=(1, 2, 3, 4)).argsort(descending=True)[:2].tolist()
    assert {one.origin["noise"] for one in found.pictures} == {seeds[i] for i in best}
    for one in found.pictures:
        torch.testing.assert_close(one.pixels, final[seeds.index(one.origin["noise"])])
    assert found.spent[:3] == (46, 8 + 2, 8 + 2)


@pytest.mark.parametrize("judging", ["alone", "first", "knockout", "tournament"])
def test_the_budget_is_used_and_never_passed(judging):
    made = TinyGenerator(10)
    for prompts in (["a"], ["a", "bb", "ccc"]):
        found = search(made, Bright(), prompts, Pruning(), "evaluations=137", judging=judging, batch_size=24)
        for one in found:
            assert 137 - 10 < one.spent.evaluations <= 137


def test_whoever_is_searched_beside_a_prompt_changes_nothing():
    options = {"prompts_at_once": 3, "batch_size": 24}
    together = search(TinyGenerator(), Bright(), ["a", "bb", "ccc"], "pruning", "samples=9", **options)
    assert len({one.winner.origin["noise"] for one in together}) == 3
    for place, one in enumerate(together):
        pictures = sample(TinyGenerator(), [one.prompt], [one.winner.origin["noise"]])
        torch.testing.assert_close(pictures[0], one.winner.pixels)
        assert one.winner.origin["noise"] in [noise_seed(0, place, number) for number in range(60)]


def test_it_finds_better_pictures_than_plain_samples_at_the_same_evaluations():
    def brightness(method) -> float:
        found = search(TinyGenerator(12), Bright(), ["a"] * 8, method, "samples=12", runners_up=0, batch_size=256)
        return torch.stack([one.winner.pixels.mean() for one in found]).mean().item()

    assert brightness(Pruning()) > brightness("best_of_n")
