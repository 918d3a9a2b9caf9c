"""Layers that are computed again give the same gradient, and memory that runs out has a name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rewarddance.errors import InputError, RewardError
from rewarddance.runtime.memory import blocks_of, checkpointed, memory_for


class Remembering(nn.Module):
    """A causal layer as video decoders have them: it adds what it saw of the frame before, and writes down this one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.runs = 0

    def forward(self, x: Tensor, cache: list, place: list) -> Tensor:
        self.runs += 1
        at, place[0] = place[0], place[0] + 1
        before, cache[at] = cache[at], x
        return torch.tanh(self.inner(x if before is None else x + before.square()))


def video(layers: list[Remembering], frames: Tensor) -> Tensor:
    cache: list = [None] * len(layers)
    shown = []
    for x in frames:
        place = [0]
        for layer in layers:
            x = layer(x, cache, place)
        shown.append(x)
    return torch.stack(shown)


def test_layers_that_remember_a_frame_are_computed_again_as_at_first():
    torch.manual_seed(0)
    layers, frames = [Remembering() for _ in range(3)], torch.randn(4, 2, 3, requires_grad=True)
    plain = torch.autograd.grad(video(layers, frames).square().sum(), [frames, *layers[0].parameters()])
    with checkpointed(layers):
        again = torch.autograd.grad(video(layers, frames).square().sum(), [frames, *layers[0].parameters()])
    assert [layer.runs for layer in layers] == [4 + 2 * 4] * 3
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)
    video(layers, frames)
    assert [layer.runs for layer in layers] == [4 + 2 * 4 + 4] * 3


def test_a_networks_blocks_are_the_innermost_members_of_its_lists():
    attention = nn.Module()
    attention.to_out = nn.ModuleList([nn.Linear(2, 2), nn.Dropout()])
    up = nn.Module()
    up.resnets, up.attentions = nn.ModuleList([nn.Sequential(nn.Linear(2, 2))]), nn.ModuleList([attention])
    network = nn.Module()
    network.first, network.up_blocks = nn.Linear(2, 2), nn.ModuleList([up])
    assert blocks_of(network) == [up.resnets[0], attention]


def test_the_part_that_ran_out_of_memory_is_named():
    for error in (torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate")):
        with pytest.raises(InputError, match=r"memory ran out in the judge: .* Ask less\.$"), memory_for(
            "the judge", "Ask less."
        ):  # fmt: skip
            raise error
    with pytest.raises(InputError, match="memory ran out in the judge"), memory_for("the judge", "Ask less."):
        raise RewardError("memory ran out on a question", "") from torch.OutOfMemoryError("none left")
    with pytest.raises(RuntimeError, match="shapes"), memory_for("the judge", "Ask less."):
        raise RuntimeError("shapes do not match")
    with pytest.raises(RewardError, match="not finite"), memory_for("the judge", "Ask less."):
        raise RewardError("a reward is not finite", "")
