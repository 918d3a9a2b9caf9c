"""A search over a prompt file of any length, into a folder: pictures, and one row a prompt. A killed run goes on.

A batch of prompts is written down when it is done: its pictures first, then its rows, then how far the run is. So what
is in `results.jsonl` is never searched for again, and of a batch that was cut off nothing counts.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewarddance.data.faults import FaultyRow, list_faulty, skipped
from rewarddance.data.journal import RowFile
from rewarddance.data.media import write_picture
from rewarddance.data.prompts import read_prompts
from rewarddance.errors import InputError, RewardDanceError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.preflight import FAULTY, checked_prompts
from rewarddance.jobs.recipes import SearchRun
from rewarddance.protocols import RewardModel
from rewarddance.reward.identity import reward_digest
from rewarddance.reward.led import Load, led
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.checkpoint import checkpoint_digest, writable_folder
from rewarddance.runtime.config import check_kind, keep_recipe
from rewarddance.runtime.devices import digest_of, find_device
from rewarddance.runtime.lock import locked
from rewarddance.runtime.process_group import init_process_group
from rewarddance.runtime.tracking import progress_bar
from rewarddance.search.budget import Spent
from rewarddance.search.judging import Candidate
from rewarddance.search.run import Search, SearchResult, raise_common, read_method
from rewarddance.types import Prompt

CONFIG, RESULTS = "config.yaml", "results.jsonl"


class RecordedSearch(SearchRun):
    """A SearchRun with what its files held when it began, so that it is not gone on with when they have changed."""

    prompts_digest: str
    generator_digest: str
    judge_digest: str
    held_out_digest: str | None = None


_MAY_CHANGE = ("batch_size", "judge_batch", "prompts")
"""Keys with which a run may go on otherwise than it began: of memory, and a path whose content is compared."""


def run_search(run: SearchRun) -> dict[str, Any] | None:
    """Search for every prompt; returns where the results are, how many prompts failed, and what one took on average.

    With `judge_sharded` all processes call this alike; the first one has the generator, and all others return None.

    An interrupted run goes on where it stopped. A prompt that fails goes with its reason to
    `results.jsonl.failed.jsonl`. Raises InputError for what is wrong with all: files, options, a folder that holds
    another run.
    """
    if not run.judge_sharded:
        return _searched(run, load_reward)
    with init_process_group():
        return led(functools.partial(_searched, run))


def _searched(run: SearchRun, load: Load) -> dict[str, Any]:
    """`run_search` in one process, or in the first of several. load: what loads the judges."""
    faults: list[FaultyRow] = []
    folder, prompts = run.output, read_prompts(run.prompts, faults)
    options = read_method(run.method, run.options)
    device = find_device(run.device)
    devices = {"device": device, "judge_device": find_device(run.judge_device or device)}
    run = run.model_copy(update={**devices, "options": options.model_dump(mode="json")})
    recorded = _recorded(run, prompts)
    writable_folder(folder)
    with locked(folder):
        begun = folder.joinpath(RESULTS + ".progress.json").exists()
        if begun:
            keep_recipe(recorded, folder / CONFIG, free=_MAY_CHANGE)
        elif (folder / RESULTS).exists() and not (folder / CONFIG).exists():
            raise InputError(f"{folder} holds results that are not of a search.", "Choose another output.")
        else:  # nothing was written under it yet, so it binds nobody
            check_kind(RecordedSearch, folder / CONFIG)
        results = RowFile(folder / RESULTS)
        check_pictures(folder, results)
        if not results.progress.finished:
            generator, judge, held_out = _loaded(run, load)
            prompts, faults = checked_prompts(
                generator, [judge, held_out], prompts, faults, source=run.prompts, skip=run.skip_faulty
            )
            list_faulty(faults, folder / FAULTY)
            at_once = min(run.prompts_at_once, len(prompts))
            work = Search(
                generator,
                judge,
                options,
                run.budget,
                judging=run.judging,
                seed=run.seed,
                runners_up=run.runners_up,
                batch_size=run.batch_size,
                prompts_at_once=at_once,
                held_out=held_out,
            )
            keep_recipe(recorded, folder / CONFIG, binding=begun, free=_MAY_CHANGE)
            search_prompts(work, prompts, at_once, folder, results)
            results.finish()
    return _summary(folder, results)


def search_prompts(work: Search, prompts: Sequence[Prompt], at_once: int, folder: Path, results: RowFile) -> None:
    """Search for the prompts that are left, batch by batch; batches are the same ones however often it is begun."""
    done = results.progress.read
    with progress_bar("searching", len(prompts), done) as bar:
        for start in range(done, len(prompts), at_once):
            places = range(start, min(start + at_once, len(prompts)))
            answers = work.attempt([prompts[place] for place in places], places)
            if start == 0:
                raise_common(answers)
            rows, failures = [], []
            for place, answer in zip(places, answers, strict=True):
                if isinstance(answer, RewardDanceError):
                    item = {"prompt_number": place + 1, "where": prompts[place].where}
                    failures.append(item | {"reason": answer.what, "remedy": answer.remedy})
                else:
                    rows.append(_row(prompts[place], place, answer, folder))
            results.commit(rows, failures, len(places))
            bar.advance(len(places))


def check_pictures(folder: Path, results: RowFile) -> None:
    """Raises InputError naming the first picture that a row names and that is gone: it would never be drawn again."""
    for row in _rows(folder, results):
        for picture in (row["winner"], *row["runners_up"], row["first"]):
            if not (folder / picture["picture"]).is_file():
                raise InputError(
                    f"{folder / picture['picture']}, found for prompt {row['number']}, is gone.",
                    "Restore it, or choose another output.",
                )


def _rows(folder: Path, results: RowFile) -> Iterator[dict[str, Any]]:
    """The rows that are written; what a kill left behind them is not counted."""
    if results.progress.written:
        with (folder / RESULTS).open(encoding="utf-8") as file:
            yield from map(json.loads, itertools.islice(file, results.progress.written))


def _row(prompt: Prompt, place: int, result: SearchResult, folder: Path) -> dict[str, Any]:
    """Write a prompt's pictures; returns its row."""
    place_in_folder = Path("pictures") / f"{place + 1:06d}"

    def written(one: Candidate, name: str) -> dict[str, Any]:
        write_picture(one.pixels, folder / place_in_folder / name)
        return {"picture": (place_in_folder / name).as_posix(), "score": one.score, **one.origin}

    runners_up = [written(one, f"runner_up_{k}.png") for k, one in enumerate(result.pictures[1:], start=1)]
    return {
        "number": place + 1,
        "where": prompt.where,
        "prompt": prompt.text,
        **({"negative_prompt": prompt.negative} if prompt.negative else {}),
        **({"metadata": prompt.metadata} if prompt.metadata else {}),
        **({"image": str(prompt.image_path)} if prompt.image_path else {}),
        "winner": written(result.winner, "winner.png"),
        "runners_up": runners_up,
        "first": written(result.first, "first.png"),
        "judging": result.judging,
        "rounds": result.rounds,
        **({} if result.held_out is None else {"held_out": result.held_out}),
        "spent": _rounded(result.spent._asdict()),
    }


def _rounded(spent: Mapping[str, int | float]) -> dict[str, int | float]:
    return {name: round(value, 4) for name, value in spent.items()}


def _summary(folder: Path, results: RowFile) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [
        {key: row.get(key) for key in ("spent", "rounds", "held_out")} for row in _rows(folder, results)
    ]
    spent = [row["spent"] for row in rows]
    done = results.progress
    summary: dict[str, Any] = {"results": str(folder / RESULTS), "prompts": done.read, "failed": done.failed}
    summary |= skipped(folder / FAULTY)
    if done.failed:
        summary["failures"] = str(results.failures)
    if plain := sum(row["rounds"] == 0 for row in rows):  # the budget was too small for the method
        summary["plain_samples_only"] = plain
    if rows and rows[0]["held_out"] is not None:
        summary["held_out_prefers"] = round(float(np.mean([preference(row["held_out"]) for row in rows])), 4)
    each = {name: float(np.mean([row[name] for row in spent])) for name in Spent._fields} if spent else {}
    return summary | {"spent_a_prompt": _rounded(each)}


def preference(margin: float) -> float:
    """1 where a held-out judge prefers the winner to the first sample, 0 where the first sample, else a half."""
    return 0.5 * (1 + float(np.sign(margin)))


def _loaded(run: SearchRun, load: Load) -> tuple[PipelineGenerator, RewardModel, RewardModel | None]:
    """The generator, the judge, and the held-out one if there is any."""
    device, dtype = run.device or "cpu", run.dtype
    drawing = {"device": device, "dtype": dtype, **run.generator_options}
    generator = load_generator(run.generator, run.num_inference_steps, run.guidance_scale, **drawing)
    batch = {} if run.judge_batch is None else {"batch_size": run.judge_batch}
    device = run.judge_device or device
    judge = load(run.judge, device, dtype, **run.changes, **batch)
    return generator, judge, None if run.held_out is None else load(run.held_out, device, dtype, **batch)


def _recorded(run: SearchRun, prompts: Sequence[Prompt]) -> RecordedSearch:
    pictures = {prompt.image_path for prompt in prompts if prompt.image_path is not None}
    content = run.prompts.read_bytes() + (digest_of(pictures).encode() if pictures else b"")
    seen = {
        "prompts": run.prompts.resolve(),
        "prompts_digest": hashlib.blake2b(content, digest_size=16).hexdigest(),
        "generator_digest": checkpoint_digest(run.generator),
        "judge_digest": reward_digest(run.judge, **run.changes),
        "held_out_digest": None if run.held_out is None else reward_digest(run.held_out),
    }
    return RecordedSearch.model_validate(run.model_dump() | seen)
