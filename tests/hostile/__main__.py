"""The wide run: real files mutated at random, and rows of any JSON by Hypothesis, before the commands that read them.

    python -m tests.hostile --hours 1

Each command runs in a process forked from this one, of bounded memory and time. Prints how many ended how, by command,
and every one that ended in a traceback, a hang, too much memory, an error that nobody thought of, or a success that was
none: an exit code 0 or 1 with rows that were neither scored nor listed as failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data"), str(ROOT / "report")]
os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries are imported

import torch  # noqa: E402
from bad_media import animation, picture, video  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from test_run_page import summary  # noqa: E402
from tiny import command  # noqa: E402

from rewarddance.runtime.checkpoint import BUNDLED  # noqa: E402
from tests.hostile.inputs import GENERATOR, JUDGE, PAIRS, SCORED, lines  # noqa: E402
from tests.hostile.running import LONGEST, UNEXPECTED, bundled_once  # noqa: E402

MEMORY = 2 << 30
NO_MEMORY = "the memory is not enough"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with some bytes changed, cut out, doubled, put in, or cut off."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 8, 64))
        match rng.randrange(5):
            case 0:
                content[at : at + length] = rng.randbytes(length)
            case 1:
                del content[at : at + length]
            case 2:
                content[at:at] = content[at : at + length]
            case 3:
                content[at:at] = rng.choice((b"\0", b"\xff\xfe", b"\\ud83d", b"[" * 99, b"1e999", b"\x1b[2J", b"NaN"))
            case 4:
                del content[at:]
    return bytes(content)


class Trial(NamedTuple):
    """A command, and what its success must have left: an output with as many rows, scored or failed, as its input."""

    words: list[str]
    rows: Path | None = None
    output: Path | None = None


def trial(folder: Path, real: dict[str, bytes], rng: random.Random) -> Trial:
    """Write a mutated file among whole ones, and the command that reads it."""
    for name, content in real.items():
        (folder / name).write_bytes(content)
    name = rng.choice([*real, "judge", "judge"])
    if name == "judge":
        return of_checkpoint(folder, rng)
    (folder / name).write_bytes(mutated(real[name], rng))
    out, path = folder / "out.jsonl", str(folder / name)
    match name:
        case "recipe.yaml":
            return Trial([rng.choice(("train", "plan", "align")), path])
        case "prompts.csv":
            return Trial(["data", "check", str(folder / "pairs.jsonl"), "--benchmark", path, "--no-decode"])
        case "prompts.jsonl":
            search = ["search", path, "--generator", GENERATOR, "--num-inference-steps", "1", "--budget", "samples=1"]
            return Trial([*search, "--judge", JUDGE, "--kind", "pointwise", "--output", str(folder / "found")])
        case "pairs.jsonl":
            words = ("data check", "data weigh", "evaluate")
            return Trial(of_pairs(rng.choice(words), path, folder))
        case "messages.json" | "hpdv3.json":
            return Trial(["data", "import", Path(name).stem, path, "--output", str(out)])
        case "summary.json":
            return Trial(["report", str(folder)])
    rows = folder / "rows.jsonl"
    if name != "rows.jsonl":
        rows.write_bytes(lines(SCORED | {"candidate": name}))
    return scoring(rows, out)


def scoring(rows: Path, out: Path, judge: str = JUDGE) -> Trial:
    return Trial(["score", str(rows), "--judge", judge, "--output", str(out), "--skip-faulty"], rows, out)


def of_pairs(command_: str, path: str, folder: Path) -> list[str]:
    if command_ == "evaluate":
        return ["evaluate", JUDGE, "--tests", f"id={path}", "--output", str(folder / "exam"), "--skip-faulty"]
    more = ["--output", str(folder / "w.jsonl")] if command_ == "data weigh" else []
    return [*command_.split(), path, *more]


def of_checkpoint(folder: Path, rng: random.Random) -> Trial:
    """A judge's folder with one mutated file: a text, or the names and shapes at the head of its weights."""
    judge = Path(shutil.copytree(BUNDLED / JUDGE, folder / "judge"))
    file = rng.choice(sorted(judge.iterdir()))
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        head = 8 + int.from_bytes(content[:8], "little")
        file.write_bytes(mutated(content[:head], rng) + content[head:])
    else:
        file.write_bytes(mutated(content, rng))
    return scoring(folder / "rows.jsonl", folder / "out.jsonl", str(judge))


def hollow(tried: Trial, code: int) -> str:
    """What a success lacks, or "": each row of the input has finite figures in the output, or is listed as failed."""
    if code == 2 or tried.output is None or tried.rows is None:
        return ""
    given = tried.rows.read_bytes()
    asked = sum(1 for line in given.splitlines() if line.strip()) if given.isascii() and b"\0" not in given else 0
    rows = [json.loads(line) for line in tried.output.read_text().split("\n") if line]
    failed = tried.output.with_name(f"{tried.output.name}.failed.jsonl")
    listed = len(failed.read_bytes().splitlines()) if failed.exists() else 0
    if not rows or len(rows) + listed < asked or (code == 0) == bool(listed):
        return f"success that was none: {len(rows)} scored and {listed} failed of {asked} rows, code {code}"
    figures = [row.get(name) for row in rows for name in ("probability", "margin")]
    if not all(isinstance(value, float) and math.isfinite(value) for value in figures):
        return f"success that was none: figures {figures[:4]}"
    return ""


def ending(tried: Trial, longest: dict[str, float]) -> str:
    """How a command ended in a process of its own. longest: gets the most seconds that a command computed."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        signal.setitimer(signal.ITIMER_PROF, LONGEST)  # of its own time, whatever else the machine does
        signal.alarm(int(6 * LONGEST))
        try:
            done = command(*tried.words)
            said, told = f"code {done.code}", " ".join(done.err.split())
            if UNEXPECTED in done.err or "Traceback" in done.err:
                said = f"unexpected: {told[-300:]}"
            elif NO_MEMORY in told:
                said = f"memory: {told[-300:]}"
            elif done.code not in (0, 1, 2):
                said = f"unexpected: {said}"
            else:
                said = hollow(tried, done.code) or said
        except BaseException as error:
            said = f"traceback: {type(error).__name__}: {str(error)[:200]}"
        os.write(into, said.encode("utf-8", "replace"))
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as file:
        said = file.read().decode()
    _, status, used = os.wait4(child, 0)
    longest[tried.words[0]] = max(longest[tried.words[0]], used.ru_utime + used.ru_stime)
    if os.WIFSIGNALED(status):
        late = os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGPROF)
        return "hang" if late else f"killed by signal {os.WTERMSIG(status)}"
    if used.ru_maxrss * 1024 > MEMORY:
        return f"memory: {used.ru_maxrss >> 10} MiB"
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given_ = parser.parse_args()
    end, rng = time.monotonic() + 3600 * given_.hours, random.Random(given_.seed)
    torch.set_num_threads(1)
    endings: Counter[str] = Counter()
    real = {"a.png": picture("png", size=32), "b.png": picture("png", size=32), "c.jpg": picture("jpg", size=32)}
    real |= {"d.gif": animation("gif"), "e.mp4": video(), "rows.jsonl": lines(SCORED, SCORED | {"candidate": "c.jpg"})}
    real |= {"pairs.jsonl": lines(*PAIRS), "prompts.csv": b'prompt,id\na red circle,1\n"a cross, blue",2\n'}
    real["recipe.yaml"] = b"preferences: pairs.jsonl\noutput: run\nseed: 1\njudge: {base: nothing, epochs: 1.5}\n"
    real["prompts.jsonl"] = lines({"prompt": "a red circle", "id": 1}, {"prompt": "a cross", "negative_prompt": ""})
    turns = [{"role": "user", "content": "a <image> b <image>"}, {"role": "assistant", "content": "A"}]
    real["messages.json"] = json.dumps([{"messages": turns, "images": ["a.png", "b.png"]}] * 2).encode()
    record = {"prompt": "a", "path1": "a.png", "path2": "b.png", "choice_dist": [9, 2]}
    real["hpdv3.json"] = json.dumps([record, record | {"prompt": "b"}]).encode()
    real["summary.json"] = json.dumps(summary()).encode()
    longest = defaultdict[str, float](float)

    def tried(given: Trial) -> None:
        name = " ".join(given.words[: 1 + (given.words[0] == "data")])
        found = ending(given, longest)
        endings[f"{name}: {found if found.startswith('code') else found.split(':')[0]}"] += 1
        if not found.startswith("code"):
            print(f"{' '.join(given.words)}\n    {found}", flush=True)
            keep(given, len(list(kept.iterdir())))

    def keep(given: Trial, number: int) -> None:
        files = [path for path in (Path(word.partition("=")[2] or word) for word in given.words) if path.is_file()]
        if files and files[0].parent.name != "first":
            shutil.copytree(files[0].parent, kept / str(number))
        elif files:
            shutil.copy(files[0], kept / str(number))
        print(f"    its files: {kept / str(number)}", flush=True)

    kept = Path(tempfile.mkdtemp(prefix="hostile-"))
    with bundled_once(), tempfile.TemporaryDirectory() as base:
        os.chdir(base)
        first = Path(base) / "first"
        first.mkdir()
        for name, content in real.items():
            (first / name).write_bytes(content)
        words = ["score", str(first / "rows.jsonl"), "--judge", JUDGE, "--output", str(first / "out.jsonl")]
        assert command(*words).code == 0  # the judge is loaded before the first fork

        @settings(max_examples=20, deadline=None, database=None, suppress_health_check=[*HealthCheck])
        @given(st.dictionaries(st.sampled_from([*SCORED, "image", "fps", "x"]), JSON), st.integers(0, 2**32))
        def any_row(row: dict, number: int) -> None:
            file = first / f"{number}.jsonl"
            file.write_text(json.dumps(SCORED | row) + "\n")
            tried(scoring(file, first / f"{number}.out.jsonl"))

        while time.monotonic() < end:
            for _ in range(80):
                if time.monotonic() > end:
                    break
                with tempfile.TemporaryDirectory(dir=base) as folder:
                    tried(trial(Path(folder), real, rng))
            if time.monotonic() < end:
                any_row()
    told = {
        "runs": endings.total(),
        **dict(sorted(endings.items())),
        "longest in CPU seconds": {name: round(seconds, 1) for name, seconds in longest.items()},
    }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
