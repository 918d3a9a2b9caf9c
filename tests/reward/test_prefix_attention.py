"""Attention to a shared prefix, against attention written out over both parts in float64."""

import pytest
import torch

from rewarddance.reward.prefix_attention import FlashCPU, FlashCUDA, ScoreMatrix, kernel_for, prefix_attention

CASES = {  # groups, rows of each, query heads, key heads, width, own length, lengths of the prefixes
    "one group": (1, 3, 4, 2, 16, 13, (21,)),
    "groups of other lengths": (3, 2, 8, 2, 32, 9, (40, 25, 25)),
    "as many key heads": (1, 2, 4, 4, 64, 50, (70,)),
    "one token of its own": (3, 1, 4, 1, 16, 1, (9, 3, 7)),
}


def tensors(case: str, dtype: torch.dtype) -> tuple[list[torch.Tensor], tuple[int, ...]]:
    groups, rows, heads, kv, width, length, lengths = CASES[case]
    g = torch.Generator().manual_seed(0)
    shapes = [(groups * rows, n, length, width) for n in (heads, kv, kv)] + [(groups, kv, max(lengths), width)] * 2
    return [torch.randn(shape, generator=g).to(dtype).requires_grad_() for shape in shapes], lengths


def written_out(query, key, value, prefix_key, prefix_value, lengths):
    """softmax over [prefix, own] in float64, with the keys of every row and head copied."""
    rows, shared = len(query) // len(prefix_key), query.shape[1] // key.shape[1]
    keys, values = (
        torch.cat([prefix.repeat_interleave(rows, 0), own], 2).repeat_interleave(shared, 1).double()
        for prefix, own in ((prefix_key, key), (prefix_value, value))
    )
    longest, length = prefix_key.shape[2], key.shape[2]
    hidden = torch.zeros(len(query), 1, length, longest + length, dtype=torch.bool)
    hidden[..., longest:] = torch.ones(length, length, dtype=torch.bool).triu(1)
    for number, prefix_length in enumerate(lengths):
        hidden[number * rows : (number + 1) * rows, ..., prefix_length:longest] = True
    scores = query.double() @ keys.mT * query.shape[-1] ** -0.5
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values


@torch.no_grad()
def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.mark.parametrize("kernel", [FlashCPU, ScoreMatrix])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_value_and_gradients_are_those_of_one_softmax(kernel, case, dtype, tolerance):
    inputs, lengths = tensors(case, dtype)
    out = prefix_attention(*inputs[:3], tuple(inputs[3:]), lengths, inputs[0].shape[-1] ** -0.5, kernel)
    exact = written_out(*inputs, lengths)
    assert out.dtype == dtype
    assert distance(out, exact) < tolerance
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad(out, inputs, upstream.to(dtype))
    for mine, theirs in zip(ours, torch.autograd.grad(exact, inputs, upstream), strict=True):
        assert distance(mine, theirs) < tolerance


def test_what_stands_behind_a_shorter_prefix_is_never_seen():
    inputs, lengths = tensors("groups of other lengths", torch.float32)
    before = prefix_attention(*inputs[:3], tuple(inputs[3:]), lengths, 1.0)
    with torch.no_grad():
        for prefix in inputs[3:]:
            prefix[1, :, lengths[1] :] = 1e4
    assert torch.equal(prefix_attention(*inputs[:3], tuple(inputs[3:]), lengths, 1.0), before)


def test_no_score_is_kept_for_the_backward_pass():
    inputs, lengths = tensors("as many key heads", torch.float32)
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = prefix_attention(*inputs[:3], tuple(inputs[3:]), lengths, 1.0)
    assert sum(kept.values()) == sum(x.numel() for x in inputs) + out.numel() + out[..., 0].numel()


def test_flash_is_taken_where_its_kernel_takes_the_heads():
    def on_gpu(width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(1, 2, 3, width, dtype=dtype, device="meta")

    assert kernel_for(torch.zeros(1, 2, 3, 5)) is FlashCPU
    assert kernel_for(on_gpu(128, torch.bfloat16)) is FlashCUDA
    assert kernel_for(on_gpu(128, torch.float32)) is ScoreMatrix  # a precision that flash does not have
    assert kernel_for(on_gpu(20, torch.bfloat16)) is ScoreMatrix
    assert kernel_for(on_gpu(512, torch.bfloat16)) is ScoreMatrix


@pytest.mark.parametrize("case", CASES)
def test_shapes_on_a_gpu_are_those_on_the_cpu(case):
    inputs, lengths = tensors(case, torch.bfloat16)
    there = [x.detach().to("meta").requires_grad_() for x in inputs]
    out = prefix_attention(*there[:3], tuple(there[3:]), lengths, 1.0)
    assert out.shape == inputs[0].shape
    out.sum().backward()
    assert [x.grad.shape for x in there] == [x.shape for x in inputs]
