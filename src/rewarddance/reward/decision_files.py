"""A judge's folder asked by others: decision.json and decision_template.jinja, as transformers reads them (5.24 on).

`pipeline("decision", model=FOLDER)` and `transformers serve` then ask in the judge's own words. A request's state is
{"prompt": ..., "reference": "<a>", "candidate": "<b>"}, with an "image" before them where the instruction shows one; a
video is the marks of its frames in one text. Or it is one text, the whole question with marks where pictures go. The
questions are {"better": {"type": "noul"}}, and the assets {"<a>": picture, "<b>": picture}.

P("yes") of a `noul` is exact where the tokenizer has one spelling each of yes and no: transformers compares two labels
and no more. Where a judge sums several, a `choice` of all of them in the order of `labels.choice` gives each its share,
and P("yes") is the sum of the first ones. A question that the template cannot ask as the judge does, it refuses.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rewarddance.errors import InputError
from rewarddance.reward.families import template_sandbox as sandbox
from rewarddance.reward.families.family import Family, KnownFamily
from rewarddance.reward.instructions import Picture

DECISION_FILE, TEMPLATE_FILE = "decision.json", "decision_template.jinja"
_PROMPT = "\ue000"
"""Stands for the prompt while a question is taken apart: for private use, so in no prompt and no template."""
_TRIAL_PROMPTS = ("a red circle", ' 3 "quoted" {{ words }},\n{% raw %} <b>&amp;</b> \\n é 中 🙂 ')
"""Prompts that a template must write as the judge does, before it is believed."""


class DecisionFiles(NamedTuple):
    """What stands in the two files.

    yes, no: the spellings that the judge sums, each a token.
    template: Jinja, of a question with its pictures up to where the answer begins.
    """

    yes: tuple[str, ...]
    no: tuple[str, ...]
    template: str

    @property
    def exact(self) -> bool:
        """Is a `noul` just P("yes")? Else a `choice` of all spellings is."""
        return len(self.yes) == len(self.no) == 1

    def config(self) -> dict[str, Any]:
        """Of decision.json."""
        labels = {"noul": [self.yes[0], self.no[0]], "choice": [*self.yes, *self.no]}
        return {
            "labels": labels,
            "temperature": {"noul": 1.0, "choice": 1.0},
            "noul_options": ["true", "false"],
            "sanitize_control_tokens": True,
            # transformers passes over what it does not know; this is for people
            "rewarddance": {"yes": list(self.yes), "no": list(self.no), "noul_is_exact": self.exact},
        }


def write_decision_files(judge: Any, folder: Path) -> None:
    """Write both files into a judge's folder, or neither, where `decision_files` says why it cannot be."""
    try:
        files = decision_files(judge)
    except InputError:
        for name in (DECISION_FILE, TEMPLATE_FILE):
            (folder / name).unlink(missing_ok=True)
        return
    (folder / TEMPLATE_FILE).write_text(files.template, encoding="utf-8")
    text = json.dumps(files.config(), indent=2, ensure_ascii=False)
    (folder / DECISION_FILE).write_text(text + "\n", encoding="utf-8")


def decision_files(judge: Any) -> DecisionFiles:
    """The two files of a pairwise or pointwise judge. Raises InputError with the reason where there can be none."""
    config = judge.config
    if config.kind not in ("pairwise", "pointwise"):
        raise _unsayable(f"a {config.kind} reward answers with a head of its own, and not with yes or no")
    if config.criteria is not None:
        raise _unsayable("a tree of criteria asks several questions", "Load it without criteria.")
    if config.kind == "pairwise" and config.orders == "both":
        raise _unsayable("it asks in both orders, and a decision is one question", "Load it with orders='forward'.")
    if config.reasoning == "before":
        raise _unsayable("it writes a reason before its answer, and a decision is one token")
    if config.among != "answers":
        raise _unsayable(
            "its P('yes') is among the whole vocabulary, and a decision's among its labels",
            "Load it with among='answers'.",
        )
    tokenizer = judge.vlm.tokenizer
    yes, no = (_single(tokenizer, words) for words in (config.yes, config.no))
    template = _template(judge)
    _check(judge, template)
    return DecisionFiles(yes, no, template)


def _unsayable(why: str, remedy: str = "Serve it with `rewarddance serve`.") -> InputError:
    return InputError(f"the judge cannot be written down as a decision: {why}.", remedy)


def _single(tokenizer: Any, words: Sequence[str]) -> tuple[str, ...]:
    """The spellings that are one token, in order; two of one token are one."""
    word_of: dict[int, str] = {}
    for word in words:
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            word_of.setdefault(ids[0], word)
    return tuple(word_of.values())


class _Turn(NamedTuple):
    """What the chat template writes around a user's turn and around each of its pictures."""

    head: str
    before_picture: str
    placeholder: str
    after_picture: str
    foot: str


def _parts(judge: Any, prompt: str) -> list[str]:
    instruction, config = judge.instruction, judge.config
    question_parts = instruction.pointwise_question if config.kind == "pointwise" else instruction.question
    return list(question_parts(prompt, config.reasoning))


def _turn(judge: Any) -> _Turn:
    """Taken from a turn that is known. Raises InputError where the chat template writes turns in another way."""
    chat = judge.vlm.family.chat
    text = chat.render(((False, "FIRST text:"), (True, "reference"), (False, "LAST text:")))
    mark = chat.placeholder
    head, first, rest = text.partition("FIRST text:")
    between, last, foot = rest.partition("LAST text:")
    if not (mark and first and last and between.count(mark) == 1):
        raise _unsayable("its chat template does not mark a picture with one token in the text")
    before, _, after = between.partition(mark)
    return _Turn(head, before, mark, after, foot)


def _template(judge: Any) -> str:
    """The Jinja text. Its state is a mapping of the instruction's places, or a question in whatever words."""
    turn, parts = _turn(judge), _parts(judge, _PROMPT)
    places = [str(part) for part in parts if isinstance(part, Picture)]
    keys = ["prompt", *places]
    words = " + ".join(f"state.{part}" if isinstance(part, Picture) else _text_block(part) for part in parts)
    lines = [
        "{#- How this judge is asked; written with its weights. -#}",
        "{%- if question.type == 'choice' and question.options != question.labels -%}",
        _raise("a choice must offer the spellings of yes and no in the order of labels.choice in decision.json"),
        "{%- elif question.type == 'score' -%}",
        _raise("this judge says yes or no: ask a noul"),
        "{%- elif state is mapping -%}",
        f"{{%- if state.keys()|list != {json.dumps(keys)} or state.prompt is not string -%}}",
        _raise(f"state must hold, in this order: {', '.join(keys)}; and the prompt no mark of a picture"),
        "{%- endif -%}",
        f"{{%- for place in {json.dumps(places)} -%}}",
        "{%- if state[place] is string or state[place] is mapping"
        " or state[place]|rejectattr('type', 'equalto', 'image')|list -%}",
        _raise("the pictures of state must be marks that stand in assets, and nothing else"),
        "{%- endif -%}",
    ]
    if judge.config.frames is not None:
        lines += [
            f"{{%- if place != 'image' and state[place]|length != {judge.config.frames} -%}}",
            _raise(f"this judge reads {judge.config.frames} frames of a video: give just those"),
            "{%- endif -%}",
        ]
    lines += [
        "{%- endfor -%}",
        f"{{%- set parts = {words} -%}}",
        "{%- elif state is string -%}",
        _raise("state shows no picture: let it hold marks that stand in assets"),
        "{%- else -%}",
        "{%- set parts = state -%}",
        "{%- endif -%}",
        _write(turn.head),
        "{%- for part in parts -%}",
        "{%- if part.type == 'image' -%}",
        _write(turn.before_picture + turn.placeholder + turn.after_picture),
        "{%- else -%}",
        "{{- part.text -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        _write(turn.foot),
    ]
    return "\n".join(lines)


def _text_block(part: str) -> str:
    pieces = [_literal(piece) for piece in part.split(_PROMPT)]
    return f'[{{"type": "text", "text": {" ~ state.prompt ~ ".join(pieces)}}}]'


def _literal(text: str) -> str:
    """A text as Jinja writes one: JSON's escapes are Python's, but for those of characters beyond 16 bits."""
    return json.dumps(text, ensure_ascii=False)


def _write(text: str) -> str:
    return f"{{{{- {_literal(text)} -}}}}"


def _raise(message: str) -> str:
    return f"{{{{- raise_exception({_literal(message)}) -}}}}"


def _check(judge: Any, template: str) -> None:
    """Raises InputError unless the template writes pictures and videos into a question as the judge does."""
    compiled, _ = sandbox.compiled(template)
    for prompt in _TRIAL_PROMPTS:
        parts = _parts(judge, prompt)
        for frames in (1, 2) if judge.config.frames is None else (judge.config.frames,):
            counts = {str(part): 1 if part == "image" else frames for part in parts if isinstance(part, Picture)}
            expected = _expected_text(judge.vlm.family, parts, counts)
            blocks = {place: [{"type": "image"}] * count for place, count in counts.items()}
            turn = [blocks[p] if isinstance(p, Picture) else [{"type": "text", "text": str(p)}] for p in parts]
            for state in ({"prompt": prompt} | blocks, [*itertools.chain(*turn)]):
                try:
                    written = sandbox.rendered(compiled, {"state": state, "question": {"type": "noul"}})
                except sandbox.TemplateFault as fault:
                    raise _unsayable(f"no template writes its questions ({fault})") from fault
                if written != expected:
                    raise _unsayable(f"its chat template changes what it is given, such as the prompt {prompt!r}")


def _expected_text(family: Family, parts: Sequence[str], frames: dict[str, int]) -> str:
    """The question as this judge is asked it, each frame marked by the placeholder of a picture."""
    if isinstance(family, KnownFamily):  # the frames of a video stand where one placeholder is
        one_frame, two_frames = family.written((1,)), family.written((1, 1))
        between = two_frames[len(one_frame) : len(two_frames) - len(one_frame)]
        text = family.chat.render(tuple((isinstance(part, Picture), str(part)) for part in parts))
        pieces = text.split(family.placeholder)
        marks = [between.join([family.placeholder] * count) for count in frames.values()] + [""]
        return "".join(piece + mark for piece, mark in zip(pieces, marks, strict=True))
    repeated = [(part, frames[str(part)] if isinstance(part, Picture) else 1) for part in parts]
    return family.chat.render(tuple((isinstance(p, Picture), str(p)) for p, count in repeated for _ in range(count)))
