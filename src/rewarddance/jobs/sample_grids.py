"""Pictures along the way: at each probe the averaged generator draws the same prompts from the same noises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rewarddance.alignment.train import Figures
from rewarddance.data.frame_sampling import evenly_spaced
from rewarddance.data.picture_grid import grid, write_grid
from rewarddance.generators.sampling import sample
from rewarddance.protocols import Generator
from rewarddance.report.run_folder import GRIDS, grid_name
from rewarddance.runtime.process_group import is_main_process
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Prompt, as_prompts

NOISES = 2
"""Pictures a prompt: one shows what became of it, the second whether they become one."""


def with_grids(
    probe: Callable[[], Figures],
    generator: Generator,
    prompts: Sequence[str | Prompt],
    shown: int,
    folder: Path,
    metrics: Metrics,
    phase: str,
    seed: int,
    batch_size: int,
) -> Callable[[], Figures]:
    """The probe, which also writes a grid of `shown` of the prompts, a prompt a row, to `folder`/samples/step-N.png.

    The prompts are spread over all of them; each is drawn from the same noises. What training draws at random is not
    touched. The trackers of `metrics` get the grid, too.
    """
    places = evenly_spaced(len(prompts), shown) if shown else []
    rows = [place for place in places for _ in range(NOISES)]
    seeds = np.random.SeedSequence([seed, 6]).generate_state(NOISES).tolist() * len(places)
    prompts = as_prompts(prompts)

    def drawn() -> Figures:
        if rows:
            pictures = sample(generator, [prompts[row] for row in rows], seeds, batch_size)
            if is_main_process():
                groups = [list(group) for group in pictures.split(NOISES)]
                whole = grid([prompts[place].text for place in places], groups)
                write_grid(whole, folder / GRIDS / grid_name(metrics.step))
                metrics.show(phase, "samples", whole)
        return probe()

    return drawn
