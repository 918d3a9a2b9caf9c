"""The last layer's MLP is computed where its states are read, and nowhere else."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tiny import family_folder, pictures
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rewarddance.reward import prefill
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.last_layer import mlp_at
from rewarddance.reward.loading import build_reward
from rewarddance.types import Question


class Layer(nn.Module):
    """A residual MLP; as a mixture of experts it says whom it chose, too."""

    def __init__(self, mixture: bool = False) -> None:
        super().__init__()
        self.mlp = Experts() if mixture else nn.Linear(4, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        added = self.mlp(hidden)
        return hidden + (added[0] if isinstance(added, tuple) else added)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        _, _, width = hidden.shape
        assert width == 4
        return self.linear(hidden), hidden.sum()


@pytest.mark.parametrize("mixture", [False, True])
def test_states_that_are_read_are_the_same_and_others_get_nothing(mixture):
    layer, hidden = Layer(mixture), torch.randn(2, 5, 4)
    whole = layer(hidden)
    with mlp_at(layer, torch.tensor([3, 9])):
        found = layer(hidden)
    torch.testing.assert_close(found.flatten(0, 1)[[3, 9]], whole.flatten(0, 1)[[3, 9]])
    others = [n for n in range(10) if n not in (3, 9)]
    assert torch.equal(found.flatten(0, 1)[others], hidden.flatten(0, 1)[others])
    assert torch.equal(layer(hidden), whole)  # as before


def test_autocast_adds_what_it_would_add_without():
    layer, hidden = Layer(), torch.randn(2, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        whole = layer(hidden)
        with mlp_at(layer, torch.tensor([4])):
            found = layer(hidden)
    assert found.dtype == whole.dtype and torch.equal(found[0, 4], whole[0, 4])


def test_nothing_is_computed_where_nothing_is_read():
    layer, hidden = Layer(), torch.randn(2, 5, 4)
    with FlopCounterMode(display=False) as counter, mlp_at(layer, torch.tensor([], dtype=torch.long)):
        assert torch.equal(layer(hidden), hidden)
    assert counter.get_total_flops() == 0


def test_an_error_leaves_the_layer_as_it_was_and_one_without_an_mlp_is_left_alone():
    layer, own = Layer(), lambda hidden: 2 * hidden
    layer.mlp.forward = own
    with pytest.raises(ZeroDivisionError), mlp_at(layer, torch.tensor([0])):
        raise ZeroDivisionError
    assert layer.mlp.forward is own
    with mlp_at(nn.Linear(4, 4), torch.tensor([0])):
        pass


@pytest.mark.parametrize("family", ["internvl", "qwen3_vl"])
def test_a_judges_margins_and_gradients_are_the_same_for_less(family, monkeypatch):
    judge = build_reward(str(family_folder(family)), RewardConfig(instruction="t2i-brief"))
    reference, *shown = pictures(5, size=48)

    def asked() -> tuple[Tensor, Tensor, int]:
        leaves = [pixels.clone().requires_grad_() for pixels in shown]
        with FlopCounterMode(display=False) as counter:
            margin = judge([Question("a red circle", leaf, reference) for leaf in leaves]).margin
            gradients = torch.autograd.grad(margin.sum(), leaves)
        return margin.detach(), torch.stack(gradients), counter.get_total_flops()

    *ours, cost = asked()
    monkeypatch.setattr(prefill, "mlp_at", lambda layer, places: nullcontext())
    *theirs, whole = asked()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert cost < 0.98 * whole
