"""A judge in TRL's GRPOTrainer: a policy that writes is judged on the pictures that its writing makes::

    from rewarddance.integrations.trl import judge_reward

    trainer = GRPOTrainer(model, reward_funcs=judge_reward("http://localhost:8000", render, "references"), ...)

`render` draws a completion: a program that plots, an SVG, a layout, a call of an image generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rewarddance.data.fields import short
from rewarddance.data.media import Media
from rewarddance.errors import InputError, RewardDanceError, RewardError
from rewarddance.integrations.scorer import AnyJudge, AnyReferences, Scorer

Render = Callable[[str], Media | None]
"""A completion's text -> the picture that it makes; None where it makes none."""


def judge_reward(
    judge: AnyJudge,
    render: Render,
    references: AnyReferences = None,
    *,
    prompt_column: str | None = None,
    undrawable: float | None = None,
    **options: Any,
) -> Callable[..., list[float]]:
    """The function that TRL calls: `f(prompts, completions, **columns) -> scores`.

    references: see `References`. prompt_column: the data's column with what the picture is to show, where the prompt
    says more than that (a system's words, an example). undrawable: what a completion is worth for which `render`
    returns None; it says something of the policy, so it is no failure, but nobody decides it for you: without a number
    one is an error. options: of `Scorer` and `load_reward`.

    Raises RewardError naming a completion that `render` failed on, and as `Scorer` does.
    """
    if undrawable is not None and not math.isfinite(undrawable):
        raise InputError(f"undrawable is {undrawable}.", "Give a number, or leave it out.")
    scorer = Scorer(judge, references, **options)

    def rewarddance(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        if prompt_column is not None and prompt_column not in columns:
            raise InputError(f"the data has no column {prompt_column!r}.", f"It has: {', '.join(columns)}.")
        asked = [last_text(prompt) for prompt in (columns[prompt_column] if prompt_column else prompts)]
        if len(asked) != len(completions):
            raise InputError(
                f"there are {len(asked)} prompts and {len(completions)} completions.", "Give one for each completion."
            )
        drawn = [draw(render, last_text(completion), undrawable is None) for completion in completions]
        there = [number for number, picture in enumerate(drawn) if picture is not None]
        scores = scorer([drawn[number] for number in there], [asked[number] for number in there]) if there else []
        worth = dict(zip(there, scores, strict=True))
        return [worth.get(number, undrawable) for number in range(len(drawn))]  # type: ignore[misc]  never None here

    return rewarddance


def draw(render: Render, text: str, must: bool) -> Media | None:
    """The picture of a completion. Raises RewardError where `render` fails, or makes none although one `must` be."""
    try:
        picture = render(text)
    except RewardDanceError:
        raise
    except Exception as error:
        raise RewardError(
            f"the completion {short(text)} could not be drawn: {type(error).__name__}: {error}.",
            "Correct render; where the completion is to blame, let it return None and set undrawable.",
        ) from error
    if picture is None and must:
        raise RewardError(f"the completion {short(text)} makes no picture.", "Say what that is worth: undrawable=0.0.")
    return picture


def last_text(message: Any) -> str:
    """The text of a completion or prompt: as it is, or of the last turn of a conversation, whose parts are joined."""
    if isinstance(message, Sequence) and not isinstance(message, str) and message:
        message = message[-1]
    if isinstance(message, dict) and "role" in message:
        message = message.get("content")
    if isinstance(message, list):
        message = "".join(part.get("text") or "" for part in message if part.get("type") == "text")
    if not isinstance(message, str):
        raise InputError(f"{short(message)} holds no text.", "Give a text, or a conversation that ends with one.")
    return message
