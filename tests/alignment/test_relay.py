"""A gradient sent through the decoder in parts is the one that autograd gives for the whole."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from rewarddance.alignment.relay import decoder_vjp
from rewarddance.types import PixelBatch


class Decoder:
    """Counts the pictures whose graph is alive at once, by the sizes of the batches that it decodes with one, and all
    that it decodes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        larger = (nn.GroupNorm(2, 8), nn.Upsample(scale_factor=2))
        self.net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), *larger, nn.Conv2d(8, 3, 1))
        self.with_graph: list[int] = []
        self.decoded = 0

    def __call__(self, x_0: Tensor) -> PixelBatch:
        self.decoded += len(x_0)
        if torch.is_grad_enabled():
            self.with_graph.append(len(x_0))
        return self.net(x_0).sigmoid().unsqueeze(1)


@pytest.mark.parametrize(
    ("at_once", "may_wait", "sizes"),
    [(7, True, [7]), (7, False, [7]), (3, True, [3, 3, 1]), (1, True, [1] * 7), (50, True, [7])],
)
def test_the_gradient_in_latents_is_that_of_one_graph(at_once, may_wait, sizes):
    decoder, x_0 = Decoder(), torch.randn(7, 4, 5, 5)
    aim = torch.rand(7, 1, 3, 10, 10)

    def ask(pixels: PixelBatch) -> float:
        loss = (pixels - aim).square().mean()
        loss.backward()
        return loss.item()

    loss, gradient = decoder_vjp(decoder, x_0, ask, at_once, may_wait=may_wait)
    assert decoder.with_graph == sizes
    assert decoder.decoded == (7 if may_wait and at_once >= 7 else 14), "once where the graph can wait"
    leaf = x_0.clone().requires_grad_()
    whole = (decoder(leaf) - aim).square().mean()
    assert loss == pytest.approx(whole.item())
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, leaf)[0])
    assert not x_0.requires_grad


def test_the_judges_graph_is_gone_before_the_decoders_begins():
    alive: list[bool] = []
    saved = []

    class Watching(Decoder):
        def __call__(self, x_0: Tensor) -> PixelBatch:
            if torch.is_grad_enabled():
                alive.append(any(one() is not None for one in saved))
            return super().__call__(x_0)

    def ask(pixels: PixelBatch) -> None:
        squares = pixels.square()
        saved.append(weakref.ref(squares))
        squares.mean().backward()

    decoder_vjp(Watching(), torch.randn(4, 4, 5, 5), ask, at_once=2)
    assert alive == [False, False] and len(saved) == 1
