"""Every network of the families in pieces over two processes predicts as the whole one, and so does its base."""

from __future__ import annotations

import pytest
import torch
from several import in_processes
from tiny_pipelines import FAMILIES, fresh, prompts_of

from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.runtime.sharding import average_gradients, full_tensor


def trained(family: str, lora: bool, sharded: bool, dtype: torch.dtype | None = None) -> tuple[PipelineGenerator, list]:
    generator = fresh(family, dtype)
    torch.manual_seed(0)  # LoRA's first factor
    return generator, generator.add_lora(2, 2, sharded=sharded) if lora else generator.train_all(sharded)


def predictions(family: str, lora: bool, sharded: bool, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Of the network before and after its weights are moved, of the one that training began from, and the gradient."""
    generator, weights = trained(family, lora, sharded, dtype)
    assert {weight.dtype for weight in weights} == {torch.float32}
    x_t, condition = generator.init_noise([1, 2]), generator.encode(prompts_of(family))
    with torch.no_grad():
        first = generator.predict(x_t, 1, condition)
        for weight in weights:
            weight.mul_(1.1).add_(0.01)
    after = generator.predict(x_t, 1, condition)
    with torch.no_grad(), generator.as_before_training():
        before = generator.predict(x_t, 1, condition)
    after.square().mean().backward()
    average_gradients(weights)
    squares = [full_tensor(one.grad).square().sum() for one in weights if one.grad is not None]
    assert torch.equal(first, before) and not torch.allclose(after, before, atol=1e-4)
    return [first, after.detach(), torch.stack(squares).sum().sqrt()]


NETWORKS = [
    family
    for family in FAMILIES
    if family not in ("sd15-v", "sdxl-euler-v", "flux-kontext", "flux2-klein-edit", "qwen-image-edit-plus")
]
"""The others have the network of one of these, with another scheduler or more tokens."""


@pytest.mark.parametrize("family", NETWORKS)
def test_a_network_in_pieces_predicts_and_learns_as_the_whole_one(family):
    expected = [predictions(family, lora, sharded=False) for lora in (True, False)]
    for found in in_processes(2, lambda: [predictions(family, lora, sharded=True) for lora in (True, False)]):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["sd3", "sdxl-euler"])
def test_so_does_one_in_bfloat16_whose_trained_weights_are_in_float32(family):
    half = torch.bfloat16
    expected = [predictions(family, lora, sharded=False, dtype=half) for lora in (True, False)]
    for found in in_processes(2, lambda: [predictions(family, lora, True, half) for lora in (True, False)]):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
