"""One case after the other, in this process: what it ended in, and what is wrong with that."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from tiny import command

from rewarddance.generators.pipelines import load_generator
from rewarddance.reward.loading import load_reward
from tests.hostile.inputs import Case

LONGEST = 20.0
"""Seconds of a command."""
UNEXPECTED = "This was not expected here"
"""What the command line says of errors that nobody thought of."""


@contextmanager
def bundled_once() -> Iterator[None]:
    """Within the block the bundled judge and generator are loaded once: inputs are tried, and not these."""

    @functools.cache
    def kept(load: Any, *args: Any, **options: Any) -> Any:
        return load(*args, **options)

    def once(load: Any) -> Any:
        def loaded(name: Any, *args: Any, **options: Any) -> Any:
            try:
                if str(name).startswith("shapeworld-"):
                    return kept(load, name, *args, **options)
            except TypeError:  # an option that cannot be hashed
                pass
            return load(name, *args, **options)

        return loaded

    judges = [f"rewarddance.jobs.{job}.load_reward" for job in ("score", "search", "evaluate", "align")]
    generators = [f"rewarddance.jobs.{job}.load_generator" for job in ("search", "align")]
    patches = [mock.patch(name, once(load_reward)) for name in judges]
    patches += [mock.patch(name, once(load_generator)) for name in generators]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        mock.patch.stopall()


def fault(case: Case) -> str:
    """What is wrong with how a case ended, or ""."""
    began = time.monotonic()
    try:
        done = command(*case.words)
    except BaseException as error:  # whatever comes out of it is the traceback that a user would see
        return f"{case.kind}: {case.name}: {case.words[0]} raised {type(error).__name__}: {str(error)[:200]}"
    seconds, said = time.monotonic() - began, done.err + done.out
    wrong = []
    if done.code not in case.codes:
        wrong.append(f"code {done.code}, not {sorted(case.codes)}")
    if "Traceback" in said:
        wrong.append("a traceback")
    if UNEXPECTED in said:
        wrong.append("nobody thought of it")
    if "\x1b[31" in said.replace("\x1b[31merror", ""):
        wrong.append("an escape sequence")
    if case.named not in " ".join(said.split()) and case.named not in said:
        wrong.append(f"{case.named!r} is not named")
    if seconds > LONGEST:
        wrong.append(f"{seconds:.0f} s")
    last = " ".join(done.err.split())[-300:]
    return f"{case.kind}: {case.name}: {case.words[0]}: {', '.join(wrong)}: {last}" if wrong else ""
