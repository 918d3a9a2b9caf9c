"""The regressive reward, the baseline of the paper's Table 7: a linear head where the answer would begin.

The folder is the model's own, untouched by the head, which stands beside it in a file of its own: so any server that
reads save_pretrained folders still reads this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rewarddance.reward.batches import split_by_tokens
from rewarddance.reward.judge import HEAD_FILE, RewardConfig
from rewarddance.reward.pointwise import PointwiseJudge, each_alone, pointwise_inputs
from rewarddance.reward.vlm_judge import VisionLanguageModel
from rewarddance.types import Preference, Question

HEAD = "reward_head.weight"
"""The head's one weight [1, D], by its name in the model's state_dict."""


class RegressiveReward(PointwiseJudge):
    """s = w . h: h is the hidden state at the last token of the pointwise question, w a linear head.

    The head hangs on the model, so that the optimiser sees it, but the model does not save it. Where the folder has
    none it is new and zero, so that all pictures begin equal: for training only.
    Source: paper, Table 7 ("regressive"); trained by L = -E log sigma(s_w - s_l).
    """

    def __init__(self, vlm: VisionLanguageModel, config: RewardConfig) -> None:
        self.vlm, self.config, self.model = vlm, config, vlm.model
        width = self.model.get_output_embeddings().weight.shape[1]
        # No bias: Bradley-Terry sees differences only, so it would never learn.
        self.model.reward_head = nn.Linear(width, 1, bias=False, device=vlm.device, dtype=torch.float32)
        nn.init.zeros_(self.model.reward_head.weight)
        self.model._keys_to_ignore_on_save = {*(self.model._keys_to_ignore_on_save or ()), HEAD}
        if has_head(vlm.folder):
            with torch.no_grad():
                self.model.reward_head.weight.copy_(self.read_own_weights(vlm.folder)[HEAD])

    def scores(self, questions: Sequence[Question]) -> Float[Tensor, " K"]:
        hidden = self.vlm.last_states(pointwise_inputs(self.as_read(questions), self.instruction))
        return self.model.reward_head(hidden.float()).squeeze(-1)

    def split_by_tokens(self, pairs: Sequence[Preference]) -> list[Sequence[Preference]]:
        judge_inputs = pointwise_inputs(self.as_read(each_alone(pairs)), self.instruction)
        return split_by_tokens(pairs, self.vlm.lengths_of(judge_inputs), self.vlm.max_batch_tokens)

    def own_weights(self) -> dict[str, Tensor]:
        return {HEAD: self.model.reward_head.weight}

    def save(self, folder: Path) -> None:
        self.vlm.save(folder)
        self.save_own_weights(folder)
        self._save_config(folder)


def has_head(folder: Path) -> bool:
    """Was a regressive reward trained in this folder?"""
    return (folder / HEAD_FILE).is_file()
