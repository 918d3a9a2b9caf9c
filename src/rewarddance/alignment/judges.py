"""The judges of an align recipe, loaded: one, or several by name, each judge once whoever asks it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from rewarddance.alignment.recipe import AlignRun
from rewarddance.errors import InputError
from rewarddance.protocols import RewardModel
from rewarddance.reward.loading import with_criteria

Judges = RewardModel | Mapping[str, tuple[RewardModel, float]] | None
"""One judge, several by name with their weights, or none."""


def load_judges(
    recipe: AlignRun,
    load: Callable[..., Any],
    beside: Callable[..., Any],
    *,
    judge: RewardModel | None = None,
    given: Mapping[str, RewardModel] | None = None,
) -> Judges:
    """What a recipe's judge and rewards name.

    load: loads the recipe's judge by its name with its options; beside: one that a reward has of its own. judge, given:
    objects in the place of the recipe's judge, and of rewards' own by their names. Raises InputError naming the reward
    that cannot be loaded, or not asked by its criteria.
    """
    if judge is None and recipe.judge:
        judge = load(recipe.judge, **recipe.judge_options)
    if not recipe.rewards:
        return judge
    loaded: dict[str, Any] = {}
    judges: dict[str, tuple[RewardModel, float]] = {}
    for name, reward in recipe.rewards.items():
        try:
            asked: Any = (given or {}).get(name)
            if asked is None and reward.judge is None:
                asked = judge
            elif asked is None:
                key = json.dumps([reward.judge, reward.options], sort_keys=True, default=str)
                asked = loaded[key] if key in loaded else beside(reward.judge, **reward.options)
                loaded[key] = asked
            if reward.criteria is not None:
                asked = with_criteria(asked, reward.criteria, reward.criteria_average)
        except InputError as error:
            raise InputError(f"the reward {name}: {error.what}", error.remedy) from error
        judges[name] = (asked, reward.weight)
    return judges


def listed(judges: Judges) -> list[RewardModel]:
    """Each judge that is asked."""
    if judges is None:
        return []
    return [judge for judge, _ in judges.values()] if isinstance(judges, Mapping) else [judges]
