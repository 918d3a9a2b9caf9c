"""The runner: every cell once, the same after a kill, refused under another recipe; tables over seeds."""

from __future__ import annotations

import json
import re
from importlib import import_module
from itertools import product
from typing import Any

import pytest
from tiny_grid import experiment, project_recipe

from experiments import __main__ as commands
from experiments.grid import Cell, Experiment, Report, Row, Rows, TimedRow, check_folder_names, time_left
from experiments.tables import Column, Group, common, gained, over_seeds, paired, plain, points, results, table
from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval
from rewarddance.runtime.config import Recipe, load_recipe


class CountRecipe(Recipe):
    seeds: tuple[int, ...] = (0, 1)
    names: tuple[str, ...] = ("a", "b")
    base: str = "shapeworld-judge"


class Count(TimedRow):
    name: str
    value: float


class Extra(Row):
    what: str


class Beside(Row):
    name: str
    note: str


class Speed(Row):
    each: float


class Counting(Experiment[CountRecipe]):
    """Counts what was prepared and measured; killed at the cell `kill`."""

    name, recipe_kind, row_kinds, counted = "counting", CountRecipe, Count | Extra | Beside | Speed, Count
    of_machine = (Speed,)
    calls: list[Any]
    kill: Any = None

    def checkpoints(self) -> list[str]:
        return [self.recipe.base]

    def cells(self) -> list[Cell]:
        cells = [Cell(Count, {"seed": s, "name": n}) for s, n in product(self.recipe.seeds, self.recipe.names)]
        return [*cells, Cell(Extra, {"seed": self.recipe.seeds[0], "what": "end"})]

    def prepare(self, group: int) -> str:
        self.calls.append(group)
        return f"of seed {group}"

    def measure(self, cell: Cell, shared: str) -> Row:
        assert shared == f"of seed {cell.key['seed']}"
        if tuple(cell.key.values()) == self.kill:
            raise KeyboardInterrupt
        self.calls.append(tuple(cell.key.values()))
        if cell.kind is Extra:
            return Extra(**cell.key)
        return Count(**cell.key, value=cell.key["seed"] / 2, seconds=90)

    def report(self) -> Report:
        return Report(f"{len(self.rows.of(Count))} counts\n", {"names": ["a"]}, {"counting.svg": "<svg/>"})


@pytest.fixture
def run(tmp_path):
    def run(kill: Any = None, **keys: Any) -> tuple[list[Any], str]:
        counting = Counting(CountRecipe(**keys), tmp_path / "out")
        counting.calls, counting.kill = [], kill
        try:
            return counting.calls, counting.run()
        except KeyboardInterrupt:
            return counting.calls, (tmp_path / "out" / "counting.md").read_text()

    return run


def test_a_group_is_prepared_once_and_every_cell_is_measured_once(run, tmp_path, capsys):
    calls, text = run()
    assert calls == [0, (0, "a"), (0, "b"), 1, (1, "a"), (1, "b"), (0, "end")]
    assert text == "4 counts\n" == (tmp_path / "out" / "counting.md").read_text()
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == {"cells": 4, "done": 4, "names": ["a"]}
    assert (tmp_path / "out" / "counting.svg").read_text() == "<svg/>"
    told = capsys.readouterr().err
    assert "2 of 4: seed 0, b (about 4 min 30 s left)" in told and "seed 0, end" in told


def test_a_run_that_was_killed_goes_on_and_a_finished_one_does_nothing(run, tmp_path):
    calls, text = run(kill=(1, "a"))
    assert calls == [0, (0, "a"), (0, "b"), 1] and text == "Unfinished: 2 of 4 cells.\n\n2 counts\n"
    assert run()[0] == [1, (1, "a"), (1, "b"), 0, (0, "end")]
    before = (tmp_path / "out" / "rows.jsonl").read_bytes()
    assert run() == ([], "4 counts\n") and (tmp_path / "out" / "rows.jsonl").read_bytes() == before


def test_a_new_folder_begins_with_rows_that_were_measured_before(run, tmp_path, capsys):
    run(kill=(1, "a"))
    (tmp_path / "out" / "rows.jsonl").rename(tmp_path / "before.jsonl")
    counting = Counting(CountRecipe(), tmp_path / "new", tmp_path / "before.jsonl")
    counting.calls = []
    assert counting.run() == "4 counts\n" and counting.calls == [1, (1, "a"), (1, "b"), 0, (0, "end")]
    again = Counting(CountRecipe(), tmp_path / "new", tmp_path / "before.jsonl")
    assert len(again.rows.all) == 5  # its own, not those it began with
    fewer = Counting(CountRecipe(names=("b",)), tmp_path / "fewer", tmp_path / "before.jsonl")
    assert [(row.seed, row.name) for row in fewer.rows.of(Count)] == [(0, "b")]  # of a cell of this recipe
    assert "of no cell of this recipe, or of the machine alone: 1" in " ".join(capsys.readouterr().err.split())
    told = [Beside(seed=0, name="b", note="kept"), Beside(seed=0, name="c", note=""), Speed(seed=0, each=2.0)]
    with (tmp_path / "before.jsonl").open("a") as file:
        file.writelines(row.model_dump_json() + "\n" for row in told)
    rows = Counting(CountRecipe(), tmp_path / "beside", tmp_path / "before.jsonl").rows.all
    assert [row.note for row in rows if isinstance(row, Beside)] == ["kept"] and len(rows) == 3
    (tmp_path / "before.jsonl").write_text('{"seed": 0}\n')
    with pytest.raises(InputError, match=r"before.jsonl cannot be read: .*Give another file"):
        Counting(CountRecipe(), tmp_path / "newer", tmp_path / "before.jsonl")
    with pytest.raises(InputError, match=r"there is no file of rows .*nothing.jsonl"):
        Counting(CountRecipe(), tmp_path / "newest", tmp_path / "nothing.jsonl")


def test_another_recipe_in_the_same_folder_is_refused(run):
    run()
    with pytest.raises(InputError, match=r"names = \['a', 'b'\], not \['a'\]"):
        run(names=("a",))


def test_a_missing_checkpoint_is_refused_before_anything_is_done(run, tmp_path):
    with pytest.raises(InputError, match="no-such-judge"):
        run(base="no-such-judge")
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"seed": 0}\n')
    with pytest.raises(InputError, match=r"rows.jsonl cannot be read: what: Field required"):
        Rows(tmp_path, Extra)


def test_the_time_left_is_that_of_the_same_cell_under_another_seed():
    done = [Count(seed=0, name="a", value=0, seconds=30), Count(seed=0, name="b", value=0, seconds=90)]
    left = [Cell(Count, {"seed": 1, "name": "a"}), Cell(Count, {"seed": 1, "name": "new"})]
    assert time_left(done, left) == " (about 1 min 30 s left)" and time_left([], left) == ""


def test_a_name_that_cannot_be_a_folders_is_refused():
    with pytest.raises(ValueError, match="'a/b' is to be the name of a folder"):
        check_folder_names(["a", "a/b"])


def counts(name: str, **values: float) -> list[Count]:
    return [Count(seed=int(seed[1:]), name=name, value=value, seconds=1) for seed, value in values.items()]


def test_differences_are_of_the_seeds_that_both_have():
    before, after = counts("a", s0=0.1, s1=0.2), counts("b", s1=0.5, s2=0.9)
    assert [(old.seed, new.seed) for old, new in common(before, after)] == [(1, 1)]
    gain = paired(before, after, lambda row: [row.value, row.value])
    assert gain is not None and gain.mean == pytest.approx(0.3)
    assert paired(before, counts("c", s7=1), lambda row: [row.value]) is None


def test_a_table_is_written_from_its_columns_as_markdown_and_as_json():
    columns: list[Column[Group[Count]]] = [
        Column("name", lambda group: group.name),
        Column("", lambda group: group.seeds, key="seeds"),
        Column("its value", lambda group: over_seeds([row.value] for row in group.rows), points, "value"),
    ]
    rows = counts("a", s1=0.5, s0=0.5)
    lines = [Group("a", rows, rows)]
    assert table(columns, lines) == "| name | its value |\n|---|---|\n| a | 50.0 [50.0, 50.0] |\n"
    figure = {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 2}
    assert results(columns, lines) == [{"name": "a", "seeds": [0, 1], "value": figure}]
    assert gained(Interval(0.05, -0.1, 0.2, 9)) == "+5.0 [−10.0, +20.0]" and gained(None) == points(None) == ""
    assert plain({"a": [Interval(0, 0, 0, 1), rows[0]]})["a"][0]["n"] == 1


RECIPES = sorted(project_recipe("search").parent.glob("*.yaml"))
NAMES = [*commands.GRIDS, "seeds", "gradient"]


@pytest.mark.parametrize("name", NAMES)
def test_every_experiments_help_shows_an_example(name):
    done = experiment(name, "--help")
    assert done.code == 0 and f"python -m experiments {name}" in done.out


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_read_by_the_command_in_its_head(path):
    name, file = re.search(r"python -m experiments (\w+) (\S+)", path.read_text()).groups()  # type: ignore[union-attr]
    assert file == f"recipes/experiments/{path.name}"
    load_recipe(import_module(f"experiments.{name}").EXPERIMENT.recipe_kind, path)


def test_the_help_names_every_experiment_and_where_to_run_it():
    done = experiment("--help")
    assert done.code == 0 and all(name in done.out for name in NAMES)
    assert "root of the repository" in " ".join(done.out.split())


def test_a_recipe_of_another_experiment_is_said_to_be_one(tmp_path):
    done = experiment("algorithms", project_recipe("pareto"), "--output", tmp_path / "x")
    assert done.code == 2 and "is a recipe of the experiment pareto" in done.err and "experiments pareto" in done.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["algorithms", "hacking", "pareto", "references", "scaling"])
def test_a_seed_that_stands_twice_is_refused_by_every_experiment(name, tmp_path):
    done = experiment(name, project_recipe(name), "seeds=[3, 1, 3]", "--output", tmp_path / "x")
    assert done.code == 2 and "'seeds'" in done.err and "a seed stands twice" in done.err
    assert not (tmp_path / "x").exists()
