"""A server under a hard day: broken requests, clients that hang up, a kill -9 in the middle; nothing lost or invented.

python benchmarks/serving_soak.py [100000]      tens of minutes on 2 cores; the last line is JSON, figure name to number

Each request is one question about one of 64 pictures against one of 16 references, in one of four protocols, and its
answer has to be that question's own, to 1e-4 of the margin of the judge asked here. One in a hundred is broken in one
of six ways and has to fail by name, and beside each hundred a client hangs up before its answer is there. Half-way the
server is killed and started again; its clients try again until it is there.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rewarddance import as_reward, load_reward
from rewarddance.data.media import as_images
from rewarddance.errors import RewardDanceError
from rewarddance.reward.remote.transport import Transport, TransportOptions
from rewarddance.reward.remote.wire import read_reply, write_questions
from rewarddance.types import Question

CLIENTS, PICTURES, REFERENCES = 128, 64, 16
PROMPTS = ("a red circle", "two small blue crosses", "a large green square", "a yellow triangle")


def brightness() -> Any:
    """A reward that costs nothing, so that what is left is the way."""
    return as_reward(lambda images, prompts, metadata: images.flatten(1).mean(1))


class Server:
    """`rewarddance serve` in a process of its own."""

    def __init__(self, judge: str, port: int, *options: str) -> None:
        words = [sys.executable, "-m", "rewarddance", "serve", judge, "--port", str(port), *options]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 300)
        line = self.process.stdout.readline() if ready else ""
        if " at http" not in line:
            self.process.kill()
            raise RuntimeError(f"the server did not start: {line!r}")
        self.address = line.split()[-1]

    def memory(self) -> float:
        """MB that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def png(pixels: Tensor) -> str:
    file = io.BytesIO()
    as_images(pixels)[0].save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class Case(NamedTuple):
    """A question, its pictures in base64, and the judge's own margin."""

    question: Question
    candidate: str
    reference: str
    margin: float


def cases(judge: Any) -> list[Case]:
    """Questions whose margins tell most of them apart."""
    rng = torch.Generator().manual_seed(0)
    shown = torch.randint(0, 256, (PICTURES + REFERENCES, 1, 3, 32, 32), generator=rng) / 255
    shown[:PICTURES] = (
        255 * shown[:PICTURES] * torch.linspace(0.2, 1, PICTURES)[:, None, None, None, None]
    ).round() / 255
    texts = [png(pixels) for pixels in shown]
    pairs = [(n, PICTURES + n % REFERENCES) for n in range(PICTURES)]
    questions = [Question(PROMPTS[n % 4], shown[n], shown[r]) for n, r in pairs]
    with torch.no_grad():
        margins = judge(questions).margin.tolist()
    return [Case(q, texts[n], texts[r], m) for q, (n, r), m in zip(questions, pairs, margins, strict=True)]


# -- ways to ask -------------------------------------------------------------------------------------------------------


def binary(transport: Transport, case: Case, about: str) -> float:
    reply = transport.post_bytes(
        "/questions", write_questions([case.question]), lambda body: read_reply(body, 1), about
    )
    for error in reply.errors.values():
        raise error
    return reply.margin.item()


def url(text: str) -> dict[str, str]:
    return {"type": "input_image", "image_url": f"data:image/png;base64,{text}"}


def decisions(transport: Transport, case: Case, about: str) -> float:
    content = [{"type": "input_text", "text": case.question.prompt.text}, url(case.reference)]
    asked = [{"type": "predicate", "name": about, "instructions": [url(case.candidate)]}]
    body = {"model": "judge", "input": [{"role": "user", "content": content}], "questions": asked}
    (answer,) = transport.post_json("/v1/decisions", body, lambda reply: reply["answers"], about)
    if answer["name"] != about:
        raise AssertionError(f"{about} was answered as {answer['name']}")
    if answer["type"] == "refusal":
        raise RewardDanceError(answer["reason"])
    return math.log(answer["probability"]) - math.log1p(-answer["probability"])


def systemone(transport: Transport, case: Case, about: str) -> float:
    state = {"prompt": case.question.prompt.text, "reference": "<r>", "candidate": "<c>"}
    shown = (("<r>", case.reference), ("<c>", case.candidate))
    assets = {place: {"type": "image", "format": "png", "data_base64": text} for place, text in shown}
    body = {"state": state, "questions": {about: {"type": "noul"}}, "assets": assets}
    answer = transport.post_json("/v1/systemone", body, lambda reply: reply["answers"][about], about)
    if "error" in answer:
        raise RewardDanceError(answer["error"])
    return math.log(answer["noul"]) - math.log1p(-answer["noul"])


def score(transport: Transport, case: Case, about: str) -> float:
    history = [{"text": case.question.prompt.text, "image_b64": case.candidate}]
    asked = {"history": history, "metadata": {"reference_b64": case.reference}, "request_id": about}
    reply = transport.post_json("/score", {"protocol_version": "1", "requests": [asked]}, about=about)
    if reply["identities"][0]["request_id"] != about:
        raise AssertionError(f"{about} was answered as another")
    if not reply["results"][0]:
        raise RewardDanceError(reply["errors"][0]["rewarddance"])
    return reply["results"][0]["rewarddance"]["margin"]


WAYS: tuple[Callable[[Transport, Case, str], float], ...] = (binary, decisions, systemone, score)


def broken(case: Case, number: int) -> tuple[Callable[[Transport, Case, str], float], Case]:
    """A way to ask, and a case of which no answer can be had."""
    shown, question = case.question.candidate, case.question
    nothing = Question(question.prompt, torch.full_like(shown, torch.nan), question.reference)
    faults = (
        (binary, case._replace(question=nothing)),
        (binary, case._replace(question=Question(question.prompt, shown))),
        (binary, case._replace(question=Question("<|im_start|>", shown, question.reference))),
        (decisions, case._replace(candidate=case.candidate[: len(case.candidate) // 2 // 4 * 4])),
        (score, case._replace(candidate="http://127.0.0.1/a.png")),
        (systemone, case._replace(reference="no base64")),
    )
    return faults[number % len(faults)]


def hang_up(address: str, case: Case, rng: random.Random) -> None:
    """Send a whole request, or a part of one, and be gone."""
    body = write_questions([case.question])
    host, _, port = address.removeprefix("http://").rpartition(":")
    head = f"POST /questions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    sent = (head + body)[: None if rng.random() < 0.5 else rng.randrange(1, len(head) + len(body))]
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(sent)
    except OSError:  # between the kill and the start nobody is there
        pass


# -- the run -----------------------------------------------------------------------------------------------------------


def soak(requests: int, judge: str, *options: str) -> dict[str, Any]:
    """Ask `requests` questions and count what became of them.

    right: answered with the question's own margin. wrong: with another. failed: a broken one that failed by name.
    invented: a broken one that was answered. lost: a sound one that was not. memory: MB of the second server after each
    tenth of its requests; client_*: of the asking process, after the first of them and at the end.
    """
    known = cases(load_reward(judge, **_changes(options)))
    server = Server(judge, free_port(), *options)
    port, counts, rng = int(server.address.rpartition(":")[2]), Counter(), random.Random(0)
    transport = Transport(server.address, TransportOptions(concurrency=CLIENTS, retries=40, backoff=0.2, timeout=120.0))

    def one(number: int) -> str:
        about, case = f"request {number}", known[(7 * number) % len(known)]
        way, is_broken = WAYS[number % len(WAYS)], number % 100 == 50
        if is_broken:
            way, case = broken(case, number // 100)
        if number % 100 == 99:
            hang_up(server.address, case, rng)
        try:
            margin = way(transport, case, about)
        except RewardDanceError:
            return "failed" if is_broken else "lost"
        if is_broken:
            return "invented"
        return "right" if abs(margin - case.margin) < 1e-4 * max(1, abs(case.margin)) else "wrong"

    begun = time.monotonic()
    figures: dict[str, Any] = {}
    half, tenth = requests // 2, max(1, requests // 20)
    memory: list[float] = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = []
        for start in range(0, requests, CLIENTS * 8):
            stop = min(requests, start + CLIENTS * 8)
            asked = [pool.submit(one, number) for number in range(start, stop)]
            if start <= half < stop:  # in the middle of these
                server.end(signal.SIGKILL)
                server = Server(judge, port, *options)
            answers += [future.result() for future in asked]
            if start // (CLIENTS * 8) % 5 == 0:
                print(f"{stop:,} of {requests:,}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
            if stop > half and (stop - half) // tenth > len(memory):
                memory.append(round(server.memory(), 1))
                figures.setdefault("client_start", round(_own_memory(), 1))
    counts.update(answers)
    took = time.monotonic() - begun
    figures |= {"memory": memory, "client_end": round(_own_memory(), 1)}
    figures |= {"requests": requests, "seconds": round(took, 1), "exit_code": server.end()}
    names = ("right", "wrong", "failed", "invented", "lost")
    return {name: counts[name] for name in names} | figures


def _changes(options: tuple[str, ...]) -> dict[str, Any]:
    """The judge's own options among the command's."""
    pairs = dict(zip(options[::2], options[1::2], strict=True))
    return {name: pairs[f"--{name}"] for name in ("instruction", "kind") if f"--{name}" in pairs}


def _own_memory() -> float:
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    print(json.dumps(soak(requests, "shapeworld-judge", "--instruction", "t2i-brief")))


if __name__ == "__main__":
    main()
