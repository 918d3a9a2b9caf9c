"""The figures of the quickstart: samples, the oracle's scores of them, and the tables, whatever the task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rewarddance.data.media import write_picture
from rewarddance.evaluation.gsb import gsb
from rewarddance.evaluation.hacking import diversity
from rewarddance.evaluation.statistics import by_category, interval
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.sampling import sample
from rewarddance.protocols import RewardModel
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.tracking import progress_bar
from rewarddance.shapeworld.tasks import PICTURES, OracleScore, WorldTask
from rewarddance.types import Prompt, Question

Scores = Sequence[Sequence[OracleScore]]
"""The oracle's verdicts [P][N] on N pictures of each of P prompts."""


def noise_seeds(seed: int, n_prompts: int, n: int, stream: int) -> list[list[int]]:
    """Noise seeds [P][N]: sample k of prompt i begins from the same noise in every arm of a comparison."""
    return [np.random.SeedSequence([seed, stream, i]).generate_state(n).tolist() for i in range(n_prompts)]


def sampled(
    generator: PipelineGenerator,
    prompts: Sequence[Prompt],
    n: int,
    seed: int,
    *,
    stream: int,
    title: str | None = None,
    task: WorldTask = PICTURES,
) -> tuple[Tensor, list[list[OracleScore]]]:
    """`n` pictures a prompt [P, N, T, C, H, W] and the oracle's scores of them [P][N]; with a title, under a bar."""
    seeds = noise_seeds(seed, len(prompts), n, stream)
    repeated = [prompt for prompt in prompts for _ in range(n)]
    flat = [s for row in seeds for s in row]
    if title is None:
        pictures = sample(generator, repeated, flat, batch_size=96)
    else:
        with progress_bar(title, len(repeated)) as bar:
            pictures = sample(generator, repeated, flat, batch_size=96, tick=bar.advance)
    groups = pictures.unflatten(0, (len(prompts), n))
    return groups, scored(groups, prompts, task)


def scored(groups: Tensor, prompts: Sequence[Prompt], task: WorldTask = PICTURES) -> list[list[OracleScore]]:
    """The oracle on pictures [P, N, T, C, H, W]."""
    return [list(task.score(group, prompt)) for group, prompt in zip(groups, prompts, strict=True)]


def means_of(scores: Scores, name: str = "alignment") -> list[float]:
    """Each prompt's mean of one of the oracle's scores."""
    return [float(np.mean([getattr(score, name) for score in row])) for row in scores]


def probe_figures(pictures: Tensor, scores: Scores, parts: Sequence[str] = ()) -> dict[str, float]:
    """What a probe logs of its samples [P, N, T, C, H, W]: the oracle's alignment with its interval, the parts that it
    is made of, and diversity."""
    oracle = interval(means_of(scores), share=True)
    figures = {"oracle": oracle.mean, "oracle_low": oracle.low, "oracle_high": oracle.high}
    figures |= {part: float(np.mean(means_of(scores, part))) for part in parts}
    return figures | {"diversity": float(diversity(pictures).mean())}


Arms = dict[str, np.ndarray]
"""A figure of each arm, one value a prompt."""


def arms_and_gains(scores: dict[str, Scores], count: int, name: str) -> tuple[Arms, Arms]:
    """One of the oracle's scores of the arms sft, best_of_n and the aligned ones, and what each gained over sft.

    The gain of an aligned arm is paired with the base's first `count` samples of a prompt, which began from the same
    noises.
    """
    arms = {arm: np.array(means_of(rows, name)) for arm, rows in scores.items()}
    paired = np.array(means_of([row[:count] for row in scores["sft"]], name))
    before = {arm: arms["sft"] if arm == "best_of_n" else paired for arm in arms}
    return arms, {arm: values - before[arm] for arm, values in arms.items() if arm != "sft"}


def tables(
    scores: dict[str, Scores], prompts: Sequence[Prompt], count: int, parts: Sequence[str] = ()
) -> dict[str, Any]:
    """Alignment, quality and correctness of the arms sft, best_of_n and the aligned ones, and what each gained.

    Alignment also by category, and gains by the prompts' layout where they have one. parts: the scores that alignment
    is made of, each with its gains, and by category.
    """
    categories = [prompt.metadata["category"] for prompt in prompts]
    layouts = [prompt.metadata.get("layout", "") for prompt in prompts]
    oracle, gains = arms_and_gains(scores, count, "alignment")
    result: dict[str, Any] = {
        "oracle": _intervals(oracle, gains),
        "quality": _intervals(arms_and_gains(scores, count, "quality")[0]),
        "correct": _intervals(arms_and_gains(scores, count, "correct")[0]),
        "by_category": _by(categories, oracle, share=True),
    }
    if all(layouts):
        result["by_layout"] = _by(layouts, gains)
    if parts:
        figures = {part: arms_and_gains(scores, count, part) for part in parts}
        result["parts"] = {part: _intervals(*arms) for part, arms in figures.items()}
        result["parts_by_category"] = {part: _by(categories, arms, share=True) for part, (arms, _) in figures.items()}
    return result


def _intervals(arms: Arms, gains: Arms | None = None) -> dict[str, Any]:
    """Each arm's mean with its interval, and each gain's."""
    shares = {name: interval(values, share=True).as_json() for name, values in arms.items()}
    return shares | {f"gain_{arm}": interval(values).as_json() for arm, values in (gains or {}).items()}


def _by(kinds: Sequence[str], arms: Arms, share: bool = False) -> dict[str, Any]:
    """The arms' means with their intervals by the kind of their prompts."""
    by = {arm: by_category(values, kinds, share=share) for arm, values in arms.items()}
    return {kind: {arm: by[arm][kind].as_json() for arm in by} for kind in dict.fromkeys(kinds)}


def good_same_bad(scores: Scores, base: Scores, prompts: Sequence[Prompt], same: float) -> dict[str, Any]:
    """GSB of samples against the base's of the same noises by the oracle's overall score, of all and by category.

    same: a difference from which on one is better. Each figure has its interval over prompts.
    """
    ours, theirs = (np.array([[score.overall for score in row] for row in rows]) for rows in (scores, base))
    difference = ours - theirs
    share = np.where(np.abs(difference) < same, 0.5, (difference > 0).astype(float))
    units = np.repeat(np.arange(len(prompts)), share.shape[1]).reshape(share.shape)
    kinds = np.array([prompt.metadata["category"] for prompt in prompts])

    def of(rows: np.ndarray) -> dict[str, Any]:
        counts = gsb(share[rows].ravel(), [str(unit) for unit in units[rows].ravel()])
        return counts._asdict() | {"gsb": counts.gsb.as_json()}

    return of(kinds == kinds) | {"by_category": {kind: of(kinds == kind) for kind in dict.fromkeys(kinds.tolist())}}


def proxy(
    judge: RewardModel, prompts: Sequence[Prompt], arms: dict[str, Tensor], base: Tensor
) -> dict[str, np.ndarray]:
    """Mean P(yes) a prompt [P] of each arm's pictures [P, N, ...] against the base's picture of the next noise."""
    means = {}
    for arm, pictures in arms.items():
        n = pictures.shape[1]
        questions = [
            Question(prompt, pictures[i, k], base[i, (k + 1) % base.shape[1]])
            for i, prompt in enumerate(prompts)
            for k in range(n)
        ]
        means[arm] = judge(questions).probability.cpu().numpy().reshape(len(prompts), n).mean(1)
    return means


def gallery(
    folder: Path,
    prompts: Sequence[Prompt],
    seeds: Sequence[Sequence[int]],
    pictures: dict[str, Tensor],
    scores: dict[str, list[OracleScore]],
) -> None:
    """The first prompts' pictures [P, T, C, H, W] of each arm as files, videos as animated ones, and samples.json.

    With each prompt goes the picture that it comes with, if any.
    """
    rows = []
    for i, prompt in enumerate(prompts):
        files = {arm: f"samples/{i:03d}_{arm}.png" for arm in pictures}
        for arm, name in files.items():
            write_picture(pictures[arm][i], folder / name)
        oracle = {arm: scores[arm][i].alignment for arm in pictures}
        row = {"prompt": prompt.text, "category": prompt.metadata["category"], "seed": seeds[i][0]}
        if prompt.image is not None:
            row["image"] = f"samples/{i:03d}_image.png"
            write_picture(prompt.image, folder / row["image"])
        rows.append(row | {"pictures": files, "oracle": oracle})
    write_text_atomically(folder / "samples.json", json.dumps(rows, indent=2))
