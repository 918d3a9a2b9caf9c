"""The plan of a run: what it needs, and the changes that make it fit.

A recipe's own step runs on the meta device, where tensors have shapes and no values (`planning.counting`), so memory
and operations are those of the step that would run. What several processes share is computed from the same weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from rewarddance.data.preferences import PreferenceSet
from rewarddance.errors import RewardDanceError
from rewarddance.planning.hardware import GIB, Gpu, allocated
from rewarddance.planning.recipe import PlanOptions
from rewarddance.runtime.config import Recipe, parse_recipe
from rewarddance.types import Preference

ADAMW_STATE = 8
"""Bytes of AdamW's two moments for each trained weight."""
MOST_GPUS = 256
"""More GPUs than this are not suggested."""
SAMPLED_PAIRS = 16
"""Pairs of a preferences file whose lengths are counted, evenly spaced."""
_PROMPT = "a wide shot of a small red boat with two fishermen below a lighthouse on a cliff at dusk in soft light"
SomeRecipe = TypeVar("SomeRecipe", bound=Recipe)


@dataclass(frozen=True)
class MemoryPart:
    """Bytes on each GPU, and what they consist of."""

    name: str
    size: int
    note: str = ""


@dataclass(frozen=True)
class Edit:
    """Keys to set in a recipe, what they do, and how many more GPUs they take."""

    keys: dict[str, Any]
    effect: str
    more_gpus: int = 0


@dataclass(frozen=True)
class Suggestion:
    """Keys to set as they are written on the command line, the GPUs it then takes, and the bytes needed on each."""

    keys: tuple[str, ...]
    gpus: int
    size: int
    effect: str


@dataclass(frozen=True)
class Plan:
    """What a run needs.

    job: "train", "align" or "search".
    sources: where each kind of figure comes from.
    parameters, tokens: counts by name.
    memory: what each GPU holds at the worst moment; its sum must fit.
    flops: operations of a step on all GPUs together, by phase.
    traffic: bytes that a step reads and writes on all GPUs together, by phase; empty where they are not counted.
    seconds: the time of a step.
    bound_by_memory: phases that take as long as memory takes to read and write, and not as long as their products.
    steps: how many the run takes; None where that is not known.
    peaks: bytes beside the weights at the worst moment of each phase; `memory` has the largest.
    judge_gpu: bytes on a GPU that the judge has for itself; 0 where there is none.
    """

    job: str
    sources: dict[str, str]
    parameters: dict[str, int]
    tokens: dict[str, float]
    memory: tuple[MemoryPart, ...]
    flops: dict[str, float]
    gpu: Gpu
    gpus: int
    utilisation: float
    seconds: float
    steps: int | None
    traffic: dict[str, float] = field(default_factory=dict)
    bound_by_memory: tuple[str, ...] = ()
    peaks: dict[str, int] = field(default_factory=dict)
    judge_gpu: int = 0
    notes: tuple[str, ...] = ()
    suggestions: tuple[Suggestion, ...] = ()

    @property
    def size(self) -> int:
        """Bytes on each GPU, with what the context and the allocator take."""
        return allocated(sum(part.size for part in self.memory))

    @property
    def fits(self) -> bool:
        return max(self.size, allocated(self.judge_gpu)) <= self.gpu.memory * GIB

    def as_json(self) -> dict[str, Any]:
        hours = None if self.steps is None else self.steps * self.seconds / 3600
        return asdict(self) | {"size": self.size, "fits": self.fits, "hours": hours}


def suggestions(
    recipe: SomeRecipe,
    size: Callable[[int, SomeRecipe], int],
    options: PlanOptions,
    *,
    same: Sequence[Edit],
    other: Sequence[Edit],
    spread: Callable[[int], dict[str, Any]],
    prefix: str = "",
) -> tuple[Suggestion, ...]:
    """The first change that makes a run fit and keeps its result. Where there is none: the first that changes the
    result, and the number of GPUs with which the result stays the same.

    size: bytes that a changed recipe needs on each of so many GPUs. same, other: edits that keep the result and that
    change it, the gentlest first. spread: keys for more GPUs. prefix: what stands before a key on the command line.
    """

    def first_that_fits(edits: Sequence[Edit], gpus: int) -> Suggestion | None:
        """Tries each edit by itself, then the first two, three, ... together."""
        tried = []
        for chosen in [*([edit] for edit in edits), *(edits[: n + 1] for n in range(1, len(edits)))]:
            keys = {key: value for edit in chosen for key, value in edit.keys.items()}
            if keys in tried:
                continue
            tried.append(keys)
            try:
                needed = size(gpus, edited(recipe, keys))
            except RewardDanceError:  # keys that do not go together
                continue
            if needed <= options.hardware.memory * GIB:
                texts = {key: _as_override(value) for key, value in keys.items()}
                effect = "; ".join(dict.fromkeys(edit.effect for edit in chosen))
                more = sum(edit.more_gpus for edit in chosen)
                changes = tuple(f"{prefix}{key}={text}" for key, text in texts.items())
                return Suggestion(changes, gpus + more, needed, effect)
        return None

    if suggestion := first_that_fits(same, options.gpus):
        return (replace(suggestion, effect=f"{suggestion.effect}; the result is the same"),)
    counts = itertools.takewhile(lambda n: n <= MOST_GPUS, (options.gpus * 2**k for k in itertools.count(1)))
    spreads = (first_that_fits([Edit(spread(gpus), "more GPUs; the result is the same")], gpus) for gpus in counts)
    tried = first_that_fits(other, options.gpus), next(filter(None, spreads), None)
    return tuple(suggestion for suggestion in tried if suggestion)


def _as_override(value: Any) -> str:
    """A value as it is written on the command line, where it is YAML without spaces."""
    if isinstance(value, list):
        return f"[{','.join(map(_as_override, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def edited(recipe: SomeRecipe, keys: dict[str, Any]) -> SomeRecipe:
    """The recipe with keys set, checked as a file is. Raises InputError where they do not go together."""
    content = recipe.model_dump()
    for key, value in keys.items():
        *parents, last = key.split(".")
        table = content
        for parent in parents:
            table = table[parent]
        table[last] = value
    return parse_recipe(type(recipe), content, "the changed recipe")


def prompt_of_words(n: int) -> str:
    """A prompt of n English words."""
    return " ".join(itertools.islice(itertools.cycle(_PROMPT.split()), n))


class SampledPairs(NamedTuple):
    """Some pairs without pixel values, how many pairs there are (None: not known), and where they come from."""

    pairs: list[Preference]
    total: int | None
    source: str


def sample_pairs(path: Path, options: PlanOptions, reasons: bool) -> SampledPairs:
    """Pairs of a preferences file, or made-up ones where there is no file; reasons: with reasons."""
    if path.is_file():
        pairs = PreferenceSet(path, for_training=True)
        n = min(len(pairs), SAMPLED_PAIRS)
        sample = [on_meta(pairs[i * len(pairs) // n]) for i in range(n)]
        return SampledPairs(sample, len(pairs), f"{n} of the {len(pairs)} pairs in {path}")
    source = f"made up, for {path} is not here: prompts of {options.prompt_words} words, "
    source += f"pictures of {options.picture[0]}x{options.picture[1]}"
    source += f", reasons of {options.prompt_words} words" if reasons else ""
    text = prompt_of_words(options.prompt_words)
    first, second = (torch.empty(1, 3, *options.picture, device="meta") for _ in range(2))
    reason = text if reasons else ""
    return SampledPairs([Preference(text, first, second, 1.0, reason=reason, reason_swapped=reason)], None, source)


def on_meta(pair: Preference) -> Preference:
    """The pair with pictures of the same sizes on the meta device."""

    def empty(pixels: torch.Tensor | None) -> Any:
        return None if pixels is None else torch.empty(pixels.shape, device="meta")

    prompt = replace(pair.prompt, image=empty(pair.prompt.image))
    return replace(pair, prompt=prompt, first=empty(pair.first), second=empty(pair.second))


def gathered(blocks: Iterable[Sequence[nn.Parameter]], others: Sequence[nn.Parameter], itemsize: int) -> MemoryPart:
    """The weights that are gathered at once where each GPU keeps a shard (FSDP2), at `itemsize` bytes each.

    These are two blocks, the one that computes and the one that is prefetched, and the weights outside of blocks; also
    the gradients of trained weights, as computed and in the float32 in which they are summed.
    """

    def size(weights: Sequence[nn.Parameter], copies: int) -> int:
        return sum(w.numel() * (copies * itemsize + (itemsize + 4 if w.requires_grad else 0)) for w in weights)

    largest = max((size(block, 2) for block in blocks), default=0)
    return MemoryPart("gathered", size(others, 1) + largest, "whole weights: of two layers, and outside of layers")
