"""The reference bank (paper, section 3): N candidates a prompt, an all-pairs tournament, the winners kept.

A prompt's RL samples are then judged against its best pictures of the starting model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from rewarddance.data.media import read_picture, write_picture
from rewarddance.errors import InputError
from rewarddance.generators.sampling import sample
from rewarddance.protocols import Generator, RewardModel
from rewarddance.reward.ranking import tournament
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import progress_bar
from rewarddance.types import Pixels


class ReferenceRecipe(Recipe):
    """candidates: N a prompt (paper: 16). keep: how many winners become references (paper: 2)."""

    candidates: int = Field(default=16, ge=2)
    keep: int = Field(default=2, ge=1)


@dataclass(frozen=True, eq=False)
class References:
    """One prompt's references, best first. seeds: the noises they were made from; wins: of the N - 1 possible."""

    prompt: str
    pictures: tuple[Pixels, ...]
    seeds: tuple[int, ...]
    wins: tuple[float, ...]

    def choose(self, rng: np.random.Generator, own_seed: int) -> Pixels:
        """One of them at random, never a picture of the candidate's own noise."""
        free = [picture for picture, seed in zip(self.pictures, self.seeds, strict=True) if seed != own_seed]
        if not free:
            raise InputError(
                f"every reference of {self.prompt!r} has the candidate's own noise.", "Keep more references."
            )
        return free[int(rng.integers(len(free)))]


def candidate_seeds(seed: int, prompt_index: int, n: int) -> list[int]:
    """The noise seeds of a prompt's candidates: a stream of their own, whatever the order of work."""
    return np.random.SeedSequence([seed, 1, prompt_index]).generate_state(n).tolist()


def build_references(
    generator: Generator, judge: RewardModel, prompts: Sequence[str], recipe: ReferenceRecipe, folder: Path, seed: int
) -> list[References]:
    """Make (or finish, or just read) the bank of `prompts` in `folder`: `references.jsonl` and PNG files.

    Prompts that are already there are not made again, so an interrupted run goes on where it stopped.
    """
    index = folder / "references.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    done = _read(index)
    missing = [(i, prompt) for i, prompt in enumerate(prompts) if prompt not in done]
    at_once = max(1, 128 // recipe.candidates)
    with progress_bar("references", len(prompts), len(prompts) - len(missing)) as bar:
        for start in range(0, len(missing), at_once):
            part = missing[start : start + at_once]
            n = recipe.candidates
            seeds = [candidate_seeds(seed, i, n) for i, _ in part]
            texts = [prompt for _, prompt in part for _ in range(n)]
            pictures = sample(generator, texts, [s for own in seeds for s in own], batch_size=128)
            groups = [list(pictures[k * n : (k + 1) * n]) for k in range(len(part))]
            rankings = tournament(judge, [prompt for _, prompt in part], groups)
            lines = []
            for (i, prompt), group, ranking, own in zip(part, groups, rankings, seeds, strict=True):
                best = ranking.order[: recipe.keep].tolist()
                files = [f"{i:06d}_{place}.png" for place in range(len(best))]
                for name, k in zip(files, best, strict=True):
                    write_picture(group[k], folder / name)
                row = {"prompt": prompt, "files": files, "seeds": [own[k] for k in best]}
                lines.append(json.dumps(row | {"wins": [float(ranking.wins[k]) for k in best]}) + "\n")
            with index.open(
                "a", encoding="utf-8"
            ) as file:  # a whole part at once: a resumed run makes the same batches
                file.write("".join(lines))
            bar.advance(len(part))
    bank = _read(index)
    return [bank[prompt] for prompt in prompts]


def _read(index: Path) -> dict[str, References]:
    """The bank on disk; a last line that a kill cut off is removed."""
    if not index.exists():
        return {}
    bank, good = {}, []
    for line in index.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        pictures = tuple(read_picture(index.parent / name) for name in row["files"])
        bank[row["prompt"]] = References(row["prompt"], pictures, tuple(row["seeds"]), tuple(row["wins"]))
        good.append(line + "\n")
    scratch = index.with_suffix(".partial")
    scratch.write_text("".join(good), encoding="utf-8")
    scratch.replace(index)
    return bank
