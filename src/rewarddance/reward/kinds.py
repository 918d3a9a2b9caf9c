"""The kinds of reward model by name, and how one is loaded. A new kind is one file and one line here."""

from __future__ import annotations

import json
from collections.abc import Callable

from rewarddance.errors import InputError
from rewarddance.reward.generative import PairwiseReward
from rewarddance.reward.judge import CONFIG_FILE, Judge, RewardConfig
from rewarddance.reward.vlm import VisionLanguageModel
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.runtime.config import parse_recipe

KINDS: dict[str, Callable[[str, RewardConfig, str], Judge]] = {
    "pairwise": lambda name, config, device: PairwiseReward(VisionLanguageModel(name, device=device), config),
}


def build_reward(name: str, config: RewardConfig, device: str = "cpu") -> Judge:
    """A checkpoint as the kind of reward that `config` says, its weights trainable."""
    return KINDS[config.kind](name, config, device)


def load_reward(name: str, device: str = "cpu", **changes: object) -> Judge:
    """Load a trained reward folder, or any vision-language model zero-shot (default instruction); frozen.

    changes: fields of `RewardConfig` to set differently, such as kind or orders="both". Raises InputError naming an
    unknown field, a missing checkpoint or a broken reward_config.json.
    """
    path = find_checkpoint(name) / CONFIG_FILE
    saved: dict = {}
    if path.is_file():
        try:
            saved = dict(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise InputError(f"{path} is no JSON object: {error}.", "Restore it or train the reward again.") from error
    return build_reward(name, parse_recipe(RewardConfig, saved | changes, str(path)), device).freeze()
