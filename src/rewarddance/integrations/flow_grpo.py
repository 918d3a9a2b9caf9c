"""A judge in flow_grpo and in DiffusionNFT (NVlabs), which has flow_grpo's rewards: an entry of `multi_score`.

In their `flow_grpo/rewards.py`::

    from rewarddance.integrations.flow_grpo import judge_score

    def multi_score(device, score_dict):
        score_functions = {
            "rewarddance": judge_score("http://localhost:8000", references="references"),
            ...

and in the config `config.reward_fn = {"rewarddance": 1.0}`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rewarddance.integrations.scorer import AnyJudge, AnyReferences, Scorer

ScoreImages = Callable[..., tuple[list[float], dict[str, Any]]]


def judge_score(judge: AnyJudge, references: AnyReferences = None, **options: Any) -> Callable[[Any], ScoreImages]:
    """The factory that `multi_score` calls: device -> fn(images, prompts, metadata) -> (scores, {}).

    references: see `References`. Groups are spread over the ranks there, so a pairwise judge needs them. options: of
    `Scorer`, such as dtype="bfloat16", or of `load_reward`. images: floats [N, 3, H, W] in [0, 1] (videos
    [N, T, 3, H, W]), or uint8 [N, H, W, 3]. A judge is loaded once on a device, though the scripts make the function
    twice, for training and for evaluation.
    """
    scorers: dict[str, Scorer] = {}

    def factory(device: Any) -> ScoreImages:  # `multi_score` looks for a variable of this very name
        scorer = scorers.get(str(device)) or Scorer(judge, references, device=str(device), **options)
        scorers[str(device)] = scorer

        def score(
            images: Any, prompts: Sequence[str], metadata: Any = None, ref_images: Sequence[Any] | None = None
        ) -> tuple[list[float], dict[str, Any]]:
            """ref_images: what the images were edited from, where the script hands it on."""
            return scorer(images, prompts, sources=ref_images), {}

        return score

    return factory
