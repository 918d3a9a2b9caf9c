"""Simulated people on the page of `rewarddance annotate`, all at once: how long an answer takes, and is any lost?

Each takes a pair, thinks, and votes, as a browser does: one request a vote, whose reply brings the pairs that follow.
The server is a process of its own; both share this machine's cores. The times are the clients': from the first byte
sent to the last one read.

    python benchmarks/annotation.py --people 200 --votes 50000 --think 0.8
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from rewarddance.annotate.recipe import HandingOut, PageOptions
from rewarddance.annotate.server import VoteServer
from rewarddance.annotate.store import Pair, Store

_PICTURES = 64


def filled(folder: Path, pairs: int, policy: str) -> Store:
    """A store of so many pairs of a few pictures of four models."""
    for number in range(_PICTURES):
        Image.new("RGB", (64, 64), (4 * number, 90, 60)).save(folder / f"{number}.png")
    rule: dict[str, Any] = {"policy": policy, "overlap": 0.1, "overlap_votes": 3}
    store = Store(folder / "votes.sqlite", HandingOut(**rule))
    files = [folder / f"{number}.png" for number in range(_PICTURES)]

    def pair(n: int) -> Pair:
        i, j = n % _PICTURES, (n + 1 + n // _PICTURES % (_PICTURES - 1)) % _PICTURES
        return Pair(f"prompt {n // 8}", files[i], files[j], None, f"model {i % 4}", f"model {j % 4}", "load")

    store.add_pairs(pair(n) for n in range(pairs))
    return store


def serve(path: Path, people: tuple[str, ...], ready: Connection) -> None:
    """The server's process; says its address, and at the end the processor's seconds that it took."""
    server = VoteServer(Store(path), PageOptions(port=0, people=people))
    with server.background() as address:
        ready.send(address)
        ready.recv()
    used = resource.getrusage(resource.RUSAGE_SELF)
    ready.send(used.ru_utime + used.ru_stime)


class Person:
    """One connection that is kept, as a browser's is. HTTP by hand: a client library takes longer than the server."""

    def __init__(self, address: str, token: str, cookie: str, seed: int) -> None:
        self.host, _, self.port = address.removeprefix("http://").partition(":")
        self.cookie, self.rng = f"{cookie}={token}", np.random.default_rng(seed)
        self.seconds: list[float] = []
        self.acknowledged: list[str] = []

    async def post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(content).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
        head += f"Cookie: {self.cookie}\r\nContent-Length: {len(body)}\r\n\r\n"
        began = time.perf_counter()
        self.writer.write(head.encode() + body)
        reply = await self.reader.readuntil(b"\r\n\r\n")
        length = next(line for line in reply.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        content = json.loads(await self.reader.readexactly(int(length.split(b":")[1])))
        self.seconds.append(time.perf_counter() - began)
        if not reply.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(content)
        return content

    async def work(self, votes: int, think: float) -> None:
        """Vote so many times, thinking about so long before each."""
        self.reader, self.writer = await asyncio.open_connection(self.host, int(self.port))
        await asyncio.sleep(float(self.rng.uniform(0, think)))
        asks = (await self.post("/ask", {}))["asks"]
        for _ in range(votes):
            if not asks:
                break
            await asyncio.sleep(float(self.rng.gamma(4.0, think / 4)))
            answer = ("left", "right", "tie", "bad")[int(self.rng.choice(4, p=(0.4, 0.4, 0.15, 0.05)))]
            vote = {"id": asks[0]["id"], "answer": answer, "criterion": "", "seconds": think}
            self.acknowledged.append(asks[0]["id"])
            asks = (await self.post("/vote", vote))["asks"]
        self.writer.close()


def run(people: int, votes: int, think: float, policy: str) -> dict[str, Any]:
    """All at once against one server; what it took, and whether the store holds what was acknowledged, once."""
    with TemporaryDirectory() as folder:
        store = filled(Path(folder), int(votes * 1.1), policy)
        names = tuple(f"person {n}" for n in range(people))
        tokens = [store.invite(name) for name in names]
        cookie = f"rewarddance_votes_{store.get('id')}"
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(store.path, names, theirs))
        process.start()
        address = ours.recv()
        crowd = [Person(address, token, cookie, n) for n, token in enumerate(tokens)]

        async def all_of_them() -> None:
            await asyncio.gather(*(person.work(votes // people, think) for person in crowd))

        began, load = time.monotonic(), os.getloadavg()[0]
        asyncio.run(all_of_them())
        seconds = time.monotonic() - began
        ours.send("end")
        used = ours.recv()
        process.join()
        latencies = 1000 * np.concatenate([person.seconds for person in crowd])
        acknowledged = [ask for person in crowd for ask in person.acknowledged]
        stands = [row[0] for row in store.db.execute("SELECT ask FROM votes WHERE withdrawn IS NULL")]
        over = store.db.execute("SELECT count(*) FROM pairs WHERE taken > wanted").fetchone()[0]
        double = "SELECT count(*) FROM (SELECT 1 FROM asks GROUP BY pair, person HAVING count(*) > 1)"
        twice = store.db.execute(double).fetchone()[0]
        store.close()
        p50, p90, p99 = np.percentile(latencies, [50, 90, 99])
        return {
            "people": people,
            "policy": policy,
            "votes": len(stands),
            "acknowledged": len(acknowledged),
            "lost": len(set(acknowledged) - set(stands)),
            "doubled": len(stands) - len(set(stands)),
            "pairs_with_too_many": over,
            "pairs_twice_to_one_person": twice,
            "votes_a_second": round(len(stands) / seconds, 1),
            "ms": {"p50": round(p50, 1), "p90": round(p90, 1), "p99": round(p99, 1), "most": round(latencies.max(), 1)},
            "server_processor_seconds": round(used, 1),
            "seconds": round(seconds, 1),
            "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2), "cores": os.cpu_count()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulated annotators on one server.")
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--votes", type=int, default=50_000)
    parser.add_argument("--think", type=float, default=0.8, help="seconds before each vote, on average")
    parser.add_argument("--policy", default="least_voted")
    given = parser.parse_args()
    print(json.dumps(run(given.people, given.votes, given.think, given.policy), indent=2))


if __name__ == "__main__":
    main()
