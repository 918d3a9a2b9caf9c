"""A judge in miles_diffusion: a function for `--custom-rm-path`.

In a file of your own, say `my_reward.py`::

    from rewarddance.integrations.miles_diffusion import judge_rm

    custom_rm = judge_rm("http://localhost:8000", references="references")

and then `--custom-rm-path my_reward.custom_rm`; with `--group-rm`, `judge_rm(..., group=True)` gives win rates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rewarddance.integrations.scorer import AnyJudge, AnyReferences, Scorer, channels_first


def judge_rm(
    judge: AnyJudge, references: AnyReferences = None, *, group: bool = False, **options: Any
) -> Callable[..., Awaitable[list[float]]]:
    """The function that miles calls: `await custom_rm(args, samples) -> scores`, a number a sample.

    references: see `References`. group: the samples of a call are one group, as with `--group-rm`, and their scores the
    win rates, in both orders. options: of `Scorer` and `load_reward`. A sample's `generated_output` [3, T, H, W] holds
    0..1 or 0..255.
    """
    scorer = Scorer(judge, references, group=group, **options)

    async def custom_rm(args: Any, samples: Sequence[Any], **others: Any) -> list[float]:
        videos = [channels_first(s.generated_output, f"sample {number}") for number, s in enumerate(samples)]
        prompts = [sample.prompt for sample in samples]
        groups = [0] * len(prompts) if group else None
        return await asyncio.to_thread(scorer, videos, prompts, groups=groups)

    return custom_rm
