"""A fixed test of what an edit judge base knows, by kind of edit and by its fault, without any preference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from rewarddance.shapeworld.edits.oracle import score_edit
from rewarddance.shapeworld.edits.preferences import EDITED, drawn_scene
from rewarddance.shapeworld.edits.scenes import source_scene
from rewarddance.shapeworld.edits.specs import KINDS, all_edits
from rewarddance.shapeworld.scenes import pick
from rewarddance.shapeworld.training.conversations import grainy
from rewarddance.shapeworld.training.edit_conversations import CHANGE, KEPT, MATCH, EditConversations, EditTask
from rewarddance.shapeworld.training.exam import AT_ONCE, yes_margins

_ASKED = {"change": CHANGE, "kept": KEPT, "match": MATCH}


class _Case(NamedTuple):
    """One edit of a task. truth: by the question's name."""

    kind: str
    edited: str
    text: str
    pictures: tuple[np.ndarray, np.ndarray]
    truth: dict[str, bool]


class EditExam:
    """Sources that no base has seen, each with an edit of every kind of EDITED, all clean but for light noise.

    tasks: of each kind of edit. Their instructions are of the whole grammar, which the base learns from.
    """

    def __init__(self, tokenizer: Any, image_tokens: int, seed: int, *, tasks: int = 20) -> None:
        self.conversations = EditConversations(tokenizer, image_tokens, seed + 1000)
        rng, self.cases = self.conversations.rng, list[_Case]()
        for kind in KINDS:
            for _ in range(tasks):
                spec = pick(all_edits()[kind], rng)
                task = EditTask(spec, *source_scene(spec, rng), "flat", 0)
                text = spec.paraphrase(rng)
                for edited in EDITED:
                    picture = task.draw(drawn_scene(edited, spec, task.source, task.edited, rng))
                    score = score_edit(picture, task.source, spec)
                    truth = {"change": score.following > 0.999, "kept": score.keeping > 0.999}
                    truth["match"] = all(truth.values())
                    shown = grainy(task.draw(task.source), rng), grainy(picture, rng)
                    self.cases.append(_Case(kind, edited, text, shown, truth))

    def figures(self, model: Any) -> dict[str, dict[str, float]]:
        """What is right, by the kind of edit and by what was done: of answers whether the change is made ("change"),
        whether all else was kept ("kept") and whether the edit matches ("match"), and ("pairs") of right edits beside
        each other one of their task that does not match, how many match with the higher probability."""
        margins = {name: self._margins(model, name) for name in _ASKED}
        right = {
            name: np.array([(margin > 0) == case.truth[name] for margin, case in zip(values, self.cases, strict=True)])
            for name, values in margins.items()
        }
        figures: dict[str, dict[str, float]] = {name: {} for name in (*_ASKED, "pairs")}
        for group, of in ((KINDS, "kind"), (EDITED, "edited")):
            for value in group:
                rows = np.array([getattr(case, of) == value for case in self.cases])
                for name in _ASKED:
                    figures[name][value] = float(right[name][rows].mean())
        ordered: dict[str, list[bool]] = {}
        for start in range(0, len(self.cases), len(EDITED)):
            for place in range(start + 1, start + len(EDITED)):
                case = self.cases[place]
                if case.truth["match"] or not self.cases[start].truth["match"]:
                    continue
                higher = bool(margins["match"][start] > margins["match"][place])
                for value in (case.kind, case.edited):
                    ordered.setdefault(value, []).append(higher)
        figures["pairs"] = {value: float(np.mean(values)) for value, values in ordered.items()}
        return figures

    def _margins(self, model: Any, name: str) -> Sequence[float]:
        margins: list[float] = []
        for start in range(0, len(self.cases), AT_ONCE):
            cases = self.cases[start : start + AT_ONCE]
            openings = [self.conversations.opening(case.text, ["candidate"], False) for case in cases]
            questions = [_ASKED[name].format("candidate")] * len(cases)
            pictures = [picture for case in cases for picture in case.pictures]
            with torch.no_grad():
                margins += yes_margins(model, self.conversations, openings, questions, pictures).tolist()
        return margins
