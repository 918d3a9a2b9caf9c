"""Every piece of code in README and docs runs as it stands, or, where it needs a GPU or the hub, is checked."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from snippets import ROOT, Snippet, command_lines, pages, snippets
from tiny import built, command

import rewarddance
from experiments.__main__ import app as experiments_app
from rewarddance.alignment.recipe import AlignRun
from rewarddance.cli.app import app
from rewarddance.jobs.quickstart import QuickstartRecipe
from rewarddance.jobs.train import TrainRun
from rewarddance.runtime.config import load_recipe

LANGUAGES = {"python", "sh", "json", "yaml", "text"}
SMALLER = {
    "steps=200": "steps=1, references={'candidates': 2}, prompts_per_step=2",
    "steps=170": "steps=1, references={'candidates': 2}",
    "steps=100, learning_rate=8e-4": "steps=1, references={'candidates': 2}, prompts_per_step=2",
    "steps=100": "steps=1",
    'held_out="shapeworld-judge-small"': "references={'candidates': 2}, held_out='shapeworld-judge-small'",
    "epochs=4": "epochs=1",
    "num_inference_steps=12": "num_inference_steps=3",
    "--num-inference-steps 12": "--num-inference-steps 3",
    "samples=16": "samples=4",
    '["distance", "held_out", "collapse"]': '["distance"]',  # the others compare more steps than these runs have
}
"""What a page says of sizes, and what the test says in its place."""


def in_page(page: str) -> list[Snippet]:
    found = snippets(page)
    assert {snippet.language for snippet in found} <= LANGUAGES, page
    return found


RUN = [page for page in pages() if any(s.language in ("python", "sh") and not s.reason for s in snippets(page))]


@pytest.mark.parametrize("page", RUN)
def test_the_lines_of_a_page_run_in_their_order(page: str, files: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(files, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    names: dict[str, Any] = {"__name__": "__main__"}
    for snippet in in_page(page):
        if snippet.reason:
            continue
        text = snippet.text
        for stands, said in SMALLER.items():
            text = text.replace(stands, said)
        if snippet.language == "python":
            exec(compile("\n" * (snippet.line - 1) + text, snippet.page, "exec"), names)
        elif snippet.language == "sh":
            for words in command_lines(text):
                if words[0] == "rewarddance":
                    done = command(*words[1:])
                    assert done.code == 0, f"{snippet}: {' '.join(words)}\n{done.err}"


@pytest.mark.parametrize("page", pages())
def test_commands_and_recipes_of_a_page_exist_with_their_options(page: str, files: Path, monkeypatch):
    monkeypatch.chdir(files)
    for snippet in in_page(page):
        if snippet.language == "sh":
            for words in command_lines(snippet.text):
                check_command(words, str(snippet))
        elif snippet.language == "json":
            rows = [snippet.text] if snippet.text.startswith("{\n") else snippet.text.splitlines()
            assert all(isinstance(json.loads(row), dict) for row in rows), snippet
        elif snippet.language == "yaml":
            assert isinstance(yaml.safe_load(snippet.text), dict), snippet
        elif snippet.language == "python" and snippet.reason:
            check_python(snippet)


def check_command(words: list[str], where: str) -> None:
    """The command is there, and knows its options; recipes that it names take the keys that it sets."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] in ("torchrun", "accelerate"):
        words = ["rewarddance", *words[words.index("rewarddance") + 1 :]]
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, where
    elif words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.findall(r"\[(\w+)\]", " ".join(words))
        assert set(extras) <= set(project["optional-dependencies"]), where
    elif words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file(), where
    elif words[:3] == ["python", "-m", "experiments"]:
        parse(experiments_app, words[3:], where)
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[3:] if not word.startswith("-")), where
    elif words[0] == "rewarddance":
        parse(app, words[1:], where)
        check_recipe(words[1:])
    else:
        assert words[0] in ("git", "cd", "python"), f"{where}: nobody knows the command {words[0]!r}"


def parse(commands: typer.Typer, words: list[str], where: str) -> None:
    """As the command line reads them, without doing anything."""
    group: Any = built(commands)
    while hasattr(group, "commands"):
        assert words and words[0] in group.commands, f"{where}: there is no command {words[:1]}"
        group, words = group.commands[words[0]], words[1:]
    if "--help" not in words:
        group.make_context(group.name, list(words))


def check_recipe(words: list[str]) -> None:
    """A recipe that the words begin with, or that a quickstart takes, knows the keys that they set."""
    keys = [word for word in words if "=" in word and not word.startswith("--")]
    if words[0] == "quickstart":
        load_recipe(QuickstartRecipe, ROOT / "recipes" / "quickstart.yaml", keys)
    elif words[0] in ("train", "align", "plan") and words[1].startswith("recipes/"):
        path = ROOT / words[1]
        kind: Any = AlignRun if "generator" in yaml.safe_load(path.read_text()) else TrainRun
        load_recipe(kind, path, [key for key in keys if "=" in key] if words[0] != "plan" else keys)


def check_python(snippet: Snippet) -> None:
    """It compiles; what it takes from the package is there; public functions take the arguments that it names."""
    tree = ast.parse(snippet.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rewarddance":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), snippet
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in rewarddance.__all__:
            signature = inspect.signature(getattr(rewarddance, node.func.id))
            if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
                assert {word.arg for word in node.keywords} <= {*signature.parameters}, snippet


def test_what_the_test_says_in_place_of_a_page_stands_on_a_page():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages())
    assert [stands for stands in SMALLER if stands not in text] == []


def test_every_mark_belongs_to_a_snippet():
    for page in pages():
        marks = (ROOT / page).read_text(encoding="utf-8").count("\n<!-- checked, not run:")
        assert marks == sum(bool(snippet.reason) for snippet in snippets(page)), page


def test_the_pages_are_run_where_the_reader_stands():
    assert Path(os.getcwd()) == ROOT and len(RUN) > 10
