"""A judge's folder behind other people's programs, against the judge itself: the largest difference of P("yes").

    python benchmarks/serving_parts.py --transformers ENV/bin/python --vllm ENV/bin/python --output parts.md

Each program is started on the same exported folder, unmodified, in an environment of its own, and asked what the judge
is asked here: `pipeline("decision")` and `transformers serve` (transformers 5.24, by systemone+http) and vLLM's server
(by chat+http), all in float32. Pictures are of the judge's own size, where both see the very same numbers, and of
others, where theirs go through 8 bits between resizing and normalising. What is not given is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import torch

from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import sample
from rewarddance.jobs.export import run_export
from rewarddance.jobs.recipes import ExportRun
from rewarddance.reward.loading import load_reward
from rewarddance.reward.remote.endpoint import PngPictures, RemoteQuestion
from rewarddance.reward.remote.systemone import SystemOneReward
from rewarddance.shapeworld.scenes import prompt_set
from rewarddance.types import Question

JUDGES = {
    "pairwise": ("shapeworld-judge", {"instruction": "t2i-brief"}),
    "pointwise": ("shapeworld-judge", {"instruction": "t2i-brief", "kind": "pointwise"}),
    "pairwise, two frames": ("shapeworld-video-judge", {"instruction": "t2v-brief"}),
}
PROMPTS, SIZES = 8, ((32, 32), (48, 55), (100, 107))
PORT, PATIENCE = 8461, 400.0
_PIPELINE = """
import json, sys, torch
from transformers import pipeline
decide = pipeline("decision", model=sys.argv[1], dtype=torch.float32)
print(json.dumps([decide(request)["better"]["noul"] for request in json.load(sys.stdin)]))
"""
Ask = Callable[[Sequence[Question]], torch.Tensor]
"""P("yes") of questions."""


class Row(NamedTuple):
    """One program asked in one way about a judge's questions on pictures of one size."""

    program: str
    asked: str
    judge: str
    size: str
    largest: float


def questions(judge: str) -> dict[str, list[Question]]:
    """The same pictures in each size, by size; values are whole 255ths, as a PNG holds them."""
    prompts = [text for text, _ in prompt_set("held_out", PROMPTS, 0)]
    generator = load_generator("shapeworld-generator", num_inference_steps=10)
    drawn = list(sample(generator, [*prompts, *prompts], list(range(2 * PROMPTS))))
    found = {}
    for size in SIZES:
        sized = [torch.nn.functional.interpolate(one, size, mode="bicubic").clamp(0, 1) for one in drawn]
        sized = [(one * 255).round() / 255 for one in sized]
        if "frames" in judge:
            sized = [torch.cat([one, one.flip(-1)]) for one in sized]
        found[f"{size[0]} x {size[1]}"] = [
            Question(prompt, candidate, None if judge == "pointwise" else reference)
            for prompt, candidate, reference in zip(prompts, sized[PROMPTS:], sized[:PROMPTS], strict=True)
        ]
    return found


def compare(program: str, asked: str, judge: str, folder: Path, ask: Ask) -> Iterator[Row]:
    """Against the judge that is loaded from the very folder."""
    local = load_reward(folder)
    for size, given in questions(judge).items():
        away = (ask(given) - local(given).probability).abs().max()
        yield Row(program, asked, judge, size, float(away))


# -- the programs ------------------------------------------------------------------------------------------------------


class Written(SystemOneReward):
    """Questions as System One requests, which are kept and not sent."""

    def _answers(self, questions: Sequence[RemoteQuestion], png: PngPictures) -> list[float]:
        states = [self._state(question, png) for question in questions]
        noul = {"better": {"type": "noul"}}
        self.requests = [{"state": state, "assets": assets, "questions": noul} for state, assets in states]
        return [0.0] * len(questions)


def pipeline_rows(python: str, judge: str, folder: Path) -> Iterator[Row]:
    """`pipeline("decision")` in a process of its environment."""
    program = f"`pipeline` (transformers {version(python, 'transformers')})"

    def ask(given: Sequence[Question], state: str) -> torch.Tensor:
        writer = Written("http://127.0.0.1:9/v1", **options_of(folder), model="m", state=state, try_first=False)
        writer(given)
        command, sent = [python, "-c", _PIPELINE, str(folder)], json.dumps(writer.requests)
        done = subprocess.run(command, input=sent, stdout=-1, text=True, env=environment(), check=True)
        return torch.tensor(json.loads(done.stdout.splitlines()[-1]))

    for state in ("places", "question"):
        yield from compare(program, f"noul, state={state}", judge, folder, lambda given, state=state: ask(given, state))


def transformers_rows(python: str, judge: str, folder: Path) -> Iterator[Row]:
    """`transformers serve`; it takes four pictures of a question at most."""
    command = [str(Path(python).parent / "transformers"), "serve", str(folder), "--dtype", "float32"]
    program = f"`transformers serve` {version(python, 'transformers')}"
    labels = json.loads((folder / "decision.json").read_text())["rewarddance"]
    spellings = {"yes": tuple(labels["yes"]), "no": tuple(labels["no"])}
    with running([*command, "--port", str(PORT)]) as address:
        for asked, options in {"noul": {}, "choice": spellings}.items():
            away = load_reward(f"systemone+{address}", **options_of(folder), **options)
            yield from compare(program, asked, judge, folder, lambda given, away=away: away(given).probability)


def vllm_rows(python: str, judge: str, folder: Path) -> Iterator[Row]:
    """vLLM's OpenAI-compatible server."""
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "4", "--port", str(PORT)]
    command += ["--served-model-name", "judge", "--limit-mm-per-prompt", '{"image": 8}']
    program = f"vLLM {version(python, 'vllm')}"
    with running(command) as address:
        for asked, by_number in {"logprob_token_ids": True, "top_logprobs": False}.items():
            away = load_reward(f"chat+{address}", **options_of(folder), token_ids=by_number)
            yield from compare(program, asked, judge, folder, lambda given, away=away: away(given).probability)


def options_of(folder: Path) -> dict[str, Any]:
    """What an address has to be told of the judge in a folder."""
    config = json.loads((folder / "reward_config.json").read_text())
    return {"kind": config["kind"], "instruction": config["instruction"]}


@contextmanager
def running(command: list[str]) -> Iterator[str]:
    """A server in a group of its own, from when it lists its model; yields its address."""
    address, end = f"http://127.0.0.1:{PORT}/v1", time.monotonic() + PATIENCE
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
        try:
            while not _answers(address):
                if server.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise SystemExit(f"{command[0]} does not serve:\n{log.read()[-3000:]}")
                time.sleep(1)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def _answers(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/models", trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def environment() -> dict[str, str]:
    """This process's, without its packages, its network and more than one thread."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    kept |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return kept | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def version(python: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], stdout=-1, text=True, check=True).stdout.strip()


PROGRAMS = {"transformers": (pipeline_rows, transformers_rows), "vllm": (vllm_rows,)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in PROGRAMS:
        parser.add_argument(f"--{name}", help=f"The Python of an environment with {name}; left out without it.")
    parser.add_argument("--output", type=Path, help="Where the table is written, too.")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (judge, (base, options)) in enumerate(JUDGES.items()):
            folder = Path(scratch) / f"judge-{number}"
            run_export(ExportRun(judge=base, output=folder, judge_options=options))
            for name, measures in PROGRAMS.items():
                if python := getattr(given, name):
                    for measure in measures:
                        for row in measure(python, judge, folder):
                            print(*row, sep="\t", flush=True)
                            rows.append(row)
    sizes = [f"{height} x {width}" for height, width in SIZES]
    lines = ["| program | asked by | judge | " + " | ".join(sizes) + " |", "|---|---|---|" + "---:|" * len(sizes)]
    by_size = {(row[:3], row.size): row.largest for row in rows}
    for key in dict.fromkeys(row[:3] for row in rows):
        lines.append("| " + " | ".join([*key, *(f"{by_size[key, size]:.1e}" for size in sizes)]) + " |")
    left_out = [name for name in PROGRAMS if not getattr(given, name)]
    lines += [
        "",
        f"{date.today()}, {PROMPTS} questions a cell." + (f" Left out: {', '.join(left_out)}." * bool(left_out)),
    ]
    print(table := "\n".join(lines))
    if given.output:
        given.output.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
