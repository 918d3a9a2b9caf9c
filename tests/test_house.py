"""The house keeps its promises: quick to import, light to install, and every file on the map."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rewarddance.types import Verdict

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "diffusers")


def python(*arguments: str) -> str:
    """The standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_rewarddance_is_quick_and_loads_no_heavy_library():
    code = (
        "import sys, time; start = time.perf_counter(); import rewarddance; print(time.perf_counter() - start);"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    runs = [python("-c", code).split("\n") for _ in range(3)]
    assert runs[0][1] == "", f"import rewarddance loads {runs[0][1]}"
    assert min(float(seconds) for seconds, *_ in runs) < 0.3


def test_judges_are_trained_and_asked_without_what_only_a_generator_or_a_lora_needs():
    code = (
        "import sys, rewarddance.jobs.train, rewarddance.jobs.evaluate, rewarddance.jobs.score;"
        "print(*[name for name in ('diffusers', 'peft', 'scipy.stats') if name in sys.modules])"
    )
    assert python("-c", code) == "\n"


def test_the_command_line_answers_help_in_under_a_second():
    def seconds() -> float:
        """Of the processor, which other work does not lengthen much."""
        before = os.times()
        assert "Usage" in python("-m", "rewarddance", "--help")
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 1.0


def installed_with(requirements: list[str]) -> set[str]:
    """The names of all packages that come with `requirements` on this machine, extras followed."""
    extras_of: dict[str, set[str]] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), {"", *wanted.extras}
        if extras <= extras_of.get(name, set()):
            continue
        extras_of[name] = extras | extras_of.get(name, set())
        try:
            needs = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:  # asked for and not here: its name still counts
            continue
        waiting += [
            need
            for need in needs
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras_of[name])
        ]
    return set(extras_of)


def test_no_dependency_pulls_torchvision():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = installed_with(project["dependencies"] + project["optional-dependencies"]["dev"])
    assert {"torch", "transformers", "huggingface-hub"} <= names  # the walk goes below the first floor
    assert not names & {"torchvision", "timm"}


def test_the_constraints_name_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pinned}
    asked = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    for need in asked:
        assert need.specifier.contains(versions[canonicalize_name(need.name)]), f"constraints.txt breaks {need}"


def test_a_wrong_shape_in_a_signature_is_caught_while_testing():
    Verdict(margin=torch.zeros(2))
    with pytest.raises(TypeCheckError):
        Verdict(margin=torch.zeros(2, 2))
