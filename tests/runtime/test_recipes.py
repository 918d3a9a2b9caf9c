"""A typo in a recipe never passes in silence: the key, the file and the remedy are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, model_validator

from rewarddance.errors import InputError
from rewarddance.runtime.config import Recipe, keep_recipe, load_recipe, parse_recipe, save_recipe


class Inner(Recipe):
    steps: int = Field(10, ge=1)
    rate: float = 0.1
    window: tuple[float, float] = (0.5, 1.0)


class Outer(Recipe):
    seed: int
    name: str = "run"
    folder: Path | None = None
    inner: Inner = Inner()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 3\ninner:\n  steps: 20\n")
    return path


def refused(file: Path, *overrides: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_recipe(Outer, file, overrides)
    assert caught.value.remedy
    return caught.value


def test_what_the_file_leaves_out_has_its_default(file):
    assert load_recipe(Outer, file) == Outer(seed=3, inner=Inner(steps=20))


def test_overrides_reach_nested_keys_and_go_before_the_file(file):
    found = load_recipe(
        Outer, file, ["inner.steps=7", "inner.window=[0.2, 0.9]", "name=null hypothesis", "inner.rate=1e-4"]
    )
    assert found == Outer(seed=3, name="null hypothesis", inner=Inner(steps=7, rate=1e-4, window=(0.2, 0.9)))


def test_an_override_may_open_a_section_that_the_file_does_not_have(tmp_path):
    (tmp_path / "r.yaml").write_text("seed: 1\n")
    assert load_recipe(Outer, tmp_path / "r.yaml", ["inner.rate=2"]).inner == Inner(rate=2)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [("seed: 1\nname: a\nseed: 2\n", "'seed'", 3), ("seed: 1\ninner:\n  rate: 1\n  rate: 2\n", "'rate'", 4)],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path, text, key, line):
    (tmp_path / "r.yaml").write_text(text)
    error = refused(tmp_path / "r.yaml")
    assert f"{key} stands twice" in error.what and f"line {line}" in error.what


def test_an_empty_file_is_a_recipe_of_defaults(tmp_path):
    (tmp_path / "r.yaml").write_text("# nothing\n")
    assert load_recipe(Inner, tmp_path / "r.yaml") == Inner()


def test_a_saved_recipe_is_whole_and_reads_back(file, tmp_path):
    recipe = load_recipe(Outer, file, ["folder=/some/where"])
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(Outer, tmp_path / "saved.yaml") == recipe
    assert "window:" in (tmp_path / "saved.yaml").read_text()


def test_a_recipe_cannot_be_changed(file):
    with pytest.raises(Exception, match="frozen"):
        load_recipe(Outer, file).seed = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ("sede=1", "sede", "seed"),
        ("inner.step=1", "inner.step", "inner.steps"),
        ("inner.rates=1", "inner.rates", "inner.rate"),
        ("steps=1", "steps", "inner.steps"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(file, override, key, near):
    error = refused(file, override)
    assert error.what == f"unknown key {key!r} in {file}."
    assert error.remedy == f"Did you mean {near!r}?"


def test_an_override_that_stands_twice_is_refused(file):
    with pytest.raises(InputError, match="the override of seed is given twice"):
        load_recipe(Outer, file, ["seed=1", "seed=2"])


def test_an_unknown_key_in_the_file_is_refused_too(file):
    file.write_text("seed: 3\nname: x\nnmae: y\n")
    assert refused(file).what == f"unknown key 'nmae' in {file}."


def test_an_unknown_key_near_to_none_is_refused_with_the_keys_of_its_level(file):
    assert refused(file, "inner.xyzzy=1").remedy == "Known keys here: inner.steps, inner.rate, inner.window."
    assert refused(file, "xyzzy=1").remedy == "Known keys here: seed, name, folder, inner."


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=many", "seed"),
        ("seed=1.5", "seed"),
        ("inner.steps=0", "inner.steps"),
        ("inner.window=[1]", "inner.window.1"),
        ("inner.window=[a, 1]", "inner.window.0"),
        ("inner=3", "inner"),
        ("name=[1]", "name"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(file, override, key):
    assert (
        f"the key {key!r} in {file}" in refused(file, override).what
        or f"the key {key!r} is missing" in refused(file, override).what
    )


def test_a_missing_key_is_refused_by_name(file):
    file.write_text("name: x\n")
    assert refused(file).what == f"the key 'seed' is missing in {file}."


@pytest.mark.parametrize("override", ["steps", "=3", ""])
def test_an_override_that_is_none_is_refused_with_its_form(file, override):
    error = refused(file, override)
    assert repr(override) in error.what and "seed=1" in error.remedy


def test_an_override_below_a_value_is_refused(file):
    assert refused(file, "seed.x=3").what == "the override 'seed.x=3' goes below 'seed', which is a value."


def test_an_override_whose_value_is_not_yaml_is_refused(file):
    assert "'name=[1' is not YAML" in refused(file, "name=[1").what


def test_a_file_that_is_missing_or_a_folder_is_refused_by_name(tmp_path):
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        assert f"the recipe {path} cannot be read" in refused(path).what


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"a: [1", "is not YAML"), (b"- 1", "holds no keys"), (b"[]", "holds no keys"), (b"\xff", "cannot be read")],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    error = refused(path)
    assert str(path) in error.what and said in error.what


def test_a_run_goes_on_only_under_the_recipe_that_it_began_with(tmp_path):
    path = tmp_path / "config.yaml"
    began = Outer(seed=3, inner=Inner(steps=20))
    keep_recipe(began, path)
    keep_recipe(began, path)
    with pytest.raises(InputError, match=r"holds a run with inner\.rate = 0\.1, not 0\.2") as caught:
        keep_recipe(Outer(seed=3, inner=Inner(steps=20, rate=0.2)), path)
    assert "another output" in caught.value.remedy
    assert load_recipe(Outer, path) == began


class Numbered(Recipe):
    at: dict[int, Inner | None]


def test_a_run_whose_recipe_has_numbers_for_keys_goes_on_too(tmp_path):
    path = tmp_path / "config.yaml"
    keep_recipe(Numbered(at={4: None, 16: Inner()}), path)
    keep_recipe(Numbered(at={4: None, 16: Inner()}), path)
    with pytest.raises(InputError, match=r"holds a run with at\.16\.steps = 10, not 20"):
        keep_recipe(Numbered(at={4: None, 16: Inner(steps=20)}), path)


class Either(Recipe):
    which: str = "inner"
    inner: Inner = Inner()
    other: Inner = Inner()

    @model_validator(mode="after")
    def _only_what_is_used(self):
        if self.which == "inner" and self.other != Inner():
            raise ValueError("other says nothing")
        return self


def test_a_run_of_an_older_default_is_refused_by_the_key_that_changed(tmp_path):
    path = tmp_path / "config.yaml"
    save_recipe(Either(), path)
    path.write_text(path.read_text().replace("rate: 0.1", "rate: 0.2"))
    with pytest.raises(InputError, match=r"holds a run with inner\.rate = 0\.2, not 0\.1"):
        keep_recipe(Either(), path)


def test_a_runs_recipe_that_cannot_be_read_is_refused_by_its_fault(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("which: inner\nwhich: inner\n")
    with pytest.raises(InputError, match="stands twice"):
        keep_recipe(Either(), path)


def test_keys_of_a_section_that_do_not_go_together_are_named_by_it(tmp_path):
    class Pair(Recipe):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _rises(self):
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    class Whole(Recipe):
        pair: Pair = Pair()

    (tmp_path / "r.yaml").write_text("pair: {low: 3, high: 2}\n")
    with pytest.raises(InputError) as caught:
        load_recipe(Whole, tmp_path / "r.yaml")
    assert caught.value.what == f"pair of {tmp_path / 'r.yaml'} cannot be used: low is above high."


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "true", "false"])
@pytest.mark.parametrize("key", ["seed", "inner.rate"])
def test_a_number_is_finite_and_no_truth(tmp_path, key, value):
    (tmp_path / "r.yaml").write_text("seed: 3\n")
    with pytest.raises(InputError, match=f"the key '{key}'"):
        load_recipe(Outer, tmp_path / "r.yaml", [f"{key}={value}"])


def test_a_list_or_a_mapping_is_asked_for_in_yamls_words(tmp_path):
    class Lists(Recipe):
        names: tuple[str, ...] = ()
        on: bool = False
        inner: Inner = Inner()

    (tmp_path / "r.yaml").write_text("names: wandb\n")
    with pytest.raises(InputError, match=r"'wandb': input should be a list, such as \[a, b\]\."):
        load_recipe(Lists, tmp_path / "r.yaml")
    with pytest.raises(InputError, match="input should be a mapping, such as"):
        load_recipe(Lists, tmp_path / "r.yaml", ["names=[]", "inner=3"])
    assert load_recipe(Lists, tmp_path / "r.yaml", ["names=[]", "on=true"]).on is True


def test_a_recipe_under_which_nothing_was_made_gives_way(tmp_path):
    keep_recipe(Outer(seed=3), tmp_path / "config.yaml")
    keep_recipe(Outer(seed=4), tmp_path / "config.yaml", binding=False)
    assert load_recipe(Outer, tmp_path / "config.yaml").seed == 4


class Short(Recipe):
    steps: int = 1
    reach: int = 1


class Named(Recipe):
    weight: float = 1.0
    judge: str = ""


class Sections(Recipe):
    short: Short = Short()
    long: Inner = Inner()
    named: dict[str, Named] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        ({"short": {"rate": 1}}, "a key of long"),
        ({"rate": 1}, "Did you mean 'long.rate'"),
        ({"steps": 1}, "short.steps, long.steps"),
        ({"named": {"mine": {"judg": "x"}}}, "Did you mean 'named.mine.judge'?"),
        ({"named": {"mine": {"colour": "x"}}}, "Known keys here: named.mine.weight, named.mine.judge."),
        ({"weight": 2}, "Did you mean 'named.<name>.weight'?"),
    ],
)
def test_a_key_of_another_section_is_said_to_be_one(content, remedy):
    with pytest.raises(InputError) as caught:
        parse_recipe(Sections, content, "the test")
    assert remedy in caught.value.remedy


class OneOrNone(Recipe):
    part: Short | None = None


def test_keys_of_a_section_that_may_be_left_out_are_known():
    with pytest.raises(InputError) as caught:
        parse_recipe(OneOrNone, {"part": {"xyzzy": 1}}, "the test")
    assert "part.reach" in caught.value.remedy and "part.steps" in caught.value.remedy


def test_what_does_not_fit_is_said_without_a_models_names():
    with pytest.raises(InputError) as caught:
        parse_recipe(Sections, {"short": 3}, "the test")
    assert "mapping" in caught.value.what and "short" in caught.value.what and "nstance" not in caught.value.what


BROKEN = {
    "a: [1\nb: 2\n": "line 2, column 2: expected ',' or ']'",
    "\tseed: 0\n": "line 1, column 1: found character",
    "seed: 1\nname: !secret x\n": "line 2, column 7: could not determine a constructor",
    "seed: 1\nname: 2024-13-45\n": "line 2, column 7: month must be in 1..12",
    "seed: 1\nname: a\x07b\n": "line 2, column 8: the character #x0007",
    "seed: 1\ninner: &a {b: *a}\n": "line 2, column 8: an alias leads back to itself",
    "seed: " + "[" * 300 + "]" * 300: "nested more than",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: repr(text[:30]))
def test_what_is_no_yaml_is_told_in_one_line_with_its_place(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    error = refused(tmp_path / "r.yaml")
    assert BROKEN[text] in error.what and "r.yaml" in error.what and "\n" not in error.what


class Places(Recipe):
    output: Path | None = None
    tests: dict[str, Path] = Field(default_factory=dict)
    files: tuple[Path, ...] = ()


@pytest.mark.parametrize(
    "content", [{"output": ""}, {"output": " "}, {"output": "a\0b"}, {"tests": {"id": ""}}, {"files": ["a", ""]}]
)
def test_an_empty_path_is_not_the_current_folder(content):
    (key,) = content
    with pytest.raises(InputError, match=f"{key}.*names no file or folder"):
        parse_recipe(Places, content, "the test")
    assert parse_recipe(Places, {"output": ".", "files": ["a"]}, "the test").files == (Path("a"),)


def test_a_key_of_the_wrong_kind_is_said_in_plain_words():
    with pytest.raises(InputError, match=r"the key 'at\.many' in the test cannot be one") as caught:
        parse_recipe(Numbered, {"at": {"many": None}}, "the test")
    assert "[key]" not in caught.value.what


class Training(Recipe):
    preferences: Path
    judge: Inner = Inner()


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("seeds: [0]\npreferences: {pairs: 2}\n", "python -m experiments"),
        ("preferences: {pairs: 2}\njudge: {}\nrefl: {}\n", "rewarddance quickstart --recipe"),
        ("generator: x\nprompts: y\n", "rewarddance align"),
        ("generator: x\nprompts: y\nbudget: z\n", "rewarddance search"),
    ],
)
def test_a_recipe_of_another_command_is_said_to_be_one(tmp_path, text, command):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=f"looks like a recipe of `{command}`"):
        load_recipe(Training, tmp_path / "r.yaml")


def test_a_recipe_of_this_command_is_never_called_anothers(tmp_path):
    (tmp_path / "r.yaml").write_text("preferences: x\njudge: {step: 1}\n")
    with pytest.raises(InputError, match=r"^unknown key 'judge.step'"):
        load_recipe(Training, tmp_path / "r.yaml")


def test_a_key_that_is_unknown_is_named_before_one_that_is_missing(tmp_path):
    (tmp_path / "r.yaml").write_text("sede: 3\n")
    error = refused(tmp_path / "r.yaml")
    assert error.what.startswith("unknown key 'sede'") and error.remedy == "Did you mean 'seed'?"


class Numbers(Recipe):
    count: int = 1
    rate: float = 0.1
    span: tuple[float, float] = (0.0, 1.0)


@pytest.mark.parametrize("content", [{"count": 10**30}, {"rate": 1e300}, {"rate": "1e300"}, {"span": [0, -1e39]}])
def test_a_number_that_no_tensor_holds_is_refused_by_its_key(content):
    (key,) = content
    with pytest.raises(InputError, match=f"the key '{key}'.* larger than what can be computed with"):
        parse_recipe(Numbers, content, "the test")
    assert parse_recipe(Numbers, {"count": 2**62, "rate": 1e38}, "the test").rate == 1e38
