"""What a training or an alignment would need, without weights: `rewarddance plan`.

The recipe's own code runs on the meta device, where tensors have shapes and no content (`runtime.counting`), so memory
and operations are those of the very step that would run. What the sketch has no processes for (pieces over several
GPUs) is computed from the same weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import yaml
from pydantic import Field, PositiveInt

from rewarddance.alignment.recipe import AlignRun
from rewarddance.data.preferences import PreferenceSet
from rewarddance.errors import InputError, RewardDanceError
from rewarddance.jobs.train import TrainRun
from rewarddance.planning.hardware import CONTEXT, GIB, LOST, Gpu, find_gpu
from rewarddance.runtime.config import Recipe, load_recipe, parse_recipe
from rewarddance.types import Preference

LOOKED_AT = 16
"""Pairs of a preferences file whose lengths are counted, evenly spaced."""
_PROMPT = "a wide shot of a small red boat with two fishermen below a lighthouse on a cliff at dusk in soft light"
Tries = list[tuple[dict[str, Any], str]]
"""Keys to set, and what they do."""
SomeRun = TypeVar("SomeRun", TrainRun, AlignRun)


class PlanOptions(Recipe):
    """What a recipe does not say. gpus: processes, a GPU each. gpu_memory: GiB, instead of the named GPU's.
    utilisation: share of the peak that is reached. picture: height and width; prompt_words: both only where the
    recipe's own files are not at hand."""

    gpus: int = Field(default=1, ge=1)
    gpu: str = "h100"
    gpu_memory: float | None = Field(default=None, gt=0)
    utilisation: float = Field(default=0.4, gt=0, le=1)
    picture: tuple[PositiveInt, PositiveInt] = (1024, 1024)
    prompt_words: int = Field(default=40, ge=1)

    @property
    def hardware(self) -> Gpu:
        return find_gpu(self.gpu, self.gpu_memory)


@dataclass(frozen=True)
class Part:
    """Bytes of memory on each GPU, and how they are made up."""

    name: str
    size: int
    told: str = ""


@dataclass(frozen=True)
class Change:
    """Keys to set in the recipe, how many GPUs it then takes, and the bytes it then needs on each."""

    keys: tuple[str, ...]
    gpus: int
    size: int
    told: str


@dataclass(frozen=True)
class Plan:
    """What was found. parameters and tokens: by name. memory: on each GPU; its sum must fit. moments: what is held
    beside weights at the worst of each kind of moment; of these `memory` has the largest. flops: of a step on all GPUs,
    by what they are spent on. seconds: a step's. steps: of the run, None where its length is not known. beside: bytes
    on a GPU that the judge has for itself."""

    job: str
    sources: dict[str, str]
    parameters: dict[str, int]
    tokens: dict[str, float]
    memory: tuple[Part, ...]
    flops: dict[str, float]
    gpu: Gpu
    gpus: int
    utilisation: float
    seconds: float
    steps: int | None
    moments: dict[str, int] = field(default_factory=dict)
    beside: int = 0
    notes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = field(default=())

    @property
    def size(self) -> int:
        """Bytes on each GPU, with what the context takes and the allocator loses."""
        return with_losses(sum(part.size for part in self.memory))

    @property
    def fits(self) -> bool:
        return max(self.size, with_losses(self.beside) if self.beside else 0) <= self.gpu.memory * GIB

    def as_json(self) -> dict[str, Any]:
        hours = None if self.steps is None else self.steps * self.seconds / 3600
        found = {"size": self.size, "fits": self.fits, "hours": hours}
        return asdict(self) | found


def with_losses(size: int) -> int:
    return int(size * (1 + LOST) + CONTEXT * GIB)


def plan_recipe(path: Path, overrides: Sequence[str], options: PlanOptions) -> Plan:
    """The plan of a recipe of `rewarddance train` or `rewarddance align`, with changes tried where it does not fit.

    Raises InputError for a recipe of neither, for a model whose figures are not known, and for what the run itself
    would refuse.
    """
    from rewarddance.planning.alignment import AlignmentPlanner
    from rewarddance.planning.training import TrainingPlanner

    if _aligns(path):
        return AlignmentPlanner(options).plan(load_recipe(AlignRun, path, overrides))
    return TrainingPlanner(options).plan(load_recipe(TrainRun, path, overrides))


def _aligns(path: Path) -> bool:
    """Which of the two a recipe is, by its keys; what is wrong with it is said where it is read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    keys = content if isinstance(content, dict) else {}
    if "generator" in keys and not isinstance(keys.get("judge"), dict):
        return True
    if "generator" in keys or not ("preferences" in keys or "judge" in keys):
        raise InputError(
            f"{path} is a recipe neither of `rewarddance train` nor of `rewarddance align`.",
            "Plan one that has preferences and judge, or generator and judge.",
        )
    return False


class Tried(NamedTuple):
    """Keys that were set, the bytes that are then needed on each GPU, and what the keys do."""

    keys: tuple[str, ...]
    size: int
    told: str


def tried(
    run: SomeRun,
    first: int,
    tries: Sequence[tuple[dict[str, Any], str]],
    size: Callable[[SomeRun], int],
    memory: float,
) -> Tried | None:
    """The first change that makes a run fit: each by itself, then all up to each of them, in their order.

    first: bytes of the run as it is; size: those of a changed one. memory: GiB. None where nothing helps.
    """
    seen = []
    for chosen in [*([one] for one in tries), *(tries[: n + 1] for n in range(1, len(tries)))]:
        keys = {key: value for values, _ in chosen for key, value in values.items()}
        if keys in seen:
            continue
        seen.append(keys)
        try:
            found = size(changed_run(run, keys))
        except RewardDanceError:  # keys that do not go together
            continue
        if found < first and found <= memory * GIB:
            return Tried(written(keys), found, "; ".join(dict.fromkeys(told for _, told in chosen)))
    return None


def changed_run(run: SomeRun, keys: dict[str, Any]) -> SomeRun:
    """The run with keys set, checked as a recipe is."""
    content = run.model_dump()
    for key, value in keys.items():
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    return parse_recipe(type(run), content, "the changed recipe")


def written(keys: dict[str, Any]) -> tuple[str, ...]:
    """Keys as they are given on the command line."""
    return tuple(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in keys.items())


def words(n: int) -> str:
    """A prompt of n English words."""
    return " ".join(itertools.islice(itertools.cycle(_PROMPT.split()), n))


def shapes_of(pair: Preference) -> Preference:
    """The pair with pictures that have a size and no content."""

    def empty(pixels: torch.Tensor | None) -> Any:
        return None if pixels is None else torch.empty(pixels.shape, device="meta")

    prompt = replace(pair.prompt, image=empty(pair.prompt.image))
    return replace(pair, prompt=prompt, first=empty(pair.first), second=empty(pair.second))


def looked_at(path: Path, options: PlanOptions, reasons: bool) -> tuple[list[Preference], int | None, str]:
    """Some pairs as shapes, how many pairs there are, and where that is from; made-up ones where there is no file."""
    if path.is_file():
        pairs = PreferenceSet(path, for_training=True)
        chosen = (
            [i * len(pairs) // LOOKED_AT for i in range(LOOKED_AT)] if len(pairs) > LOOKED_AT else range(len(pairs))
        )
        return [shapes_of(pairs[i]) for i in chosen], len(pairs), f"{len(chosen)} of the {len(pairs)} pairs in {path}"
    told = f"made up, for {path} is not here: prompts of {options.prompt_words} words, "
    told += f"pictures of {options.picture[0]}x{options.picture[1]}"
    reason = words(options.prompt_words) if reasons else ""
    first, second = (torch.empty(1, 3, *options.picture, device="meta") for _ in range(2))
    pair = Preference(words(options.prompt_words), first, second, 1.0, reason=reason, reason_swapped=reason)
    return [pair], None, told + (f", reasons of {options.prompt_words} words" if reasons else "")
