"""Samples during training: at each probe the averaged generator draws the same prompts from the same noises."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rewarddance.alignment.failed_groups import drawn_apart
from rewarddance.alignment.train import Figures
from rewarddance.data.frame_sampling import evenly_spaced
from rewarddance.data.picture_grid import grid, write_grid
from rewarddance.generators.sampling import sample
from rewarddance.protocols import Generator
from rewarddance.report.run_folder import GRIDS, grid_name
from rewarddance.runtime.process_group import is_main_process, world_size
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import PixelBatch, Prompt, as_prompts

NOISES = 2
"""Pictures a prompt: one shows what became of it, the second whether they become one."""


def with_grids(
    probe: Callable[[], Figures],
    generator: Generator,
    prompts: Sequence[str | Prompt],
    metrics: Metrics,
    *,
    count: int,
    phase: str,
    seed: int,
    batch_size: int,
    steps_before: int = 0,
) -> Callable[[], Figures]:
    """The probe, which also writes a grid of samples, a prompt a row, to samples/step-N.png beside metrics.jsonl.

    count: how many prompts, spread over all of them; 0 for no grids. Each is drawn from the same noises. What training
    draws at random is not touched. The trackers of `metrics` get the grid, too. steps_before: of an algorithm that this
    one goes on from, which the grids' steps are counted on from.
    """
    prompts = as_prompts(prompts)
    chosen = [prompts[i] for i in evenly_spaced(len(prompts), count)] if count else []
    repeated = [prompt for prompt in chosen for _ in range(NOISES)]
    seeds = np.random.SeedSequence([seed, 6]).generate_state(NOISES).tolist() * len(chosen)

    def draw(prompts: list[Prompt]) -> PixelBatch:
        return sample(generator, prompts, seeds, batch_size)

    def probe_with_grid() -> Figures:
        if chosen:
            pictures, _, unread = drawn_apart(generator, repeated, draw, spare=prompts, check_first=world_size() > 1)
            if is_main_process() and len(unread) < len(repeated):
                left = [k for k in range(len(chosen)) if k * NOISES not in unread]
                groups = [list(group) for group in pictures.split(NOISES)]
                pixels = grid([chosen[k].text for k in left], [groups[k] for k in left])
                write_grid(pixels, metrics.path.parent / GRIDS / grid_name(steps_before + metrics.step))
                metrics.show(phase, "samples", pixels)
        return probe()

    return probe_with_grid
