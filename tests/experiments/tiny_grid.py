"""What the tests of experiments share: the command, and recipes as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import yaml

from experiments.__main__ import app
from experiments.grid import Row, Rows
from rewarddance.cli.app import recipe_file


def experiment(*arguments: str | Path) -> tiny.Done:
    """What `python -m experiments ARGUMENTS` leaves."""
    return tiny.command(*arguments, commands=app)


def write_recipe(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def project_recipe(name: str) -> Path:
    """The recipe of an experiment that comes along."""
    return recipe_file(f"experiments/{name}.yaml")


def rows_of(folder: Path, kinds: Any) -> list[dict[str, Any]]:
    """The rows of a folder without their times."""
    return [row.model_dump(exclude={"seconds", "training_seconds"}) for row in Rows(folder, kinds).all]


def with_rows(experiment: type[Any], recipe: Any, folder: Path, rows: list[Row]) -> Any:
    """An experiment that has these rows already."""
    made = experiment(recipe, folder)
    for row in rows:
        made.rows.add(row)
    return made
