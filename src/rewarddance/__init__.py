"""Generative, comparative reward models for visual generation, and the algorithms that use them.

Train a reward model (`train_reward`), load one (`load_reward`) or make one of any function (`as_reward`); score and
evaluate with it, align a generator with it, and search at test time. What goes wrong is a RewardDanceError. Heavy
libraries load when a name is first used.
"""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewarddance.api import align, bench, evaluate, score, search, train_reward
    from rewarddance.data.media import as_pixels
    from rewarddance.errors import InputError, NoGradient, RewardDanceError, RewardError, SearchIncomplete
    from rewarddance.generators.pipelines import load_generator
    from rewarddance.reward.function_reward import as_reward
    from rewarddance.reward.loading import load_reward
    from rewarddance.types import Preference, Prompt, Question, Verdict

# peft imports bitsandbytes where it is installed, which then tells everybody of kernels that can be had beside it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_HOME = {
    "align": "api",
    "as_pixels": "data.media",
    "as_reward": "reward.function_reward",
    "bench": "api",
    "evaluate": "api",
    "load_generator": "generators.pipelines",
    "load_reward": "reward.loading",
    "score": "api",
    "search": "api",
    "train_reward": "api",
    "InputError": "errors",
    "NoGradient": "errors",
    "Preference": "types",
    "Prompt": "types",
    "Question": "types",
    "RewardDanceError": "errors",
    "RewardError": "errors",
    "SearchIncomplete": "errors",
    "Verdict": "types",
}
"""Public name -> its module."""
__all__ = [
    "InputError",
    "NoGradient",
    "Preference",
    "Prompt",
    "Question",
    "RewardDanceError",
    "RewardError",
    "SearchIncomplete",
    "Verdict",
    "align",
    "as_pixels",
    "as_reward",
    "bench",
    "evaluate",
    "load_generator",
    "load_reward",
    "score",
    "search",
    "train_reward",
]


class _Face(ModuleType):
    """The package, whose `search` is the function, and not the subpackage of that name once something imports it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rewarddance")
    if name not in _HOME:
        raise AttributeError(f"module 'rewarddance' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rewarddance.{_HOME[name]}"), name)
