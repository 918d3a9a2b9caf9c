"""A judge in verl-omni: `compute_score`, which its reward workers call with one sample at a time::

    reward.custom_reward_function.path=pkg://rewarddance.integrations.verl_omni
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.judge=http://localhost:8000

Among several rewards (`reward.reward_functions`) set `required=True`: one that is not and fails counts as 0.0 there.
"""

from __future__ import annotations

import threading
from typing import Any

from rewarddance.data.media import as_pixels
from rewarddance.errors import InputError
from rewarddance.integrations.scorer import Scorer, channels_first

_scorers: dict[str, Scorer] = {}
_loading = threading.Lock()


def compute_score(
    data_source: str,
    solution_image: Any,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    judge: str,
    references: str | None = None,
    options: dict[str, Any] | None = None,
    **others: Any,
) -> dict[str, float]:
    """{"score": P("yes")} of one picture (uint8 [3, H, W]) or video ([T, 3, H, W], or [3, T, H, W]).

    ground_truth: the prompt, as verl-omni's own preference rewards take it. judge: a name, a folder or an address.
    references: as `References` takes them; a pairwise judge needs them. options: of `Scorer` and `load_reward`. others:
    what verl-omni adds, not read. A judge is loaded once in each reward worker; a server gathers what all of them ask.
    """
    if not isinstance(ground_truth, str) or not ground_truth.strip():
        raise InputError(
            f"a sample of {data_source!r} has no prompt.", "Put it into the data's reward_model.ground_truth."
        )
    shape = list(getattr(solution_image, "shape", ()))
    if len(shape) == 4 and shape[:2] == [3, 3]:
        raise InputError(
            f"a video of {data_source!r} has the shape {shape}, of three frames or three channels first.",
            "Give it another number of frames, which tells the two apart.",
        )
    named = dict(options or {})
    key = repr((judge, references, sorted(named.items())))
    with _loading:
        if key not in _scorers:
            _scorers[key] = Scorer(judge, references, **named)
    late = len(shape) == 4 and shape[0] == 3
    pixels = channels_first(solution_image) if late else as_pixels(solution_image)
    return {"score": _scorers[key]([pixels], [ground_truth])[0]}
