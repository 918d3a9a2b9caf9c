"""Reasons on real data: a larger model is asked for the answer and why, over the OpenAI-compatible chat protocol.

An answer is kept where its decision is the one that most votes are for; what disagrees or fails stands apart, in files
of its own. A ledger beside them holds every answer, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx2
from PIL import Image
from pydantic import Field

from rewarddance.data.preferences import PreferenceRow, read_rows
from rewarddance.errors import InputError
from rewarddance.reward.instructions import Picture, load_instruction, pictures_of
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import console, progress_bar
from rewarddance.types import Pixels, Question

Outcome = Literal["kept", "disagreed", "failed"]
_DECISION = re.compile(r"\W*(yes|no)\b[\W_]*", re.IGNORECASE)
_THOUGHT = "</think>"
"""How the thoughts of a teacher end, where its server does not keep them apart."""
_CUT_OFF = {"length": "at the server's limit of tokens", "content_filter": "by the server's filter"}
"""Ways for an answer to end that are not its own, by the protocol's names."""
_NOT_WORTH_ASKING_AGAIN = {401: "does not take the key", 403: "forbids it", 404: "knows no such address or model"}
_LONGEST_WAIT = 60.0


class DistilRecipe(Recipe):
    """Which pairs are shown to which teacher.

    preferences: a preferences file; ties are not asked about. endpoint: the server's address up to /v1. model: its name
    there. output: the preferences file with reasons; `<stem>.disagreed.jsonl`, `<stem>.failed.jsonl` and the ledger
    `<stem>.answers.jsonl` stand beside it. instruction: the pairwise question asked. orders: "both" also asks with the
    pictures changed over, for `reason_swapped`. api_key_env: the environment variable that holds the key; none is sent
    where it is not set. concurrency: questions at once. retries: further tries where the server is busy, breaks off or
    talks nonsense. backoff: seconds before the first of them, doubled each time, unless the server says how long.
    timeout: seconds for one answer. body: further fields of the request, such as temperature.
    """

    preferences: Path
    endpoint: str
    model: str
    output: Path
    instruction: str = "t2i"
    orders: Literal["forward", "both"] = "both"
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = Field(default=8, ge=1)
    retries: int = Field(default=5, ge=0)
    backoff: float = Field(default=1.0, ge=0)
    timeout: float = Field(default=120.0, gt=0)
    body: dict[str, Any] = Field(default_factory=dict)


class Job(NamedTuple):
    """One question: a row of the preferences file, from 0, and whether its pictures are changed over."""

    row: int
    swapped: bool


class Answer(NamedTuple):
    """What became of a job. text: the reason, or for a failure what went wrong."""

    job: Job
    outcome: Outcome
    text: str


class Unanswered(Exception):
    """One question that got no usable answer; the others may."""


def distil(recipe: DistilRecipe) -> dict[str, Any]:
    """Ask for what the ledger lacks, failures once more, and write the three files; returns the counts.

    Raises InputError where the server cannot be reached or refuses all, where the ledger is of another teacher,
    question or preferences file, and where the output is a file of something else. What was answered before is kept.
    """
    rows = list(read_rows(recipe.preferences))
    if recipe.output.exists() and not beside(recipe.output, "answers").exists():
        raise InputError(f"{recipe.output} exists, and no earlier distillation wrote it.", "Choose another output.")
    ledger = Ledger(beside(recipe.output, "answers"), _identity(recipe))
    orders = (False, True) if recipe.orders == "both" else (False,)
    jobs = [Job(n, swapped) for n, row in enumerate(rows) if row.share != 0.5 for swapped in orders]
    left = [job for job in jobs if ledger.outcome(job) in (None, "failed")]
    try:
        with progress_bar("asking the teacher", len(jobs), len(jobs) - len(left)) as bar:
            for answer in ask_all(recipe, rows, left):
                ledger.add(answer)
                bar.advance()
    finally:
        counts = write_results(recipe, rows, [ledger.answers[job] for job in jobs if job in ledger.answers])
    ties = sum(row.share == 0.5 for row in rows)
    console.print(
        f"{counts['kept']} reasons kept for {counts['pairs']} pairs; {counts['disagreed']} answers disagreed with the "
        f"votes, {counts['failed']} failed, {ties} ties were not asked about"
    )
    return counts | {"ties": ties, "output": str(recipe.output)}


# -- the teacher -------------------------------------------------------------------------------------------------------


def ask_all(recipe: DistilRecipe, rows: list[PreferenceRow], jobs: Iterable[Job]) -> Iterator[Answer]:
    """The answers as they come. Raises InputError as `distil` does; what was not asked yet is then not asked."""
    key = os.environ.get(recipe.api_key_env)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with (
        httpx2.Client(headers=headers, timeout=recipe.timeout) as client,
        ThreadPoolExecutor(recipe.concurrency) as pool,
    ):
        waiting: list[Future[Answer]] = [pool.submit(_answer, client, recipe, rows[job.row], job) for job in jobs]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _answer(client: httpx2.Client, recipe: DistilRecipe, row: PreferenceRow, job: Job) -> Answer:
    try:
        messages = [{"role": "user", "content": question(row, job.swapped, recipe.instruction)}]
        yes, reason = decision(_complete(client, recipe, {"model": recipe.model, "messages": messages} | recipe.body))
    except Unanswered as error:
        return Answer(job, "failed", str(error))
    voted = (row.share < 0.5) if job.swapped else (row.share > 0.5)
    return Answer(job, "kept" if yes == voted else "disagreed", reason)


def question(row: PreferenceRow, swapped: bool, instruction: str) -> list[dict[str, Any]]:
    """One user turn as the protocol writes it: texts, and pictures as data URLs, a video frame by frame.

    Raises Unanswered where a picture cannot be read.
    """
    try:
        pair = row.load()
        candidate, reference = (pair.first, pair.second) if swapped else (pair.second, pair.first)
        asked = Question(pair.prompt, candidate, reference, condition=pair.condition)
        parts = list(load_instruction(instruction).question(pair.prompt, "after"))
        shown = iter(pictures_of(parts, asked))
    except InputError as error:
        raise Unanswered(str(error)) from error
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Picture):
            content += [{"type": "image_url", "image_url": {"url": url}} for url in data_urls(next(shown))]
        else:
            content.append({"type": "text", "text": part})
    return content


def data_urls(pixels: Pixels) -> list[str]:
    """Each frame as a PNG in a data URL."""
    urls = []
    for frame in (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    return urls


def decision(text: str) -> tuple[bool, str]:
    """Yes or no at the beginning of an answer, and the reason behind it. Raises Unanswered where either is missing.

    What a thinking teacher says to itself first is not its answer.
    """
    text = text.rpartition(_THOUGHT)[2]
    found = _DECISION.match(text)
    if not found:
        raise Unanswered(f"the answer does not begin with yes or no: {text[:200]!r}")
    reason = " ".join(text[found.end() :].split())
    if not reason:
        raise Unanswered(f"the answer gives no reason: {text[:200]!r}")
    return found[1].lower() == "yes", reason


def _complete(client: httpx2.Client, recipe: DistilRecipe, body: dict[str, Any]) -> str:
    """The text of one chat completion, tried up to 1 + retries times.

    Raises Unanswered where the last try failed too, and InputError where asking further questions is of no use.
    """
    url, trouble = recipe.endpoint.rstrip("/") + "/chat/completions", ""
    for tried in range(recipe.retries + 1):
        wait = min(_LONGEST_WAIT, recipe.backoff * 2**tried) * random.uniform(0.5, 1.0)
        try:
            response = client.post(url, json=body)
        except (httpx2.ConnectError, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            if tried == recipe.retries or not isinstance(error, httpx2.ConnectError):
                raise InputError(
                    f"the teacher at {url} cannot be reached: {error}.", "Start it, then go on."
                ) from error
            time.sleep(wait)
            continue
        except httpx2.RequestError as error:
            trouble = f"the connection broke: {type(error).__name__} {error}".strip()
        else:
            status = response.status_code
            if status == 200:
                try:
                    return _text(response.json())
                except ValueError as error:  # and what is no JSON at all
                    trouble = f"the reply is no chat completion: {error}: {response.text[:200]!r}"
            elif status in _NOT_WORTH_ASKING_AGAIN:
                refused = f"{_NOT_WORTH_ASKING_AGAIN[status]} (status {status}): {response.text[:200]!r}"
                raise InputError(
                    f"the teacher at {url} {refused}.",
                    f"Correct --endpoint, --model or the key in ${recipe.api_key_env}, then go on.",
                )
            else:
                trouble = f"status {status}: {response.text[:200]!r}"
                if status != 429 and status < 500:
                    raise Unanswered(trouble)
                said = response.headers.get("retry-after", "")
                wait = min(_LONGEST_WAIT, float(said)) if said.isdecimal() else wait
        if tried < recipe.retries:
            time.sleep(wait)
    raise Unanswered(f"{trouble} ({recipe.retries + 1} tries)")


def _text(reply: Any) -> str:
    """The answer in a reply. Raises ValueError where there is none, and Unanswered where it was cut off or refused."""
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no {error}") from error
    if not isinstance(text, str):
        if refusal := choice["message"].get("refusal"):
            raise Unanswered(f"the teacher refuses: {str(refusal)[:200]!r}")
        raise ValueError("its content is no text")
    if where := _CUT_OFF.get(str(choice.get("finish_reason"))):
        raise Unanswered(f"the answer was cut off {where}: {text[-200:]!r}")
    return text


# -- what is kept ------------------------------------------------------------------------------------------------------


class Ledger:
    """Every answer so far, one a line, flushed at once; the last one on a job counts.

    Its first line says who was asked what about which file. Raises InputError where that differs. A line that a kill
    cut off is dropped.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.answers: dict[Job, Answer] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole, _, cut = (path.read_text(encoding="utf-8") if path.exists() else "").rpartition("\n")
            lines = [json.loads(line) for line in whole.splitlines()]
            for line in lines[1:]:
                job = Job(line["row"], line["swapped"])
                self.answers[job] = Answer(job, line["outcome"], line["text"])
            if cut or not lines:
                kept = "\n".join(map(json.dumps, lines or [identity])) + "\n"
                write_text_atomically(path, kept)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"the ledger {path} cannot be used: {error}.", "Choose another output.") from error
        changed = [key for key in identity if lines and lines[0].get(key) != identity[key]]
        if changed:
            key = changed[0]
            raise InputError(
                f"{path} holds answers with {key} = {lines[0].get(key)!r}, not {identity[key]!r}.",
                "Choose another output, or give what the run began with.",
            )

    def outcome(self, job: Job) -> Outcome | None:
        return self.answers[job].outcome if job in self.answers else None

    def add(self, answer: Answer) -> None:
        self.answers[answer.job] = answer
        line = {**answer.job._asdict(), "outcome": answer.outcome, "text": answer.text}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _identity(recipe: DistilRecipe) -> dict[str, Any]:
    """What an answer depends on. The endpoint is not in it: the same model may be served elsewhere tomorrow."""
    return {
        "model": recipe.model,
        "instruction": recipe.instruction,
        "instruction_version": load_instruction(recipe.instruction).version,
        "body": recipe.body,
        "preferences_sha256": hashlib.sha256(recipe.preferences.read_bytes()).hexdigest(),
    }


def write_results(recipe: DistilRecipe, rows: list[PreferenceRow], answers: Iterable[Answer]) -> dict[str, int]:
    """Write the preferences with reasons, the disagreements and the failures; returns how many of each."""
    kept: dict[int, dict[str, str]] = {}
    apart: dict[str, list[dict[str, Any]]] = {"disagreed": [], "failed": []}
    counts = {"kept": 0, "disagreed": 0, "failed": 0}
    for job, outcome, text in answers:
        counts[outcome] += 1
        if outcome == "kept":
            kept.setdefault(job.row, {})["reason_swapped" if job.swapped else "reason"] = text
        else:
            why = {"row": job.row, "swapped": job.swapped, "reason" if outcome == "disagreed" else "error": text}
            apart[outcome].append(why | rows[job.row].written(recipe.output.parent))
    with_reasons = [rows[n].written(recipe.output.parent) | reasons for n, reasons in sorted(kept.items())]
    files = {recipe.output: with_reasons} | {beside(recipe.output, name): lines for name, lines in apart.items()}
    for path, lines in files.items():
        write_text_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
    return counts | {"pairs": len(kept)}


def beside(output: Path, name: str) -> Path:
    """`reasons.jsonl` -> `reasons.<name>.jsonl`."""
    return output.with_name(f"{output.stem}.{name}.jsonl")
