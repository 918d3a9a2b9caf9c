"""A recipe's fields as the options of a command: the same names, help and defaults."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
import yaml
from pydantic.fields import FieldInfo

from rewarddance.errors import InputError
from rewarddance.runtime.config import Recipe, parse_recipe, parse_yaml, read_overrides

Run = Callable[[Any], None]


def recipe_command(
    app: typer.Typer, recipe: type[Recipe], *, arguments: tuple[str, ...], example: str, extra: str | None = None
) -> Callable[[Run], Run]:
    """Register a function of a recipe as a command, under its name and with its docstring as help.

    arguments: fields that are given by position; a tuple among them takes all that follow.
    extra: a dict field that takes the KEY=VALUE words behind the arguments, or a tuple that takes them as they are.
    Every other field is an option: `batch_size` is `--batch-size`, a dict is repeated as `NAME=VALUE`, and a nested
    recipe that has a default is reached by KEY=VALUE words as in a recipe file.
    """

    def register(run: Run) -> Run:
        fields = recipe.model_fields
        nested = tuple(
            name
            for name, field in fields.items()
            if _is_recipe(field.annotation) and not field.is_required() and name != extra
        )
        parameters = [_parameter(name, fields[name], argument=True) for name in arguments]
        if extra or nested:
            words = fields[extra].description if extra else f"Keys of {' and '.join(nested)}, as in a recipe."
            parameters.append(_words(words))
        named = (name for name in fields if name not in (*arguments, extra, *nested))
        parameters += [_parameter(name, fields[name], argument=False) for name in named]

        raw = extra is not None and get_origin(fields[extra].annotation) is tuple

        def command(**given: Any) -> None:
            given_words = given.pop("words", None) or []
            words = read_overrides(given_words)
            content = {name: _value(fields[name], value) for name, value in given.items() if value is not None}
            if extra and raw:
                content |= {extra: tuple(given_words)}
            elif extra:
                content |= {extra: words} if words else {}
            else:
                content |= words
            run(parse_recipe(recipe, content, "the command line"))

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__doc__ = run.__doc__
        name = run.__name__.rstrip("_").replace("_", "-")
        app.command(name, epilog=f"[bold]Example:[/bold] [cyan]{example}[/cyan]")(command)
        return run

    return register


def _parameter(name: str, field: FieldInfo, argument: bool) -> inspect.Parameter:
    """One field as a parameter that Typer reads. What is not given is left to the recipe, so that defaults are its."""
    kind, description = _plain(field.annotation), _help(field, argument)
    if argument:
        several = get_origin(kind) is list
        metavar = f"{name.upper().removesuffix('S')}..." if several else name.upper()
        annotation: Any = Annotated[kind, typer.Argument(metavar=metavar, help=description, show_default=False)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    flag = f"--{name.replace('_', '-')}"
    flags = [flag] if kind is not bool or field.default is False else [f"{flag}/--no-{name.replace('_', '-')}"]
    metavar = "NAME=VALUE" if get_origin(field.annotation) is dict else "PATH" if _is_path(field.annotation) else None
    option = typer.Option(*flags, metavar=metavar, help=description, show_default=False)
    if field.is_required():
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option])
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _words(description: str | None) -> inspect.Parameter:
    annotation = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=description)]
    return inspect.Parameter("words", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _plain(annotation: Any) -> Any:
    """The type that Typer parses for a field; the recipe validates what comes out of it."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _plain(kinds[0]) if len(kinds) == 1 else str
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return list[str]
    if get_origin(annotation) in (tuple, list) and get_args(annotation)[-1] is Ellipsis:
        return list[_plain(get_args(annotation)[0])]
    return annotation if annotation in (bool, int, float) else str


def _is_path(annotation: Any) -> bool:
    """Is it one path, or none? It is left to the recipe as a text: of an empty one Path makes the current folder."""
    return annotation is Path or (annotation is not dict and Path in get_args(annotation))


def _value(field: FieldInfo, value: Any) -> Any:
    """NAME=VALUE words of a dict, or words that are mappings in YAML or JSON, as one mapping; else the value as it is.

    Raises InputError naming a word that is neither.
    """
    if get_origin(field.annotation) is not dict or get_args(field.annotation)[1] is not Any:
        return value
    mapping: dict[str, Any] = {}
    for word in value:
        if not word.lstrip().startswith("{"):
            mapping |= read_overrides([word])
            continue
        try:
            mapping |= parse_yaml(word)
        except yaml.YAMLError as error:
            raise InputError(f"{word!r} is no mapping: {error}.", "Write NAME=VALUE, or a JSON object.") from error
    return mapping


def _help(field: FieldInfo, argument: bool) -> str:
    """The field's own docstring, the words it may be, and its default."""
    text = (field.description or "").replace("\n", " ")
    optional = get_origin(field.annotation) in (Union, types.UnionType)
    kinds = get_args(field.annotation) if optional else (field.annotation,)
    words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if words:
        text += f" One of: {', '.join(words)}."
    if argument or field.is_required() or field.default is None or isinstance(field.default, bool | dict | tuple):
        return text
    return text if field.default_factory else f"{text} Default: {field.default}."


def _is_recipe(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, Recipe)
