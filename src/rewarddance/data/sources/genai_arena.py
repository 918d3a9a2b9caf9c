"""The vote log of a GenAI-Arena server (arXiv 2406.04485), and the votes as they were published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewarddance.data.fields import Fault, listed, text
from rewarddance.data.sources.drafts import Draft, Medium, Source, as_medium, by_record, vote
from rewarddance.data.sources.genai_bench import votes_or_ratings

_SHARES = {"leftvote": 0.0, "rightvote": 1.0, "tievote": 0.5, "bothbad_vote": 0.5}


def logged(record: Mapping[str, Any]) -> Iterator[Draft]:
    """`{"tstamp", "type": "leftvote", "states": [{"conv_id", "model_name", "prompt"}, ...]}`, a line of
    `YYYY-MM-DD-conv.json`; the picture of a state is `<conv_id>_<model_name>.jpg`, or what its `output` names.

    Records with `vote_type` are read as GenAI-Bench's, which are the same votes.
    """
    if record.get("vote_type") is not None:
        yield from votes_or_ratings(record)
        return
    share = vote("type", record.get("type"), _SHARES)
    states = listed(record, "states")[1]
    if len(states) != 2 or not all(isinstance(state, Mapping) for state in states):
        raise Fault("states", f"holds {len(states)} states, and a vote is on two")
    prompt = _prompt(states[0])
    if _prompt(states[1]) != prompt:
        raise Fault("states", "are of two prompts")
    yield Draft(prompt, (_picture(states[0]), _picture(states[1])), share)


def _prompt(state: Mapping[str, Any]) -> str:
    if state.get("prompt") is None and state.get("messages"):  # of earlier logs: [[role, text], ...]
        return str(state["messages"][0][1])
    return text(state, "prompt")


def _picture(state: Mapping[str, Any]) -> Medium:
    if state.get("output") is not None:
        return as_medium("output", state["output"])
    return as_medium("conv_id", f"{text(state, 'conv_id')}_{text(state, 'model_name')}.jpg")


GENAI_ARENA = Source(
    "genai-arena",
    "a GenAI-Arena server's log, YYYY-MM-DD-conv.json with its pictures beside it, or TIGER-Lab/GenAI-Bench",
    by_record(logged),
    ("", "generation", "image_results/generation", "images"),
)
