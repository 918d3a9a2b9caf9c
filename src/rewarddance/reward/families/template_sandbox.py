"""Jinja as chat templates use it, with nothing in it that changes between calls, and bounds on steps, time and memory.

Run as a script it renders once in a process of its own, whose time and memory the system bounds: templates come with
checkpoints from anywhere. It imports nothing of the package.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

TODAY = datetime.datetime(2025, 1, 1)
"""What a template that writes the date is told it is: a judge must read the same question every day."""
SECONDS, MEMORY = 5, 1 << 30
"""What the process of its own may take."""
_STEPS = 200_000
"""Lines of a compiled template that may be run for one turn."""
_LONGEST = 1 << 26
"""Characters of a rendered turn."""


class TemplateFault(Exception):
    """What a template did wrong, in words."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, by which trainers mark an assistant's words: it stands for what is in it."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own form

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Dict:
    """`dict` without the attributes of a type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` that takes no name with an underscore before it, by which the interpreter could be reached."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be one of the names
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateFault(f"it sets the attribute {name!r}")


def compiled(source: str) -> tuple[jinja2.Template, list[str]]:
    """The template, and a list that says what it asked for that is held fixed. Raises TemplateFault."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    fixed: list[str] = []

    def strftime_now(pattern: str) -> str:
        text = TODAY.strftime(pattern)
        if f"the date, {text}" not in fixed:
            fixed.append(f"the date, {text}")
        return text

    def raise_exception(message: str) -> None:
        raise TemplateFault(f"it says {message!r}")

    def by_chance(*_: Any) -> None:
        raise TemplateFault("it draws by chance")

    env.filters["tojson"] = lambda x, ensure_ascii=False, **options: json.dumps(x, ensure_ascii=ensure_ascii, **options)
    env.filters["random"] = by_chance
    env.globals |= {"strftime_now": strftime_now, "raise_exception": raise_exception, "lipsum": by_chance}
    env.globals |= {"dict": _Dict(), "namespace": _Namespace}
    try:
        return env.from_string(source), fixed
    except (jinja2.TemplateError, RecursionError, MemoryError) as error:
        raise TemplateFault(f"it is no template: {error or type(error).__name__}") from error


def rendered(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The text of a conversation. Raises TemplateFault where the template raises, or does not come to an end."""
    pieces, length = [], 0
    try:
        with _bounded():
            for piece in template.generate(**variables):
                pieces.append(piece)
                length += len(piece)
                if length > _LONGEST:
                    raise TemplateFault(f"it writes more than {_LONGEST} characters")
    except TemplateFault:
        raise
    except MemoryError as error:
        raise TemplateFault("it needs too much memory") from error
    except Exception as error:  # a template runs any operation on any value
        raise TemplateFault(f"{type(error).__name__}: {error}".strip().rstrip(".:")) from error
    return "".join(pieces)


@contextmanager
def _bounded() -> Iterator[None]:
    """Within the block a compiled template may run so many lines and no more."""
    steps_left = _STEPS

    def line(frame: Any, event: str, arg: Any) -> Callable[..., Any]:
        nonlocal steps_left
        steps_left -= event == "line"
        if steps_left < 0:
            raise TemplateFault("it does not come to an end")
        return line

    def call(frame: Any, event: str, arg: Any) -> Callable[..., Any] | None:
        return line if frame.f_code.co_filename in ("<template>", "<unknown>") else None

    tracer_before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(tracer_before)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        template, fixed = compiled(request["template"])
    except TemplateFault as fault:
        return {"fault": str(fault)}
    texts, faults = [], []
    for variables in request["variables"]:
        try:
            texts.append(rendered(template, variables))
            faults.append("")
        except TemplateFault as fault:
            texts.append(None)
            faults.append(str(fault))
    return {"texts": texts, "faults": faults, "fixed": fixed}


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    json.dump(_answer(json.load(sys.stdin)), sys.stdout)
