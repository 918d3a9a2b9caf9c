"""The wide run: real files mutated at random, and rows of any JSON by Hypothesis, before the commands that read them.

    python -m tests.hostile --hours 1

Each command runs in a process forked from this one, of bounded memory and time. Prints how many ended how, by command,
and every one that ended in a traceback, a hang, too much memory, or an error that nobody thought of.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data")]
os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries are imported

import torch  # noqa: E402
from bad_media import animation, picture, video  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tiny import command  # noqa: E402

from tests.hostile.inputs import JUDGE, PAIRS, SCORED, lines  # noqa: E402
from tests.hostile.running import LONGEST, UNEXPECTED, bundled_once  # noqa: E402

MEMORY = 2 << 30
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


def commands(folder: Path, real: dict[str, bytes], rng: random.Random) -> list[str]:
    """Write a mutated file among whole ones, and the command that reads it."""
    for name, content in real.items():
        (folder / name).write_bytes(content)
    name = rng.choice([*real])
    (folder / name).write_bytes(mutated(real[name], rng))
    if name == "recipe.yaml":
        return [rng.choice(("train", "plan")), str(folder / name)]
    if name == "prompts.csv":
        return ["data", "check", str(folder / "pairs.jsonl"), "--benchmark", str(folder / name), "--no-decode"]
    if name == "pairs.jsonl":
        return ["data", "check", str(folder / name)]
    rows = folder / "rows.jsonl"
    if name != "rows.jsonl":
        rows.write_bytes(lines(SCORED | {"candidate": name}))
    return ["score", str(rows), "--judge", JUDGE, "--output", str(folder / "out.jsonl"), "--skip-faulty"]


def ending(words: list[str]) -> str:
    """How a command ended in a process of its own."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        signal.alarm(int(LONGEST))
        try:
            done = command(*words)
            said = f"code {done.code}"
            if UNEXPECTED in done.err or "Traceback" in done.err:
                said = f"unexpected: {' '.join(done.err.split())[-200:]}"
            elif done.code not in (0, 1, 2):
                said = f"unexpected: {said}"
        except BaseException as error:
            said = f"traceback: {type(error).__name__}: {str(error)[:200]}"
        os.write(into, said.encode("utf-8", "replace"))
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "hang" if os.WTERMSIG(status) == signal.SIGALRM else f"killed by signal {os.WTERMSIG(status)}"
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

    def tried(words: list[str]) -> None:
        found = ending(words)
        endings[f"{words[0]}: {found if found.startswith('code') else found.split(':')[0]}"] += 1
        if not found.startswith("code"):
            print(f"{' '.join(words)}\n    {found}", flush=True)

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
            tried(["score", str(file), "--judge", JUDGE, "--output", f"{file}.out.jsonl", "--skip-faulty"])

        while time.monotonic() < end:
            for _ in range(80):
                if time.monotonic() > end:
                    break
                with tempfile.TemporaryDirectory(dir=base) as folder:
                    tried(commands(Path(folder), real, rng))
            if time.monotonic() < end:
                any_row()
    print(json.dumps({"runs": endings.total(), **dict(sorted(endings.items()))}, indent=2))


if __name__ == "__main__":
    main()
