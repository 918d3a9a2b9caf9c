"""The reference bank (paper, section 3): N candidates a prompt, an all-pairs tournament, the winners kept.

A prompt's RL samples are then judged against its best pictures of the starting model.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewarddance.alignment.failed_groups import FailedGroup, Faults, drawn_apart, each_apart
from rewarddance.data.media import read_video, write_picture
from rewarddance.errors import InputError, RewardError, shown
from rewarddance.generators.sampling import sample_with_latents
from rewarddance.protocols import Generator, RewardModel, judging
from rewarddance.reward.ranking import Ranking, tournament
from rewarddance.runtime.checkpoint import read_run_json, write_text_atomically
from rewarddance.runtime.config import MOST, Recipe, changed
from rewarddance.runtime.process_group import gather_objects, is_main_process, main_process_first, rank, world_size
from rewarddance.runtime.tracking import console, progress_bar
from rewarddance.runtime.weights import check_values
from rewarddance.types import PixelBatch, Pixels, Prompt, as_prompts


class ReferenceRecipe(Recipe):
    """How the bank is made.

    candidates: N a prompt (paper: 16).
    keep: how many of them become references (paper: 2).
    keep_from: the top of their ranking (paper), or the bottom, to see what a worse reference does.
    choice: which of a prompt's references a sample is judged against: any of them at random, or always the best.
    batch_size: pictures that are drawn and decoded together. Those of as many prompts as it has room for, of one at
        least, are judged together.
    """

    candidates: int = Field(default=16, ge=2, le=MOST)
    keep: int = Field(default=2, ge=1)
    keep_from: Literal["top", "bottom"] = "top"
    choice: Literal["random", "best"] = "random"
    batch_size: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _has_enough(self) -> ReferenceRecipe:
        if self.keep > self.candidates:
            raise ValueError(f"of {self.candidates} candidates, {self.keep} cannot be kept")
        if self.keep == 1 and changed(self, "choice"):
            raise ValueError("choice says nothing where one reference is kept (keep); leave it out")
        return self

    @property
    def prompts_at_once(self) -> int:
        return max(1, self.batch_size // self.candidates)

    def kept(self) -> slice:
        """The places of a ranking, best first, that become references."""
        return slice(0, self.keep) if self.keep_from == "top" else slice(self.candidates - self.keep, self.candidates)


@dataclass(frozen=True, eq=False)
class Reference:
    """One picture that samples of a prompt are judged against, and the latent it was decoded from."""

    references: References
    place: int

    @property
    def prompt(self) -> Prompt:
        return self.references.prompt

    @property
    def picture(self) -> Pixels:
        """Read when it is asked for."""
        return self.references.pictures[self.place]

    @property
    def latent(self) -> Tensor:
        return self.references.latents[self.place]


class PicturesOnDisk(Sequence[Pixels]):
    """Pictures that are read when they are asked for, and the very same tensor as long as somebody holds it.

    A bank of 1,000 prompts at 1024x1024 would take 25 GB of memory in each process. Each file is decoded once at the
    beginning: one that is broken is found before anything is trained. Raises InputError naming it.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self._held: WeakValueDictionary[int, Pixels] = WeakValueDictionary()
        self._reading = threading.Lock()
        for file in files:
            try:
                read_video(file, sys.maxsize)
            except InputError as error:
                line = f"Remove the line with {file.name} from {file.parent / 'references.jsonl'}: it is made again."
                raise InputError(f"a reference cannot be used: {error.what}", line) from error

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(self[i] for i in range(len(self))[place])
        place = range(len(self))[place]
        with self._reading:
            pixels = self._held.get(place)
            if pixels is None:
                pixels = read_video(self.files[place], sys.maxsize)
                self._held[place] = pixels = pixels.pin_memory() if torch.cuda.is_available() else pixels
            return pixels


class ReadAhead:
    """Pictures that a step needs later, read in a thread from now on: what the step does before does not wait for them.

    Pictures that are read from disk lie in memory that a GPU copies from while the host goes on.
    """

    def __init__(self, references: Sequence[Reference]) -> None:
        thread = ThreadPoolExecutor(1, "references")
        self._read = thread.submit(lambda: [reference.picture for reference in references])
        thread.shutdown(wait=False)

    def pictures(self) -> list[Pixels]:
        """One for each reference. Raises InputError naming a file that cannot be read."""
        return self._read.result()


@dataclass(frozen=True, eq=False)
class References:
    """One prompt's K references, best first.

    seeds: of the noises they were made from.
    wins: of each, out of the N - 1 possible.
    latents: what they were decoded from [K, ...].
    choice: see `ReferenceRecipe`.
    """

    prompt: Prompt
    pictures: Sequence[Pixels]
    seeds: tuple[int, ...]
    wins: tuple[float, ...]
    latents: Tensor
    choice: str = "random"

    def choose(self, rng: np.random.Generator, own_seed: int) -> int:
        """The place of one of them by `choice`, never a picture of the candidate's own noise."""
        free = [place for place, seed in enumerate(self.seeds) if seed != own_seed]
        if not free:
            raise InputError(
                f"every reference of {self.prompt.text!r} has the candidate's own noise.", "Keep more references."
            )
        return free[int(rng.integers(len(free)))] if self.choice == "random" else free[0]

    def at(self, place: int) -> Reference:
        return Reference(self, place)


@dataclass(eq=False)
class ReferenceBank:
    """The references of a run's prompts, in the prompts' order, as they were made at `step`.

    redraw: makes those of a later step; see `bank_refresher`.
    """

    references: Sequence[References]
    redraw: Callable[[int, bool], Sequence[References]] | None = None
    step: int = 0

    def move_to(self, step: int, now: bool) -> None:
        """Take the references of another step, made now or read."""
        assert self.redraw is not None
        self.references, self.step = self.redraw(step, now), step


def candidate_seeds(seed: int, prompt_index: int, n: int, step: int = 0) -> list[int]:
    """The noise seeds of a prompt's candidates: a stream of their own, whatever the order of work.

    step: of the run, at which the bank is drawn; each has noises of its own.
    """
    return np.random.SeedSequence([seed, 1, prompt_index, *([step] if step else [])]).generate_state(n).tolist()


def build_references(
    generator: Generator,
    judge: RewardModel,
    prompts: Sequence[str | Prompt],
    recipe: ReferenceRecipe,
    *,
    folder: Path,
    seed: int,
    step: int = 0,
) -> list[References]:
    """Make (or finish, or just read) the bank of `prompts` in `folder`: `references.jsonl`, PNG files and latents.

    Prompts that are already there are not made again, so an interrupted run goes on where it stopped. The same text
    with another picture is another prompt. Several processes, which all call this alike, make as many parts at a time;
    the folder must be one that all of them see.

    A prompt whose candidates cannot be drawn or judged has no references, and is left out of what is returned: its line
    says why (`failed_references`). Raises RewardError where that is more than half of those that were tried, and
    InputError where the folder's bank was made under another seed, or from other candidates.
    """

    prompts = as_prompts(prompts)

    def make(parts: Sequence[Sequence[Candidates]]) -> Iterator[list[Row]]:
        for turn in range(0, len(parts), world_size()):
            number = turn + rank()  # a process that has no part left draws along: weights may be sharded
            part = parts[min(number, len(parts) - 1)]
            drawn, unread = _draw(generator, part, prompts, recipe.batch_size)
            with judging(judge):
                rows = _keep(judge, drawn, unread, recipe, folder) if number < len(parts) else []
            yield [row for of_process in gather_objects(rows) for row in of_process]

    return fill_bank(prompts, recipe, make, folder=folder, seed=seed, step=step)


def fill_bank(
    prompts: Sequence[str | Prompt],
    recipe: ReferenceRecipe,
    make: Callable[[Sequence[Sequence[Candidates]]], Iterable[list[Row]]],
    *,
    folder: Path,
    seed: int,
    step: int = 0,
) -> list[References]:
    """`build_references` with the work done by `make`: parts of prompts to the rows of the index, in their order."""
    prompts = as_prompts(prompts)
    keys, index = [_key(prompt) for prompt in prompts], folder / "references.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with main_process_first():
        _claim(folder, {**recipe.model_dump(include={"candidates", "keep", "keep_from"}), "seed": seed, "step": step})
        done, failed = _read(index)
    first = {key: i for i, key in reversed([*enumerate(keys)])}  # prompts with other metadata alone share theirs
    missing = [
        Candidates(i, prompt, candidate_seeds(seed, i, recipe.candidates, step))
        for i, prompt in enumerate(prompts)
        if first[keys[i]] == i and keys[i] not in done and keys[i] not in failed
    ]
    tried = lost = 0
    parts = [missing[at : at + recipe.prompts_at_once] for at in range(0, len(missing), recipe.prompts_at_once)]
    bars = progress_bar("references", len(first), len(first) - len(missing)) if is_main_process() else nullcontext()
    with bars as bar:
        for rows in make(parts):
            tried, lost = tried + len(rows), lost + sum("failed" in row for row in rows)
            if 2 * lost > max(tried, 2) or (lost == tried == len(prompts)):
                row = next(row for row in rows if "failed" in row)
                raise RewardError(
                    f"{lost} of {tried} prompts have no references; {shown(row['prompt'])}: {row['failed']}",
                    row["remedy"],
                )
            lines = [json.dumps(row) + "\n" for row in rows]
            if bar is not None:
                for row in rows:
                    if "failed" in row:
                        said = f"{shown(row['prompt'])} has no references and is left out: {row['failed']}"
                        console.print(said, highlight=False, soft_wrap=True)
                with index.open("a", encoding="utf-8") as file:  # whole parts: a resumed run makes the same batches
                    file.write("".join(lines))
                bar.advance(len(lines))
    with main_process_first():
        bank, _ = _read(index)
    own = [(bank[key], prompt) for key, prompt in zip(keys, prompts, strict=True) if key in bank]
    return [replace(references, prompt=prompt, choice=recipe.choice) for references, prompt in own]


def failed_references(folder: Path, prompts: Sequence[Prompt]) -> list[FailedGroup]:
    """Those of the prompts that have no references in a bank, each with its reason. They are tried again once their
    lines are removed from `references.jsonl`."""
    wanted = {_key(prompt) for prompt in prompts}
    rows = [row for row in _rows(folder / "references.jsonl") if "failed" in row and _key_of(row) in wanted]
    return [FailedGroup(0, row["prompt"], row["failed"], row["remedy"]) for row in rows]


def make_part(
    generator: Generator, judge: RewardModel, part: Sequence[Candidates], recipe: ReferenceRecipe, folder: Path
) -> list[Row]:
    """The rows of one part's prompts, in a process of its own; their files are written. The same whoever makes it."""
    drawn, unread = _draw(generator, part, [candidates.prompt for candidates in part], recipe.batch_size)
    return _keep(judge, drawn, unread, recipe, folder)


Row = dict[str, Any]
"""A line of a bank's index: the prompt with its files, or with why it has none."""


class Candidates(NamedTuple):
    """N candidates of prompt `number`: the seeds of their noises and, once drawn, pictures and latents [N, ...]."""

    number: int
    prompt: Prompt
    seeds: list[int]
    pictures: Sequence[Tensor] = ()
    latents: Tensor = torch.empty(0)


def _draw(
    generator: Generator, part: Sequence[Candidates], spare: Sequence[Prompt], batch_size: int
) -> tuple[list[Candidates], Faults]:
    """The candidates with their pictures and latents, and what is wrong with those that the generator cannot read."""
    prompts = [candidates.prompt for candidates in part for _ in candidates.seeds]
    seeds = [seed for candidates in part for seed in candidates.seeds]
    n = len(part[0].seeds)

    def draw(prompts: list[Prompt]) -> tuple[PixelBatch, Tensor]:
        return sample_with_latents(generator, prompts, seeds, batch_size)

    (pictures, latents), _, faults = drawn_apart(generator, prompts, draw, spare=spare, check_first=world_size() > 1)
    split = zip(part, pictures.split(n), latents.split(n), strict=True)
    drawn = [candidates._replace(pictures=list(own), latents=x_0) for candidates, own, x_0 in split]
    return drawn, {row // n: fault for row, fault in faults.items()}


def _keep(
    judge: RewardModel, part: Sequence[Candidates], unread: Faults, recipe: ReferenceRecipe, folder: Path
) -> list[Row]:
    """Rank each prompt's candidates and write the files of those that are kept; returns the rows of the index."""

    def ranked(numbers: list[int]) -> list[Ranking]:
        rankings = tournament(judge, [part[k].prompt for k in numbers], [part[k].pictures for k in numbers])
        for k, ranking in zip(numbers, rankings, strict=True):
            if not torch.isfinite(ranking.margins).all():
                raise RewardError(
                    f"the judge gave {part[k].prompt.text!r} a score that is not finite.", "Look at its pictures."
                )
        return rankings

    answers, faults = each_apart(ranked, [k for k in range(len(part)) if k not in unread])
    rankings = {k: ranking for numbers, of_numbers in answers for k, ranking in zip(numbers, of_numbers, strict=True)}
    rows = []
    for k, group in enumerate(part):
        text, negative, image = _key(group.prompt)
        names = {name: value for name, value in (("negative_prompt", negative), ("image", image)) if value}
        if fault := faults.get(k) or unread.get(k):
            rows.append({"prompt": text, **names, "failed": fault.what, "remedy": fault.remedy})
            continue
        ranking = rankings[k]
        best = ranking.order[recipe.kept()].tolist()
        mark = hashlib.blake2b(json.dumps(_key(group.prompt)).encode(), digest_size=4).hexdigest()
        files = [f"{group.number:06d}_{mark}_{place}.png" for place in range(len(best))]  # of no other prompt there
        for name, place in zip(files, best, strict=True):
            write_picture(group.pictures[place], folder / name)
        save_file({"x_0": group.latents[best].cpu()}, _latents_of(folder, files))
        row: Row = {"prompt": text, "files": files, "seeds": [group.seeds[place] for place in best]}
        rows.append(row | names | {"wins": [float(ranking.wins[place]) for place in best]})
    return rows


def bank_refresher(
    generator: Generator,
    judge: RewardModel,
    prompts: Sequence[str | Prompt],
    recipe: ReferenceRecipe,
    *,
    folder: Path,
    seed: int,
    first: Sequence[References] = (),
) -> Callable[[int, bool], list[References]]:
    """The bank of a step of training, made by the generator as it then is, in `folder`/step-<step>: bank(step, now).

    now: the generator is as it was at that step, so what is missing can be made; a run that goes on from a later step
    can only read it. Raises InputError where it then is not whole. first: the bank of the start, of the same prompts:
    one that then has no references keeps those.
    """
    kept = {_key(references.prompt): references for references in first}

    def bank(step: int, now: bool) -> list[References]:
        place = folder / f"step-{step}"
        with main_process_first():
            existing = {key for of in _read(place / "references.jsonl") for key in of}
        if not now and not {_key(prompt) for prompt in as_prompts(prompts)} <= existing:
            raise InputError(
                f"the references of step {step} in {place} are not all there, and the generator of then is gone.",
                "Bring the folder back, or remove the checkpoints after that step.",
            )
        made = build_references(generator, judge, prompts, recipe, folder=place, seed=seed, step=step)
        if len(made) == len(prompts):
            return made
        of_keys = kept | {_key(references.prompt): references for references in made}
        return [of_keys[key] for key in map(_key, as_prompts(prompts)) if key in of_keys]

    return bank


def _claim(folder: Path, key: dict[str, Any]) -> None:
    """Write down what the folder's bank is of, or make sure that it is of just that."""
    path = folder / "bank.json"
    before = read_run_json(path) if path.exists() else key
    for name, value in key.items():
        if before.get(name) != value:
            raise InputError(
                f"{folder} holds references made with {name} = {before.get(name)!r}, not {value!r}.",
                "Choose another folder, or remove this one; it is made again.",
            )
    if is_main_process() and not path.exists():
        write_text_atomically(path, json.dumps(key) + "\n")


def _key(prompt: Prompt) -> tuple[str, str, str]:
    """A prompt's text, its negative text, and which picture it comes with; "" for none."""
    if prompt.image is None:
        return prompt.text, prompt.negative, ""
    values = prompt.image.detach().float().cpu().contiguous().numpy()
    digest = hashlib.blake2b(values.tobytes() + str(values.shape).encode(), digest_size=8)
    return prompt.text, prompt.negative, digest.hexdigest()


Key = tuple[str, str, str]


def _key_of(row: Mapping[str, Any]) -> Key:
    return row["prompt"], row.get("negative_prompt", ""), row.get("image", "")


def _rows(index: Path) -> list[dict[str, Any]]:
    """The lines of a bank's index, but for a last one that a kill cut off."""
    rows: list[dict[str, Any]] = []
    for line in index.read_text(encoding="utf-8").splitlines() if index.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _read(index: Path) -> tuple[dict[Key, References], set[Key]]:
    """The bank on disk, by prompt and picture, and the prompts that have no references; a last line that a kill cut off
    is removed by the first process."""
    bank, failed, rows = {}, set(), _rows(index)
    for row in rows:
        if "failed" in row:
            failed.add(_key_of(row))
            continue
        pictures = PicturesOnDisk([index.parent / name for name in row["files"]])
        latents = _read_latents(_latents_of(index.parent, row["files"]))
        prompt_references = References(
            Prompt(row["prompt"]), pictures, tuple(row["seeds"]), tuple(row["wins"]), latents
        )
        bank[_key_of(row)] = prompt_references
    if is_main_process() and index.exists():
        write_text_atomically(index, "".join(json.dumps(row) + "\n" for row in rows))
    return bank, failed


def _latents_of(folder: Path, files: Sequence[str]) -> Path:
    """The file of a prompt's latents, named as its pictures are."""
    return folder / f"{files[0].rpartition('_')[0]}.safetensors"


def _read_latents(path: Path) -> Tensor:
    try:
        latents = load_file(path)["x_0"]
        check_values([("x_0", latents)], f"the references' latents {path}")
        return latents
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(
            f"the references' latents {path} cannot be read: {error}.", "Remove the folder; it is made again."
        ) from error
