"""The families that have code of their own here."""

from __future__ import annotations

from rewarddance.reward.families.family import KnownFamily
from rewarddance.reward.families.internvl import InternVL
from rewarddance.reward.families.qwen_vl import QwenVL

FAMILIES: dict[str, type[KnownFamily]] = {
    "internvl": InternVL,
    "qwen2_vl": QwenVL,
    "qwen2_5_vl": QwenVL,
    "qwen3_vl": QwenVL,
}
"""By the model_type of config.json. Every other family is read through its own processor (`AnyFamily`)."""
