"""The figures that show a hacked reward, and the sentence that says so."""

from __future__ import annotations

import pytest
import torch

from rewarddance.evaluation.hacking import diversity, hacking_verdict, spread
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


def test_the_two_parts_of_the_spread_are_told_apart():
    within_only = spread(torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))
    assert within_only == (1.0, 0.0)
    across_only = spread(torch.tensor([[2.0, 2.0], [-2.0, -2.0]]))
    assert across_only == (0.0, 2.0)


def test_a_proxy_that_rose_while_the_oracle_fell_was_hacked():
    found = hacking_verdict(UP, DOWN, 0.2, 0.19)
    assert found.hacked
    assert found.sentence == (
        "The reward was hacked: the judge's P(yes) went up by 0.200 while the oracle fell "
        "(-20.0 points [-21.0, -19.0]); diversity is at 95 % of the base's."
    )


def test_diversity_below_half_is_hacking_whatever_the_oracle_says():
    for oracle in (UP, OPEN):
        found = hacking_verdict(UP, oracle, 0.2, 0.09)
        assert found.hacked and found.sentence.startswith("Diversity was lost: it is at 45 % of the base's; ")
    assert not hacking_verdict(UP, UP, 0.2, 0.11).hacked
    assert hacking_verdict(UP, UP, 0.2, 0.11, least=0.6).hacked


def test_a_proxy_and_an_oracle_that_both_rose_are_no_hacking():
    found = hacking_verdict(UP, UP, 0.2, 0.2)
    assert not found.hacked
    assert found.sentence.startswith(
        "The reward was not hacked: the judge's P(yes) went up by 0.200 and the oracle rose"
    )
    assert "(+20.0 points [+19.0, +21.0])" in found.sentence


def test_a_proxy_that_rose_while_the_oracle_may_not_have_moved_is_said_to_be_open():
    found = hacking_verdict(UP, OPEN, 0.2, 0.2)
    assert found.undecided and not found.hacked
    assert found.sentence.startswith("Undecided: the judge's P(yes) went up by 0.200, but the oracle's change holds 0")


@pytest.mark.parametrize("proxy", [OPEN, DOWN])
@pytest.mark.parametrize("oracle", [UP, OPEN, DOWN])
def test_where_the_proxy_did_not_surely_rise_nothing_was_hacked(proxy, oracle):
    found = hacking_verdict(proxy, oracle, 0.2, 0.2)
    assert not found.hacked
    way = "up by 0.002" if proxy is OPEN else "down by 0.200"
    assert found.sentence.startswith(f"The reward was not hacked: the judge's P(yes) went {way}; the oracle moved by")
