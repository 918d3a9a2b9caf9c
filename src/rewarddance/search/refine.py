"""Critique and refine: the judge says what is wrong, and the next pictures are drawn from a prompt that says it too.

After RationalRewards (2604.11626). The judge is always asked about the prompt as it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydantic import Field, field_validator

from rewarddance.runtime.config import Recipe
from rewarddance.search.batch import Batch
from rewarddance.search.budget import Cost
from rewarddance.types import Question

Rewrite = Callable[[str, str], str]
"""A prompt and a judge's reason to a new prompt."""


class Refine(Recipe):
    """samples: drawn from each wording of the prompt. wording: how a judge's reason goes into it. Defaults are ours."""

    samples: int = Field(default=4, ge=2)
    wording: str = "{prompt}. {reason}"

    @field_validator("wording")
    @classmethod
    def _has_both_places(cls, value: str) -> str:
        try:
            value.format(prompt="", reason="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"a wording has the places {{prompt}} and {{reason}} and no other ({error})") from None
        if "{prompt}" not in value or "{reason}" not in value:
            raise ValueError("a wording has both the places {prompt} and {reason}")
        return value


def search_refine(batch: Batch, recipe: Refine, rewrite: Rewrite | None = None) -> None:
    """Draw, let the judge explain why the second best is not the best, draw from the prompt with that said; repeat.

    A pointwise judge, which compares nothing, explains what the second best is worth by itself.

    A wording from which no new best came is dropped: its prompt is drawn from as it was given, and then refined anew.
    rewrite: what makes the new wording in place of the recipe's own, a language model for example.
    """
    write = rewrite or (lambda prompt, reason: recipe.wording.format(prompt=prompt, reason=reason))
    refined = list(batch.prompts)

    def cost(count: int) -> Cost:
        plain = batch.plain(count)
        return Cost(plain.evaluations, plain.questions + 1)

    while count := batch.max_affordable(cost, recipe.samples):
        batch.rounds += refined != batch.prompts
        new = batch.sample(count, None if refined == batch.prompts else refined)
        for own, prompt in zip(new, refined, strict=True):
            for candidate in own:
                candidate.origin["prompt"] = prompt.text
        batch.offer(new)
        asked = [p for p, own in enumerate(batch.found) if len(own) > 1]
        questions = [Question(batch.prompts[p], batch.found[p][1].pixels, batch.found[p][0].pixels) for p in asked]
        reasons = dict(zip(asked, batch.judge.explain(questions).reasons or (), strict=True))
        for p, prompt in enumerate(batch.prompts):
            failed = refined[p] != prompt and batch.found[p][0] not in new[p]
            again = failed or not reasons.get(p)
            refined[p] = prompt if again else replace(prompt, text=write(prompt.text, reasons[p]))
