"""`messages` with `images` or `videos`, as LLaMA-Factory and ms-swift take them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rewarddance.data.fields import Fault, as_number, listed, optional_text, short
from rewarddance.data.sources.drafts import Draft, Medium, Source, as_medium, by_record

_TAG = re.compile(r"<(?:image|video)>")
_CAPTION = re.compile(r"\bcaption: *\[", re.IGNORECASE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)

# An answer in words is read clause by clause. A clause that is of none of these forms says nothing; a keyword alone, in
# whatever sentence it stands, is no form.
_KIND = r"(?:image|picture|photo|video|clip|candidate|response|option|answer|sample|result)"
_THING = (
    rf"(?:the )?(?:{_KIND} ?)?\[?(?:{_KIND} ?)?\b(?P<{{0}}>1|2|a|b|one|two|first|second|left|right)\b\]?"
    rf"(?: (?:{_KIND}|one)\b)?"
)
_ADVERBS = r"(?:clearly |much |far |slightly |a bit |somewhat |overall |definitely |generally |significantly |the )*"
_END = r"(?= *$| (?:than|to|overall|here|because|as|since|by far)\b)"
_VERDICTS = [
    re.compile(rf"\b{_THING.format('t')} (?:is|looks|seems|appears|was) {_ADVERBS}(?:better|best|superior|stronger"
               rf"|preferred|preferable|chosen|winner|better (?:one|{_KIND})|best (?:one|{_KIND})){_END}"),
    re.compile(rf"\b{_THING.format('t')} (?:clearly |easily |narrowly )?wins\b"),
    re.compile(rf"\b(?:i|we)(?: would| 'd)? (?:\w+ly )?(?:prefer|choose|chose|pick|picked|select|selected|favou?r) "
               rf"{_THING.format('t')}"),
    re.compile(rf"\b(?:winner|better {_KIND}|best {_KIND}|better one|best one|(?:final )?answer|verdict|preference"
               rf"|choice|better|best|preferred {_KIND})(?: is| would be|:| -)+ *{_THING.format('t')}"),
]  # fmt: skip
_LOSES = re.compile(rf"\b{_THING.format('t')} (?:is|looks) {_ADVERBS}worse{_END}")
_BARE = re.compile(rf"{_THING.format('t')}")
_TIE = re.compile(
    rf"(?:(?:it|this|they|both|both {_KIND}s?|the (?:two )?{_KIND}s|the two"
    rf"|{_THING.format('t')} and {_THING.format('u')})"
    rf" (?:is|are|look|seem)(?: about| equally| exactly| roughly| both)* (?:a tie|a draw|tied|equal|equally good"
    rf"|equally bad|the same|the same quality|of equal quality|good|bad|comparable|similar)"
    rf"|(?:a )?tie|(?:a )?draw|tied|equal|same|the same|equally good|both equal|no (?:clear )?(?:preference|difference)"
    rf"|neither(?: {_KIND}| one| of them)?(?: (?:is|wins)(?: better)?)?|both)"
)
_NOT = re.compile(r"\b(?:not|no|never|neither|nor|hardly|cannot|can't|isn't|aren't|doesn't|don't|wasn't|rather than)\b")
_OPEN = re.compile(r"\b(?:if|unless|could|might|whether)\b")
_LAST = re.compile(
    r"^(?:overall|in conclusion|in summary|finally|therefore|thus|so|hence|verdict|final answer|answer)\b"
)
_SECOND = {"2", "b", "two", "second", "right"}
_A_VERDICT = 7
"""Words of an answer that says which one, and not why."""


def pair_or_score(record: Mapping[str, Any]) -> Iterator[Draft]:
    """Three forms, by what stands beside `messages` (or `conversations`) and `images` (or `videos`):

    `rejected_images`: the last picture of `images` is preferred to the last of these; a picture that both begin with
    is the prompt's image. `label`: a number, the score of the one picture. Neither: the answer says which of the two
    pictures is better ("Image 1 is better", "B", "second", "tie"). The prompt is the record's `prompt`, or what stands
    in "Caption: [...]", or else what the user says without its tags.
    """
    question, answer = _turns(record)
    kind = "videos" if record.get("videos") else "images"
    media = _media(record, kind)
    prompt = optional_text(record, "prompt") or _prompt(question)
    rejected = f"rejected_{kind}"
    if record.get(rejected):
        against = _media(record, rejected)
        shared = media[:-1]
        if len(shared) > 1 or [medium.given for medium in shared] != [medium.given for medium in against[:-1]]:
            raise Fault(rejected, f"and {kind} must be one picture each, behind at most one that both begin with")
        yield Draft(prompt, (media[-1], against[-1]), 0.0, image=shared[0] if shared else None)
    elif record.get("label") is not None:
        if len(media) != 1:
            raise Fault(kind, f"has {len(media)} entries; a label scores one")
        label = record["label"]
        score = float(label) if isinstance(label, bool) else as_number(label, "label")
        yield Draft(prompt, (media[0],), score, fps=(None,))
    else:
        if len(media) != 2:
            raise Fault(kind, f"has {len(media)} entries; an answer compares two")
        rationale = answer.strip() if len(answer.split()) > _A_VERDICT else ""
        yield Draft(prompt, (media[0], media[1]), _share(answer), rationale=rationale)


def _turns(record: Mapping[str, Any]) -> tuple[str, str]:
    """What the user says, all turns, and the assistant's last turn."""
    field, turns = listed(record, "messages", "conversations")
    texts: dict[str, list[str]] = {"user": [], "assistant": []}
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise Fault(field, f"holds {short(turn)}, which is no turn")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        role = {"human": "user", "gpt": "assistant"}.get(str(role), role)
        if isinstance(content, list):  # parts, as the OpenAI protocol has them
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
        if not isinstance(content, str):
            raise Fault(field, f"has a turn whose content is {short(content)}")
        texts.setdefault(str(role), []).append(content)
    return "\n".join(texts["user"]), texts["assistant"][-1] if texts["assistant"] else ""


def _media(record: Mapping[str, Any], name: str) -> list[Medium]:
    _, given = listed(record, name)
    if not given:
        raise Fault(name, "is empty")
    return [as_medium(name, value) for value in given]


def _prompt(question: str) -> str:
    caption = _CAPTION.search(question)
    prompt = (_TAG.sub("", question) if caption is None else _bracketed(question, caption.end())).strip()
    if not prompt:
        raise Fault("messages", "have no text from the user, which is the prompt")
    return prompt


def _bracketed(text: str, start: int) -> str:
    """What stands behind an opened bracket, up to the one that closes it; to the last where none does."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"[": 1, "]": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at]
    return text[start:].rpartition("]")[0] or text[start:]


def _share(answer: str) -> float:
    """0 where the first is better by an answer in words, 1 the second, 0.5 neither. Raises Fault where it says none.

    Clauses are read one by one. A verdict that begins with "overall" or the like, or stands in the answer's tags,
    counts before others; two verdicts that differ are none.
    """
    tagged = _ANSWER.search(answer)
    text = (tagged[1] if tagged else _THOUGHT.sub("", answer)).strip().casefold().replace("\u2019", "'")
    text = re.sub(r"[*_`\"]", "", text).replace("'s ", " is ")
    found: list[float] = []
    final: list[float] = []
    sentences = [part for part in re.split(r"[.!?\n](?= |$)|\n|;", text) if part.strip()]
    for sentence in sentences:
        if _OPEN.search(sentence):
            continue
        if _TIE.fullmatch(sentence.strip()):
            found.append(0.5)
            continue
        said = [share for clause in _clauses(sentence, len(sentences)) if (share := _verdict(clause)) is not None]
        found += said
        if _LAST.match(sentence.strip()):
            final += said
    for verdicts in (final, found):
        sides = {share for share in verdicts if share != 0.5} or set(verdicts)
        if len(sides) == 1 and not (sides != {0.5} and 0.5 in verdicts):
            return sides.pop()
        if verdicts:
            break
    raise Fault("messages", f"end with {short(answer)}, which does not say which one is better")


def _clauses(sentence: str, sentences: int) -> list[str]:
    """The clauses of a sentence. What names a picture alone is one where nothing but its reason or a denied tie is
    beside it."""
    clauses = [
        part.strip() for part in re.split(r",|: | - | \u2014 |\bbut\b|\band (?=(?:image|picture|the)\b)", sentence)
    ]
    clauses = [clause for clause in clauses if clause]
    whole = sentence.strip()
    named = [clause for clause in clauses if _BARE.fullmatch(clause)]
    others = [clause for clause in clauses if clause not in named]
    alone = len(named) == 1 and all(re.match(r"because|since|as\b|no tie|not a tie|not equal", part) for part in others)
    kept = [clause for clause in clauses if not _BARE.fullmatch(clause)]
    if any(pattern.search(whole) for pattern in _VERDICTS) and not any(map(_verdict, kept)):
        kept.append(whole)  # "the winner: image 1", which the colon cut
    return kept + ([f"answer: {named[0]}"] if alone and (sentences == 1 or others) else [])


def _verdict(clause: str) -> float | None:
    """What one clause says, or None."""
    clause = clause.strip(" ()")
    if _TIE.fullmatch(clause) or _TIE.fullmatch(_LAST.sub("", clause).strip(" ,:")):
        return 0.5
    if _NOT.search(clause):
        return None
    sides = {match["t"] in _SECOND for pattern in _VERDICTS for match in pattern.finditer(clause)}
    sides |= {match["t"] not in _SECOND for match in _LOSES.finditer(clause)}
    return float(sides.pop()) if len(sides) == 1 else None


MESSAGES = Source("messages", "messages and images, as in LLaMA-Factory and ms-swift", by_record(pair_or_score))
