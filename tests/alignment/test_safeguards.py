"""The average of the weights is arithmetic, and the jitter is honest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rewarddance.alignment.safeguards import Ema, jittered


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_average_is_the_geometric_sum_of_the_weights():
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = Ema([weight], decay=0.75)
    expected = 1.0
    for value in (5.0, -3.0, 2.0):
        weight.data.fill_(value)
        ema.update()
        expected = 0.75 * expected + 0.25 * value
    assert ema.average[0].item() == pytest.approx(expected)
    assert weight.item() == 2.0


def test_without_decay_the_average_is_the_weight():
    weight = nn.Parameter(torch.zeros(3))
    ema = Ema([weight], decay=0.0)
    weight.data += 2
    ema.update()
    assert torch.equal(ema.average[0], torch.full((3,), 2.0))


def test_the_average_is_applied_within_the_block_only_also_after_an_error():
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = Ema([weight], decay=0.5)
    weight.data.fill_(3.0)
    ema.update()
    with ema.applied():
        assert weight.item() == 2.0
    assert weight.item() == 3.0
    with pytest.raises(RuntimeError), ema.applied():
        raise RuntimeError
    assert weight.item() == 3.0
    ema.deliver()
    assert weight.item() == 2.0


def test_no_jitter_is_the_identity():
    pixels = torch.rand(2, 1, 3, 5, 6)
    assert torch.equal(jittered(pixels, rng(), shift=0, noise=0.0), pixels)


def test_a_shift_is_a_window_of_the_picture_with_its_edges_repeated():
    pixels = torch.rand(40, 2, 3, 5, 6)
    padded = torch.stack([nn.functional.pad(one, (1, 1, 1, 1), mode="replicate") for one in pixels])
    found, offsets = jittered(pixels, rng(), shift=1, noise=0.0), set()
    for number, one in enumerate(found):
        at = [(y, x) for y in range(3) for x in range(3) if torch.equal(one, padded[number][..., y : y + 5, x : x + 6])]
        assert at
        offsets.update(at)
    assert len(offsets) == 9  # every move comes up, frames of one sample move together


def test_the_noise_has_its_deviation_and_stays_in_range():
    found = jittered(torch.full((4, 1, 3, 64, 64), 0.5), rng(), shift=0, noise=0.05)
    assert (found - 0.5).std().item() == pytest.approx(0.05, rel=0.03)
    loud = jittered(torch.rand(4, 1, 3, 8, 8), rng(), shift=2, noise=3.0)
    assert loud.min() == 0 and loud.max() == 1


def test_the_jitter_is_that_of_its_seed():
    pixels = torch.rand(4, 1, 3, 8, 8)
    one, same, other = (jittered(pixels, rng(seed), shift=2, noise=0.1) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_gradient_passes_the_jitter_whole():
    pixels = torch.full((3, 1, 3, 6, 6), 0.5, requires_grad=True)
    jittered(pixels, rng(), shift=1, noise=0.01).sum().backward()
    assert pixels.grad.sum().item() == pixels.numel()  # each pixel shown is one that was there
