"""What repeats is run once, and counted as if it were run each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import family_folder, judge_folder
from tiny_pipelines import options, pipeline_folder
from torch.utils._pytree import tree_leaves

from rewarddance.planning.counting import Counting, counting
from rewarddance.planning.meta_generator import meta_generator
from rewarddance.planning.meta_judge import meta_reward
from rewarddance.planning.phases import CountedGenerator
from rewarddance.reward.ranking import tournament
from rewarddance.types import Prompt


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


def test_prompts_with_pictures_are_encoded_twice_and_counted_as_often_as_they_are_asked_for():
    generator: Any = meta_generator(str(pipeline_folder("qwen-image-edit")), 2, **options("qwen-image-edit"))
    vae = generator.pipeline.vae
    pictures = [torch.zeros(1, 3, 32, 48) for _ in range(2)]
    asked = [[Prompt("a red circle", image=one)] for one in (*pictures, *pictures)]
    asked.append([Prompt("a red circle", image=one) for one in pictures])
    asked.append([Prompt("a red circle", image=pictures[0])] * 2)  # shared: encoded once

    def counted(once: bool) -> tuple[Counting, list[Any]]:
        with counting() as counts, torch.no_grad():
            counts.exclude(weight for part in (*generator._text_encoders(), vae) for weight in part.parameters())
            encoder = CountedGenerator(generator, counts) if once else generator
            conditions = [tree_leaves(encoder.encode(prompts)) for prompts in asked]
        return counts, [[tensor.shape for tensor in leaves if tensor is not None] for leaves in conditions]

    (once, shapes), (each, expected) = counted(True), counted(False)
    assert shapes == expected
    assert once.flops == each.flops and once.traffic == each.traffic and once.peaks == each.peaks
