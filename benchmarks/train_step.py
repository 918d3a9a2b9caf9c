"""A training step of a pairwise judge: ours against two padded passes with all logits, in one process, on one judge.

python benchmarks/train_step.py         about 3 minutes on 2 cores; the last line is JSON, figure name to number

Both learn the answers of both orders of each pair (the paper's objective) with all weights. The naive way does what a
plain trainer does with the two orders as two batches: every picture encoded for each order, rows padded to the longest,
logits of the whole vocabulary at all positions. Ours encodes each picture once and reads the head where the answer is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from judges import PROMPT, build_judge, candidates, flops, interleaved, naive_inputs, peak_rss, saved_at_once
from torch import Tensor

from rewarddance.reward.batches import MicroBatch
from rewarddance.reward.generative import PairwiseReward
from rewarddance.reward.objectives import answer_cross_entropy
from rewarddance.reward.parallel import ForwardDispatch
from rewarddance.reward.train import accumulate_gradient
from rewarddance.types import Preference, Question

SHORT = "A lighthouse on a cliff at dusk, a red boat below it"


def naive_step(judge: PairwiseReward, pairs: Sequence[Preference]) -> None:
    """Forward and backward for each order, rows padded on the right; of all logits those at the last tokens count."""
    yes, no = judge.vlm.answer_tokens(judge.config.yes), judge.vlm.answer_tokens(judge.config.no)
    forward = [Question(p.prompt, p.second, p.first) for p in pairs], [p.share for p in pairs]
    backward = [Question(p.prompt, p.first, p.second) for p in pairs], [1 - p.share for p in pairs]
    for questions, shares in (forward, backward):
        inputs = [naive_inputs(judge, question) for question in questions]
        ids = [one["input_ids"][0] for one in inputs]
        last = torch.tensor([len(row) - 1 for row in ids])
        logits = judge.model(
            input_ids=torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
            attention_mask=torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            pixel_values=torch.cat([one["pixel_values"] for one in inputs]),
        ).logits[torch.arange(len(ids)), last]
        margin = logits[:, yes].logsumexp(-1) - logits[:, no].logsumexp(-1)
        (answer_cross_entropy(margin, torch.tensor(shares)) / 2).backward()


def our_step(judge: PairwiseReward, pairs: Sequence[Preference]) -> None:
    judge.loss(pairs).backward()


def saved_by_parts(judge: PairwiseReward) -> dict[str, float]:
    """The most MB that autograd keeps during a step of 4 pairs, by how many of them the judge reads at once."""
    shown = candidates(8, seed=1)
    pairs = tuple(Preference(PROMPT, shown[2 * k], shown[2 * k + 1], 1.0) for k in range(4))
    model, budget = ForwardDispatch(judge), judge.vlm.max_batch_tokens
    longest = max(judge.vlm.lengths_of(judge.training_inputs(pairs)))
    kept = {}
    for at_once in (4, 2, 1):
        judge.vlm.max_batch_tokens = 2 * at_once * longest
        kept[f"saved_mb_of_{at_once}_pairs_at_once"] = saved_at_once(
            judge.model, lambda: accumulate_gradient(model, judge, [MicroBatch(pairs, step=0)])
        )
        judge.model.zero_grad(set_to_none=True)
    judge.vlm.max_batch_tokens = budget
    return kept


STEPS = {"naive": naive_step, "ours": our_step}


def gradients(judge: PairwiseReward, name: str, pairs: Sequence[Preference]) -> list[Tensor]:
    """Of all weights, in their order; none are left behind."""
    judge.model.zero_grad(set_to_none=True)
    STEPS[name](judge, pairs)
    found = [weight.grad for weight in judge.model.parameters() if weight.grad is not None]
    judge.model.zero_grad(set_to_none=True)
    return found


def main() -> None:
    judge = build_judge()
    judge.model.requires_grad_(True)
    judge.config = judge.config.model_copy(update={"difference_weight": 0.0})
    one, two, three, four = candidates(4)
    pairs = [Preference(PROMPT, one, two, 1.0), Preference(SHORT, three, four, 0.25)]
    print(
        f"{sum(w.numel() for w in judge.model.parameters()) / 1e6:.0f}M parameters, {torch.get_num_threads()} threads"
    )
    by_parts = saved_by_parts(judge)
    print(by_parts, flush=True)
    found, peak = {}, {}
    for name in STEPS:
        with peak_rss() as rose:
            found[name] = gradients(judge, name, pairs)
        (peak[name],) = rose
        print(f"{name}: {peak[name]:.0f} MB", flush=True)
    scale = max(float(gradient.abs().max()) for gradient in found["naive"])
    away = [float((a - b).abs().max()) for a, b in zip(found["naive"], found["ours"], strict=True)]
    figures = {"max_relative_diff": max(away) / scale, **by_parts}
    found.clear()
    operations = {name: flops(lambda n=name: gradients(judge, n, pairs)) for name in STEPS}
    print(f"{operations['naive'] / operations['ours']:.3f} times the FLOPs", flush=True)
    best = interleaved({name: (lambda n=name: gradients(judge, n, pairs)) for name in STEPS}, rounds=2)
    for name in STEPS:
        figures |= {f"{name}_seconds": round(best[name], 4), f"{name}_peak_mb": round(peak[name], 1)}
        print({key: value for key, value in figures.items() if key.startswith(name)}, flush=True)
    figures["step_wall"] = round(best["naive"] / best["ours"], 3)
    figures["step_flops"] = round(operations["naive"] / operations["ours"], 3)
    figures["step_peak"] = round(peak["naive"] / peak["ours"], 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
