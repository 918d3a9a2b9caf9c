"""Functions run in several processes at once, as torchrun would start them, but forked: no time for imports."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.state import PartialState
from tiny import Done, command
from tqdm import tqdm

from rewarddance.protocols import RewardModel
from rewarddance.runtime.process_group import barrier, init_process_group


def forked(work: Callable[[], Any], answer: Path, environment: dict[str, str] | None = None) -> int:
    """The id of a new process that pickles what `work` returns, or how it failed, to `answer`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ |= environment or {}
        torch.set_num_threads(1)
        PartialState._reset_state()
        tqdm.set_lock(threading.RLock())  # the parent's may be held by a thread that does not exist here
        answer.write_bytes(pickle.dumps((True, work())))
        code = 0
    except BaseException:
        answer.write_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended_before(child: int, reached: Callable[[], int], step: int, after: float) -> bool:
    """Wait until the run of `child` has reached a step, and `after` seconds more; True if it ended meanwhile.

    Moments are steps and not seconds, so that a machine that becomes slow does not kill every run at its beginning.
    """
    kill_at = None
    while not os.waitpid(child, os.WNOHANG)[0]:
        if kill_at is None and reached() >= step:
            kill_at = time.monotonic() + after
        if kill_at is not None and time.monotonic() >= kill_at:
            return False
        time.sleep(0.005)
    return True


def in_processes(
    n: int, work: Callable[..., Any], *arguments: Any, timeout: float = 200, join: bool = True
) -> list[Any]:
    """What `work(*arguments)` returns in each of n processes that belong together. Fails where one of them fails.

    join: they are joined already; else that is left to `work`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def joining() -> Any:
        if not join:
            return work(*arguments)
        with init_process_group():
            barrier()  # nobody leaves while another is still shaking hands
            return work(*arguments)

    with TemporaryDirectory() as folder:
        answers = [Path(folder) / str(rank) for rank in range(n)]
        children = {
            forked(joining, answer, {k: str(v) for k, v in {**together, "RANK": rank, "LOCAL_RANK": rank}.items()})
            for rank, answer in enumerate(answers)
        }
        end = time.monotonic() + timeout
        while children:
            done, status = os.waitpid(-1, os.WNOHANG)
            children.discard(done)
            if (done and status) or time.monotonic() > end:  # the others may wait for it for ever
                for child in children:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                break
            time.sleep(0.01)
        found = [pickle.loads(answer.read_bytes()) for answer in answers if answer.exists()]
    failed = [what for good, what in found if not good]
    assert not failed, "\n".join(failed)
    assert len(found) == n, "not all processes came to an end"
    return [what for _, what in found]


def command_in_processes(n: int, *words: str | Path) -> list[Done]:
    """What a command leaves in each of n processes that it joins by itself.

    None ends before all are done: the first one keeps the store, which is torchrun's otherwise.
    """

    def work(folder: Path) -> Done:
        done = command(*words)
        (folder / os.environ["RANK"]).touch()
        while len(list(folder.iterdir())) < n:
            time.sleep(0.01)
        return done

    with TemporaryDirectory() as folder:
        return in_processes(n, work, Path(folder), join=False)


class Interrupting:
    """`measure` as an evaluation that is cut off at its second call, before its checkpoint is marked complete."""

    def __init__(
        self,
        measure: Callable[[RewardModel], dict[str, float]],
        at: int = 2,
        error: type[BaseException] = KeyboardInterrupt,
    ) -> None:
        self.measure, self.at, self.error, self.calls = measure, at, error, 0

    def __call__(self, judge: RewardModel) -> dict[str, float]:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.measure(judge)
