"""Generative, comparative reward models for visual generation, and the algorithms that use them.

`from rewarddance import load_reward` is enough for most uses; heavy libraries load when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewarddance.generators.pipelines import load_generator
    from rewarddance.reward.loading import load_reward
    from rewarddance.types import Preference, Question, Verdict

_HOME = {
    "load_generator": "generators.pipelines",
    "load_reward": "reward.loading",
    "Preference": "types",
    "Question": "types",
    "Verdict": "types",
}
__all__ = ["Preference", "Question", "Verdict", "load_generator", "load_reward"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rewarddance' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rewarddance.{_HOME[name]}"), name)
