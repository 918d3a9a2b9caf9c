"""A judge in Pref-GRPO: its own name in `--reward_spec`, win rates over all ordered pairs of a group.

Before a training script makes its `RewardDispatcher`::

    from fastvideo.rewards import dispatcher
    from rewarddance.integrations.pref_grpo import register
    register(dispatcher, "http://localhost:8000")

and then `--reward_spec '{"rewarddance": 1.0}'`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rewarddance.errors import InputError
from rewarddance.integrations.scorer import AnyJudge, AnyReferences, Scorer


def register(
    dispatcher: Any, judge: AnyJudge, references: AnyReferences = None, *, name: str = "rewarddance", **options: Any
) -> None:
    """Let the module `fastvideo.rewards.dispatcher` know the judge as a reward of this `name`.

    With `references` the score is P("yes") against them, otherwise the win rate among the pictures of one prompt (of
    one source and instruction, in editing), each pair asked in both orders; their own win rates ask one. options: of
    `Scorer` and `load_reward`. The module's own rewards stay as they are. Raises InputError where the name is taken.
    """
    if name in dispatcher.SUPPORTED_REWARDS:
        raise InputError(f"Pref-GRPO has a reward named {name!r} already.", "Give another name.")
    scorer = Scorer(judge, references, group=True, **options)
    own_inputs, own_rewards = dispatcher.build_reward_inputs, dispatcher.RewardDispatcher.compute_rewards

    def build_reward_inputs(reward_weights: Mapping[str, float]) -> dict[str, list[dict]]:
        return own_inputs(reward_weights) | ({name: []} if name in reward_weights else {})

    def compute_rewards(self: Any, reward_inputs: Mapping[str, list[dict]]) -> tuple[dict, dict]:
        others = {other: items for other, items in reward_inputs.items() if other != name}
        items = reward_inputs.get(name)
        rewards, by_dimension = own_rewards(self, others) if others or not items else ({}, {})
        if items:
            scores = score_items(scorer, items)
            rewards = rewards | {name: torch.tensor(scores, device=self.device)}
            by_dimension = by_dimension | {f"{name}_score": scores}
        return rewards, by_dimension

    dispatcher.SUPPORTED_REWARDS.add(name)
    dispatcher.build_reward_inputs = build_reward_inputs
    dispatcher.RewardDispatcher.compute_rewards = compute_rewards


def score_items(scorer: Scorer, items: Sequence[Mapping[str, Any]]) -> list[float]:
    """Scores of the dispatcher's items: {path, prompt}, or {source_path, edited_path, instruction} in editing."""
    paths = [item.get("edited_path") or item["path"] for item in items]
    prompts = [item.get("instruction") or item["prompt"] for item in items]
    return scorer(paths, prompts, sources=[item.get("source_path") for item in items])
