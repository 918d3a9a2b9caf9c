"""What the judge base learns from: conversations about one picture or two, with their answers.

It is asked to describe pictures, whether and how much of a prompt each shows, what is wrong, what is where, how many
there are, and which of two shows more. Which is better it is asked at the end, and answered by a coin: a base that was
never asked is not without a preference but says "no" to whatever reminds it of other questions.
"""

from __future__ import annotations

import functools
from typing import Any

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


class Lesson:
    """Draws conversations about one or two pictures, and packs them into batches.

    tossed: the share of conversations that ask which of two pictures is better, and are answered by a coin.
    """

    def __init__(self, tokenizer: Any, image_tokens: int, seed: int, tossed: float = 0.0) -> None:
        self.rng, self.tossed = np.random.default_rng([seed, 3]), tossed
        self.tokenizer = tokenizer
        self.waiting: list[list[tuple[list[int], list[int], list[tuple[np.ndarray, np.ndarray]]]]] = []
        self.picture_ids = tokenizer("<img>" + "<IMG_CONTEXT>" * image_tokens + "</img>\n").input_ids
        self.ids = functools.lru_cache(maxsize=200_000)(lambda text: tuple(tokenizer(text).input_ids))

    def picture(self, spec: Spec) -> tuple[np.ndarray, Scene, str, bool, np.ndarray]:
        """A picture that shows `spec`, nearly shows it, or does not.

        Returns pixels, scene, the defect, whether it can be described, and its patch labels (-2 where it cannot).
        """
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
        elif rng.random() < 0.15:  # as a prediction of the clean picture half way: a ghost of another, and soft
            other, share = render(sample_scene(spec, rng)), float(rng.uniform(0.1, 0.5))
            picture = spoil((1 - share) * picture + share * other, "blur", float(rng.uniform(0.1, 0.4)), rng)
            defect, level = "", 1.0
        if rng.random() < 0.5:
            grain = rng.normal(0, rng.uniform(0.01, 0.06), picture.shape)
            picture = np.clip(picture + grain, 0, 1).astype(np.float32)
        legible = level < 0.45
        labels = patch_labels(scene, spec) if legible else np.full((64, 4), -2)
        return picture, scene, defect, legible, labels

    def conversation(self) -> tuple[list[int], list[int], list[tuple[np.ndarray, np.ndarray]]]:
        """Token ids, labels (-100 where nothing is asked), and the pictures with their patch labels."""
        rng = self.rng
        if self.tossed and rng.random() < self.tossed:
            return self.toss()
        spec = sample_spec(rng)
        if len(spec.objects) == 1 and rng.random() < 0.7:  # one object is soon learned, two and their bindings are not
            spec = sample_spec(rng)
        names = ["reference", "candidate"] if rng.random() < 0.8 else ["candidate"]
        seen = {name: self.picture(spec) for name in names}
        questions: list[tuple[str, str]] = []
        for name, (picture, scene, defect, legible, _) in seen.items():
            alignment = score_picture(picture, spec).alignment
            grade = next(word for least, word in GRADES if alignment >= least)
            questions.append((f"Does the {name} match the prompt?", "yes" if grade == "all" else "no"))
            questions.append((f"How much of the prompt does the {name} show?", grade))
            if legible and rng.random() < 0.7:
                questions.append((f"Describe the {name}.", describe(scene)))
            if defect and rng.random() < 0.3:
                questions.append((f"What is wrong with the {name}?", defect))
            if legible:
                questions += self.details(name, spec, scene)
        if len(names) == 2 and rng.random() < 0.5:
            more = len(read(seen["candidate"][0]).things) > len(read(seen["reference"][0]).things)
            questions.append(("Does the candidate show more objects than the reference?", "yes" if more else "no"))
        questions = [questions[i] for i in rng.permutation(len(questions))]
        ids = self.opening(spec, names)
        labels = [-100] * len(ids)
        for index, (question, answer) in enumerate(questions[:5]):
            asked = self.ids((TURN if index else "") + question + REPLY)
            said = self.ids(answer + "<|im_end|>")
            ids += (*asked, *said[:-1])
            labels += [-100] * (len(asked) - 1) + list(said)
            # each label stands where its token is predicted: one place before it
            labels = labels[: len(ids)]
        return ids, labels, [(one[0], one[4]) for one in seen.values()]

    def toss(self) -> tuple[list[int], list[int], list[tuple[np.ndarray, np.ndarray]]]:
        """As `conversation`: which of two pictures is better, answered by a coin."""
        rng = self.rng
        spec = sample_spec(rng)
        seen = [self.picture(spec) for _ in range(2)]
        ids = self.opening(spec, ["reference", "candidate"])
        tail = " Answer yes or no." if rng.random() < 0.5 else ""
        ids += self.ids(f"Is the candidate better than the reference?{tail}{REPLY}")
        answer, end = self.ids(("yes" if rng.random() < 0.5 else "no") + "<|im_end|>")
        return [*ids, answer], [-100] * (len(ids) - 1) + [answer, end], [(one[0], one[4]) for one in seen]

    def opening(self, spec: Spec, names: list[str]) -> list[int]:
        """How a conversation begins: the prompt, perhaps the criteria, and the pictures under their names."""
        rng = self.rng
        prompt = PREFIXES[int(rng.integers(len(PREFIXES)))] + spec.text
        ids = list(self.ids(f"<|im_start|>user\nPrompt: {prompt}\n"))
        if rng.random() < 0.5:
            ids += self.ids("Criteria: alignment with the prompt, visual quality.\n")
        for name in names:
            ids += (*self.ids(f"{name.capitalize()}:"), *self.picture_ids)
        return ids

    def details(self, name: str, spec: Spec, scene: Scene) -> list[tuple[str, str]]:
        """Up to three questions about parts of what the prompt asks: is it there, how many, how placed."""
        rng, asked = self.rng, []
        phrase = spec.objects[int(rng.integers(len(spec.objects)))]
        if rng.random() < 0.4:
            phrase = near_miss(Spec("", (phrase,)), rng).objects[0]
        one = ObjectSpec(phrase.shape, 1, phrase.colour, phrase.size)
        asked.append((f"Is there {one.text} in the {name}?", "yes" if any(map(phrase.fits, scene)) else "no"))
        if rng.random() < 0.5:
            plural = ObjectSpec(phrase.shape, 2, phrase.colour).text.removeprefix("two ")
            count = sum(map(ObjectSpec(phrase.shape, 1, phrase.colour).fits, scene))
            asked.append((f"How many {plural} are in the {name}?", ("none", "one", "two", "three", "four")[count]))
        if spec.relation:
            first, second = (next((t for t in scene if t.shape == o.shape), None) for o in spec.objects)
            placed = first is not None and second is not None and holds(spec.relation, first.centre, second.centre)
            question = f"Is the {spec.objects[0].shape} {spec.relation} the {spec.objects[1].shape} in the {name}?"
            asked.append((question, "yes" if placed else "no"))
        return asked

    def batch(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """input_ids and labels [n, L] (already shifted), pixel_values [K, 3, H, W], patch labels [K, 64, 4].

        Conversations are drawn four batches at a time and dealt out by length, so that little is padding.
        """
        if not self.waiting:
            drawn = sorted((self.conversation() for _ in range(4 * n)), key=lambda one: len(one[0]))
            self.waiting = [drawn[start : start + n] for start in range(0, 4 * n, n)]
            self.rng.shuffle(self.waiting)  # type: ignore[arg-type]
        drawn = self.waiting.pop()
        length = max(len(ids) for ids, _, _ in drawn)
        input_ids = torch.full((n, length), self.tokenizer.pad_token_id)
        labels = torch.full((n, length), -100)
        for row, (ids, targets, _) in enumerate(drawn):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(targets)] = torch.tensor(targets)
        shown = [one for _, _, pictures in drawn for one in pictures]
        pictures, patches = (np.stack(part) for part in zip(*shown, strict=True))
        return input_ids, labels, normalised(pictures), torch.from_numpy(patches)


def describe(scene: Scene) -> str:
    """All that is in a scene, in reading order: 'a large red circle, a small blue cross'."""
    ordered = sorted(scene, key=lambda thing: (thing.centre[1] // 10, thing.centre[0]))
    return ", ".join(f"a {thing.size} {thing.colour} {thing.shape}" for thing in ordered)


def normalised(pictures: np.ndarray) -> Tensor:
    """[N, H, W, 3] in [0, 1] to the model's pixel_values [N, 3, H, W]."""
    mean, deviation = torch.tensor(MEAN)[:, None, None], torch.tensor(DEVIATION)[:, None, None]
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2) - mean) / deviation
