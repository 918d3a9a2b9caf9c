"""Other trainers' own code, out of a folder of their clones: it runs as it stands in their files, in this process."""

from __future__ import annotations

import ast
import sys
import textwrap
import types
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from rewarddance.errors import InputError


class Clone(NamedTuple):
    """url, commit: where a peer's code is, and the state that was measured. holds: a file by which it is known."""

    url: str
    commit: str
    holds: str


CLONES = {
    "flow_grpo": Clone(
        "https://github.com/yifan123/flow_grpo", "ac4c86e8cae021841f1fde853d340e0db67690dd", "scripts/train_sd3.py"
    ),
    "DiffusionNFT": Clone(
        "https://github.com/NVlabs/DiffusionNFT", "24af5554898d85e93efa492f42b5e9cdf4156e9b",
        "scripts/train_nft_sd3.py",
    ),
    "Flow-Factory": Clone(
        "https://github.com/X-GenGroup/Flow-Factory", "a0b2bc5a2b4fbf9125429b3fb70c0c5d7631047c",
        "src/flow_factory/trainers/grpo.py",
    ),
    "ImageReward": Clone(
        "https://github.com/THUDM/ImageReward", "c1392c6dd0fd6ecd6d416c96959ab744a6d0a8fb", "ImageReward/ReFL.py"
    ),
}  # fmt: skip


def clone_of(name: str, peers: Path) -> Path:
    """The folder of a peer's clone among those in `peers`. Raises InputError where it is absent, with how to get it."""
    url, commit, holds = CLONES[name]
    place = peers / name
    if not (place / holds).is_file():
        raise InputError(
            f"the clone of {name} is absent: there is no {place / holds}.",
            f"git clone {url} {place} && git -C {place} checkout {commit}",
        )
    return place


def package_of(name: str, folder: Path, *modules: str) -> list[Any]:
    """Modules of a package that has no name of its own: flow_grpo and DiffusionNFT both call theirs flow_grpo."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    return [import_module(f"{name}.{module}") for module in modules]


def lines_between(script: Path, begin: str, end: str) -> str:
    """A script's lines from the first that holds `begin` to the last before one that holds `end`, moved to the left.

    Raises InputError where they are not in it.
    """
    lines = script.read_text(encoding="utf-8").split("\n")
    first = next((number for number, line in enumerate(lines) if begin in line), len(lines))
    last = next((number for number in range(first + 1, len(lines)) if end in lines[number]), None)
    if last is None:
        raise InputError(f"{script} has no lines from {begin!r} to {end!r}.", "Check out the commit that was measured.")
    return textwrap.dedent("\n".join(lines[first:last]))


def definitions(script: Path, names: Sequence[str]) -> str:
    """The functions of a script with these names, as they are written there."""
    source = script.read_text(encoding="utf-8")
    found = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    return "\n\n".join(ast.get_source_segment(source, found[name]) or "" for name in names)


class Silent:
    """In place of a tracker: whatever is called on it does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **named: None
