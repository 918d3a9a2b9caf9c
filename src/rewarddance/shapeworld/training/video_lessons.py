"""What the video judge base learns from: conversations about one video or two, with their answers.

It is asked whether and how much of a prompt each video shows, what happens, what each thing does, where it begins and
ends, what is wrong, and whether a video begins as a given picture. Which video is better it is asked at the end, and
answered by a coin.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rewarddance.data.frame_sampling import one_of_each, spread
from rewarddance.shapeworld.motion.oracle import score_video
from rewarddance.shapeworld.motion.scripts import (
    FRAMES,
    Path,
    Script,
    changed_identity,
    first_of,
    sample_script,
)
from rewarddance.shapeworld.motion.specs import CROSSINGS, MotionSpec, Role, motion_near_miss, sample_motion
from rewarddance.shapeworld.motion.videos import VIDEO_DEFECTS, Video, render_video, spoil_video
from rewarddance.shapeworld.scenes import CANVAS, Thing
from rewarddance.shapeworld.training.lessons import GRADES, REPLY, TURN, Lesson

SEEN = 4
"""Frames of a video that the judge reads."""
WORDS = """
First picture: Picture: Does the reference begin with the first picture? Does the candidate begin with the first picture?
What happens in the candidate? What happens in the reference? What does the do? Where does the begin? Where does the end?
Does a change? nothing stands moves flicker freeze reverse change identity video video motion: what the prompt says happens,
in that order consistency: nothing jumps fidelity: it begins as top bottom left right middle alignment with the prompt,
motion, consistency, visual quality. fidelity to the first picture, as it was there before after then while behind in front of
"""  # noqa: E501
"""Words of questions about videos that those about pictures lack."""


class VideoSeen(NamedTuple):
    """A video [T, H, W, 3], and what is known of it: the roles that it shows with their paths, where it can be said."""

    frames: np.ndarray
    shown: list[tuple[Role, Path]]
    defect: str
    alignment: float
    begins: bool


class VideoLesson(Lesson):
    """Draws conversations about one or two videos, and packs them into batches, as `Lesson` does for pictures.

    tossed: the share of conversations that ask which of two videos is better, and are answered by a coin. scattered:
    the share of those that show a random frame out of each quarter, as ReFL does; the others show the first, the last
    and two between (`spread`).
    """

    def __init__(
        self, tokenizer: Any, image_tokens: int, seed: int, tossed: float = 0.0, scattered: float = 0.0
    ) -> None:
        super().__init__(tokenizer, image_tokens, seed, tossed)
        self.scattered = scattered
        self.rng = np.random.default_rng([seed, 31])
        self.frame_ids, self.moments = list(self.picture_ids), spread(FRAMES, SEEN)

    def video(self, spec: MotionSpec, right: Script, from_picture: bool) -> VideoSeen:
        """A video that shows `spec`, nearly shows it, or does not. right: a script that shows it, whose first frame is
        the given picture where the video was made from one."""
        rng, kind = self.rng, self.rng.random()
        begins = from_picture and rng.random() < 0.8
        shown = spec if kind < 0.5 else motion_near_miss(spec, rng, looks=not begins)
        if kind > 0.9:
            shown, begins = sample_motion(rng), False
        script = None
        if begins:
            looks = {first_of(path).shape: first_of(path) for path in right}
            script = sample_script(shown, FRAMES, rng, [looks[role.noun.shape] for role in shown.roles])
        script = script or sample_script(shown, FRAMES, rng) or ()
        paths = script[::-1] if shown.roles[0].action == "passes in front of" else script
        roles, defect = list(zip(shown.roles, paths, strict=True)), "nothing"
        if rng.random() < 0.08:
            script, roles, defect = changed_identity(script, float(rng.uniform(0.4, 1)), rng), [], "change"
        video = render_video(script, style="sketch" if rng.random() < 0.15 else "flat", seed=int(rng.integers(2**31)))
        if defect == "nothing" and rng.random() < 0.25:
            defect, level = VIDEO_DEFECTS[int(rng.integers(len(VIDEO_DEFECTS)))], float(rng.uniform(0.2, 0.9))
            video = spoil_video(video, defect, level, int(rng.integers(2**31)))
            if level > 0.45 or defect in ("freeze", "reverse"):
                roles = []
        elif rng.random() < 0.15:  # as a prediction of the clean video half way: a ghost of another, and soft
            other, share = sample_script(spec, FRAMES, rng) or (), float(rng.uniform(0.1, 0.5))
            mixed = (1 - share) * video.frames + share * render_video(other).frames
            video = spoil_video(Video(mixed), "blur", float(rng.uniform(0.1, 0.4)), 0)
            roles, defect = [], ""
        frames = video.frames
        if rng.random() < 0.5:
            frames = np.clip(frames + rng.normal(0, rng.uniform(0.01, 0.06), frames.shape), 0, 1).astype(np.float32)
        first = render_video(right).first
        score = score_video(video.frames, spec, first if from_picture else None)
        return VideoSeen(frames, roles, defect, score.alignment, (score.fidelity or 0.0) > 0.7)

    def conversation(self) -> tuple[list[int], list[int], list[tuple[np.ndarray, np.ndarray]]]:
        """Token ids, labels (-100 where nothing is asked), and the pictures with their (unused) patch labels."""
        rng = self.rng
        toss = bool(self.tossed and rng.random() < self.tossed)
        scattered = self.scattered and rng.random() < self.scattered
        moments = one_of_each(FRAMES, SEEN, rng) if scattered else self.moments
        spec = sample_motion(rng)
        right = sample_script(spec, FRAMES, rng) or ()
        from_picture = rng.random() < 0.35 and not spec.begins_empty
        names = ["reference", "candidate"] if toss or rng.random() < 0.5 else ["candidate"]
        seen = {name: self.video(spec, right, from_picture) for name in names}
        ids = list(self.ids(f"<|im_start|>user\nPrompt: {spec.said(rng)}\n"))
        if toss or rng.random() < 0.5:
            ids += self.ids(f"Criteria: {'fidelity to the first picture, ' if from_picture else ''}{CRITERIA}\n")
        pictures = []
        if from_picture:
            ids += (*self.ids("First picture:"), *self.frame_ids)
            pictures.append(render_video(right).first)
        for name in names:
            ids += (*self.ids(f"{name.capitalize()}:"), *self.frame_ids * len(moments))
            pictures += list(seen[name].frames[moments])
        if toss:
            tail = " Answer yes or no." if rng.random() < 0.5 else ""
            questions = [(f"Is the candidate better than the reference?{tail}", "yes" if rng.random() < 0.5 else "no")]
        else:
            questions = [asked for name in names for asked in self.about(name, seen[name], spec, from_picture)]
            questions = [questions[i] for i in rng.permutation(len(questions))][:8]
        labels = [-100] * len(ids)
        for index, (question, answer) in enumerate(questions):
            asked, said = self.ids((TURN if index else "") + question + REPLY), self.ids(answer + "<|im_end|>")
            ids += (*asked, *said[:-1])
            labels += [-100] * (len(asked) - 1) + list(said)
            labels = labels[: len(ids)]  # each label stands where its token is predicted: one place before it
        unknown = np.full((64, 4), -2)
        return ids, labels, [(picture, unknown) for picture in pictures]

    def about(self, name: str, video: VideoSeen, spec: MotionSpec, from_picture: bool) -> list[tuple[str, str]]:
        """Questions about one video, with their answers."""
        rng = self.rng
        grade = next(word for least, word in GRADES if video.alignment >= least)
        asked = [
            (f"Does the {name} match the prompt?", "yes" if grade == "all" else "no"),
            (f"How much of the prompt does the {name} show?", grade),
        ]
        if video.defect and rng.random() < 0.4:
            asked.append((f"What is wrong with the {name}?", video.defect))
        if from_picture:
            asked.append((f"Does the {name} begin with the first picture?", "yes" if video.begins else "no"))
        if not video.shown:
            return asked
        asked.append((f"What happens in the {name}?", told(video.shown)))
        role, path = video.shown[int(rng.integers(len(video.shown)))]
        asked.append((f"What does the {role.noun.shape} do in the {name}?", deed(role, video.shown)))
        thing = next(thing for thing in path[::-1] if thing)
        asked.append((f"Where does the {role.noun.shape} begin in the {name}?", place(first_of(path))))
        asked.append((f"Where does the {role.noun.shape} end in the {name}?", place(thing)))
        wanted = spec.roles[int(rng.integers(len(spec.roles)))]
        true = any(is_so(wanted, one) for one in video.shown)
        asked.append((f"Does {wanted.noun.text} {wanted.deed or 'stands'} in the {name}?", "yes" if true else "no"))
        return asked


CRITERIA = "alignment with the prompt, motion, consistency, visual quality."


def is_so(wanted: Role, shown: tuple[Role, Path]) -> bool:
    """Does what a video shows include what is wanted of one object?"""
    role, path = shown
    looks = wanted.noun.fits(first_of(path))
    if wanted.into is None and role.action == wanted.action:
        return looks
    return looks and role.action == wanted.action and any(t and t.colour == wanted.into for t in path)


def deed(role: Role, shown: list[tuple[Role, Path]]) -> str:
    """What one of the objects of a video does, with the colour that it turns into and whom it passes."""
    path = next(path for one, path in shown if one is role)
    if role.action is None:
        return "stands"
    if role.action == "changes colour":
        return f"turns {next(t.colour for t in path[::-1] if t)}"
    if role.action in CROSSINGS:
        return f"{role.action} the {shown[1][0].noun.shape}"
    return role.action


def told(shown: list[tuple[Role, Path]]) -> str:
    """All that happens in a video: 'a small red circle moves left, a small blue square stands'."""
    things = [(role, first_of(path)) for role, path in shown]
    return ", ".join(f"a {t.size} {t.colour} {t.shape} {deed(role, shown)}" for role, t in things)


def place(thing: Thing) -> str:
    """Where a thing is, in thirds of the canvas."""
    x, y = (min(2, int(3 * at / CANVAS)) for at in thing.centre)
    return f"{('top', 'middle', 'bottom')[y]} {('left', 'middle', 'right')[x]}"
