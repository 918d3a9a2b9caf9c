"""Good, same, bad: how often one generator's result is better than another's (the paper's figure for video).

From any pairwise verdicts: a judge's P("yes"), an oracle's order, or people's shares of votes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from rewarddance.data.tables import open_table
from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval, interval, numbered

SHARES = ("probability", "share")
"""Keys of a row that say how sure it is that the candidate is better: `rewarddance score`'s, and a share of votes."""


_ROUNDING = 1e-9
_NO_PAIR = 'Score with --reference, or write shares of votes, as {"prompt", "share"}.'


class Gsb(NamedTuple):
    """Counts of pairs whose candidate is better, equal and worse; gsb: their figure in [-1, 1], over prompts."""

    good: int
    same: int
    bad: int
    gsb: Interval


def gsb(share: Float[np.ndarray, " n"], units: Sequence[str] | None = None, same: float = 0.0) -> Gsb:
    """(good - bad) / (good + same + bad) (the paper's figure for video), of n pairs, with its 95 % interval.

    share [n], in [0, 1]: P("yes") or the share of votes for the candidate over its reference. same: within this
    distance of 0.5 a pair counts as equal. units [n]: the pairs' prompts, which are resampled whole. Raises ValueError
    for no pairs.
    """
    difference = np.asarray(share, dtype=np.float64) - 0.5
    signs = np.where(np.abs(difference) <= same + _ROUNDING, 0.0, np.sign(difference))
    good, equal, bad = (int((signs == sign).sum()) for sign in (1, 0, -1))
    share_good = interval(
        (1 + signs) / 2, units=None if units is None else numbered(units), share=True
    )  # a tie is half
    ends = {name: 2 * getattr(share_good, name) - 1 for name in ("mean", "low", "high")}
    return Gsb(good, equal, bad, share_good._replace(**ends))


def gsb_of_file(path: Path, same: float = 0.0, by: str | None = None) -> dict[str, Gsb]:
    """The figure of all rows of a .jsonl or .parquet file under "all", and of each value that the key `by` has.

    A row is one of `rewarddance score`, or {"prompt", "share"} with the share of votes for the candidate. Raises
    InputError naming the line that has neither, or lacks `by`, or whose judge was asked in one order only.
    """
    shares, prompts, groups = [], [], []
    for number, content in open_table(path).rows():
        try:
            if isinstance(content, InputError):
                raise content
            shares.append(_share(content))
            prompts.append(str(content.get("prompt", number)))
            if by is not None:
                if content.get(by) is None:
                    raise InputError(f"the row has no {by!r}.", "Give all rows one, or leave --by out.")
                if str(content[by]) == "all":
                    raise InputError(f"its {by!r} is 'all', which names the figure of all rows.", "Rename the group.")
                groups.append(str(content[by]))
        except InputError as error:
            raise InputError(f"line {number} of {path}: {error.what}", error.remedy) from None
    all_shares, all_prompts, all_groups = np.array(shares), np.array(prompts), np.array(groups)
    members = {group: all_groups == group for group in sorted(set(groups))}
    return {"all": gsb(all_shares, prompts, same)} | {
        group: gsb(all_shares[rows], all_prompts[rows].tolist(), same) for group, rows in members.items()
    }


def _share(content: dict[str, Any]) -> float:
    keys = [key for key in SHARES if content.get(key) is not None]
    if len(keys) != 1:
        has = "neither a probability nor a share" if not keys else "both a probability and a share"
        raise InputError(f"the row has {has}.", 'Write it with `rewarddance score`, or as {"prompt", "share"}.')
    if keys[0] == "probability" and content.get("reference") is None:
        raise InputError("the row has a probability and no reference, so that nothing was compared.", _NO_PAIR)
    if keys[0] == "probability" and content.get("orders") == "forward":
        raise InputError(
            "a judge of pairs was asked in one order, so that its leaning to a place is counted too.",
            "Score with --orders both.",
        )
    value = content[keys[0]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 or math.isnan(value):
        raise InputError(f"the {keys[0]} is {str(value)[:60]}.", "It is one number from 0 to 1: one pair a row.")
    return float(value)
