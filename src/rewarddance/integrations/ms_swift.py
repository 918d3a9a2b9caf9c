"""A judge in ms-swift's GRPO: a class for `orms`, in a plugin file::

    from swift.rewards import orms
    from rewarddance.integrations.ms_swift import judge_orm

    orms["rewarddance"] = judge_orm("http://localhost:8000", render, references="references")

and then `--external_plugins plugin.py --reward_funcs rewarddance`. `render` is as in `rewarddance.integrations.trl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewarddance.errors import InputError
from rewarddance.integrations.scorer import AnyJudge, AnyReferences
from rewarddance.integrations.trl import Render, judge_reward


def judge_orm(judge: AnyJudge, render: Render, references: AnyReferences = None, **options: Any) -> type:
    """A class as ms-swift wants one: `R(args=...)`, whose `__call__(completions, **columns)` gives a number each.

    The judge is loaded when ms-swift makes the object. The prompt is the last turn of the user in `messages`, or the
    column named by `prompt_column`. options: of `judge_reward`.
    """

    class RewardDance:
        def __init__(self, args: Any = None, **others: Any) -> None:
            self.args, self.reward = args, judge_reward(judge, render, references, **options)

        def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
            prompts: list[Any] = [None] * len(completions)  # not read where another column holds them
            if options.get("prompt_column") is None:
                prompts = [_asked(messages) for messages in columns.get("messages") or prompts]
            return self.reward(prompts, completions, **columns)

    return RewardDance


def _asked(messages: Any) -> Any:
    """The user's last turn in a conversation, which ends with the completion."""
    for message in reversed(messages or []):
        if message["role"] == "user":
            return [message]
    raise InputError("a sample has no turn of a user.", "ms-swift hands it on in the column messages.")
