"""A frozen decoder that keeps less for its backward pass has the same gradient."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from rewarddance.runtime.frozen_layers import keeping_less
from rewarddance.runtime.memory import blocks_of, checkpointed


def decoder() -> nn.Module:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32,
    )  # fmt: skip
    return vae.decoder.eval().requires_grad_(False)


def assert_equal(gradient: torch.Tensor, plain: torch.Tensor) -> None:
    """But for rounding: a convolution that is asked for its input's gradient alone adds up in another order."""
    assert (gradient - plain).abs().max() <= 2e-6 * plain.abs().max()


def kept_and_gradient(network: nn.Module) -> tuple[int, torch.Tensor]:
    """Bytes that autograd keeps, each storage once and weights apart, and the gradient in the latents."""
    own, kept = {weight.untyped_storage().data_ptr() for weight in network.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(latents).square().sum()
    (gradient,) = torch.autograd.grad(loss, latents)
    return sum(one.untyped_storage().nbytes() for place, one in kept.items() if place not in own), gradient


def test_a_frozen_decoder_keeps_less_than_half_and_has_the_same_gradient():
    network = decoder()
    before, plain = kept_and_gradient(network)
    with keeping_less(network), keeping_less(network):
        less, gradient = kept_and_gradient(network)
    assert_equal(gradient, plain)
    assert less < 0.5 * before, (less, before)
    assert kept_and_gradient(network)[0] == before, "outside of the block it is as it was"


def test_it_goes_together_with_layers_that_are_computed_again():
    network = decoder()
    _, plain = kept_and_gradient(network)
    with keeping_less(network), checkpointed(blocks_of(network)):
        _, gradient = kept_and_gradient(network)
    assert_equal(gradient, plain)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv3d])
def test_weights_that_are_trained_keep_their_gradient(kind):
    layer = nn.Sequential(nn.GroupNorm(1, 2), nn.SiLU(), kind(2, 3, 3, padding=1))
    x = torch.randn(1, 2, *(4,) * (2 if kind is nn.Conv2d else 3), requires_grad=True)
    wanted = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    with keeping_less(layer):
        found = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    for one, other in zip(found, wanted, strict=True):
        assert_equal(one, other)
