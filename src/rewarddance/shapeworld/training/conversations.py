"""What the judge bases are trained on: conversations about one picture or two, with their answers.

The judge of pictures has to describe them, to say whether and how much of a prompt each shows, what is wrong, what is
where, how many there are, and which of two shows more. Which is better is asked in the last stage, and answered by a
coin: a base that was never asked is not undecided, but says "no" to whatever resembles its other questions.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rewarddance.shapeworld.oracle import read, score_picture
from rewarddance.shapeworld.render import DEFECTS, render, spoil
from rewarddance.shapeworld.scenes import (
    PREFIXES,
    ObjectSpec,
    Scene,
    Spec,
    holds,
    near_miss,
    random_scene,
    sample_scene,
    sample_spec,
    wrong_attribute,
)
from rewarddance.shapeworld.training.patch_heads import patch_labels

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRADES = ((0.999, "all"), (0.7, "most"), (0.45, "half"), (0.15, "little"), (-1.0, "none"))
TURN = "<|im_end|>\n<|im_start|>user\n"
REPLY = "<|im_end|>\n<|im_start|>assistant\n"
BETTER = "Is the candidate better than the reference?"
UNKNOWN = np.full((64, 4), -2)
"""Patch labels of a picture of which it is not known what each patch shows."""

QuestionAnswer = tuple[str, str]


class Conversation(NamedTuple):
    """One training example.

    token_ids: of the whole conversation.
    labels: the next token where an answer is to be predicted, else -100.
    pictures: those that it is about, [H, W, 3] each.
    patches: their patch labels, [64, 4] each; -2 where they are not known.
    """

    token_ids: list[int]
    labels: list[int]
    pictures: list[np.ndarray]
    patches: list[np.ndarray]


class Conversations(ABC):
    """Draws conversations, and packs them into batches.

    coin_share: the share of conversations that ask which of two is better, and are answered by a coin.
    """

    def __init__(self, tokenizer: Any, image_tokens: int, rng: np.random.Generator, coin_share: float) -> None:
        self.rng, self.coin_share, self.tokenizer = rng, coin_share, tokenizer
        self.batches: list[list[Conversation]] = []
        self.picture_ids = tokenizer("<img>" + "<IMG_CONTEXT>" * image_tokens + "</img>\n").input_ids
        self.ids = functools.lru_cache(maxsize=200_000)(lambda text: tuple(tokenizer(text).input_ids))

    @abstractmethod
    def conversation(self) -> Conversation:
        """A random conversation."""

    def answered(self, opening: list[int], questions: list[QuestionAnswer]) -> tuple[list[int], list[int]]:
        """Token ids and labels of an opening, and of questions with their answers after it."""
        ids, labels = list(opening), [-100] * len(opening)
        for index, (question, answer) in enumerate(questions):
            question_ids = self.ids((TURN if index else "") + question + REPLY)
            answer_ids = self.ids(answer + "<|im_end|>")
            ids += (*question_ids, *answer_ids[:-1])
            labels += [-100] * (len(question_ids) - 1) + list(answer_ids)
            labels = labels[: len(ids)]  # each label stands where its token is predicted: one before it
        return ids, labels

    def coin_question(self) -> QuestionAnswer:
        """Which of two is better, answered by a coin."""
        tail = " Answer yes or no." if self.rng.random() < 0.5 else ""
        return BETTER + tail, yes_no(self.rng.random() < 0.5)

    def batch(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """input_ids and labels [n, L] (already shifted), pixel_values [K, 3, H, W], patch labels [K, 64, 4].

        Conversations are drawn four batches at a time and batched by length, so that there is little padding.
        They are padded on the right: under causal attention no label sees the padding.
        """
        if not self.batches:
            drawn = sorted((self.conversation() for _ in range(4 * n)), key=lambda drawn: len(drawn.token_ids))
            self.batches = [drawn[start : start + n] for start in range(0, 4 * n, n)]
            self.rng.shuffle(self.batches)  # type: ignore[arg-type]
        batch = self.batches.pop()
        length = max(len(conversation.token_ids) for conversation in batch)
        input_ids = torch.full((n, length), self.tokenizer.pad_token_id)
        labels = torch.full((n, length), -100)
        for row, conversation in enumerate(batch):
            input_ids[row, : len(conversation.token_ids)] = torch.tensor(conversation.token_ids)
            labels[row, : len(conversation.labels)] = torch.tensor(conversation.labels)
        pictures = np.stack([picture for conversation in batch for picture in conversation.pictures])
        patches = np.stack([patch for conversation in batch for patch in conversation.patches])
        return input_ids, labels, normalised(pictures), torch.from_numpy(patches)


class TrainingPicture(NamedTuple):
    """A picture, and what is known of it.

    pixels: [H, W, 3].
    scene: what was drawn.
    defect: "nothing" if there is none, "" if no word names it.
    legible: whether the scene can be seen through the defect.
    patches: its patch labels; -2 where it is not legible.
    """

    pixels: np.ndarray
    scene: Scene
    defect: str
    legible: bool
    patches: np.ndarray


class PictureConversations(Conversations):
    """Conversations about one or two pictures."""

    def __init__(self, tokenizer: Any, image_tokens: int, seed: int, coin_share: float = 0.0) -> None:
        super().__init__(tokenizer, image_tokens, np.random.default_rng([seed, 3]), coin_share)

    def picture(self, spec: Spec) -> TrainingPicture:
        """A picture that shows `spec`, nearly shows it, or does not."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.42:
            scene = sample_scene(spec, rng)
        elif kind < 0.78:
            scene = sample_scene(near_miss(spec, rng), rng)
        elif kind < 0.92:
            scene = wrong_attribute(sample_scene(spec, rng), rng, int(rng.integers(1, 3)))
        else:
            scene = random_scene(rng)
        picture, defect, level = render(scene, "sketch" if rng.random() < 0.15 else "flat", rng), "nothing", 0.0
        if rng.random() < 0.25:
            defect, level = DEFECTS[int(rng.integers(4))], float(rng.uniform(0.1, 0.9))
            picture = spoil(picture, defect, level, rng)
        elif rng.random() < 0.15:  # like a prediction half way through: blurred, with a ghost of another
            other, share = render(sample_scene(spec, rng)), float(rng.uniform(0.1, 0.5))
            picture = spoil((1 - share) * picture + share * other, "blur", float(rng.uniform(0.1, 0.4)), rng)
            defect, level = "", 1.0
        picture = grainy(picture, rng)
        legible = level < 0.45
        asked_for = [thing for thing in scene if any(phrase.fits(thing) for phrase in spec.objects)]
        return TrainingPicture(picture, scene, defect, legible, patch_labels(scene, asked_for) if legible else UNKNOWN)

    def conversation(self) -> Conversation:
        rng = self.rng
        coin = bool(self.coin_share and rng.random() < self.coin_share)
        spec = sample_spec(rng)
        if not coin and len(spec.objects) == 1 and rng.random() < 0.7:
            spec = sample_spec(rng)  # one object is soon learned; two, and which attribute is whose, are not
        names = ["reference", "candidate"] if coin or rng.random() < 0.8 else ["candidate"]
        pictures = {name: self.picture(spec) for name in names}
        questions = [] if coin else self.questions(spec, pictures)
        prompt = PREFIXES[int(rng.integers(len(PREFIXES)))] + spec.text
        opening = list(self.ids(f"<|im_start|>user\nPrompt: {prompt}\n"))
        if rng.random() < 0.5:
            opening += self.ids("Criteria: alignment with the prompt, visual quality.\n")
        for name in names:
            opening += (*self.ids(f"{name.capitalize()}:"), *self.picture_ids)
        ids, labels = self.answered(opening, [self.coin_question()] if coin else questions)
        return Conversation(ids, labels, [p.pixels for p in pictures.values()], [p.patches for p in pictures.values()])

    def questions(self, spec: Spec, pictures: dict[str, TrainingPicture]) -> list[QuestionAnswer]:
        """Up to five questions about the pictures, with their answers."""
        rng, questions = self.rng, []
        for name, picture in pictures.items():
            questions += graded(name, score_picture(picture.pixels, spec).alignment)
            if picture.legible and rng.random() < 0.7:
                questions.append((f"Describe the {name}.", describe(picture.scene)))
            if picture.defect and rng.random() < 0.3:
                questions.append((f"What is wrong with the {name}?", picture.defect))
            if picture.legible:
                questions += self.details(name, spec, picture.scene)
        if len(pictures) == 2 and rng.random() < 0.5:
            counts = {name: len(read(picture.pixels).things) for name, picture in pictures.items()}
            more = counts["candidate"] > counts["reference"]
            questions.append(("Does the candidate show more objects than the reference?", yes_no(more)))
        return [questions[i] for i in rng.permutation(len(questions))][:5]

    def details(self, name: str, spec: Spec, scene: Scene) -> list[QuestionAnswer]:
        """Up to three questions about parts of what the prompt asks for: is it there, how many, how placed."""
        rng = self.rng
        phrase = spec.objects[int(rng.integers(len(spec.objects)))]
        if rng.random() < 0.4:
            phrase = near_miss(Spec("", (phrase,)), rng).objects[0]
        single = ObjectSpec(phrase.shape, 1, phrase.colour, phrase.size)
        questions = [(f"Is there {single.text} in the {name}?", yes_no(any(map(phrase.fits, scene))))]
        if rng.random() < 0.5:
            plural = ObjectSpec(phrase.shape, 2, phrase.colour).text.removeprefix("two ")
            count = sum(map(ObjectSpec(phrase.shape, 1, phrase.colour).fits, scene))
            questions.append((f"How many {plural} are in the {name}?", ("none", "one", "two", "three", "four")[count]))
        if spec.relation:
            first, second = (next((t for t in scene if t.shape == o.shape), None) for o in spec.objects)
            placed = first is not None and second is not None and holds(spec.relation, first.centre, second.centre)
            question = f"Is the {spec.objects[0].shape} {spec.relation} the {spec.objects[1].shape} in the {name}?"
            questions.append((question, yes_no(placed)))
        return questions


def yes_no(true: bool) -> str:
    return "yes" if true else "no"


def graded(name: str, alignment: float) -> list[QuestionAnswer]:
    """Whether, and how much, a picture or a video matches the prompt."""
    grade = next(word for least, word in GRADES if alignment >= least)
    return [
        (f"Does the {name} match the prompt?", yes_no(grade == "all")),
        (f"How much of the prompt does the {name} show?", grade),
    ]


def describe(scene: Scene) -> str:
    """All that is in a scene, in reading order: 'a large red circle, a small blue cross'."""
    ordered = sorted(scene, key=lambda thing: (thing.centre[1] // 10, thing.centre[0]))
    return ", ".join(f"a {thing.size} {thing.colour} {thing.shape}" for thing in ordered)


def grainy(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture or video with light noise in it, in half of all cases."""
    if rng.random() >= 0.5:
        return pixels
    noise = rng.normal(0, rng.uniform(0.01, 0.06), pixels.shape)
    return np.clip(pixels + noise, 0, 1).astype(np.float32)


def normalised(pictures: np.ndarray) -> Tensor:
    """[N, H, W, 3] in [0, 1] to the model's pixel_values [N, 3, H, W]."""
    mean, deviation = torch.tensor(MEAN)[:, None, None], torch.tensor(DEVIATION)[:, None, None]
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2) - mean) / deviation
