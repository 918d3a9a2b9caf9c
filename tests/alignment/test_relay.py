"""A gradient sent through the decoder in parts is the one that autograd gives for the whole."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from rewarddance.alignment.relay import decoder_vjp
from rewarddance.types import PixelBatch


class Decoder:
    """Counts the pictures whose graph is alive at once, by the sizes of the batches that it decodes with one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        larger = (nn.GroupNorm(2, 8), nn.Upsample(scale_factor=2))
        self.net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), *larger, nn.Conv2d(8, 3, 1))
        self.with_graph: list[int] = []

    def __call__(self, x_0: Tensor) -> PixelBatch:
        if torch.is_grad_enabled():
            self.with_graph.append(len(x_0))
        return self.net(x_0).sigmoid().unsqueeze(1)


@pytest.mark.parametrize(("at_once", "sizes"), [(7, [7]), (3, [3, 3, 1]), (1, [1] * 7), (50, [7])])
def test_the_gradient_in_latents_is_that_of_one_graph(at_once, sizes):
    decoder, x_0 = Decoder(), torch.randn(7, 4, 5, 5)
    aim = torch.rand(7, 1, 3, 10, 10)

    def ask(pixels: PixelBatch) -> float:
        loss = (pixels - aim).square().mean()
        loss.backward()
        return loss.item()

    loss, gradient = decoder_vjp(decoder, x_0, ask, at_once)
    assert decoder.with_graph == sizes
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
