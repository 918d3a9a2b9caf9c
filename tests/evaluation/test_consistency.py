"""Contradictions are counted: between two orders, and around three pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewarddance.evaluation.consistency import CHANCE, cyclic_triples, same_answer_twice, same_in_both_orders

FORWARD, BACKWARD = np.array([2.0, -1.0, 1.0, -1.0, 0.0]), np.array([-1.0, 3.0, 0.5, -2.0, 1.0])


def test_orders_agree_where_one_is_answered_yes_and_the_other_no():
    assert same_in_both_orders(FORWARD, BACKWARD).tolist() == [1, 1, 0, 0, 0]


def test_the_same_answer_twice_is_for_a_position():
    assert same_answer_twice(FORWARD, BACKWARD, 1).tolist() == [0, 0, 1, 0, 0]
    assert same_answer_twice(FORWARD, BACKWARD, -1).tolist() == [0, 0, 0, 1, 0]


def beats(pairs: list[tuple[int, int]], n: int) -> torch.Tensor:
    margins = torch.zeros(n, n)
    for winner, loser in pairs:
        margins[winner, loser], margins[loser, winner] = 1.0, -1.0
    return margins


def test_a_over_b_over_c_over_a_is_a_cycle_in_either_direction():
    assert cyclic_triples(beats([(0, 1), (1, 2), (2, 0)], 3)) == (1, 1)
    assert cyclic_triples(beats([(1, 0), (2, 1), (0, 2)], 3)) == (1, 1)
    assert cyclic_triples(beats([(0, 1), (1, 2), (0, 2)], 3)) == (0, 1)


def test_an_order_by_scores_has_no_cycles_whatever_position_is_liked():
    scores = torch.randn(7)
    assert cyclic_triples(scores[:, None] - scores[None] + 3.0) == (0, 35)


def test_a_draw_closes_no_cycle():
    assert cyclic_triples(beats([(0, 1), (1, 2)], 3)) == (0, 1)


def test_a_coin_makes_a_cycle_of_every_fourth_triple():
    counts = [cyclic_triples(torch.randn(6, 6)) for _ in range(200)]
    assert sum(c for c, _ in counts) / sum(t for _, t in counts) == pytest.approx(CHANCE, abs=0.03)
