"""What a question costs in Python, with the model itself taken out: as it is, and with what it was before.

python benchmarks/question_overhead.py      some seconds on one core; the last line is JSON, figure name to number

Before: the number of the image token was looked up in the library's config for every token of a question. Questions are
of 16 candidates under one reference, with 1,024 tokens a picture.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from judges import PROMPT
from tiny import family_folder

from rewarddance.reward.families.family import Encoded
from rewarddance.reward.loading import load_reward
from rewarddance.reward.prefill import Prefill
from rewarddance.types import Question

SIDE, TOKENS, CANDIDATES, ROUNDS = 256, 1024, 16, 5


class NoText:
    """A language model that gives back what it is given."""

    layers: tuple[()] = ()

    def parameters(self) -> tuple[()]:
        return ()

    def __call__(self, inputs_embeds: Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=inputs_embeds)


def main() -> None:
    torch.set_num_threads(1)
    judge: Any = load_reward(family_folder("qwen3_vl"))
    vlm, width = judge.vlm, judge.model.get_output_embeddings().weight.shape[1]
    vlm.family.image["size"] = {"shortest_edge": 16, "longest_edge": 8 * 8 * TOKENS}
    vlm.model.config.text_config.max_position_embeddings = 10**6
    picture = Encoded(torch.zeros(TOKENS, width), (torch.zeros(TOKENS, width),) * 2)

    def encode(pictures: Sequence[Tensor]) -> list[Encoded]:
        return [picture for _ in pictures]

    reference, *candidates = (torch.rand(1, 3, SIDE, SIDE) for _ in range(CANDIDATES + 1))
    asked = [Question(PROMPT, candidate, reference) for candidate in candidates]
    figures: dict[str, float] = {}
    before = property(lambda self: self.model.config.image_token_id)
    ways = {"before": patch.object(Prefill, "_image_token", before), "ours": None}
    with patch.object(vlm, "encode", encode), patch.object(type(vlm), "_language_model", NoText()), torch.no_grad():
        for name, way in ways.items():
            if way is not None:
                way.start()
            judge(asked)
            times = []
            for _ in range(ROUNDS):
                began = time.process_time()
                judge(asked)
                times.append(time.process_time() - began)
            if way is not None:
                way.stop()
            figures[f"{name}_ms_a_question"] = 1e3 * min(times) / CANDIDATES
    figures["ratio"] = figures["before_ms_a_question"] / figures["ours_ms_a_question"]
    print(json.dumps({key: float(f"{value:.4g}") for key, value in figures.items()}))


if __name__ == "__main__":
    main()
