"""Servers of this process that speak as others do, answered by a judge of ours or by what a test says."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image

from rewarddance.reward.instructions import Picture
from rewarddance.reward.prefill import JudgeInput

Reply = tuple[int, dict[str, str], Any]
"""Status, headers and what is sent as JSON; bytes are sent as they are."""


class Endpoint:
    """bodies: what was posted, by path. headers: of each request. reply: what is said to a path's body."""

    def __init__(self, reply: Callable[[str, Any], Any]) -> None:
        self.reply, self.bodies, self.headers = reply, [], []
        self.lock = threading.Lock()  # a judge is asked by one thread at a time
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with outer.lock:
                    outer.headers.append(dict(self.headers))
                    body = json.loads(sent) if sent else None
                    outer.bodies.append((self.path, body))
                    told = outer.reply(self.path, body)
                status, headers, content = told if isinstance(told, tuple) else (200, {}, told)
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"

    def posted(self, path: str) -> list[Any]:
        return [body for where, body in self.bodies if where == path and body is not None]


@contextmanager
def served(reply: Callable[[str, Any], Any]) -> Iterator[Endpoint]:
    endpoint = Endpoint(reply)
    threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        endpoint.server.server_close()


# -- a judge that hears what was sent ----------------------------------------------------------------------------------


def pixels_of(png: str) -> torch.Tensor:
    """Of a data URL, or of its base64 alone."""
    image = Image.open(io.BytesIO(base64.b64decode(png.rpartition(",")[2]))).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def token_logprobs(judge: Any, parts: list[tuple[bool, str]]) -> torch.Tensor:
    """Log-probabilities [V] of the answer to one user's turn of texts and PNGs."""
    words = tuple(Picture("shown") if is_picture else text for is_picture, text in parts)
    pictures = tuple(pixels_of(png) for is_picture, png in parts if is_picture)
    with torch.no_grad():
        return judge.vlm.head(judge.vlm.last_states([JudgeInput(words, pictures)]))[0].log_softmax(-1)


def probability_of(judge: Any, parts: list[tuple[bool, str]]) -> float:
    """P("yes") of one user's turn, among the judge's own spellings."""
    told = token_logprobs(judge, parts)
    yes, no = (told[judge.vlm.answer_tokens(words)].logsumexp(0) for words in (judge.config.yes, judge.config.no))
    return float(torch.sigmoid(yes - no))


MODELS = {"object": "list", "data": [{"id": "a-judge"}]}


def chat(judge: Any, tells_numbers: bool = True) -> Callable[[str, Any], Any]:
    """A vLLM, or a server that tells the likeliest 20 tokens by their text."""
    tokenizer = judge.vlm.tokenizer

    def reply(path: str, body: Any) -> Any:
        if path == "/v1/models":
            return MODELS
        if path == "/tokenize" and tells_numbers:
            return {"tokens": tokenizer(body["prompt"], add_special_tokens=False).input_ids}
        if path != "/v1/chat/completions":
            return 404, {}, {"error": "no such path"}
        content = body["messages"][0]["content"]
        parts = [(p["type"] == "image_url", p["image_url"]["url"] if "image_url" in p else p["text"]) for p in content]
        told = token_logprobs(judge, parts)
        if tells_numbers:
            top = [(f"token_id:{number}", float(told[number])) for number in body["logprob_token_ids"]]
        else:
            values, ids = told.topk(body["top_logprobs"])
            top = [(tokenizer.decode([i]), v) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
        return answered(dict(top))

    return reply


def answered(top: dict[str, float], **choice: Any) -> dict[str, Any]:
    """A chat completion that tells these log-probabilities."""
    told = [{"token": token, "logprob": value, "bytes": None} for token, value in top.items()]
    logprobs = {"content": [{"token": next(iter(top), ""), "logprob": 0.0, "top_logprobs": told}]}
    message = {"role": "assistant", "content": "yes"}
    return {"choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "length"} | choice]}


def sure(p: float) -> dict[str, Any]:
    return answered({"yes": math.log(p), "no": math.log1p(-p)})


def decisions(judge: Any) -> Callable[[str, Any], Any]:
    """OpenAI's decisions: each predicate is the input's words and pictures, and then its own."""

    def parts(content: list[dict[str, str]]) -> list[tuple[bool, str]]:
        return [(p["type"] == "input_image", p.get("image_url") or p["text"]) for p in content]

    def reply(path: str, body: Any) -> Any:
        if path == "/v1/models":
            return MODELS
        assert path == "/v1/decisions"
        (message,) = body["input"]
        answers = []
        for question in body["questions"]:
            p = probability_of(judge, parts(message["content"]) + parts(question["instructions"]))
            answers.append({"type": "predicate", "name": question["name"], "probability": p})
        return {"model": body["model"], "answers": answers, "usage": {}}

    return reply


def systemone(judge: Any) -> Callable[[str, Any], Any]:
    """transformers' systemone on a judge's own folder, as its template reads a state in words or in places."""

    def reply(path: str, body: Any) -> Any:
        if path == "/v1/models":
            return MODELS
        assert path == "/v1/systemone"
        state, assets = body["state"], body["assets"]
        if isinstance(state, dict):
            words = judge.instruction.question(state["prompt"])
            state = "".join(state[str(part)] if isinstance(part, Picture) else part for part in words)
        parts: list[tuple[bool, str]] = [(False, state)]
        for mark, asset in assets.items():
            is_picture, text = parts.pop()
            before, found, after = text.partition(mark)
            assert found and not is_picture
            parts += [(False, before), (True, asset["data_base64"]), (False, after)]
        told = token_logprobs(judge, [part for part in parts if part[1]])
        (question,) = body["questions"].values()
        words = [*question["criteria"]] if question["type"] == "choice" else ["yes", "no"]
        shares = told[[judge.vlm.answer_tokens([word])[0] for word in words]].softmax(0).tolist()
        if question["type"] == "noul":
            return {"answers": {"better": {"type": "noul", "noul": shares[0]}}}
        chosen = dict(zip(words, shares, strict=True))
        return {"answers": {"better": {"type": "choice", "choice": words[0], "probabilities": chosen}}}

    return reply
