"""`rewarddance score` by workers of Ray against one process: what a row costs, and what a killed worker or run leaves.

python benchmarks/fleet.py [ROWS] [WORKERS]     needs the extra `ray`; the last line is JSON, figure name to number

Each run is the command itself, with the bundled judge and one thread a process. `start` is what the same command takes
for one batch of rows: Ray's start and loading the judges; rows a second are those of the rest in the rest of the time.
On a machine that others use too, look at the processor's milliseconds a row: of all processes of the command but Ray's
own daemons, again without those of one batch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from rewarddance.data.media import write_picture

PROMPTS = ("a red circle", "two blue crosses", "a small green square", "a large yellow triangle")
PICTURES, BATCH = 64, 32


class Ran(NamedTuple):
    """A run of the command. code: its exit code. seconds: from start to end. cpu: seconds of the processor."""

    code: int
    seconds: float
    cpu: float


def table(folder: Path, rows: int, name: str = "in.jsonl") -> Path:
    """Rows of noise against noise: 64 pictures, 16 references, so that a batch shares some of them."""
    rng = torch.Generator().manual_seed(0)
    for number in range(PICTURES):
        write_picture(torch.rand(1, 3, 32, 32, generator=rng), folder / f"{number}.png")
    content = [
        {
            "id": n,
            "prompt": PROMPTS[n // 8 % 4],
            "candidate": f"{n * 7 % PICTURES}.png",
            "reference": f"{n // 8 % 16}.png",
        }
        for n in range(rows)
    ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder / name


def run(source: Path, name: str, *options: str, meanwhile: Callable[[psutil.Process], bool] | None = None) -> Ran:
    """Score the table into `name`.jsonl. meanwhile: called with the process once rows stand there, until True."""
    output = source.parent / f"{name}.jsonl"
    words = ["score", str(source), "--judge", "shapeworld-judge", "--device", "cpu", "--output", str(output)]
    words += ["--skip-faulty", "--batch-size", str(BATCH)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    environment |= {"RAY_worker_niceness": "0"}  # as one process has; by default its workers give way to all others
    start = time.monotonic()
    with (source.parent / f"{name}.log").open("w") as log:
        command = [sys.executable, "-m", "rewarddance", *words, *options]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        used: dict[int, float] = {}
        while process.poll() is None:
            time.sleep(0.05)
            used |= computing(process.pid)
            if meanwhile is not None and written(output) and meanwhile(psutil.Process(process.pid)):
                meanwhile = None
    return Ran(process.returncode, time.monotonic() - start, sum(used.values()))


def computing(pid: int) -> dict[int, float]:
    """Seconds of the processor of the command and of its workers, by process."""
    found = {}
    with contextlib.suppress(psutil.Error):
        command = psutil.Process(pid)
        for one in [command, *command.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                if one.pid == pid or "MapWorker" in " ".join(one.cmdline()):
                    found[one.pid] = sum(one.cpu_times()[:2])
    return found


def written(output: Path) -> int:
    """How many rows the run has noted as written."""
    try:
        return json.loads(output.with_name(f"{output.name}.progress.json").read_text())["read"]
    except (OSError, ValueError):
        return 0


def compared(source: Path, name: str, base: str = "process") -> dict[str, Any]:
    """A run's rows against those of one process."""
    ids, expected = (
        [json.loads(line)["id"] for line in (source.parent / f"{which}.jsonl").read_text().splitlines()]
        for which in (name, base)
    )
    same = (source.parent / f"{name}.jsonl").read_bytes() == (source.parent / f"{base}.jsonl").read_bytes()
    twice = sum(count > 1 for count in Counter(ids).values())
    return {"missing": len(set(expected) - set(ids)), "twice": twice, "in_order": ids == expected, "same_bytes": same}


def main(rows: int = 2000, workers: int = 2) -> None:
    ray = ("--ray", "local", "--workers", str(workers))
    with tempfile.TemporaryDirectory() as scratch:
        source, few = table(Path(scratch), rows), table(Path(scratch), BATCH, "few.jsonl")
        figures: dict[str, Any] = {"rows": rows, "workers": workers}

        def worker_killed(process: psutil.Process) -> bool:
            ours = [one for one in process.children(recursive=True) if "MapWorker" in " ".join(one.cmdline())]
            if written(source.parent / "killed-worker.jsonl") < rows // 4 or not ours:
                return False
            os.kill(ours[0].pid, signal.SIGKILL)
            return True

        def run_killed(process: psutil.Process) -> bool:
            if written(source.parent / "killed-run.jsonl") < rows // 4:
                return False
            for one in [*process.children(recursive=True), process]:  # Ray's own processes go with it
                os.kill(one.pid, signal.SIGKILL)
            return True

        for name, options, meanwhile in (
            ("process", (), None),
            ("fleet", ray, None),
            ("killed-worker", ray, worker_killed),
            ("killed-run", ray, run_killed),
        ):
            ran = run(source, name, *options, meanwhile=meanwhile)
            done = written(source.parent / f"{name}.jsonl")
            if name == "killed-run":
                print(f"killed after {done} rows, exit code {ran.code}; the same command again")
                ran = run(source, name, *options)
            if ran.code:
                raise SystemExit((source.parent / f"{name}.log").read_text()[-4000:])
            figures[name] = {"seconds": ran.seconds, **compared(source, name)}
            if meanwhile is None:
                start = run(few, f"few-{name}", *options)
                figures[name] |= {"start": start.seconds, "cpu_start": start.cpu}
                figures[name] |= {"rows_a_second": (rows - BATCH) / (ran.seconds - start.seconds)}
                figures[name] |= {"cpu_ms_a_row": 1000 * (ran.cpu - start.cpu) / (rows - BATCH)}
            print(name, json.dumps(figures[name]), flush=True)
        print(json.dumps(figures))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
