"""Cells of the fault plan: a whole quickstart that is struck at some place, and what it comes to.

A place is a share of the undisturbed run's own computing time, so that a machine that becomes slow moves none. A cell
holds where the struck run ends in the right way, and the run that goes on has the undisturbed figures, metrics and
weights, and has left the user's files alone.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "jobs")]

import torch  # noqa: E402
import yaml  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from several import forked  # noqa: E402
from tiny import Done, command, quickstart_recipe  # noqa: E402
from tiny_runs import figures  # noqa: E402

LONGEST = 600.0
"""Seconds, on a machine that is busy with other things, after which a run hangs."""
MINE = "notes of mine.txt"
TICK = os.sysconf("SC_CLK_TCK")


class Whole(NamedTuple):
    """The undisturbed run. size: bytes of its folder. seconds: that it computed."""

    recipe: Path
    folder: Path
    size: int
    seconds: float


class Child:
    """A command in a process of its own."""

    def __init__(self, answer: Path, *words: str | Path) -> None:
        self.answer = answer
        answer.unlink(missing_ok=True)
        self.id = forked(lambda: command(*words), answer)
        self.status: int | None = None

    def ended(self) -> bool:
        if self.status is None:
            done, status, used = os.wait4(self.id, os.WNOHANG)
            if done:
                self.status, self._seconds = status, used.ru_utime + used.ru_stime
        return self.status is not None

    def seconds(self) -> float:
        """That it has computed so far, in all its threads."""
        if self.ended():
            return self._seconds
        after = Path(f"/proc/{self.id}/stat").read_text().rpartition(")")[2].split()
        return (int(after[11]) + int(after[12])) / TICK

    def reaches(self, seconds: float) -> bool:
        """Wait until it has computed so long; False if it ended before."""
        end = time.monotonic() + LONGEST
        while not self.ended():
            if self.seconds() >= seconds:
                return True
            if time.monotonic() > end:
                os.kill(self.id, signal.SIGKILL)
                raise AssertionError("it hangs")
            time.sleep(0.005)
        return False

    def done(self) -> Done | None:
        """What it said, once it has ended; None where a signal ended it."""
        self.reaches(float("inf"))
        if self.status is not None and os.WIFSIGNALED(self.status):
            return None
        fine, said = pickle.loads(self.answer.read_bytes())
        assert fine, said
        return said


def words(recipe: Path, folder: Path) -> list[str | Path]:
    return ["quickstart", "--recipe", recipe, "--output", folder.parent, "--name", folder.name]


def resumed(folder: Path) -> list[str | Path]:
    return ["quickstart", "--resume", "--output", folder.parent, "--name", folder.name]


def tiniest_recipe(place: Path) -> Path:
    """Every stage of the main job but DiffusionNFT, with a checkpoint after each step."""
    path = quickstart_recipe(place)
    content = yaml.safe_load(path.read_text())
    del content["nft"], content["nft_prompts"]
    content["preferences"] |= {"train_prompts": 3, "pairs": 2, "id_prompts": 2, "ood_prompts": 2, "test_pairs": 2}
    content["judge"] |= {"epochs": 1, "save_every": 1, "batch_size": 4}
    content["refl"] |= {"steps": 2, "save_every": 1, "jitter_copies": 1}
    content["evaluation"] |= {"n": 2}
    path.write_text(yaml.safe_dump(content))
    return path


def undisturbed(place: Path) -> Whole:
    recipe, folder = tiniest_recipe(place), place / "whole"
    child = Child(place / "answer", *words(recipe, folder))
    done = child.done()
    assert done is not None and done.code == 0, done
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Whole(recipe, folder, size, child.seconds())


def goes_on(whole: Whole, folder: Path) -> str:
    """What is wrong with the run that goes on from what is left, or ""."""
    mine = [path for path in folder.rglob(MINE)]
    done = Child(folder.parent / "answer", *resumed(folder)).done()
    if done is not None and done.code == 2 and "there is no run to resume" in done.err:  # it was struck before it began
        done = Child(folder.parent / "answer", *words(whole.recipe, folder)).done()
    if done is not None and done.code == 2 and "files that are of no run" in done.err:  # named, with what to do
        shutil.rmtree(folder)
        mine, done = [], Child(folder.parent / "answer", *words(whole.recipe, folder)).done()
    if done is None or done.code != 0:
        return f"it does not go on: {done and done.err[-400:]}"
    if figures(folder) != figures(whole.folder):
        return "its figures are others"
    for name in ("metrics.jsonl", "samples.json"):
        if (folder / name).read_bytes() != (whole.folder / name).read_bytes():
            return f"{name} is another one"
    for name in ("judge/reward/model.safetensors", "refl/lora/pytorch_lora_weights.safetensors"):
        ours, theirs = load_file(folder / name), load_file(whole.folder / name)  # the head of a LoRA's is in any order
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in theirs):
            return f"{name} holds other weights"
    if gone := [path for path in mine if not path.is_file() or path.read_text() != "mine"]:
        return f"{gone[0]} is gone"
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != MINE}
    if unlike := left ^ {str(path.relative_to(whole.folder)) for path in whole.folder.rglob("*")}:
        return f"files are left over or lacking: {sorted(unlike)[:4]}"
    return ""


def put_mine(folder: Path) -> None:
    """A user's files in every folder that a run has made so far but for those that are being written."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())] if folder.is_dir() else ():
        if place.name in ("judge", "refl", "references", "samples", "preferences") or place == folder:
            (place / MINE).write_text("mine")


def killed(whole: Whole, folder: Path, share: float, with_: signal.Signals = signal.SIGKILL) -> str:
    child = Child(folder.parent / "answer", *words(whole.recipe, folder))
    if child.reaches(share * whole.seconds):
        os.kill(child.id, with_)
    child.done()
    if (folder / "config.yaml").exists():
        put_mine(folder)
    return goes_on(whole, folder)


def terminated(whole: Whole, folder: Path, share: float) -> str:
    return killed(whole, folder, share, signal.SIGTERM)


def two_runs(whole: Whole, folder: Path, share: float) -> str:
    """A second run on the folder is refused and the first one does not notice."""
    first = Child(folder.parent / "first", *words(whole.recipe, folder))
    busy = first.reaches(share * whole.seconds) and (folder / ".lock").exists()
    second = Child(folder.parent / "second", *resumed(folder)).done()
    if busy and not first.ended() and (second is None or second.code != 2 or "in use by another run" not in second.err):
        return f"the second run was not refused: {second}"
    done = first.done()
    if done is None or done.code != 0:
        return f"the first run ended: {done}"
    return goes_on(whole, folder)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A disk of so many bytes at the folder; what is yielded mounts it anew with other options."""
    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield lambda options: mount("-o", f"remount,{options}", str(folder))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, timeout=60)


def can_mount(place: Path) -> bool:
    try:
        with small_disk(place / "try", 1 << 16):
            return True
    except (OSError, subprocess.SubprocessError):
        return False


def full_disk(whole: Whole, folder: Path, share: float) -> str:
    """The disk has room for a share of what the run writes."""
    with small_disk(folder.parent, max(1 << 12, int(share * whole.size))) as again:
        done = Child(whole.recipe.parent / "answer", *words(whole.recipe, folder)).done()
        if done is None or done.code == 1 or (done.code == 2 and "disk is full" not in done.err):
            return f"it ended: {done and done.err[-400:]}"
        again(f"size={8 * whole.size}")
        return goes_on(whole, folder)


def read_only_disk(whole: Whole, folder: Path, share: float) -> str:
    """The disk can no longer be written."""
    with small_disk(folder.parent, 8 * whole.size) as again:
        child = Child(whole.recipe.parent / "answer", *words(whole.recipe, folder))
        struck = False
        while child.reaches(share * whole.seconds):
            try:
                again("ro")
                struck = True
                break
            except subprocess.CalledProcessError:  # a file is open for writing just now
                share += 0.002
        done = child.done()
        if done is None or done.code == 1 or (done.code == 2 and "can only be read" not in done.err):
            return f"it ended: {done and done.err[-400:]}"
        if struck:
            again("rw")
        return goes_on(whole, folder)


FAULTS: dict[str, Callable[[Whole, Path, float], str]] = {
    "kill -9": killed,
    "SIGTERM": terminated,
    "two runs": two_runs,
    "disk full": full_disk,
    "disk read-only": read_only_disk,
}
NEEDS_MOUNT = ("disk full", "disk read-only")


def cell(kind: str, whole: Whole, place: Path, share: float) -> str:
    """What is wrong with a cell, or ""."""
    folder = place / "run"
    place.mkdir(parents=True)
    try:
        return FAULTS[kind](whole, folder, share)
    except AssertionError as error:
        return str(error)[-600:]
