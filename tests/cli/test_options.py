"""A command's options are its recipe's fields: the same names, help, defaults and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from pydantic import Field
from tiny import command
from typer.testing import CliRunner

from rewarddance.cli.options import recipe_command
from rewarddance.errors import InputError
from rewarddance.runtime.config import Recipe


class Exam(Recipe):
    seed: int = 0


class Toy(Recipe):
    """What the command is told."""

    source: Path
    """A folder."""
    output: Path
    """The file to write."""
    kind: Literal["pairwise", "clip"] | None = None
    """Kind of judge."""
    decode: bool = True
    """Decode all."""
    explain: bool = False
    """With reasons."""
    batch_size: int = Field(default=32, ge=1)
    """Rows asked together."""
    generator_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the generator."""
    exam: Exam = Exam()


def run(*words: str) -> tuple[Any, list[Toy]]:
    app, heard = typer.Typer(), []

    @recipe_command(app, Toy, arguments=("source",), example="toy pictures --output scores.jsonl")
    def toy(recipe: Toy) -> None:
        """Score a folder."""
        heard.append(recipe)

    app.command()(lambda: None)  # a second command, so that the first is named
    return CliRunner().invoke(app, ["toy", *words], env={"COLUMNS": "200"}), heard


def test_what_is_not_given_is_the_recipes_default():
    assert run("pictures", "--output", "a.jsonl")[1] == [Toy(source=Path("pictures"), output=Path("a.jsonl"))]


def test_each_kind_of_field_is_read():
    words = ["--output", "a", "--kind", "clip", "--no-decode", "--explain", "--batch-size", "4"]
    words += ["--generator-options", "height=64"]
    _, (recipe,) = run("pictures", "exam.seed=3", *words, "--generator-options", "sizes=[1, 2]")
    assert (recipe.kind, recipe.decode, recipe.explain, recipe.batch_size) == ("clip", False, True, 4)
    assert recipe.generator_options == {"height": 64, "sizes": [1, 2]} and recipe.exam.seed == 3


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--batch-size", "0"], "batch_size"), (["--kind", "best"], "kind"), (["exam.sed=1"], "exam.sed")],
)
def test_a_bad_value_is_refused_by_the_recipe_and_named(words, named):
    result, heard = run("pictures", "--output", "a", *words)
    assert isinstance(result.exception, InputError) and named in result.exception.what and not heard


def test_help_shows_names_words_and_defaults():
    text = " ".join(run("--help")[0].output.split())
    for part in ("Score a folder.", "--batch-size", "Default: 32.", "One of: pairwise, clip.", "--no-decode"):
        assert part in text


def test_help_wraps_the_paragraphs_of_a_docstring_anew(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.strip() for line in command("annotate", "--help").out.splitlines()]
    assert '"image" (what both were made from) if wanted, or {"prompt", "candidate",' in lines


EMPTY = {
    "score": ["x", "--judge", "j", "--output", ""],
    "search": ["x", "--generator", "g", "--judge", "j", "--budget", "samples=1", "--output", " "],
    "evaluate": ["j", "--tests", "id=x.jsonl", "--output", ""],
    "bench": ["tifa", "x", "--pictures", "p", "--judge", "j", "--output", ""],
    "export": ["j", ""],
    "distil": ["x", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--output", ""],
    "annotate": ["x", "--store", ""],
    "quickstart": ["--output", ""],
    "bases": ["judge", "--output", ""],
    "data import": ["hpdv3", "x.json", "--output", ""],
    "data weigh": ["x.jsonl", "--output", ""],
    "votes export": ["x.sqlite", "--output", ""],
    "votes report": ["x.sqlite", "--output", ""],
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_output_is_refused_by_every_command(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command(*name.split(), *EMPTY[name])
    assert done.code == 2 and not list(tmp_path.iterdir())
    assert "names no file or folder" in done.err or "a path of the command line is empty" in done.err, done.err


@pytest.mark.parametrize("name", ["train", "align", "references"])
def test_an_empty_output_of_a_recipe_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = "preferences: p\n" if name == "train" else "generator: g\njudge: j\nprompts: p\n"
    (tmp_path / "r.yaml").write_text(f"{first}output: ''\n")
    done = command(name, tmp_path / "r.yaml")
    assert done.code == 2 and "'output'" in done.err and [*tmp_path.iterdir()] == [tmp_path / "r.yaml"]
