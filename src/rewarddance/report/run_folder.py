"""What a run leaves in its folder, read and checked: summary.json, metrics.jsonl, samples.json and its pictures."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter

from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Figure
from rewarddance.runtime.config import parse_file

GRIDS = "samples"
"""The folder in a run's that holds its grids of samples during training, among other pictures."""

Row = dict[str, Any]


class BeforeAfter(BaseModel):
    """One figure of the SFT base, of the generator after ReFL, and after DiffusionNFT where that went on from there."""

    sft: Figure
    refl: Figure
    nft: Figure | None = None


class Arms(BeforeAfter):
    """One figure of all arms."""

    best_of_n: Figure


class Gains(BaseModel):
    """What each arm gained over the base, in the oracle's alignment, paired by prompt."""

    best_of_n: Figure
    refl: Figure
    nft: Figure | None = None


class Oracle(Arms):
    """The oracle's alignment in [0, 1], or a part of it, and the gains over the base, paired by prompt."""

    gain_best_of_n: Figure
    gain_refl: Figure
    gain_nft: Figure | None = None


class JudgeAccuracy(BaseModel):
    """Accuracy on held-out pairs, after training and before: in domain, its early predictions, and out of domain."""

    accuracy_id: Figure
    accuracy_ood: Figure
    untrained_id: Figure
    untrained_ood: Figure
    accuracy_early: Figure | None = None
    untrained_early: Figure | None = None

    def places(self) -> dict[str, tuple[Figure, Figure]]:
        """By the kind of pairs: accuracy after training and before."""
        figures = {"in domain": (self.accuracy_id, self.untrained_id)}
        if self.accuracy_early and self.untrained_early:
            figures["early predictions"] = (self.accuracy_early, self.untrained_early)
        return figures | {"out of domain": (self.accuracy_ood, self.untrained_ood)}


class Hacking(BaseModel):
    """The verdict, and the plain sentence of it."""

    hacked: bool
    sentence: str
    undecided: bool = False


class GsbFigure(BaseModel):
    """Good, same and bad of the aligned generator's samples against the base's of the same noises, by the oracle.

    gsb is in [-1, 1].
    """

    good: int
    same: int
    bad: int
    gsb: Figure


class GsbFigures(GsbFigure):
    by_category: dict[str, GsbFigure]


class Summary(BaseModel):
    """summary.json. All but reward, diversity, seconds and memory are shares, shown in points of 100."""

    name: str
    seed: int
    task: str
    machine: str
    n: int  # best-of-N's N
    judge: JudgeAccuracy
    oracle: Oracle
    by_category: dict[str, Arms]
    by_layout: dict[str, Gains] = {}
    parts: dict[str, Oracle] = {}  # what alignment is made of, where its parts pull apart
    parts_by_category: dict[str, dict[str, Arms]] = {}
    aligned: str = "refl"  # the arm that gsb and hacking are of
    alarms: list[Row] = []
    quality: Arms
    correct: Arms
    reward: BeforeAfter
    diversity: BeforeAfter
    gsb: GsbFigures | None = None
    hacking: Hacking
    seconds: float
    seconds_by_stage: dict[str, float]
    cpu_seconds_by_stage: dict[str, float] = {}
    peak_memory_gib: float


class Sample(BaseModel):
    """One prompt of samples.json: each arm's picture, as a path in the run folder, and the oracle's score of it.

    image: the picture that the prompt comes with, if any.
    """

    prompt: str
    category: str
    seed: int
    pictures: dict[str, str]
    oracle: dict[str, float]
    image: str | None = None


def read_summary(folder: Path) -> Summary:
    """The figures of a finished run. Raises InputError where there are none."""
    path, remedy = (
        folder / "summary.json",
        "Finish it (a quickstart with --resume), or give the folder of a finished run.",
    )
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}.", "Give the folder of a run.")
    if not path.is_file():
        raise InputError(f"{folder} holds no finished run: {path.name} is missing.", remedy)
    return parse_file(path, Summary.model_validate_json, remedy)


def read_config(folder: Path) -> dict[str, Any]:
    """The run's recipe as it stands in config.yaml, empty where there is none that can be read as one."""
    path = folder / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except yaml.YAMLError:  # a page is still of use without it, and shows the file as it is
        content = None
    return content if isinstance(content, dict) else {}


def read_metrics(folder: Path, name: str = "metrics.jsonl") -> list[Row]:
    """The lines of metrics.jsonl, none where there is no such file. A last line that a kill cut off is left out."""
    path = folder / name
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and {"phase", "kind"} <= row.keys() and isinstance(row.get("step"), int):
            rows.append(row)
        elif line.strip() and number < len(lines):  # only the last has no line end after it: it was being written
            raise InputError(
                f"{path}, line {number}, is no JSON object with phase, step and kind.", "Mend or remove it."
            )
    return rows


def read_alarms(folder: Path) -> list[Row]:
    """The lines of alarms.jsonl, none where nothing rang: step, name, saw, do and stop of each."""
    return [row for row in read_metrics(folder, "alarms.jsonl") if row["kind"] == "alarm"]


def read_samples(folder: Path) -> list[Sample]:
    """The gallery of samples.json, empty where there is no such file."""
    path, parse = folder / "samples.json", TypeAdapter(list[Sample]).validate_json
    return parse_file(path, parse, "Let the run write it anew.") if path.is_file() else []


def read_picture(folder: Path, name: str, listed_in: str = "samples.json") -> str:
    """A PNG of the run folder, named in the file `listed_in`, as a data URI. Raises InputError where it is missing."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{listed_in} of {folder} shows {name!r}, which is outside of it.", "Mend or remove that line."
        )
    if not path.is_file():
        raise InputError(
            f"{path} is missing, and {listed_in} shows it.", "Restore it, or run again into another folder."
        )
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def grid_name(step: int) -> str:
    return f"step-{step:04d}.png"


def find_grids(folder: Path) -> dict[int, Path]:
    """The grids of samples during training, by their steps in order; none where there are none."""
    names = {path.stem.removeprefix("step-"): path for path in (folder / GRIDS).glob("step-*.png")}
    return dict(sorted((int(step), path) for step, path in names.items() if step.isdecimal()))
