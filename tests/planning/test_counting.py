"""What is counted on shapes is what a real run takes: closed forms first, then a real run of the same."""

from __future__ import annotations

import pytest
import torch
from measured import measured_peak
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rewarddance.planning.counting import Counting, counting
from rewarddance.planning.hardware import Work


def layers(device: str) -> nn.ModuleList:
    with torch.device(device):
        return nn.ModuleList([nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4)])


def through(stack: nn.ModuleList, x: Tensor, again: bool) -> None:
    for layer in stack:
        x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
    x.sum().backward()


def test_a_product_takes_two_operations_an_entry_and_gradients_twice_that():
    weight = torch.empty(7, 5, device="meta", requires_grad=True)
    with counting() as counted:
        F.linear(torch.empty(3, 5, device="meta", requires_grad=True), weight).sum().backward()
    assert counted.flops == {"other": 2 * 3 * 5 * 7, "backward": 2 * 2 * 3 * 5 * 7}


def test_memory_is_what_lives_at_once_and_each_phase_has_its_own_worst():
    with counting() as counted:
        with counted.during("first"):
            kept = torch.empty(1000, device="meta")
            gone = torch.empty(5000, device="meta")
        del gone
        with counted.during("second"):
            more = torch.empty(2000, device="meta")
    assert counted.peak == 4 * 6000 and counted.live == 4 * 3000
    assert counted.peaks["first"] == 4 * 6000 and counted.peaks["second"] == 4 * 3000
    assert counted.at_peak["first"] == 4 * 6000
    del kept, more


def test_what_was_there_before_and_views_of_it_do_not_count():
    weight = torch.empty(100, 100, device="meta")
    with counting() as counted:
        counted.exclude([weight])
        view = weight.T[:50]
        assert counted.peak == 0
        assert (view + 1).shape == (50, 100)
    assert counted.peak == 4 * 50 * 100


@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
def test_the_peak_is_that_of_a_real_run(again: bool):
    real, meta = layers("cpu"), layers("meta")
    x = torch.randn(500, 64, requires_grad=True)
    known = measured_peak(lambda: through(real, x, again))
    x = torch.empty(500, 64, device="meta", requires_grad=True)
    with counting() as counted:
        counted.exclude([*meta.parameters(), x])
        through(meta, x, again)
    assert counted.peak == pytest.approx(known, rel=0.03)


def test_checkpointing_computes_layers_again_and_holds_less():
    counts = {}
    for again in (False, True):
        with counting() as counts[again]:
            through(layers("meta"), torch.empty(500, 64, device="meta", requires_grad=True), again)
    assert counts[True].peak < 0.5 * counts[False].peak
    assert counts[True].flops["other"] == counts[False].flops["other"]
    assert counts[False].flops["backward"] < counts[True].flops["backward"]


def test_a_second_count_is_the_same():
    """Outputs whose shapes are in the cache take new memory all the same, and views take none."""
    results = []
    for _ in range(2):
        with counting() as counted:
            through(layers("meta"), torch.empty(5, 3, 64, device="meta", requires_grad=True), True)
        results.append((counted.flops, counted.peaks, counted.peak, counted.at_peak, counted.live))
    assert results[0] == results[1] and results[0][2] > 0


@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
def test_a_gradient_that_ends_in_no_weight_is_of_the_phase_that_asks(again: bool):
    x = torch.empty(8, 64, device="meta", requires_grad=True)
    with counting() as counted, counted.during("judge"):
        (layer, *_) = layers("meta").requires_grad_(False)
        y = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == x.shape and x.grad is None
    assert counted.flops.keys() == {"judge"}
    products = counted.flops["judge"] / (2 * 8 * 64 * 256)
    assert products > 4 if again else products == 4  # two layers, forward and backward


def test_layers_computed_again_are_cast_one_after_the_other():
    weights = [torch.empty(64, 64, device="meta", requires_grad=True) for _ in range(8)]
    x = torch.empty(1, 64, device="meta", requires_grad=True)
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    with counting() as counted:
        counted.exclude([*weights, *(weight.grad for weight in weights if weight.grad is not None)])
        for weight in weights:
            with torch.autocast("cpu", torch.bfloat16):
                x = checkpoint(F.linear, x, weight, use_reentrant=False)
        x.sum().backward()
    assert counted.peaks["backward"] < 3 * 4 * 64 * 64  # of one layer: a copy of its weight, and its gradient twice


def test_autocast_computes_in_half_precision_and_casts_a_weight_once():
    weight = torch.empty(64, 64, device="meta", requires_grad=True)
    x = torch.empty(8, 64, device="meta")
    with counting() as counted:
        counted.exclude([weight, x])
        with torch.autocast("cpu", torch.bfloat16):
            first, second = F.linear(x, weight), F.linear(x, weight)
            assert first.dtype == second.dtype == torch.bfloat16
            assert F.layer_norm(first, (64,)).dtype == torch.float32
            assert counted.live >= 2 * 64 * 64
            assert counted.live < 2 * 2 * 64 * 64  # one copy of the weight
        assert F.linear(x, weight).dtype == torch.float32


def test_attention_keeps_no_matrix_of_all_pairs():
    query = torch.empty(1, 2, 512, 16, device="meta", requires_grad=True)
    with counting() as counted:
        F.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()
    assert counted.peak < 512 * 512 * 4
    assert counted.flops["other"] == 2 * 2 * 2 * 512 * 512 * 16


def test_whole_numbers_stay_real_so_that_places_and_masks_can_be_looked_up():
    with counting():
        numbers = torch.arange(5, device="meta")
        assert numbers.tolist() == [0, 1, 2, 3, 4]
        x = torch.empty(5, 3, device="meta")
        assert x[numbers > 2].shape == (2, 3)
        assert torch.isfinite(x).all() and x.sum().item() == 0.0


def test_traffic_is_what_each_operation_reads_and_writes_and_views_none():
    x, weight = torch.empty(3, 5, device="meta"), torch.empty(7, 5, device="meta")
    with counting() as counted:
        y = F.linear(x, weight)
        more = y.T[:2] + 1
        F.embedding(torch.zeros(4, dtype=torch.long), weight)
    assert more.shape == (2, 3)
    product, added, looked_up = 15 + 35 + 21, 6 + 6, 2 * 20
    assert counted.traffic == {"other": 4 * (product + added + looked_up)}


def test_work_is_multiplied_from_a_moment_on():
    x = torch.empty(4, 4, device="meta")
    with counting() as counted:
        squared = x @ x
        before = counted.work("other")
        squared @ x
        counted.multiply("other", 3, since=before)
    assert counted.work("other") == Work(4 * 2 * 64, 4 * 3 * 64)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
def test_walks_of_one_shape_are_counted_as_often_as_they_are_made(checkpointed: bool):
    """Each part's graph ends in the weights and in what the part was made from."""
    stack, made = layers("meta"), []
    for layer in stack:
        layer.register_forward_hook(lambda *_: made.append(1))

    def forward(inputs: list[Tensor]) -> Tensor:
        (x,) = inputs
        for layer in stack:
            x = checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)
        return x

    def counted(once: bool) -> tuple[Counting, int]:
        made.clear()
        parts = [torch.empty(500, 64, device="meta", requires_grad=True) for _ in range(5)]
        weights = list(stack.parameters())
        gradients = [torch.empty_like(weight) for weight in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        with counting() as counts:
            counts.exclude([*weights, *gradients, *parts])
            for part in parts:
                with counts.during("forward"):
                    y = counts.repeated_with_graph("key", forward, [part]) if once else forward([part])
                y.square().sum().backward()
                assert part.grad is not None and part.grad.shape == part.shape
        return counts, len(made)

    (once, few), (each, many) = counted(True), counted(False)
    assert many == 5 * few
    assert once.flops == each.flops and once.traffic == pytest.approx(each.traffic, rel=0.02)
    assert once.peak == pytest.approx(each.peak, rel=0.01) and once.peaks == pytest.approx(each.peaks, rel=0.01)
    assert once.live == each.live


def test_a_walk_that_waits_for_another_is_counted_too():
    """Two graphs are made before either is walked, the later one first."""
    (layer, *_) = layers("meta")
    with counting() as counted:
        x = torch.empty(8, 64, device="meta")
        first, second = (counted.repeated_with_graph("key", lambda inputs: layer(*inputs), [x]) for _ in range(2))
        second.sum().backward()
        first.sum().backward()
    assert counted.flops == {"other": 2 * 2 * 2 * 8 * 64 * 256, "backward": 2 * 3 * 2 * 8 * 64 * 256}
