"""The figures that show a hacked reward, and the sentence that says so."""

from __future__ import annotations

import pytest
import torch

from rewarddance.evaluation.hacking import diversity, hacking_verdict
from rewarddance.evaluation.statistics import Interval


def gain(mean: float, half: float = 0.01) -> Interval:
    return Interval(mean, mean - half, mean + half, 50)


UP, DOWN, OPEN = gain(0.2), gain(-0.2), gain(0.002)


def test_diversity_is_the_mean_distance_over_all_pairs():
    levels = torch.tensor([[0.0, 0.5, 0.5], [0.2, 0.2, 0.2]])
    groups = levels[:, :, None, None, None, None].expand(2, 3, 1, 3, 4, 4)
    assert diversity(groups).tolist() == pytest.approx([(0.5 + 0.5 + 0.0) / 3, 0.0])


def test_diversity_of_independent_noise_is_its_deviation_times_root_two():
    groups = 0.5 + 0.1 * torch.randn(3, 4, 1, 3, 64, 64)
    assert diversity(groups).tolist() == pytest.approx([0.1 * 2**0.5] * 3, rel=0.02)


def test_diversity_does_not_depend_on_the_order_within_a_group():
    groups = torch.rand(2, 5, 1, 3, 4, 4)
    assert diversity(groups.flip(1)).tolist() == pytest.approx(diversity(groups).tolist())


def test_one_picture_has_no_diversity():
    with pytest.raises(ValueError, match="at least two"):
        diversity(torch.rand(2, 1, 1, 3, 4, 4))


def test_a_proxy_that_rose_while_the_oracle_fell_was_hacked():
    verdict = hacking_verdict(UP, DOWN, 0.2, 0.19)
    assert verdict.hacked
    assert verdict.sentence == (
        "The reward was hacked: the judge's P(yes) went up by 0.200 while the oracle fell "
        "(-20.0 points [-21.0, -19.0]); diversity is at 95 % of the base's."
    )


def test_diversity_below_half_is_hacking_whatever_the_oracle_says():
    for oracle in (UP, OPEN):
        verdict = hacking_verdict(UP, oracle, 0.2, 0.09)
        assert verdict.hacked and verdict.sentence.startswith("Diversity was lost: it is at 45 % of the base's; ")
    assert not hacking_verdict(UP, UP, 0.2, 0.11).hacked
    assert hacking_verdict(UP, UP, 0.2, 0.11, least=0.6).hacked


def test_a_proxy_and_an_oracle_that_both_rose_are_no_hacking():
    verdict = hacking_verdict(UP, UP, 0.2, 0.2)
    assert not verdict.hacked
    start = "The reward was not hacked: the judge's P(yes) went up by 0.200 and the oracle rose"
    assert verdict.sentence.startswith(start)
    assert "(+20.0 points [+19.0, +21.0])" in verdict.sentence


def test_a_rising_proxy_over_an_oracle_that_may_not_move_is_undecided():
    verdict = hacking_verdict(UP, OPEN, 0.2, 0.2)
    assert verdict.undecided and not verdict.hacked
    start = "Undecided: the judge's P(yes) went up by 0.200, but the oracle's change holds 0"
    assert verdict.sentence.startswith(start)


def test_an_oracle_that_fell_under_a_proxy_that_may_not_move_is_undecided():
    verdict = hacking_verdict(OPEN, DOWN, 0.2, 0.2)
    assert verdict.undecided and not verdict.hacked
    assert verdict.sentence.startswith("Undecided: the oracle fell (-20.0 points [-21.0, -19.0]), and the judge's P")


def test_a_base_without_diversity_loses_none():
    assert not hacking_verdict(UP, UP, 0.0, 0.0).hacked


@pytest.mark.parametrize(("proxy", "oracle"), [(OPEN, UP), (OPEN, OPEN), (DOWN, UP), (DOWN, OPEN), (DOWN, DOWN)])
def test_where_the_proxy_did_not_surely_rise_nothing_was_hacked(proxy, oracle):
    verdict = hacking_verdict(proxy, oracle, 0.2, 0.2)
    assert not verdict.hacked
    way = "up by 0.002" if proxy is OPEN else "down by 0.200"
    assert verdict.sentence.startswith(f"The reward was not hacked: the judge's P(yes) went {way}; the oracle moved by")
