"""What moves a judge besides what people voted on: simple image statistics, and how long the prompt is.

Two ways to see it. A probe changes the candidate by a small known amount and asks again: how far does the margin go?
And over the test pairs as they are: does the margin follow a statistic where the votes do not?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rewarddance.data.image_stats import blurred, image_statistics, luma
from rewarddance.evaluation.statistics import Interval, interval_of_rows, interval_of_sums
from rewarddance.types import Pixels

PROBE_AMOUNTS = {"brightness": 0.05, "saturation": 0.2, "sharpness": 0.5, "contrast": 0.1}
"""By how much a probe changes each: brightness in units of the pixel scale 0 to 1, the others as a share of what is
there (of the colour, of the fine detail, of the distance from the mean)."""
_CHANGES: dict[str, Callable[[Pixels, float], Pixels]] = {
    "brightness": lambda pixels, amount: pixels + amount,
    "saturation": lambda pixels, amount: pixels + amount * (pixels - luma(pixels)),
    "sharpness": lambda pixels, amount: pixels + amount * (pixels - blurred(pixels)),
    "contrast": lambda pixels, amount: pixels + amount * (pixels - pixels.mean((1, 2, 3), keepdim=True)),
}


def image_stats(pixels: Pixels) -> list[float]:
    """The statistics named in PROBE_AMOUNTS of a picture, or their means over a video's frames.

    They are rounded: what is smaller is error of the arithmetic, and must not pass for a difference.
    """
    values = image_statistics(pixels[None])
    return [round(float(values[name]), 6) for name in PROBE_AMOUNTS]


def perturbed(pixels: Pixels, name: str, amount: float) -> Pixels:
    """The picture with more (or, for a negative amount, less) of one statistic, kept within [0, 1]."""
    return _CHANGES[name](pixels, amount).clamp(0, 1)


def correlation_beyond(
    margin: np.ndarray, difference: np.ndarray, share: np.ndarray, units: np.ndarray
) -> Interval | None:
    """The correlation over n pairs of margin and difference in a statistic, the votes' part of both taken out.

    All three turn their sign when a pair's pictures change over, so all are regressed through 0, and it does not matter
    which picture stands first. units [n]: prompts. None where one of them does not vary beyond the votes.
    """
    x, y, v = (values / (np.sqrt(np.mean(values**2)) or 1.0) for values in (margin, difference, share - 0.5))
    parts = np.stack([x * x, y * y, v * v, x * y, x * v, y * v], 1)

    def partial(sums: np.ndarray) -> np.ndarray:
        xx, yy, vv, xy, xv, yv = sums.T
        vv = np.where(vv > 0, vv, np.inf)  # no votes: nothing is taken out
        residual = (xx - xv**2 / vv) * (yy - yv**2 / vv)
        return (xy - xv * yv / vv) / np.sqrt(np.where(residual > 1e-12 * xx * yy, residual, np.nan))

    if not np.isfinite(partial(parts.sum(0, keepdims=True))[0]):
        return None
    return interval_of_sums(parts, lambda sums: np.nan_to_num(partial(sums)).clip(-1, 1), units).cut(-1.0, 1.0)


def rank_correlation(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Interval | None:
    """Spearman's correlation of n units' two figures; None where one of them does not vary.

    Units are ranked anew in each resample: with the ranks of all kept, the interval is too narrow.
    """
    from scipy.stats import rankdata  # takes more than a second to load

    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not (np.ptp(x) and np.ptp(y)):
        return None

    def spearman(rows: np.ndarray) -> np.ndarray:
        a, b = (rankdata(values[rows], axis=-1) - (rows.shape[-1] + 1) / 2 for values in (x, y))
        product = (a * a).sum(-1) * (b * b).sum(-1)
        return np.nan_to_num((a * b).sum(-1) / np.sqrt(np.where(product > 0, product, np.nan)))

    return interval_of_rows(len(x), spearman).cut(-1.0, 1.0)
