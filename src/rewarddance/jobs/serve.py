"""`rewarddance serve`: load a judge and answer for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from rewarddance.data.references import References
from rewarddance.errors import InputError
from rewarddance.jobs.recipes import ServeRun
from rewarddance.protocols import needs_reference
from rewarddance.reward.function_reward import is_factory
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.runtime.devices import find_device
from rewarddance.runtime.listening import listen
from rewarddance.serve.judge import ServedJudge, mark_of
from rewarddance.serve.recipe import ServeOptions

_NEEDED = ("fastapi", "prometheus_client", "uvicorn")


def run_server(run: ServeRun, say: Callable[[str], object]) -> None:
    """Serve until the process is told to end. say: is told the address when the judge can be asked.

    Raises InputError before the judge is loaded where the extra `serve` is not installed or a token is missing, and for
    a judge, a reference or an address that cannot be had.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise InputError(f"serving needs {missing[0]}, which is not installed.", "pip install 'rewarddance[serve]'")
    from rewarddance.serve.server import JudgeServer, token_of

    options = options_of(run)
    token_of(options)
    listen(options.host, options.port).close()  # a port that is taken is said before minutes of loading
    judge = load_served(run)
    about = f"{judge.name} ({judge.kind}{', compares with a reference' if judge.needs_reference else ''})"
    JudgeServer(judge, options).run(lambda address: say(f"serving {about} at {address}"))


def options_of(run: ServeRun) -> ServeOptions:
    """The server's own part of a run."""
    return ServeOptions(**{name: getattr(run, name) for name in ServeOptions.model_fields})


def load_served(run: ServeRun) -> ServedJudge:
    """The judge that a run names, with its references. Raises InputError for what cannot be had."""
    references = References(run.references) if run.references else {}
    reward = load_reward(run.judge, find_device(run.device), run.dtype, **run.changes)
    folder = None if is_factory(run.judge) or "://" in run.judge else find_checkpoint(run.judge)
    if references and not needs_reference(reward):
        raise InputError(f"the judge {run.judge!r} compares with no reference.", "Leave references out.")
    return ServedJudge(reward, run.judge, mark_of(reward, folder), references)
