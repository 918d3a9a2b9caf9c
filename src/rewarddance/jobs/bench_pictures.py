"""The pictures of a benchmark's prompts by a generator, in GenEval's layout, made once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rewarddance.data.faults import FaultyRow, settle
from rewarddance.data.media import write_picture
from rewarddance.data.object_prompts import BenchPrompt, GenEvalRow
from rewarddance.data.prompt_pictures import METADATA, Shot, shot_path
from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import sample
from rewarddance.jobs.preflight import FAULTY
from rewarddance.jobs.recipes import BenchRun
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.tracking import progress_bar
from rewarddance.search.batch import noise_seed
from rewarddance.types import Prompt

PICTURES = "pictures"


def make_pictures(
    run: BenchRun,
    prompts: Sequence[BenchPrompt],
    faults: Sequence[FaultyRow],
    folder: Path,
    generator: PipelineGenerator | None = None,
) -> list[BenchPrompt]:
    """Make the pictures that are not there yet; returns the prompts that the generator draws.

    The n-th noise of a prompt is that of the prompt's n-th plain sample in a search with the same seed. A batch of
    which one picture is missing is made again whole, so that its pictures are the same to the bit.
    generator: in the place of the one that the run names.
    Raises InputError for a generator of videos, and FaultyRows naming all prompts that it does not draw, unless they
    shall be skipped.
    """
    if generator is None:
        drawing = {"device": run.device or "cpu", "dtype": run.dtype, **run.generator_options}
        generator = load_generator(run.generator or "", run.num_inference_steps, run.guidance_scale, **drawing)
    if generator.num_frames > 1:
        raise InputError(f"the generator {run.generator!r} makes videos.", "Give one of pictures.")
    found, left = list(faults), []
    for prompt in prompts:
        try:
            generator.check_prompts([Prompt(prompt.text)])
            left.append(prompt)
        except InputError as error:
            found.append(FaultyRow(prompt.where, error.what, error.remedy))
    settle(found, run.skip_faulty, folder / FAULTY, len(left))
    for prompt in left:
        path = shot_path(folder / PICTURES, prompt, 0).parent.parent / METADATA
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, json.dumps(_metadata(prompt)) + "\n")
    shots = shots_of(run, left, folder)
    with progress_bar("making pictures", len(shots)) as bar:
        for start in range(0, len(shots), run.batch_size):
            batch = shots[start : start + run.batch_size]
            if not all(shot.path.is_file() for shot in batch):
                seeds = [noise_seed(run.seed, shot.prompt.number, shot.sample) for shot in batch]
                pictures = sample(generator, [shot.prompt.text for shot in batch], seeds, len(batch))
                for shot, pixels in zip(batch, pictures, strict=True):
                    scratch = shot.path.with_name(f".{shot.path.name}")
                    write_picture(pixels, scratch)
                    os.replace(scratch, shot.path)
            bar.advance(len(batch))
    return left


def shots_of(run: BenchRun, prompts: Sequence[BenchPrompt], folder: Path) -> list[Shot]:
    """The pictures of a run's own folder."""
    return [
        Shot(prompt, number, shot_path(folder / PICTURES, prompt, number))
        for prompt in prompts
        for number in range(run.samples or 1)
    ]


def _metadata(prompt: BenchPrompt) -> dict[str, object]:
    """The line of a prompt that GenEval's own evaluation reads; of other benchmarks the prompt alone."""
    if isinstance(prompt.asked, GenEvalRow):
        return prompt.asked.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"prompt": prompt.text}
