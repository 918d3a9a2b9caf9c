"""Scoring many candidates: our engine against a whole forward a pair, in one process, on one random judge.

python benchmarks/scoring.py            about 3 minutes on 2 cores; the last line is JSON, figure name to number
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import torch
from judges import PROMPT, SIDE, build_judge, candidates, flops, interleaved, naive, naive_inputs
from torch import Tensor

from rewarddance.reward.generative import PairwiseReward, swapped
from rewarddance.types import Question


@torch.no_grad()
def enough(judge: PairwiseReward, prefixes: int, rows: int, pictures: int) -> float:
    """FLOPs that cannot be avoided: each picture encoded once, each prefix read once, own tokens, two head rows.

    Attention counts all products with all keys of the row, as a plain implementation computes them.
    """
    config = judge.model.config.text_config
    picture = candidates(1)[0]
    encoding = flops(lambda: judge.vlm.family.encode([picture]))
    question = Question(PROMPT, picture, candidates(1, seed=1)[0])
    ids = naive_inputs(judge, question)["input_ids"][0]
    image = (ids == judge.model.config.image_token_id).nonzero().flatten()
    prefix = int(image[-judge.vlm.family.tokens(SIDE, SIDE)])
    own = len(ids) - prefix
    weights = sum(w.numel() for name, w in judge.vlm._language_model.layers.named_parameters() if w.ndim == 2)
    width = config.num_attention_heads * judge.vlm._language_model.layers[0].self_attn.head_dim
    attention = 4 * width * config.num_hidden_layers  # a product with the keys, one with the values
    text = prefixes * (2 * weights * prefix + attention * prefix * prefix)
    text += rows * (2 * weights * own + attention * own * (prefix + own))
    answers = len(judge.vlm.answer_tokens(judge.config.yes)) + len(judge.vlm.answer_tokens(judge.config.no))
    return pictures * encoding + text + rows * 2 * config.hidden_size * answers


@torch.no_grad()
def measured(judge: PairwiseReward, questions: list[Question], enough: float, rounds: int) -> dict[str, float]:
    """Ours against the naive way: difference of margins, ratios of FLOPs and of time."""
    margins: dict[str, Tensor] = {}  # what is timed is compared too: the naive way is slow enough once

    def ask(name: str, way: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: margins.update({name: way()})

    ways = {
        "naive": ask("naive", lambda: naive(judge, questions)),
        "ours": ask("ours", lambda: judge(questions).margin),
    }
    best = interleaved(ways, rounds)
    diff = float((margins["ours"] - margins["naive"]).abs().max())
    naive_flops = flops(lambda: naive(judge, questions[:1])) * len(questions)
    our_flops = flops(lambda: judge(questions))
    return {
        "diff": diff,
        "wall": round(best["naive"] / best["ours"], 3),
        "flops": round(naive_flops / our_flops, 3),
        "flops_limit": round(naive_flops / enough, 3),
        "pairs_per_second": round(len(questions) / best["ours"], 3),
    }


@torch.no_grad()
def main() -> None:
    judge = build_judge()
    print(
        f"{sum(w.numel() for w in judge.model.parameters()) / 1e6:.0f}M parameters, {torch.get_num_threads()} threads"
    )
    reference, *shown = candidates(17)
    group16 = [Question(PROMPT, picture, reference) for picture in shown]
    group4 = group16[:4]
    tournament6 = [Question(PROMPT, c, r) for c, r in itertools.permutations(shown[:6], 2)]
    both16 = [*group16, *map(swapped, group16)]
    works = {
        "group16": (group16, 1, 17, 2),
        "group4": (group4, 1, 5, 2),
        "tournament6": (tournament6, 6, 6, 1),
        "both_orders16": (both16, 17, 17, 1),
    }
    figures: dict[str, float] = {"max_abs_diff": 0.0}
    for name, (questions, prefixes, pictures, rounds) in works.items():
        limit = enough(judge, prefixes, len(questions), pictures)
        figures |= {f"{name}_{figure}": value for figure, value in measured(judge, questions, limit, rounds).items()}
        figures["max_abs_diff"] = max(figures["max_abs_diff"], figures.pop(f"{name}_diff"))
        print({key: value for key, value in figures.items() if key.startswith(name)}, flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
