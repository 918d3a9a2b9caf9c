"""VideoGen-RewardBench (arXiv 2501.13918), and training files of its form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewarddance.data.fields import Fault, optional_rate, text
from rewarddance.data.sources.drafts import Draft, Source, by_record, medium, vote

_SHARES = {"a": 0.0, "b": 1.0, "same": 0.5}


def by_criterion(record: Mapping[str, Any]) -> Iterator[Draft | Fault]:
    """`path_A, path_B, prompt, VQ, MQ, TA, Overall, fps_A, fps_B`: one row a criterion that was voted on.

    VQ: visual quality. MQ: motion quality. TA: text alignment.
    """
    prompt, media = text(record, "prompt"), (medium(record, "path_A"), medium(record, "path_B"))
    fps = (optional_rate(record, "fps_A"), optional_rate(record, "fps_B"))
    criteria = [name for name in ("VQ", "MQ", "TA", "Overall") if record.get(name) not in (None, "")]
    if not criteria:
        raise Fault("Overall", "is missing (VQ, MQ, TA too)")
    for name in criteria:
        try:
            yield Draft(prompt, media, vote(name, record[name], _SHARES), criterion=name, fps=fps)
        except Fault as fault:  # of this criterion alone
            yield fault


VIDEOGEN = Source(
    "videogen-rewardbench", "KwaiVGI/VideoGen-RewardBench: videogen-rewardbench.csv", by_record(by_criterion)
)
