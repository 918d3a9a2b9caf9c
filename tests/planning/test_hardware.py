"""How long a GPU takes for what was counted."""

from __future__ import annotations

import pytest

from rewarddance.planning.hardware import GPUS, Work, bound_by_memory


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_computes_more_than_it_moves_and_says_who_states_it(name: str):
    gpu = GPUS[name]
    assert gpu.source and gpu.fp32 < gpu.bf16
    assert 30 < 1e12 * gpu.bf16 / (1e9 * gpu.bandwidth) < 500  # operations a byte


def test_time_is_that_of_the_products_or_of_memory_whichever_is_longer():
    h100 = GPUS["h100"]
    assert h100.seconds(989.5e12, half=True, utilisation=0.5, traffic=3350e9) == 2
    assert h100.seconds(989.5e12, half=True, utilisation=0.5, traffic=3 * 3350e9) == 3
    assert h100.seconds(67e12, half=False, utilisation=1) == 1


def test_phases_that_memory_bounds_are_named_but_not_the_smallest():
    work = {"judge": Work(989.5e12, 1), "decoder": Work(1, 3350e9), "other": Work(0, 3.35e9)}
    seconds = {phase: GPUS["h100"].seconds(done.flops, True, 1, done.traffic) for phase, done in work.items()}
    assert bound_by_memory(GPUS["h100"], work, seconds) == ("decoder",)
