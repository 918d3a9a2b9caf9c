"""Groups that fail in the middle of a run: each costs itself alone, and is listed with its reason.

A reward that cannot be had is never a number. So a group that has none teaches nothing: the step is taken with the
others, by all processes alike. Where most of a step's groups fail it is not their fault, and the run stops.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor

from rewarddance.errors import RewardDanceError, RewardError, shown
from rewarddance.protocols import Generator
from rewarddance.runtime.checkpoint import open_to_append, write_text_atomically
from rewarddance.runtime.item_faults import as_fault
from rewarddance.runtime.process_group import all_gather, is_main_process, world_size
from rewarddance.runtime.tracking import console
from rewarddance.types import Prompt

FILE = "failed_groups.jsonl"

T = TypeVar("T")
Faults = dict[int, RewardDanceError]
"""What was wrong with some of a batch's items, by their places."""


class FailedGroup(NamedTuple):
    """A prompt's samples that have no reward. number: the prompt's place in the step. what, remedy: as of an error."""

    number: int
    prompt: str
    what: str
    remedy: str


class NothingLeft(RewardError):
    """All groups of a step failed: no update is made of it, and the run goes on."""


class FailedGroups:
    """The failed groups of a run, in `failed_groups.jsonl` of its folder.

    of_references: those that failed before the first step, when the reference bank was made.
    """

    def __init__(self, of_references: Sequence[FailedGroup] = ()) -> None:
        self.of_references = list(of_references)
        self._path: Path | None = None
        self._empty_step = -2

    def begin(self, folder: Path, step: int) -> None:
        """Keep them in the folder from now on; what was logged after `step` comes again."""
        self._path = folder / FILE
        before = [row for row in read_failed_groups(folder) if 0 < row["step"] <= step]
        if any(row["step"] == step for row in before):  # of a step of one group that is all of it
            self._empty_step = step - 1
        rows = [_row(0, group) for group in self.of_references] + before
        if rows:
            write_text_atomically(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        else:
            self._path.unlink(missing_ok=True)

    def add(self, step: int, failed: Sequence[FailedGroup], groups: int) -> None:
        """Take down which of a step's groups failed. All processes call this alike, with the failures of all.

        step: from 0; it is logged as the one after it, as in the metrics. groups: how many the step has. Raises
        RewardError where more than half of them failed, or in two steps one after the other that have one group each,
        and NothingLeft where none of them is left otherwise.
        """
        if not failed:
            return
        if is_main_process():
            for group in failed:
                console.print(
                    f"step {step + 1}: {shown(group.prompt)} is left out: {group.what}", highlight=False, soft_wrap=True
                )
            if self._path is not None:
                with open_to_append(self._path) as file:
                    file.seek(0, 2)
                    file.write("".join(json.dumps(_row(step + 1, group)) + "\n" for group in failed).encode())
        first, again = failed[0], self._empty_step == step - 1
        if 2 * len(failed) > groups and (groups > 1 or again):
            of_step = f"{len(failed)} of the step's {groups} groups have" if groups > 1 else "two steps in a row have"
            raise RewardError(f"{of_step} no reward; {shown(first.prompt)}: {first.what}", first.remedy)
        if len(failed) == groups:
            self._empty_step = step
            raise NothingLeft(f"no group of the step has a reward; {shown(first.prompt)}: {first.what}", first.remedy)


def _row(step: int, group: FailedGroup) -> dict[str, object]:
    return {"step": step, "prompt": group.prompt, "reason": group.what, "remedy": group.remedy}


def read_failed_groups(folder: Path) -> list[dict]:
    """The rows of a run's failed groups; none where all had a reward. A line that a kill cut off is left out."""
    path, rows = folder / FILE, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


# -- what is left of them ----------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Samples that go through the generator together in a backward pass.

    rows: among this process's. count: how many of them teach: all, or none where a single one only goes along, as all
    have failed. The processes must call a generator equally often, for its weights may be sharded.
    """

    rows: Tensor
    count: int

    @classmethod
    def of(cls, rows: Tensor, kept: Tensor) -> Part:
        left = rows[kept[rows]]
        return cls(left, len(left)) if len(left) else cls(rows[:1], 0)


@dataclass(frozen=True, eq=False)
class Kept:
    """The samples that are left of a step of which groups failed.

    local [b]: which of this process's. everywhere [B]: which of all processes'.
    """

    local: Tensor
    everywhere: Tensor

    @property
    def weight(self) -> float:
        """Of a sample in this process's sum; the mean of the processes' sums is then the mean of all that are left."""
        return world_size() / int(self.everywhere.sum())

    def groups(self, size: int) -> int:
        """How many groups of so many samples are left."""
        return int(self.everywhere.sum()) // size

    def all_gather(self, rows: Tensor) -> Tensor:
        return all_gather(rows)[self.everywhere.to(rows.device)]


# -- who it was --------------------------------------------------------------------------------------------------------


def each_apart(ask: Callable[[list[int]], T], numbers: Iterable[int]) -> tuple[list[tuple[list[int], T]], Faults]:
    """What `ask` answers about the items of these numbers: about all together or, where that fails, about each alone.

    Returns the answers with the numbers that they are of, and what was wrong with the others. Raises what is not of the
    items: that memory ran out, that a reward has no gradient at all, or that another process is gone.
    """
    numbers = list(numbers)
    if not numbers:
        return [], {}
    try:
        return [(numbers, ask(numbers))], {}
    except Exception as error:
        fault = as_fault(error)
    if len(numbers) == 1:
        return [], {numbers[0]: fault}
    answers, faults = [], Faults()
    for number in numbers:
        try:
            answers.append(([number], ask([number])))
        except Exception as error:
            faults[number] = as_fault(error)
    return answers, faults


def drawn_apart(
    generator: Generator,
    prompts: Sequence[Prompt],
    draw: Callable[[list[Prompt]], T],
    *,
    spare: Iterable[Prompt],
    check_first: bool = False,
) -> tuple[T, list[Prompt], Faults]:
    """What `draw` makes of prompts. Where it fails, those that the generator cannot encode are drawn as another one.

    Shapes, and the calls of a network whose weights are sharded, stay what they are. Returns the prompts that were
    drawn, too, and what is wrong with the others, whose samples are of no use. spare: others to draw in their place.
    check_first: look for them before anything is drawn, for a sharded network cannot begin again by itself.
    """
    prompts = list(prompts)
    faults = _unreadable(generator, prompts) if check_first else Faults()
    if not faults:
        try:
            return draw(prompts), prompts, {}
        except Exception as error:
            as_fault(error)
            if check_first or not (faults := _unreadable(generator, prompts)):
                raise
    readable = [prompt for number, prompt in enumerate(prompts) if number not in faults]
    others = (prompt for prompt in spare if not _unreadable(generator, [prompt]))
    instead = readable[0] if readable else next(others, None)
    if instead is None:
        raise next(iter(faults.values()))
    drawn = [instead if number in faults else prompt for number, prompt in enumerate(prompts)]
    return draw(drawn), drawn, faults


def _unreadable(generator: Generator, prompts: Sequence[Prompt]) -> Faults:
    """The prompts that the generator cannot encode, each asked once."""
    outcomes: dict[int, RewardDanceError | None] = {}
    for prompt in prompts:
        if id(prompt) not in outcomes:
            try:
                generator.encode([prompt])
                outcomes[id(prompt)] = None
            except Exception as error:
                outcomes[id(prompt)] = as_fault(error)
    by_number = {number: outcomes[id(prompt)] for number, prompt in enumerate(prompts)}
    return {number: fault for number, fault in by_number.items() if fault is not None}
