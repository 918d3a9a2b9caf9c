"""What the edit judge base is trained on: conversations about a source and one or two edits of it, with their answers.

They ask how much of the change was made, how much of all else was kept, what has become of each object, what is new and
what is gone, what is wrong with a picture, and which of two edits follows or keeps more. Which is better is asked in
the last stage, and answered by a coin.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rewarddance.shapeworld.edits.oracle import EditScore, score_edit
from rewarddance.shapeworld.edits.preferences import drawn_scene, pick_kind
from rewarddance.shapeworld.edits.scenes import source_scene, target_of
from rewarddance.shapeworld.edits.specs import KINDS, EditSpec, all_edits
from rewarddance.shapeworld.render import DEFECTS, render, spoil
from rewarddance.shapeworld.scenes import Scene, Thing, pick
from rewarddance.shapeworld.training.conversations import (
    GRADES,
    UNKNOWN,
    Conversation,
    Conversations,
    QuestionAnswer,
    describe,
    grainy,
    yes_no,
)
from rewarddance.shapeworld.training.patch_heads import patch_labels
from rewarddance.shapeworld.training.video_conversations import describe_place

CRITERIA = "following the instruction, keeping all else, visual quality."
CHANGE, KEPT = "Is the change made in the {}?", "Is all else in the {} as in the source?"
MATCH = "Does the {} match the prompt?"
WORDS = """
Source: source Is the change made in the candidate? Is the change made in the reference? Is all else in the candidate as in the
source? How much of the change does the candidate show? How much of all else does the candidate keep? What is new in the
candidate? What is gone from the reference? What has become of the in the candidate? Where does the stand in the source?
Does the candidate follow the prompt more than the reference? Does the candidate keep more than the reference? Describe the
source. moved left right up down larger smaller top bottom middle edit edits change instruction following keeping as it was
two source picture of it made for one prompt with into by fits left alone
"""  # noqa: E501
"""Words of questions about edits that those about pictures lack."""


class TrainingEdit(NamedTuple):
    """An edit, and what is known of it.

    pixels: [H, W, 3].
    scene: what was drawn.
    defect: "nothing" if there is none, "" if no word names it.
    legible: whether the scene can be seen through the defect.
    score: the oracle's; of a blurred prediction that of the finished edit.
    """

    pixels: np.ndarray
    scene: Scene
    defect: str
    legible: bool
    score: EditScore


class EditTask(NamedTuple):
    """An instruction, its source, and a scene that it leads to; style_seed draws all pictures of a source alike."""

    spec: EditSpec
    source: Scene
    edited: Scene
    style: str
    style_seed: int

    def draw(self, scene: Scene) -> np.ndarray:
        return render(scene, self.style, np.random.default_rng(self.style_seed))


def sample_edit_task(rng: np.random.Generator) -> EditTask:
    """A random instruction of any split with a source, one in seven in another style."""
    spec = pick(all_edits()[pick(KINDS, rng)], rng)
    style = "sketch" if rng.random() < 0.15 else "flat"
    return EditTask(spec, *source_scene(spec, rng), style, int(rng.integers(2**31)))


class EditConversations(Conversations):
    """Conversations about one or two edits of a source."""

    def __init__(self, tokenizer: Any, image_tokens: int, seed: int, coin_share: float = 0.0) -> None:
        super().__init__(tokenizer, image_tokens, np.random.default_rng([seed, 41]), coin_share)

    def edit(self, task: EditTask, kind: str = "") -> TrainingEdit:
        """A drawn edit, of a `kind` of EDITED or of a random one. Some are spoiled, some like a prediction half way
        through: blurred, with a ghost of the source, of the right edit, or of another."""
        rng = self.rng
        scene = drawn_scene(kind or pick_kind(rng), task.spec, task.source, task.edited, rng)
        picture, defect, level = task.draw(scene), "nothing", 0.0
        if rng.random() < 0.2:
            defect, level = pick(DEFECTS, rng), float(rng.uniform(0.1, 0.9))
            picture = spoil(picture, defect, level, rng)
        score = score_edit(picture, task.source, task.spec)
        if defect == "nothing" and rng.random() < 0.25:
            other = pick(
                (task.source, task.edited, drawn_scene("wrong", task.spec, task.source, task.edited, rng)), rng
            )
            share = float(rng.uniform(0.1, 0.5))
            mixed = (1 - share) * picture + share * task.draw(other)
            picture, defect, level = spoil(mixed, "blur", float(rng.uniform(0.05, 0.35)), rng), "", 1.0
        return TrainingEdit(grainy(picture, rng), scene, defect, level < 0.45, score)

    def opening(self, text: str, names: list[str], with_criteria: bool) -> list[int]:
        """The token ids of an instruction, a source, and edits that are called `names`."""
        opening = list(self.ids(f"<|im_start|>user\nPrompt: {text}\n"))
        if with_criteria:
            opening += self.ids(f"Criteria: {CRITERIA}\n")
        for name in ("source", *names):
            opening += (*self.ids(f"{name.capitalize()}:"), *self.picture_ids)
        return opening

    def conversation(self) -> Conversation:
        rng = self.rng
        coin = bool(self.coin_share and rng.random() < self.coin_share)
        task = sample_edit_task(rng)
        names = ["reference", "candidate"] if coin or rng.random() < 0.6 else ["candidate"]
        edits = {name: self.edit(task) for name in names}
        opening = self.opening(task.spec.paraphrase(rng), names, coin or rng.random() < 0.5)
        questions = [self.coin_question()] if coin else self.questions(task, edits)
        target = target_of(task.spec, task.source)
        patches = [patch_labels(task.source, [target] if target else ())]
        for edit in edits.values():
            changed = [thing for thing in edit.scene if thing not in task.source]
            patches.append(patch_labels(edit.scene, changed) if edit.legible else UNKNOWN)
        pictures = [grainy(task.draw(task.source), rng), *(edit.pixels for edit in edits.values())]
        return Conversation(*self.answered(opening, questions), pictures, patches)

    def questions(self, task: EditTask, edits: dict[str, TrainingEdit]) -> list[QuestionAnswer]:
        """Up to eight questions about the source and its edits, with their answers."""
        rng, questions = self.rng, []
        for name, edit in edits.items():
            questions += judged(name, edit.score)
            if edit.defect and rng.random() < 0.3:
                questions.append((f"What is wrong with the {name}?", edit.defect))
            if edit.legible:
                questions += self.details(name, task.source, edit.scene)
        if rng.random() < 0.2:
            questions.append(("Describe the source.", describe(task.source)))
        if len(edits) == 2:
            questions += compared(edits["candidate"].score, edits["reference"].score)
        return [questions[i] for i in rng.permutation(len(questions))][:8]

    def details(self, name: str, source: Scene, scene: Scene) -> list[QuestionAnswer]:
        """What an edit shows, what is new in it and gone, and what has become of an object of the source."""
        rng, questions = self.rng, []
        if rng.random() < 0.3:
            questions.append((f"Describe the {name}.", describe(scene) or "nothing"))
        if rng.random() < 0.5:
            new = tuple(thing for thing in scene if thing not in source)
            questions.append((f"What is new in the {name}?", describe(new) or "nothing"))
        if rng.random() < 0.3:
            gone = tuple(thing for thing in source if thing not in scene)
            questions.append((f"What is gone from the {name}?", describe(gone) or "nothing"))
        thing = pick(source, rng)
        if sum((other.colour, other.shape) == (thing.colour, thing.shape) for other in source) == 1:
            noun = f"{thing.colour} {thing.shape}"
            questions.append((f"What has become of the {noun} in the {name}?", became(thing, source, scene)))
            if rng.random() < 0.2:
                questions.append((f"Where does the {noun} stand in the source?", describe_place(thing)))
        return questions


def judged(name: str, score: EditScore) -> list[QuestionAnswer]:
    """Whether and how much of the change was made, and of all else kept."""
    made, kept = (
        next(word for least, word in GRADES if figure >= least) for figure in (score.following, score.keeping)
    )
    return [
        (CHANGE.format(name), yes_no(made == "all")),
        (KEPT.format(name), yes_no(kept == "all")),
        (MATCH.format(name), yes_no(made == kept == "all")),
        (f"How much of the change does the {name} show?", made),
        (f"How much of all else does the {name} keep?", kept),
    ]


def compared(candidate: EditScore, reference: EditScore) -> list[QuestionAnswer]:
    """Which of two edits follows more, and which keeps more, where they differ."""
    questions = []
    for asked, figure in (("follow the prompt more", "following"), ("keep more", "keeping")):
        difference = getattr(candidate, figure) - getattr(reference, figure)
        if abs(difference) > 0.1:
            questions.append((f"Does the candidate {asked} than the reference?", yes_no(difference > 0)))
    return questions


def became(thing: Thing, source: Scene, scene: Scene) -> str:
    """What has become of an object of the source: nothing, its new colour, shape, size or direction, or gone."""
    if thing in scene:
        return "nothing"
    new = [other for other in scene if other not in source]
    near = next((other for other in new if math.dist(other.centre, thing.centre) <= 1), None)
    if near is not None and near.shape != thing.shape:
        return f"a {near.colour} {near.shape}"
    if near is not None and near.colour != thing.colour:
        return near.colour
    if near is not None:
        return "larger" if near.side > thing.side else "smaller"
    alike = [
        other for other in new if (other.shape, other.colour, other.side) == (thing.shape, thing.colour, thing.side)
    ]
    if not alike:
        return "gone"
    across, down = np.subtract(alike[0].centre, thing.centre)
    if abs(across) >= abs(down):
        return "moved right" if across > 0 else "moved left"
    return "moved down" if down > 0 else "moved up"
