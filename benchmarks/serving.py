"""A served judge: requests a second, the way of a picture, and a step of ReFL, each against the same without a server.

python benchmarks/serving.py [transport small large refl]     the last line is JSON, figure name to number

64 clients ask one question each, over and over, about 64 pictures against 16 shared references. They are answered by a
server as it is, by one that asks its judge one question at a time, and by the engine in this process in one call; and
one client asks the first server the same questions one by one. Servers are processes of their own. What is compared is
measured in turn, and the best of ROUNDS (4) counts, by the clock and by the CPU seconds of the process that answers.
"""

from __future__ import annotations

import base64
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from judges import PROMPT, build_judge, interleaved
from PIL import Image
from refl_step import RECIPE, Setting, away, build_generator
from serving_soak import Server, free_port
from torch import Tensor

from rewarddance import load_reward
from rewarddance.alignment.refl import refl_step
from rewarddance.reward.remote.served import ServedReward
from rewarddance.reward.remote.transport import Transport, TransportOptions
from rewarddance.reward.remote.wire import read_reply, write_questions
from rewarddance.types import Question

CLIENTS, REFERENCES, ROUNDS = 64, 16, int(os.environ.get("ROUNDS", "4"))
OPTIONS = TransportOptions(concurrency=CLIENTS, timeout=600.0)


def whole(pixels: Tensor) -> Tensor:
    """Pixels as a file holds them: whole 255ths."""
    return (pixels * 255).round() / 255


def questions_of(side: int) -> list[Question]:
    rng = torch.Generator().manual_seed(0)
    shown = [whole(torch.rand(1, 3, side, side, generator=rng)) for _ in range(CLIENTS + REFERENCES)]
    return [Question(PROMPT, shown[n], shown[CLIENTS + n % REFERENCES]) for n in range(CLIENTS)]


def cpu_seconds(process: int) -> float:
    """What a process has computed, all of its threads: on a busy machine the clock tells of others."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Clients:
    """64 threads, each with its own question; `seconds` keeps how long each request took."""

    def __init__(self, address: str, questions: list[Question]) -> None:
        self.transport, self.questions, self.seconds = Transport(address, OPTIONS), questions, list[float]()
        self.pool = ThreadPoolExecutor(CLIENTS)

    def __call__(self, times: int = 1) -> list[float]:
        """The margins of the last round; each client asks `times` times, one after the other."""

        return list(self.pool.map(lambda question: [self.ask(question) for _ in range(times)][-1], self.questions))

    def one_by_one(self) -> list[float]:
        """The same questions from one client, each when the one before is answered."""
        return [self.ask(question) for question in self.questions]

    def ask(self, question: Question) -> float:
        begun = time.perf_counter()
        body = write_questions([question])
        reply = self.transport.post_bytes("/questions", body, lambda body: read_reply(body, 1))
        self.seconds.append(time.perf_counter() - begun)
        return reply.margin.item()


def throughput(name: str, judge: str, side: int, *options: str, times: int = 3) -> dict[str, float]:
    """Requests a second, batched and one by one, against the engine here; times: rounds of a client at a time."""
    questions = questions_of(side)
    changes = dict(zip([key.removeprefix("--") for key in options[::2]], options[1::2], strict=True))
    engine = load_reward(judge, **changes)
    servers = [Server(judge, free_port(), *options, *more) for more in ([], ["--max-batch", "1", "--wait-ms", "0"])]
    batched, single = (Clients(server.address, questions) for server in servers)
    alone = Clients(servers[0].address, questions)
    with torch.no_grad():
        local = engine(questions).margin
    off = max(float((torch.tensor(clients()) - local).abs().max()) for clients in (batched, single))
    batched.seconds.clear()
    single.seconds.clear()
    works: dict[str, tuple[Callable[[], Any], int, int]] = {
        "local": (lambda: [engine(questions) for _ in range(times)], os.getpid(), times),
        "batched": (lambda: batched(times), servers[0].process.pid, times),
        "single": (lambda: single(), servers[1].process.pid, 1),
        "one_by_one": (lambda: alone.one_by_one(), servers[0].process.pid, 1),
    }
    wall: dict[str, float] = dict.fromkeys(works, 0.0)
    cpu: dict[str, float] = dict.fromkeys(works, 0.0)
    for _ in range(ROUNDS):
        for way, (work, process, each) in works.items():
            used, begun = cpu_seconds(process), time.perf_counter()
            work()
            wall[way] = max(wall[way], CLIENTS * each / (time.perf_counter() - begun))
            cpu[way] = max(cpu[way], CLIENTS * each / (cpu_seconds(process) - used))
    for server in servers:
        server.end()
    figures = {f"{name}_{way}_per_second": round(rate, 1) for way, rate in wall.items()}
    figures |= {f"{name}_{way}_per_cpu_second": round(rate, 1) for way, rate in cpu.items()}
    for way, clients in (("batched", batched), ("single", single), ("one_by_one", alone)):
        cuts = statistics.quantiles(clients.seconds, n=100)
        figures |= {f"{name}_{way}_p50_ms": round(1e3 * cuts[49], 1), f"{name}_{way}_p99_ms": round(1e3 * cuts[98], 1)}
    for kind, rates in (("", wall), ("_by_cpu", cpu)):
        for way in ("single", "one_by_one", "local"):
            figures[f"{name}_batched_to_{way}{kind}"] = round(rates["batched"] / rates[way], 2)
    figures[f"{name}_max_margin_diff"] = off
    return figures


def transport() -> dict[str, float]:
    """Milliseconds from 1024x1024 pixels to a reward that costs nothing, in our form and as PNG in base64."""
    server = Server(f"{Path(__file__).with_name('serving_soak.py')}:brightness", free_port())
    asked = Transport(server.address, OPTIONS)
    rng = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, 1024), torch.linspace(0, 1, 1024), indexing="ij")
    shades = torch.stack([0.5 + 0.4 * torch.sin(7 * x + 3 * y), 0.3 + 0.6 * x * y, 0.7 - 0.5 * (x > 0.4) * y])

    def photograph() -> Tensor:  # smooth, with grain and an edge; another one each time, so that none is known
        grain = 0.02 * torch.randn(3, 1024, 1024, generator=rng)
        return whole((shades + grain).clamp(0, 1))[None]

    def raw(pixels: Tensor) -> float:
        body = write_questions([Question("a", pixels)])
        return asked.post_bytes("/questions", body, lambda reply: read_reply(reply, 1)).margin.item()

    def png(pixels: Tensor) -> float:
        file = io.BytesIO()
        Image.fromarray((pixels[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "PNG")
        turn = {"text": "a", "image_b64": base64.b64encode(file.getvalue()).decode()}
        reply = asked.post_json("/score", {"protocol_version": "1", "requests": [{"history": [turn]}]})
        return reply["results"][0]["rewarddance"]["margin"]

    same = photograph()
    off = abs(raw(same) - png(same))
    times: dict[str, list[float]] = {"raw": [], "png": []}
    for _ in range(15):
        for name, way in (("raw", raw), ("png", png)):
            pixels = photograph()
            begun = time.perf_counter()
            way(pixels)
            times[name].append(time.perf_counter() - begun)
    server.end()
    best = {name: min(seconds) for name, seconds in times.items()}
    figures = {f"transport_{name}_ms": round(1e3 * seconds, 1) for name, seconds in best.items()}
    return figures | {"transport_png_to_raw": round(best["png"] / best["raw"], 1), "transport_max_diff": off}


def refl(judge_folder: str) -> dict[str, float]:
    """A step of ReFL by `refl_step`, with the judge here and with the judge at a server."""
    generator, judge = build_generator(), load_reward(judge_folder)
    setting = Setting(generator, judge)
    server = Server(judge_folder, free_port())
    judges: dict[str, Any] = {"local": judge, "served": ServedReward(server.address, timeout=600)}

    def gradients(name: str) -> list[Tensor]:
        for weight in setting.weights:
            weight.grad = None
        refl_step(generator, judges[name], setting.bank, RECIPE, seed=0, step=0)
        return [weight.grad.clone() for weight in setting.weights if weight.grad is not None]

    off = away(gradients("served"), gradients("local"))
    best = interleaved({name: (lambda name=name: gradients(name)) for name in judges}, ROUNDS)
    server.end()
    figures = {f"refl_{name}_seconds": round(seconds, 3) for name, seconds in best.items()}
    return figures | {"refl_served_to_local": round(best["served"] / best["local"], 3), "refl_max_rel_grad_diff": off}


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores, {threading.active_count()} thread, load {os.getloadavg()[0]:.1f}", flush=True)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        parts: dict[str, Callable[[], dict[str, float]]] = {
            "transport": transport,
            "small": lambda: throughput("small", "shapeworld-judge", 32, "--instruction", "t2i-brief", times=5),
            "large": lambda: throughput("large", scratch, 280, times=1),
            "refl": lambda: refl(scratch),
        }
        chosen = sys.argv[1:] or [*parts]
        if {"large", "refl"} & {*chosen}:
            build_judge(Path(scratch))
        for name in chosen:
            found = parts[name]()
            print(found, flush=True)
            figures |= found
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
