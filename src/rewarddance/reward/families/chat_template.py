"""A checkpoint's chat template: what a question becomes before it is cut into tokens, and where the answer begins.

Templates differ in more than their marks: some open a thought, some write the date, some take texts only. Here a
template is tried on one question when it is loaded, and what came out is kept with the judge (`RENDERED_FILE`).
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rewarddance.errors import InputError, first_line
from rewarddance.reward.families import template_sandbox as sandbox

Parts = tuple[tuple[bool, str], ...]
"""A user's turn in order: (False, text), or (True, name) where a picture goes."""
RENDERED_FILE = "rendered_question.json"
"""The question that a saved judge's template was tried on, as it came out."""
_TRIAL_PARTS: Parts = ((False, "FIRST text."), (True, "reference"), (False, "SECOND text."), (True, "candidate"))
_TRIAL_PARTS += ((False, "Answer yes or no: LAST text."),)
_THINKING = {"enable_thinking": False, "thinking": False}, {"enable_thinking": True, "thinking": True}
"""By these names templates take whether the model shall think first."""
_OPENS = re.compile(
    r"<(?P<name>[\w:]*(?:think|thought|reasoning)[\w:]*)>|<\|(?P<bar>\w*(?:think|thought)\w*)\|>|\[(?P<square>THINK)\]"
    r"|◁(?P<kimi>think)▷|(?P<channel><\|channel>thought)",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_PROSE = re.compile(r"[\w,.] $"), re.compile(r"^ [\w(]")
"""What stands before and behind a mark that a template only speaks of, as in "between <think> and </think>"."""
_MARK = re.compile(r"[:<>\[\]|#]")
_REMEDY = "Choose a checkpoint that was tuned to follow instructions, or mend its chat_template.jinja."


class ChatTemplate:
    """A template that was tried: it writes texts and pictures in their order, and ends where the answer begins.

    judge: names the judge in errors. source: Jinja, or several by name. special: the tokenizer's special tokens by
    name. placeholder: the text that marks a picture, where it is known; exact: and the template must write just that.
    Raises InputError where there is no template, where it raises or does not end, or leaves out what is asked.

    question: the question that it was tried on, as it came out. fixed: what it writes that would change between calls.
    turn_marks: what begins or ends a turn in plain text, which no prompt may hold.
    """

    def __init__(
        self, judge: str, source: Any, special: Mapping[str, Any], placeholder: str | None, exact: bool = True
    ) -> None:
        self.judge, self.placeholder, self._exact = judge, placeholder, exact and placeholder is not None
        if isinstance(source, dict):
            source = source.get("default")
        if not isinstance(source, str) or not source.strip():
            raise InputError(
                f"the {judge} has no chat template, so there is no knowing how to ask it.",
                "Choose a checkpoint that was tuned to follow instructions, or add its chat_template.jinja.",
            )
        self._special = {name: token for name, token in special.items() if isinstance(token, str)}
        trial = self._try_forms(source)
        self._as_text, self.fixed, self.question = trial.as_text, trial.fixed, trial.text
        self._ending = trial.ending
        self._template, _ = sandbox.compiled(source)
        first, last = _TRIAL_PARTS[0][1], _TRIAL_PARTS[-1][1]
        begin, end = trial.text.index(first), trial.text.rindex(last) + len(last)
        edges = [*trial.text[:begin].strip().splitlines()[-1:], trial.text[end:].strip()]
        self.turn_marks = tuple(edge for edge in edges if len(edge) > 2 and _MARK.search(edge))

    def render(self, parts: Parts) -> str:
        """A user's turn up to where the answer begins. Raises InputError where the template refuses it."""
        try:
            return sandbox.rendered(self._template, self._variables(parts, self._as_text)) + self._ending
        except sandbox.TemplateFault as fault:
            raise InputError(f"the chat template of the {self.judge} cannot be used: {fault}.", _REMEDY) from fault

    def keep(self, folder: Path) -> None:
        content = {"question": self.question, "fixed": list(self.fixed)}
        (folder / RENDERED_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def check_kept(self, folder: Path) -> None:
        """Raises InputError where a judge that was saved in `folder` would be asked otherwise now."""
        kept = _read_kept(folder).get("question", self.question)
        if kept != self.question:
            differs = (n for n, (a, b) in enumerate(zip(kept, self.question, strict=False)) if a != b)
            start = max(next(differs, -1) - 20, 0)
            raise InputError(
                f"the {self.judge} in {folder} was saved with a question that read {kept[start:][:60]!r}, "
                f"and it now reads {self.question[start:][:60]!r}.",
                f"Restore its chat template, or train it again; remove {RENDERED_FILE} to take it as it is.",
            )

    def _variables(self, parts: Parts, as_text: bool, think: Mapping[str, bool] = _THINKING[0]) -> dict[str, Any]:
        if as_text:
            content: Any = "".join((self.placeholder or "") if is_picture else text for is_picture, text in parts)
        else:
            content = [
                {"type": "image"} if is_picture else {"type": "text", "text": text} for is_picture, text in parts
            ]
        turn = {"messages": [{"role": "user", "content": content}], "add_generation_prompt": True}
        return {"tools": None, "documents": None, **self._special, **turn, **think}

    def _try_forms(self, source: str) -> _Trial:
        """The first form of a question that the template writes whole: a list of parts, or one text."""
        forms = [False] + [True] * (self.placeholder is not None)
        variables = [self._variables(_TRIAL_PARTS, form, think) for form in forms for think in _THINKING]
        texts, faults, fixed = _render_in_subprocess(self.judge, source, json.dumps(variables))
        first_fault = ""
        for number, form in enumerate(forms):
            without, with_thought = texts[2 * number], texts[2 * number + 1]
            fault = faults[2 * number] or self._missing(without or "")
            if not fault:
                ending = _closing(without or "", with_thought, source)
                return _Trial((without or "") + ending, ending, form, fixed)
            first_fault = first_fault or fault
        raise InputError(f"the chat template of the {self.judge} cannot be used: {first_fault}.", _REMEDY)

    def _missing(self, text: str) -> str:
        """What of the question that was tried is not in its rendering, or not in its place."""
        end = 0
        for is_picture, words in _TRIAL_PARTS:
            if is_picture and not self._exact:
                continue
            expected = (self.placeholder or "") if is_picture else words
            if (start := text.find(expected, end)) < 0:
                return f"it leaves out {'a picture' if is_picture else 'a text'} of the question, or moves it"
            end = start + len(expected)
        if self._exact and text.count(self.placeholder or "") != sum(part[0] for part in _TRIAL_PARTS):
            return "it marks more pictures than the question has"
        return "it writes the parts of a question as a list" if re.search(r"[\"']type[\"']\s*:", text) else ""


def read_fixed(folder: Path) -> list[str]:
    """What the template of the judge in `folder` writes that is held fixed, such as the date."""
    return [str(text) for text in _read_kept(folder).get("fixed", ())]


def _read_kept(folder: Path) -> dict[str, Any]:
    """What `ChatTemplate.keep` wrote; empty where it did not. Raises InputError naming a file that cannot be read."""
    path = folder / RENDERED_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("question", ""), str):
            return content
        reason = "it is no question"
    except (OSError, ValueError, RecursionError) as error:
        reason = first_line(error)
    raise InputError(f"{path} cannot be read: {reason}.", "Restore it, or remove it.")


class _Trial(NamedTuple):
    text: str
    ending: str
    as_text: bool
    fixed: tuple[str, ...]


def _closing(text: str, with_thought: str | None, source: str) -> str:
    """What must stand behind a rendering so that the answer begins there: the end of a thought, or an empty one.

    A template that knows thoughts, and does not say otherwise when told not to think, is of a model that begins its
    answer with one.
    """
    after = text[text.rindex(_TRIAL_PARTS[-1][1]) :]
    opened = list(_OPENS.finditer(after))
    if opened:
        closes, rest = _closing_mark(opened[-1]), after[opened[-1].end() :]
        lines = "\n" * (2 - min(2, rest.count("\n")))
        return "" if closes in rest else f"{lines}{closes}\n\n"
    mark = next(filter(_is_written, _OPENS.finditer(_COMMENT.sub("", source))), None)
    if mark is None or (with_thought is not None and with_thought != text) or "</think>" in after:
        return ""
    return f"{mark[0]}\n\n{_closing_mark(mark)}\n\n"


def _is_written(mark: re.Match[str]) -> bool:
    """Does a template write this mark by itself, and not in a sentence that it tells the model?"""
    before, behind = mark.string[: mark.start()][-2:], mark.string[mark.end() :][:2]
    return not (_PROSE[0].search(before) and _PROSE[1].match(behind))


def _closing_mark(opening: re.Match[str]) -> str:
    """What ends the thought that a mark begins."""
    if opening["name"]:
        return f"</{opening['name']}>"
    if opening["bar"]:
        name = opening["bar"]
        other = re.sub("begin|start", lambda word: "END" if word[0].isupper() else "end", name, flags=re.IGNORECASE)
        return f"<|{other}|>" if other != name else f"<|/{name}|>"
    if opening["square"]:
        return f"[/{opening['square']}]"
    return "◁/think▷" if opening["kimi"] else "<channel|>"


@functools.lru_cache(maxsize=64)
def _render_in_subprocess(
    judge: str, source: str, variables: str
) -> tuple[list[str | None], list[str], tuple[str, ...]]:
    """The texts of several conversations and what went wrong with each. Raises InputError where nothing came back."""
    request = json.dumps({"template": source, "variables": json.loads(variables)})
    reason = "it does not come to an end"
    try:
        process = subprocess.run(
            [sys.executable, "-I", sandbox.__file__],
            input=request,
            capture_output=True,
            encoding="utf-8",
            timeout=4 * sandbox.SECONDS,
        )
        if process.returncode == 0:
            answer = json.loads(process.stdout)
            if "fault" not in answer:
                return answer["texts"], answer["faults"], tuple(answer["fixed"])
            reason = answer["fault"]
        elif "MemoryError" in process.stderr:
            reason = "it needs too much memory"
    except (subprocess.TimeoutExpired, ValueError):
        pass
    raise InputError(f"the chat template of the {judge} cannot be used: {reason}.", _REMEDY)
