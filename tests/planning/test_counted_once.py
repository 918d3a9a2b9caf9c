"""What repeats is run once, and counted as if it were run each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import family_folder, judge_folder

from rewarddance.planning.counting import Counting, counting
from rewarddance.planning.meta_judge import meta_reward
from rewarddance.reward.ranking import tournament


@pytest.mark.parametrize("family", ["bundled", "qwen3_vl"])
def test_forwards_of_one_shape_are_counted_as_often_as_they_are_made(family: str):
    judge: Any = meta_reward(str(judge_folder() if family == "bundled" else family_folder(family)), None, torch.float32)
    judge.freeze()
    judge.vlm.max_batch_tokens = 600  # so that a tournament takes several forwards of one shape

    def counted(once: bool) -> tuple[Counting, int]:
        pictures, made = [torch.empty(1, 3, 32, 32, device="meta") for _ in range(6)], []
        handle = judge.model.get_decoder().layers[0].register_forward_hook(lambda *_: made.append(1))
        with counting() as counts, torch.no_grad():
            counts.exclude([*judge.model.parameters(), *judge.model.buffers(), *pictures])
            judge.vlm.counts = counts if once else None
            tournament(judge, ["a red circle"], [pictures])
            judge.vlm.counts = None
        handle.remove()
        return counts, len(made)

    (once, few), (each, many) = counted(True), counted(False)
    assert 0 < few < many
    assert once.flops == each.flops and once.peak == pytest.approx(each.peak, rel=1e-4)
