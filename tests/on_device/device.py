"""The pretend device refuses what CUDA refuses, records what makes the host wait, and computes as the CPU does."""

from __future__ import annotations

import pretend_device
import pytest
import torch
from torch import nn

from rewarddance.reward.prefix_attention import Attended, FlashCUDA, ScoreMatrix, prefix_attention
from rewarddance.runtime.devices import on_device, random_on
from tests.on_device.ground import DEVICE

OTHER = "pretend:1"
A = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x + A,
        lambda x: x + A.to(OTHER),
        lambda x: x @ A.T,
        lambda x: torch.cat([x, A]),
        lambda x: torch.where(x > 0, x, A),
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: nn.functional.linear(x, torch.randn(2, 4)),
        lambda x: nn.Conv2d(1, 1, 3)(x[None, None]),
        lambda x: torch.randn(3, generator=torch.Generator(), device=DEVICE),
        lambda x: x.numpy(),
    ],
)
def test_what_cuda_refuses_is_refused(work):
    with pytest.raises((RuntimeError, TypeError), match=r"same device|device type|pretend|numpy"):
        work(A.to(DEVICE))


def test_numbers_and_indices_of_the_cpu_are_taken_as_cuda_takes_them():
    x = A.to(DEVICE)
    assert torch.equal((x * torch.tensor(2.0)).cpu(), A * 2)
    assert torch.equal(x[torch.tensor([0, 2])].cpu(), A[[0, 2]])


def test_a_network_has_the_gradients_that_it_has_on_the_cpu():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 5), nn.LayerNorm(5)]
    network, pixels = nn.Sequential(*layers), torch.randn(2, 3, 8, 8)
    network(pixels).square().sum().backward()
    expected = [weight.grad.clone() for weight in network.parameters()]
    network.zero_grad()
    weights = list(network.parameters())
    network.to(DEVICE)
    assert all(one is other for one, other in zip(network.parameters(), weights, strict=True))
    network(pixels.to(DEVICE)).square().sum().backward()
    for weight, own in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad.cpu(), own)


def test_autocast_computes_in_half_as_on_a_gpu():
    with torch.autocast("pretend", torch.bfloat16):
        assert nn.Linear(4, 4).to(DEVICE)(A.to(DEVICE)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (lambda x: x.sum().item(), "a number is read"),
        (lambda x: x.cpu(), "a copy to the CPU"),
        (lambda x: x.to("cpu", non_blocking=True), "a copy to the CPU"),
        (lambda x: A.to(DEVICE), "a copy from the CPU"),
        (lambda x: x[torch.tensor([0])], "an index from the CPU"),
        (lambda x: x[x > 0], "a size is asked for"),
        (lambda x: (x > 0).nonzero(), "a size is asked for"),
        (lambda x: x + 1, None),
        (lambda x: on_device(A, x.device), None),
    ],
)
def test_what_makes_the_host_wait_is_recorded_by_its_function(work, why):
    x = A.to(DEVICE)
    with pretend_device.recording("tests") as waits:
        work(x)
    assert waits.beside(()) == ({f"on_device/device.py <lambda>: {why}": 1} if why else {})


def test_noise_is_drawn_on_the_device_that_it_is_of():
    device = torch.device(OTHER)
    drawn = torch.randn(4, generator=random_on(device, 3), device=device)
    assert drawn.device == device and random_on(torch.device("meta"), 3).device.type == "cpu"
    assert torch.equal(drawn.cpu(), torch.randn(4, generator=torch.Generator().manual_seed(3)))


def test_the_flash_kernel_of_cuda_is_handed_what_it_takes():
    """The kernel itself is not here: one of its signature stands in, and computes what the score matrix computes."""
    library = torch.library.Library("aten", "IMPL")

    def forward(q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
        attended = ScoreMatrix.forward(q, k, v, is_causal, scale)
        empty = q.new_empty(0)
        return attended.out, attended.lse, None, None, q.shape[2], k.shape[2], empty, empty, empty

    def backward(*given, scale):
        grad, q, k, v, out, lse, starts_q, starts_k, longest_q, longest_k, dropout, causal, *random = given
        assert (starts_q, starts_k, longest_q, longest_k) == (None, None, q.shape[2], k.shape[2])
        assert dropout == 0 and len(random) == 2
        return ScoreMatrix.backward(grad, q, k, v, Attended(out, lse), causal, scale)

    library.impl("_scaled_dot_product_flash_attention", forward, "PrivateUse1")
    library.impl("_scaled_dot_product_flash_attention_backward", backward, "PrivateUse1")
    rng = torch.Generator().manual_seed(0)
    shapes = [(4, 4, 5, 8), (4, 2, 5, 8), (4, 2, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)]
    given = [torch.randn(shape, generator=rng) for shape in shapes]

    def grads(place, kernel):
        own = [x.to(place).requires_grad_() for x in given]
        query, key, value, *prefix = own
        prefix_attention(query, key, value, tuple(prefix), [7, 4], 0.3, kernel).square().sum().backward()
        return [x.grad.cpu() for x in own]

    for ours, plain in zip(grads(DEVICE, FlashCUDA), grads("cpu", ScoreMatrix), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
