"""The reference bank (paper, section 3): N candidates a prompt, an all-pairs tournament, the winners kept.

A prompt's RL samples are then judged against its best pictures of the starting model.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewarddance.data.media import read_video, write_picture
from rewarddance.errors import InputError
from rewarddance.generators.sampling import sample_with_latents
from rewarddance.protocols import Generator, RewardModel
from rewarddance.reward.ranking import tournament
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.process_group import gather_objects, is_main_process, main_process_first, rank, world_size
from rewarddance.runtime.tracking import progress_bar
from rewarddance.types import Pixels, Prompt, as_prompts


class ReferenceRecipe(Recipe):
    """candidates: N a prompt (paper: 16). keep: how many of them become references (paper: 2). keep_from: the top of
    their ranking (paper), or the bottom, to see what a worse reference does. choice: which of a prompt's references a
    sample is judged against: any of them at random, or always the best.

    batch_size: pictures that are drawn and decoded together. Those of as many prompts as it has room for, of one at
    least, are judged together.
    """

    candidates: int = Field(default=16, ge=2)
    keep: int = Field(default=2, ge=1)
    keep_from: Literal["top", "bottom"] = "top"
    choice: Literal["random", "best"] = "random"
    batch_size: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _has_enough(self) -> ReferenceRecipe:
        if self.keep > self.candidates:
            raise ValueError(f"of {self.candidates} candidates, {self.keep} cannot be kept")
        return self

    @property
    def prompts_at_once(self) -> int:
        return max(1, self.batch_size // self.candidates)

    def kept(self) -> slice:
        """Which places of a ranking, best first, become references."""
        return slice(0, self.keep) if self.keep_from == "top" else slice(self.candidates - self.keep, self.candidates)


@dataclass(frozen=True, eq=False)
class References:
    """One prompt's K references, best first.

    seeds: the noises they were made from; wins: of the N - 1 possible; latents [K, ...]: what they were decoded from.
    choice: see `ReferenceRecipe`.
    """

    prompt: Prompt
    pictures: tuple[Pixels, ...]
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
    folder: Path,
    seed: int,
    step: int = 0,
) -> list[References]:
    """Make (or finish, or just read) the bank of `prompts` in `folder`: `references.jsonl`, PNG files and latents.

    Prompts that are already there are not made again, so an interrupted run goes on where it stopped. The
    same text with another picture is another prompt. Several processes, which all call this alike, make as many parts
    at a time; the folder must be one that all of them see. Raises InputError where the folder's bank was made under
    another seed, or from other candidates.
    """
    prompts = as_prompts(prompts)
    keys = [_key(prompt) for prompt in prompts]
    index = folder / "references.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with main_process_first():
        _claim(folder, {**recipe.model_dump(include={"candidates", "keep", "keep_from"}), "seed": seed, "step": step})
        done = _read(index)
    missing = [(i, prompt) for i, prompt in enumerate(prompts) if keys[i] not in done]
    n, at_once = recipe.candidates, recipe.prompts_at_once
    parts = [missing[start : start + at_once] for start in range(0, len(missing), at_once)]
    bars = progress_bar("references", len(prompts), len(prompts) - len(missing)) if is_main_process() else nullcontext()
    with bars as bar:
        for turn in range(0, len(parts), world_size()):
            part = parts[min(turn + rank(), len(parts) - 1)]
            idle = turn + rank() >= len(parts)  # who has none left draws along: weights may be in pieces
            seeds = [candidate_seeds(seed, i, n, step) for i, _ in part]
            flat = [prompt for _, prompt in part for _ in range(n)]
            all_seeds = [s for own in seeds for s in own]
            pictures, latents = sample_with_latents(generator, flat, all_seeds, recipe.batch_size)
            lines = []
            groups = [] if idle else [list(pictures[k * n : (k + 1) * n]) for k in range(len(part))]
            rankings = [] if idle else tournament(judge, [prompt for _, prompt in part], groups)
            made = zip(part, groups, latents.split(n), rankings, seeds, strict=not idle)
            for (i, prompt), group, x_0, ranking, own in made:
                best = ranking.order[recipe.kept()].tolist()
                files = [f"{i:06d}_{place}.png" for place in range(len(best))]
                for name, k in zip(files, best, strict=True):
                    write_picture(group[k], folder / name)
                save_file({"x_0": x_0[best].cpu()}, _latents_of(folder, files))
                row: dict[str, Any] = {"prompt": prompt.text, "files": files, "seeds": [own[k] for k in best]}
                row |= {
                    name: value for name, value in zip(("negative_prompt", "image"), keys[i][1:], strict=True) if value
                }
                lines.append(json.dumps(row | {"wins": [float(ranking.wins[k]) for k in best]}) + "\n")
            lines = [line for own in gather_objects(lines) for line in own]
            if bar is not None:
                with index.open("a", encoding="utf-8") as file:  # whole parts: a resumed run makes the same batches
                    file.write("".join(lines))
                bar.advance(len(lines))
    with main_process_first():
        bank = _read(index)
    return [replace(bank[key], prompt=prompt, choice=recipe.choice) for key, prompt in zip(keys, prompts, strict=True)]


def bank_refresher(
    generator: Generator,
    judge: RewardModel,
    prompts: Sequence[str | Prompt],
    recipe: ReferenceRecipe,
    folder: Path,
    seed: int,
) -> Callable[[int, bool], list[References]]:
    """The bank of a step of training, made by the generator as it then is, in `folder`/step-<step>: bank(step, now).

    now: the generator is as it was at that step, so what is missing can be made; a run that goes on from a later step
    can only read it. Raises InputError where it then is not whole.
    """

    def bank(step: int, now: bool) -> list[References]:
        place = folder / f"step-{step}"
        wanted = {_key(prompt) for prompt in as_prompts(prompts)}
        with main_process_first():
            there = set(_read(place / "references.jsonl"))
        if not now and not wanted <= there:
            raise InputError(
                f"the references of step {step} in {place} are not all there, and the generator of then is gone.",
                "Bring the folder back, or remove the checkpoints after that step.",
            )
        return build_references(generator, judge, prompts, recipe, place, seed, step)

    return bank


def _claim(folder: Path, key: dict[str, Any]) -> None:
    """Write down what the folder's bank is of, or make sure that it is of just that."""
    path = folder / "bank.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else key
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


def _read(index: Path) -> dict[tuple[str, str, str], References]:
    """The bank on disk, by prompt and picture; a last line that a kill cut off is removed by the first process."""
    if not index.exists():
        return {}
    bank, good = {}, []
    for line in index.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        pictures = tuple(read_video(index.parent / name, sys.maxsize) for name in row["files"])
        latents = _read_latents(_latents_of(index.parent, row["files"]))
        found = References(Prompt(row["prompt"]), pictures, tuple(row["seeds"]), tuple(row["wins"]), latents)
        bank[row["prompt"], row.get("negative_prompt", ""), row.get("image", "")] = found
        good.append(line + "\n")
    if is_main_process():
        scratch = index.with_suffix(".partial")
        scratch.write_text("".join(good), encoding="utf-8")
        scratch.replace(index)
    return bank


def _latents_of(folder: Path, files: Sequence[str]) -> Path:
    """The file of a prompt's latents, named as its pictures are."""
    return folder / f"{files[0].rpartition('_')[0]}.safetensors"


def _read_latents(path: Path) -> Tensor:
    try:
        return load_file(path)["x_0"]
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(
            f"the references' latents {path} cannot be read: {error}.", "Remove the folder; it is made again."
        ) from error
