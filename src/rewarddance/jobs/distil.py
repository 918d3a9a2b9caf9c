"""Reasons on real data: a larger model is asked for the answer and why, over the OpenAI-compatible chat protocol.

An answer is kept where it agrees with the majority of the votes. Answers that disagree and questions that failed go to
files of their own. A journal beside them holds every answer, so that an interrupted run goes on where it stopped. The
key goes to the server alone: where a reply quotes it, its variable's name is written. Files of a server's own words,
the journal and the failures, are readable by their owner alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from rewarddance.data.media import as_images
from rewarddance.data.preferences import PreferenceRow, read_rows
from rewarddance.errors import InputError, redacted, shown
from rewarddance.jobs.recipes import DistilRun
from rewarddance.reward.instructions import Picture, load_instruction, pictures_of
from rewarddance.runtime.checkpoint import open_to_append, writable_folder, write_text_atomically
from rewarddance.runtime.files import parse_json
from rewarddance.runtime.lock import locked
from rewarddance.runtime.tracking import console, progress_bar
from rewarddance.types import Question

if TYPE_CHECKING:
    from openai import OpenAI

Outcome = Literal["kept", "disagreed", "failed"]
_DECISION = re.compile(r"\W*(yes|no)\b[\W_]*", re.IGNORECASE)
_USER = re.compile(r"//[^/@]*@")
"""A name and password in an address."""
_END_OF_THOUGHT = "</think>"
"""Stands before the answer of a thinking teacher whose server does not keep the two apart."""
_CUT_OFF = {"length": "at the server's limit of tokens", "content_filter": "by the server's filter"}
"""Values of `finish_reason` with which an answer is not whole."""
_REFUSALS = {401: "does not take the key", 403: "forbids it", 404: "knows no such address or model"}
"""Statuses that every further question would get too."""
_UNREACHABLE = ("ConnectError", "UnsupportedProtocol")
"""The HTTP client's errors that say the same of the address."""


_LONGEST_REPLY, _LONGEST_SECONDS = 1 << 24, 600.0
"""Bytes of a reply, and seconds that it may take, to where it is given up."""


_OWN = 0o600
"""Permissions of files that hold a server's own words."""


class Job(NamedTuple):
    """One question: a row of the preferences file, from 0, and whether its pictures are swapped."""

    row: int
    swapped: bool


class Answer(NamedTuple):
    """What became of a job. text: the reason, or for a failure what went wrong."""

    job: Job
    outcome: Outcome
    text: str


class Unanswered(Exception):
    """One question that got no usable answer; the others may."""


def distil(recipe: DistilRun) -> dict[str, Any]:
    """Ask what the journal has no answer to, failures once more, and write the three files; returns the counts.

    Raises InputError where the server cannot be reached or refuses all, where the journal is of another teacher,
    question or preferences file, where another run writes it, and where the output is a file of something else or no
    .jsonl. Earlier answers are kept.
    """
    if recipe.output.suffix != ".jsonl":
        raise InputError(f"the output {recipe.output} is no JSON Lines file.", "Let its name end in .jsonl.")
    rows = list(read_rows(recipe.preferences))
    writable_folder(recipe.output.parent)
    with locked(recipe.output):
        return _distil(recipe, rows)


def _distil(recipe: DistilRun, rows: list[PreferenceRow]) -> dict[str, Any]:
    path = beside(recipe.output, "answers")
    if recipe.output.exists() and not path.exists():
        raise InputError(f"{recipe.output} exists, and no earlier distillation wrote it.", "Choose another output.")
    answers = open_journal(path, _identity(recipe))
    orders = (False, True) if recipe.orders == "both" else (False,)
    jobs = [Job(n, swapped) for n, row in enumerate(rows) if row.share != 0.5 for swapped in orders]
    if not jobs:
        raise InputError(f"all pairs of {recipe.preferences} are ties.", "Give pairs that one picture won.")
    left = [job for job in jobs if job not in answers or answers[job].outcome == "failed"]
    try:
        with (
            progress_bar("asking the teacher", len(jobs), len(jobs) - len(left)) as bar,
            open_to_append(path) as journal,
        ):
            journal.seek(0, os.SEEK_END)
            for answer in ask_all(recipe, rows, left):
                answers[answer.job] = answer
                line = {**answer.job._asdict(), "outcome": answer.outcome, "text": answer.text}
                journal.write((json.dumps(line) + "\n").encode())
                journal.flush()
                bar.advance()
    finally:
        counts = write_results(recipe, rows, [answers[job] for job in sorted(answers)])  # of both orders, once asked
    ties = sum(row.share == 0.5 for row in rows)
    console.print(
        f"{counts['kept']} reasons kept for {counts['pairs']} pairs; {counts['disagreed']} answers disagreed with the "
        f"votes, {counts['failed']} failed, {ties} ties were not asked about"
    )
    found = counts | {"ties": ties, "answers": len(answers), "output": str(recipe.output)}
    return found | ({"failures": str(beside(recipe.output, "failed"))} if counts["failed"] else {})


# -- the teacher -------------------------------------------------------------------------------------------------------


def ask_all(recipe: DistilRun, rows: list[PreferenceRow], jobs: Iterable[Job]) -> Iterator[Answer]:
    """The answers as they come. Raises InputError as `distil` does; what was not asked yet is then not asked."""
    from openai import DefaultHttpxClient, OpenAI

    key = os.environ.get(recipe.api_key_env) or "none"  # the client wants one; `_complete` does not send this one
    with (
        DefaultHttpxClient(event_hooks={"response": [_bounded]}, timeout=recipe.timeout) as http,
        OpenAI(
            api_key=key,
            base_url=recipe.endpoint,
            max_retries=recipe.retries,
            timeout=recipe.timeout,
            http_client=http,
        ) as client,
        ThreadPoolExecutor(recipe.concurrency) as pool,
    ):
        waiting = [pool.submit(_answer, client, recipe, rows[job.row], job) for job in jobs]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _answer(client: OpenAI, recipe: DistilRun, row: PreferenceRow, job: Job) -> Answer:
    try:
        content = question(row, job.swapped, recipe.instruction)
        yes, reason = decision(_complete(client, recipe, content))
    except Unanswered as error:
        return Answer(job, "failed", _without_key(str(error), recipe))
    voted = (row.share < 0.5) if job.swapped else (row.share > 0.5)
    return Answer(job, "kept" if yes == voted else "disagreed", _without_key(reason, recipe))


def question(row: PreferenceRow, swapped: bool, instruction: str) -> list[dict[str, Any]]:
    """One user turn as the protocol writes it: texts, and pictures as data URLs, a video frame by frame.

    Raises Unanswered where a picture cannot be read.
    """
    try:
        pair = row.load()
        candidate, reference = (pair.first, pair.second) if swapped else (pair.second, pair.first)
        parts = list(load_instruction(instruction).question(pair.prompt.text, "after"))
        pictures = iter(pictures_of(parts, Question(pair.prompt, candidate, reference)))
    except InputError as error:
        raise Unanswered(str(error)) from error
    content: list[dict[str, Any]] = []
    for part in parts:
        if not isinstance(part, Picture):
            content.append({"type": "text", "text": part})
            continue
        for frame in as_images(next(pictures)):
            file = io.BytesIO()
            frame.save(file, "PNG")
            url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            content.append({"type": "image_url", "image_url": {"url": url}})
    return content


def decision(text: str) -> tuple[bool, str]:
    """Yes or no at the beginning of an answer, and the reason behind it. Raises Unanswered where either is missing.

    The thoughts of a thinking teacher are not part of its answer.
    """
    text = text.rpartition(_END_OF_THOUGHT)[2]
    match = _DECISION.match(text)
    if not match:
        raise Unanswered(f"the answer does not begin with yes or no: {text[:200]!r}")
    reason = " ".join(text[match.end() :].split())
    if not reason:
        raise Unanswered(f"the answer gives no reason: {text[:200]!r}")
    return match[1].lower() == "yes", reason


def _complete(client: OpenAI, recipe: DistilRun, content: Any) -> str:
    """The text of one chat completion. The client tries again what may pass; a reply that is none is asked for again.

    Raises Unanswered where the last try failed too, and InputError where further questions would fail like this one.
    """
    from openai import APIConnectionError, APIStatusError, Omit

    messages: Any = [{"role": "user", "content": content}]
    headers: Any = {} if os.environ.get(recipe.api_key_env) else {"Authorization": Omit()}
    ask = client.chat.completions.with_raw_response.create
    url, tries = _without_key(_USER.sub("//", recipe.endpoint), recipe).rstrip("/"), recipe.retries + 1
    url += "/chat/completions"
    trouble = ""
    for _ in range(tries):
        try:
            reply = ask(model=recipe.model, messages=messages, extra_headers=headers, extra_body=recipe.body)
            return _text(reply.http_response.json())
        except APIStatusError as error:
            status, body = error.status_code, _without_key(error.response.text, recipe)[:200]
            if status in _REFUSALS:
                raise InputError(
                    f"the teacher at {url} {_REFUSALS[status]} (status {status}): {body!r}.",
                    f"Correct --endpoint, --model or the key in ${recipe.api_key_env}, then go on.",
                ) from error
            again = f" ({tries} tries)" if status == 429 or status >= 500 else ""
            raise Unanswered(f"status {status}: {body!r}{again}") from error
        except APIConnectionError as error:
            cause = error.__cause__ or error
            if type(cause).__name__ in _UNREACHABLE:
                raise InputError(
                    f"the teacher at {url} cannot be reached: {_without_key(str(cause), recipe)}.",
                    "Start it, then go on.",
                ) from error
            what = f"{type(cause).__name__} {cause}".strip()
            raise Unanswered(f"the connection broke: {what} ({tries} tries)") from error
        except ValueError as error:  # no JSON, or none of this form
            trouble = f"the reply is no chat completion: {error}"
    raise Unanswered(f"{trouble} ({tries} tries)")


def _without_key(text: str, recipe: DistilRun) -> str:
    """What a server said, without the key that it may quote, and any other that stands in the environment."""
    key = os.environ.get(recipe.api_key_env)
    return redacted(text.replace(key, f"(${recipe.api_key_env})") if key else text)


def _bounded(response: Any) -> None:
    """Ends a reply that is too long, or does not end; the client takes it for a connection that broke."""
    import httpx2

    inner, end = response.stream, time.monotonic() + _LONGEST_SECONDS

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            length = 0
            for piece in inner:
                length += len(piece)
                if length > _LONGEST_REPLY or time.monotonic() > end:
                    raise httpx2.ReadError(f"the reply does not end after {length:,} bytes")
                yield piece

        def close(self) -> None:
            inner.close()

    response.stream = Bounded()


def _text(reply: Any) -> str:
    """The answer in a reply. Raises ValueError where there is none, and Unanswered where it was cut off or refused."""
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no {error}: {str(reply)[:200]!r}") from error
    if not isinstance(text, str):
        if refusal := choice["message"].get("refusal"):
            raise Unanswered(f"the teacher refuses: {str(refusal)[:200]!r}")
        raise ValueError(f"its content is no text: {str(reply)[:200]!r}")
    if where := _CUT_OFF.get(str(choice.get("finish_reason"))):
        raise Unanswered(f"the answer was cut off {where}: {text[-200:]!r}")
    return text


# -- what is kept ------------------------------------------------------------------------------------------------------


def open_journal(path: Path, identity: dict[str, Any]) -> dict[Job, Answer]:
    """The answers in a journal, one a line, of which the last on a job counts; a new one is begun with its identity.

    Its first line says who was asked what about which file. A line that a kill cut off is dropped. Raises InputError
    where the identity is another one.
    """
    try:
        whole, _, cut = (path.read_text(encoding="utf-8") if path.exists() else "").rpartition("\n")
        before, *lines = [parse_json(line) for line in whole.split("\n") if line] or [identity]
        answers = {answer.job: answer for answer in (_answered(line, n) for n, line in enumerate(lines, start=2))}
        changed = [key for key in identity if before.get(key) != identity[key]]
        if cut or not whole:
            write_text_atomically(path, "".join(json.dumps(line) + "\n" for line in (before, *lines)), _OWN)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the journal {path} cannot be used: {error}.", "Choose another output.") from error
    if changed:
        key = changed[0]
        raise InputError(
            f"{path} holds answers with {key} = {before.get(key)!r}, not {identity[key]!r}.",
            "Choose another output, or give what the run began with.",
        )
    return answers


def _answered(line: dict[str, Any], number: int) -> Answer:
    """A line of a journal. Raises ValueError, KeyError or TypeError where it is none."""
    answer = Answer(Job(line["row"], line["swapped"]), line["outcome"], line["text"])
    kinds = (type(answer.job.row), type(answer.job.swapped), type(answer.text))
    if kinds != (int, bool, str) or answer.outcome not in get_args(Outcome):
        raise ValueError(f"its line {number} is no answer: {shown(line)}")
    return answer


def _identity(recipe: DistilRun) -> dict[str, Any]:
    """What an answer depends on. The endpoint is not in it: the same model may be served elsewhere tomorrow."""
    return {
        "model": recipe.model,
        "instruction": recipe.instruction,
        "instruction_version": load_instruction(recipe.instruction).version,
        "body": json.loads(_without_key(json.dumps(recipe.body), recipe)),
        "preferences_sha256": hashlib.sha256(recipe.preferences.read_bytes()).hexdigest(),
    }


def write_results(recipe: DistilRun, rows: list[PreferenceRow], answers: Iterable[Answer]) -> dict[str, int]:
    """Write the preferences with reasons, the disagreements and the failures; returns how many of each."""
    reasons: dict[int, dict[str, str]] = {}
    apart: dict[str, list[dict[str, Any]]] = {"disagreed": [], "failed": []}
    counts = {"kept": 0, "disagreed": 0, "failed": 0}
    for job, outcome, text in answers:
        counts[outcome] += 1
        if outcome == "kept":
            reasons.setdefault(job.row, {})["reason_swapped" if job.swapped else "reason"] = text
        else:
            why = {"row": job.row, "swapped": job.swapped, "reason" if outcome == "disagreed" else "error": text}
            why |= {"remedy": "The same command asks once more."} if outcome == "failed" else {}
            apart[outcome].append(why | rows[job.row].written(recipe.output.parent))
    kept = [rows[n].written(recipe.output.parent) | texts for n, texts in sorted(reasons.items())]
    files = {recipe.output: kept} | {beside(recipe.output, name): lines for name, lines in apart.items()}
    for path, lines in files.items():
        mode = 0o666 if path == recipe.output else _OWN
        write_text_atomically(path, "".join(json.dumps(line) + "\n" for line in lines), mode)
    return counts | {"pairs": len(kept)}


def beside(output: Path, name: str) -> Path:
    """`reasons.jsonl` -> `reasons.<name>.jsonl`."""
    return output.with_name(f"{output.stem}.{name}.jsonl")
