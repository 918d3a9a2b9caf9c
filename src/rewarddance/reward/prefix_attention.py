"""Attention of many rows to a shared prefix and to themselves, without the matrix of scores.

Two attentions, one to each part, that also say their log-sum-exp; the softmax over both parts together is the mean of
the two weighted by exp(lse). The backward pass gives each part's own backward kernel the merged output and log-sum-exp,
as ring attention does (Liu et al., 2310.01889). Exact, in value and gradient; kept for the backward pass are the
inputs, the output and one number a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_aten = torch.ops.aten
FLASH_WIDTH = 256
"""The widest attention head that CUDA's flash kernels take."""


class Attended(NamedTuple):
    """out [B, heads, L, D]; lse [B, heads, L] float32, the log-sum-exp of the scores; state: the kernel's own."""

    out: Tensor
    lse: Tensor
    state: tuple[Any, ...] = ()


class ScoreMatrix:
    """Attention written out, for devices and precisions without a flash kernel: the scores live within one call."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Attended:
        scores = _scores(q, k, causal, scale)
        lse = scores.logsumexp(-1)
        weights = (scores - lse.unsqueeze(-1)).exp().to(v.dtype)
        return Attended(_ungroup(weights @ v.unsqueeze(2)), _ungroup(lse))

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, attended: Attended, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        groups = k.shape[1]
        weights = (_scores(q, k, causal, scale) - _group(attended.lse, groups).unsqueeze(-1)).exp()
        inner = (grad.float() * attended.out.float()).sum(-1)
        grad = _group(grad, groups)
        of_scores = weights * ((grad @ v.unsqueeze(2).mT).float() - _group(inner, groups).unsqueeze(-1)) * scale
        of_scores, weights = of_scores.to(q.dtype), weights.to(v.dtype)
        of_q = _ungroup(of_scores @ k.unsqueeze(2))
        return of_q, (of_scores.mT @ _group(q, groups)).sum(2), (weights.mT @ grad).sum(2)


class FlashCPU:
    """The CPU's flash kernel, which has as many key heads as query heads."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Attended:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return Attended(*_aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale))

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, attended: Attended, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        shared = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
        of_q, of_k, of_v = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, attended.out, attended.lse, 0.0, causal, scale=scale
        )
        return of_q, of_k.unflatten(1, (-1, shared)).sum(2), of_v.unflatten(1, (-1, shared)).sum(2)


class FlashCUDA:
    """CUDA's flash kernel, which reads grouped key heads as they are."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Attended:
        out, lse, *state, _ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
        return Attended(out, lse, tuple(state))

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, attended: Attended, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        starts_q, starts_k, longest_q, longest_k, *random = attended.state
        return _aten._scaled_dot_product_flash_attention_backward(
            *(grad, q, k, v, attended.out, attended.lse, starts_q, starts_k, longest_q, longest_k),
            *(0.0, causal, *random),
            scale=scale,
        )


Kernel = type[ScoreMatrix] | type[FlashCPU] | type[FlashCUDA]


def kernel_for(query: Tensor) -> Kernel:
    """The kernel for tensors of this device, precision and width; the meta device is taken for a CUDA device."""
    if query.device.type == "cpu":
        return FlashCPU
    half, width = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    flash = query.device.type in ("cuda", "meta") and half and width % 8 == 0 and width <= FLASH_WIDTH
    return FlashCUDA if flash else ScoreMatrix


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (autograd hands all arguments by position)
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix_key: Tensor,
        prefix_value: Tensor,
        lengths: Sequence[int],
        scale: float,
        kernel: Kernel,
    ) -> Tensor:
        groups, kv_heads = prefix_key.shape[:2]
        batch, heads = query.shape[:2]
        folded = _fold(query, groups, kv_heads)
        spans = _spans(lengths)
        parts = [
            kernel.forward(folded[rows], prefix_key[rows, :, :n], prefix_value[rows, :, :n], False, scale)
            for rows, n in spans
        ]
        own_rows = kernel.forward(query, key, value, True, scale)
        of_prefix = _unfold(torch.cat([part.out for part in parts]), batch, heads)
        lse_prefix = _unfold(torch.cat([part.lse for part in parts]), batch, heads)
        lse = torch.logaddexp(lse_prefix, own_rows.lse)
        share = (lse_prefix - lse).exp().unsqueeze(-1)
        out = torch.lerp(own_rows.out.float(), of_prefix.float(), share).to(query.dtype)
        ctx.save_for_backward(query, key, value, prefix_key, prefix_value, out, lse)
        ctx.plan = spans, scale, kernel, own_rows.state, [part.state for part in parts]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, prefix_key, prefix_value, out, lse = ctx.saved_tensors
        spans, scale, kernel, own_state, prefix_states = ctx.plan
        groups, kv_heads = prefix_key.shape[:2]
        batch, heads = query.shape[:2]
        grad = grads[0].contiguous()
        of_query, of_key, of_value = kernel.backward(
            grad, query, key, value, Attended(out, lse, own_state), True, scale
        )
        grad, folded, out, lse = (_fold(x, groups, kv_heads) for x in (grad, query, out, lse))
        through_prefix = []
        of_prefix_key, of_prefix_value = torch.zeros_like(prefix_key), torch.zeros_like(prefix_value)
        for (rows, n), state in zip(spans, prefix_states, strict=True):
            attended = Attended(out[rows], lse[rows].contiguous(), state)
            part_of_query, of_prefix_key[rows, :, :n], of_prefix_value[rows, :, :n] = kernel.backward(
                *(grad[rows], folded[rows], prefix_key[rows, :, :n], prefix_value[rows, :, :n], attended),
                *(False, scale),
            )
            through_prefix.append(part_of_query)
        of_query = of_query + _unfold(torch.cat(through_prefix), batch, heads)
        return of_query, of_key, of_value, of_prefix_key, of_prefix_value, None, None, None


def prefix_attention(
    query: Float[Tensor, "B heads L D"],
    key: Float[Tensor, "B kv L D"],
    value: Float[Tensor, "B kv L D"],
    prefix: tuple[Float[Tensor, "G kv P D"], Float[Tensor, "G kv P D"]],
    lengths: Sequence[int],
    scale: float,
    kernel: Kernel | None = None,
) -> Float[Tensor, "B heads L D"]:
    """softmax(scale * query [prefix_key, key]^T) [prefix_value, value]: causal to a row's own keys, full to its prefix.

    B = G * N, a group's N rows together. prefix: its keys and values, which are not copied for each row. lengths [G]:
    of the prefixes, which are padded on the right to P. kernel: by device and precision where it is not given.
    Differentiable in all tensors, once.
    """
    return _PrefixAttention.apply(query, key, value, *prefix, lengths, scale, kernel or kernel_for(query))


def _spans(lengths: Sequence[int]) -> list[tuple[slice, int]]:
    """Groups that stand together and are equally long, as slices, with that length."""
    spans, start = [], 0
    for length, members in groupby(lengths):
        end = start + sum(1 for _ in members)
        spans.append((slice(start, end), length))
        start = end
    return spans


def _fold(x: Tensor, groups: int, kv_heads: int) -> Tensor:
    """[G N, heads, L, ...] as [G, kv, N shared L, ...]: without a mask, a query head is as good as a further query."""
    batch, heads, length, *rest = x.shape
    x = x.reshape(groups, batch // groups, kv_heads, heads // kv_heads * length, *rest)
    return x.transpose(1, 2).reshape(groups, kv_heads, -1, *rest)


def _unfold(x: Tensor, batch: int, heads: int) -> Tensor:
    """What `_fold` did, undone: [G, kv, N shared L, ...] as [G N, heads, L, ...]."""
    groups, kv_heads, _, *rest = x.shape
    x = x.reshape(groups, kv_heads, batch // groups, -1, *rest)
    return x.transpose(1, 2).reshape(batch, heads, -1, *rest)


def _group(x: Tensor, kv_heads: int) -> Tensor:
    """[B, heads, ...] as [B, kv, shared, ...]."""
    return x.unflatten(1, (kv_heads, -1))


def _ungroup(x: Tensor) -> Tensor:
    return x.flatten(1, 2)


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Float[Tensor, "B kv shared L K"]:
    scores = (_group(q, k.shape[1]) @ k.unsqueeze(2).mT).float() * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores
