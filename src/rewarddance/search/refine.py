"""Critique and refine: the judge says what is wrong, and the next pictures are drawn from a prompt that includes it.

After RationalRewards (2604.11626). The judge is always asked about the original prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydantic import Field, field_validator

from rewarddance.errors import InputError, shown
from rewarddance.runtime.config import Recipe, changed
from rewarddance.search.batch import Batch
from rewarddance.search.budget import Cost
from rewarddance.types import Question

Rewrite = Callable[[str, str], str]
"""From a prompt and a judge's reason to a new prompt."""


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


def _rewritten(rewrite: Rewrite, prompt: str, reason: str) -> str:
    """Raises InputError where the user's function returns no text."""
    text: object = rewrite(prompt, reason)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"rewrite returned {shown(text)} for the prompt {shown(prompt)}.", "Return the new prompt.")
    return text


def search_refine(batch: Batch, recipe: Refine, rewrite: Rewrite | None = None) -> None:
    """Draw, let the judge explain why the second best is not the best, draw from the prompt with that reason; repeat.

    A pointwise judge, which compares nothing, explains its score of the second best. A wording that gave no new best
    picture is dropped: the next pictures come from the original prompt, which is then refined anew. rewrite: makes the
    new wording in place of the recipe's own, a language model for example.
    """
    batch.check_width("samples", recipe.samples if changed(recipe, "samples") else 0)
    rewrite = rewrite or (lambda prompt, reason: recipe.wording.format(prompt=prompt, reason=reason))
    refined = list(batch.prompts)

    def cost(count: int) -> Cost:
        plain = batch.plain_cost(count)
        return Cost(plain.evaluations, plain.questions + 1)

    while count := batch.max_affordable(cost, recipe.samples):
        batch.rounds += refined != batch.prompts
        new = batch.sample(count, None if refined == batch.prompts else refined)
        for group, prompt in zip(new, refined, strict=True):
            for candidate in group:
                candidate.origin["prompt"] = prompt.text
        batch.add(new)
        pairs = {p: kept[:2] for p, kept in enumerate(batch.kept) if len(kept) > 1}
        questions = [Question(batch.prompts[p], second.pixels, best.pixels) for p, (best, second) in pairs.items()]
        reasons = dict(zip(pairs, batch.judge.explain(questions).reasons or (), strict=True))
        for p, prompt in enumerate(batch.prompts):
            no_new_best = refined[p] != prompt and batch.kept[p][0] not in new[p]
            unchanged = no_new_best or not reasons.get(p)
            refined[p] = prompt if unchanged else replace(prompt, text=_rewritten(rewrite, prompt.text, reasons[p]))
