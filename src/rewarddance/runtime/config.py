"""Recipes: one YAML a run, dotted overrides on the command line, unknown keys refused by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from rewarddance.errors import InputError, first_line, shown
from rewarddance.runtime.files import DEEPEST, first_twice, read_text

R = TypeVar("R", bound="Recipe")
T = TypeVar("T")
Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""auto: bfloat16 on a GPU that computes in it, float32 elsewhere. Margins are taken in float32 in all of them."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every generator of random numbers takes."""


def _no_keys_of_their_own(options: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError naming one that the recipe or the command has a key for: two might differ."""
    for name in ("num_inference_steps", "guidance_scale", "dtype", "device"):
        if name in options:
            raise ValueError(f"{name} has a key of its own: give it there")
    return options


GeneratorOptions = Annotated[dict[str, Any], AfterValidator(_no_keys_of_their_own)]
"""Further options of `load_generator`."""
LARGEST_RECIPE, _MOST_VALUES = 1 << 22, 100_000
"""Bytes of a recipe, and values in it."""
MOST = 1 << 16
"""Of what is made or kept all at once, such as a step's samples: far more than any run has, and no list of it fills the
memory."""
MOST_WORKERS = 1 << 10
"""Processes or threads that one command starts."""
_LARGEST, _LONGEST = 3.4e38, 2**63 - 1
"""Of float32 and of int64."""
_TOLD_BY = {
    "python -m experiments": {"seeds", "preferences"},
    "rewarddance quickstart --recipe": {"preferences", "refl"},
    "rewarddance search": {"prompts", "budget"},
    "rewarddance align": {"generator", "prompts"},
    "rewarddance train": {"preferences", "judge"},
}
"""Keys by which a recipe is known to be of a command, the first that it has all keys of."""
_NUMBERS = (int, float, int | None, float | None)
_WORDS = {"a valid tuple": "a list, such as [a, b]", "a valid list": "a list, such as [a, b]"}
_WORDS |= {"a valid dictionary": "a mapping, such as {name: value}"}
_WORDS |= {
    "tuple should": "the list should",
    "dictionary should": "the mapping should",
    " after validation, not": ", not",
}
"""pydantic's words, and those of who writes YAML."""
_ANY_NAME = "<name>"
_CLASS = re.compile(r" or instance of \w+| for <class '[\w.]+'>")
"""pydantic names the class that a value becomes."""


class Recipe(BaseModel):
    """A frozen piece of configuration, of finite numbers. Subclasses stand beside the code that uses them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, value: Any, info: Any) -> Any:
        """pydantic takes `batch_size: true` for 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in _NUMBERS:
            raise ValueError("input should be a number, and not true or false")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_paths_that_name_nothing(cls, value: Any, info: Any) -> Any:
        """An empty path would be the folder where one happens to be."""
        if _names_paths(cls.model_fields[str(info.field_name)].annotation):
            several = value.values() if isinstance(value, dict) else value
            for path in several if isinstance(several, Iterable) and not isinstance(several, str) else (several,):
                if isinstance(path, str) and (not path.strip() or "\0" in path):
                    raise ValueError("it names no file or folder")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_what_no_tensor_holds(cls, value: Any) -> Any:
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and abs(number) > (_LARGEST if isinstance(number, float) else _LONGEST):
                raise ValueError("it is larger than what can be computed with")
        return value


def changed(recipe: Recipe, *names: str) -> str | None:
    """The first of these keys whose value is not its default. What a saved recipe holds is no less than what was
    given, so that a key at its default says nothing."""
    fields = type(recipe).model_fields
    given = (name for name in names if getattr(recipe, name) != fields[name].get_default(call_default_factory=True))
    return next(given, None)


def _names_paths(annotation: Any) -> bool:
    return annotation is Path or any(_names_paths(part) for part in get_args(annotation))


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice; yaml's own loader silently keeps the last of them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # a date or number that is none
            raise yaml.constructor.ConstructorError(problem=first_line(error), problem_mark=node.start_mark) from error


def parse_yaml(text: str) -> Any:
    """What a YAML text holds. Raises yaml.YAMLError of one line, with the place, also where its aliases unfold to far
    more than what is written, or lead back to themselves, and where it is nested too deep."""
    try:
        return _constructed(_UniqueKeyLoader(text))
    except yaml.MarkedYAMLError as error:
        raise yaml.YAMLError(f"{_place(error.problem_mark)}{error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line, start = text.count("\n", 0, error.position) + 1, text.rfind("\n", 0, error.position) + 1
        what = f"the character #x{error.character:04x} cannot stand in YAML"
        raise yaml.YAMLError(f"line {line}, column {error.position - start + 1}: {what}") from error


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "


def _constructed(loader: yaml.SafeLoader) -> Any:
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _unfolded(node, {}, 0)
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep") from error
    finally:
        loader.dispose()


def _unfolded(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values a node holds when its aliases are written out."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise yaml.YAMLError(f"{_place(node.start_mark)}an alias leads back to itself")
        return known[id(node)]
    if depth > DEEPEST:
        raise yaml.YAMLError(f"{_place(node.start_mark)}it is nested more than {DEEPEST} deep")
    known[id(node)] = -1
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    count = 1 + sum(_unfolded(child, known, depth + 1) for child in children)
    if count > _MOST_VALUES:
        raise yaml.YAMLError(f"{_place(node.start_mark)}it unfolds to more than {_MOST_VALUES:,} values")
    known[id(node)] = count
    return count


def load_recipe(kind: type[R], path: Path, overrides: Sequence[str] = ()) -> R:
    """Read a recipe and apply `key.path=value` overrides (values are YAML).

    Raises InputError naming the file, the key and the remedy: a missing or broken file, a key that stands twice, an
    unknown key (with the nearest known one), a value of the wrong type.
    """
    content = read_recipe(path, overrides)
    try:
        return parse_recipe(kind, content, str(path))
    except InputError as error:
        if other := _looks_like(content, kind):
            raise InputError(f"{path} looks like a recipe of `{other}`: {error.what}", "Give it to that.") from error
        raise


def read_recipe(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A recipe's keys as its file has them, with overrides, unchecked. Raises InputError where it is no recipe."""
    content = _content(path)
    _apply_all(content, overrides)
    return content


def _content(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, LARGEST_RECIPE)
    except (OSError, ValueError) as error:
        raise InputError(f"the recipe {path} cannot be read: {error}.", "Give the path of a YAML recipe.") from error
    try:
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"the recipe {path} is not YAML: {error}.", "Correct it there.") from error
    if content is None:  # nothing but comments
        return {}
    if not isinstance(content, dict):
        raise InputError(f"the recipe {path} holds no keys.", "A recipe is a YAML mapping such as 'seed: 0'.")
    odd = next((key for key in _keys(content) if not isinstance(key, str) and type(key) is not int), "")
    if odd != "":
        raise InputError(f"the recipe {path} has the key {odd!r}, which is no text.", "Correct or quote it.")
    return content


def _keys(content: Any) -> Iterator[Any]:
    """All keys of mappings within mappings."""
    for key, value in content.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)


def parse_recipe(kind: type[R], content: dict[str, Any], where: str) -> R:
    """Validate a mapping against a recipe model; `where` names its origin in errors."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults: list[Any] = error.errors()
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    missing = [fault for fault in faults if fault["type"] == "missing"]
    if unknown and missing:  # what is missing is often there, under another name
        raise _recipe_error(kind, unknown[0], where)
    raise _recipe_error(kind, faults[0], where)


def _looks_like(content: dict[str, Any], kind: type[BaseModel]) -> str:
    """Of which other command a recipe seems to be, or ""."""
    likely = ((name, keys) for name, keys in _TOLD_BY.items() if keys <= content.keys())
    name, keys = next(likely, ("", set()))
    return "" if keys <= kind.model_fields.keys() else name


def _recipe_error(kind: type[Recipe], fault: Any, where: str) -> InputError:
    """What pydantic found, in the words of who writes a recipe."""
    *above, last = fault["loc"] or ("",)
    key = ".".join(str(part) for part in (above if last == "[key]" else fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return InputError(f"unknown key {shown(key)} in {where}.", _nearest(key, _known_keys(kind)))
    if fault["type"] == "missing":
        return InputError(f"the key {key!r} is missing in {where}.", "Add it.")
    if not key or (fault["type"] == "value_error" and isinstance(fault["input"], dict)):  # how keys go together
        what, which = fault["msg"].removeprefix("Value error, "), f"{key} of {where}" if key else where
        return InputError(f"{which} cannot be used: {what}.", "Correct it.")
    what = _CLASS.sub("", fault["msg"]).removeprefix("Value error, ")
    what = what if fault["type"] == "value_error" else what.lower()
    for theirs, ours in _WORDS.items():
        what = what.replace(theirs, ours)
    if last == "[key]":
        return InputError(f"the key {shown(key)} in {where} cannot be one: {what}.", "Correct it.")
    return InputError(
        f"the key {key!r} in {where} has the value {shown(fault['input'])}: {what}.", "Correct the value."
    )


def _nearest(key: str, known: Sequence[str]) -> str:
    """What to write in the place of an unknown key: one of its own section by preference."""
    section, _, name = key.rpartition(".")
    known = [_named_as_in(key, one) for one in known]
    same_level = [one for one in known if one.rpartition(".")[0] == section]
    siblings = (one.rpartition(".") for one in known if section and one.count(".") == key.count("."))
    if others := [place for place, _, other in siblings if other == name]:
        return f"It is a key of {', '.join(others)}; leave it out here."
    if not section and len(below := [one for one in known if one.partition(".")[2] == name]) > 1:
        return f"It stands in a section: {', '.join(below)}."
    by_name = {one.rpartition(".")[2]: one for one in [*known, *same_level]}
    near = difflib.get_close_matches(name, by_name, n=1)
    return f"Did you mean {by_name[near[0]]!r}?" if near else f"Known keys here: {', '.join(same_level)}."


def _named_as_in(key: str, known: str) -> str:
    """A known key with the name that `key` gives to the section that both are in."""
    ours, theirs = key.split("."), known.split(".")
    place = theirs.index(_ANY_NAME) if _ANY_NAME in theirs else len(ours)
    if ours[:place] == theirs[:place] and place < len(ours):
        theirs[place] = ours[place]
    return ".".join(theirs)


def parse_file(path: Path, parse: Callable[[bytes], T], remedy: str) -> T:
    """What `parse`, a pydantic model's reader of JSON, makes of a file's bytes.

    Raises InputError that names the file and the first thing that is wrong in it.
    """
    try:
        return parse(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path} cannot be read: {key}: {first['msg']}.", remedy) from None


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping that `key.path=value` overrides make by themselves. Raises InputError naming one that is none."""
    content: dict[str, Any] = {}
    _apply_all(content, overrides)
    return content


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the whole recipe, defaults included, as YAML."""
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def keep_recipe(
    recipe: Recipe,
    path: Path,
    binding: bool = True,
    free: Collection[str] = (),
    only: Collection[str] | None = None,
) -> None:
    """Write the recipe of a run, or make sure that the run being continued has this very one.

    binding: something was made under the recipe that is there; where nothing was, another may take its place. free: the
    last names of keys that may change within a run, since what is made does not depend on them; only: the first names
    of those on which what was made depends, where that is not all. Raises InputError naming the first key that differs:
    what was made under another recipe is never taken up silently, and another kind of run never written over. A file
    that is no recipe any more (a default has changed since, a key is gone) is compared as it is written.
    """
    if not binding:
        check_kind(type(recipe), path)
    elif path.exists():
        now = flatten(recipe.model_dump(mode="json"))
        try:
            before = flatten(load_recipe(type(recipe), path).model_dump(mode="json"))
        except InputError:
            before = now | flatten(_content(path))
            if before == now:
                raise
        bound = [key for key in now | before if key.rpartition(".")[2] not in free]
        bound = [key for key in bound if only is None or key.partition(".")[0] in only]
        changed = [key for key in bound if before.get(key) != now.get(key)]
        if changed:
            key, where = changed[0], _output_of(path)
            what = f"{where} holds a run with {key} = {before.get(key)!r}, not {now.get(key)!r}."
            if key.endswith("_digest"):
                read = key.removesuffix("_digest")
                what = f"{where} holds a run that did not begin with the same {read}: it was edited, or is another."
            raise InputError(what, "Choose another output, or give the recipe that the run began with.")
    save_recipe(recipe, path)


def check_kind(kind: type[Recipe], path: Path) -> None:
    """Raises InputError where the recipe at `path` is of another kind of run, which nothing may take the place of."""
    try:
        others = sorted({*_content(path)} - {*kind.model_fields}) if path.exists() else []
    except InputError:  # it is no recipe at all
        return
    if others:
        raise InputError(
            f"{_output_of(path)} holds another kind of run: {path.name} has the key {others[0]!r}.",
            "Choose another output.",
        )


def _output_of(path: Path) -> Path:
    """The output of the run whose recipe is kept at `path`: a folder, or the file that its name begins with."""
    output = path.name.removesuffix(".config.yaml")
    return path.parent if output == path.name else path.with_name(output)


def flatten(content: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """A mapping of mappings as one level, with dotted keys."""
    level = {}
    for name, value in content.items():
        level |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return level


def _apply_all(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Raises InputError naming an override that is none, or whose key stands twice."""
    keys = [override.partition("=")[0] for override in overrides]
    for override in overrides:
        _apply(content, override)
    if (key := first_twice(keys)) is not None:
        raise InputError(f"the override of {key} is given twice.", "Give it once.")


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(
            f"the override {override!r} is not of the form key=value.", "Write a key and its value, as in seed=1."
        )
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise InputError(f"the override {override!r} goes below {parent!r}, which is a value.", "Correct the key.")
    try:
        place[last] = parse_yaml(value)
    except yaml.YAMLError as error:
        raise InputError(f"the value of the override {override!r} is not YAML.", "Quote it.") from error


def _known_keys(kind: type[BaseModel], prefix: str = "", within: tuple[type[BaseModel], ...] = ()) -> list[str]:
    """All keys of a recipe. within: the sections around it; one that may hold itself is entered once.

    Sections that the recipe's writer names, as those of `rewards`, are called `<name>`.
    """
    keys = []
    for name, field in kind.model_fields.items():
        keys.append(prefix + name)
        section = f"{name}.{_ANY_NAME}." if get_origin(field.annotation) is dict else f"{name}."
        for inner in (field.annotation, *get_args(field.annotation)):  # a section, or one that may be left out
            if isinstance(inner, type) and issubclass(inner, BaseModel) and inner not in (*within, kind):
                found = _known_keys(inner, prefix + section, (*within, kind))
                keys.extend(key for key in found if key not in keys)
    return keys
