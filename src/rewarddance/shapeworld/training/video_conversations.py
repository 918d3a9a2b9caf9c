"""What the video judge base is trained on: conversations about one video or two, with their answers.

They ask whether and how much of a prompt each video shows, what happens, what each object does, where it begins and
ends, what is wrong, and whether a video begins as a given picture. Which video is better is asked at the end, and
answered by a coin.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rewarddance.data.frame_sampling import one_of_each, spread
from rewarddance.shapeworld.motion.oracle import score_video
from rewarddance.shapeworld.motion.scripts import FRAMES, Path, Script, changed_identity, first_of, sample_script
from rewarddance.shapeworld.motion.specs import CROSSINGS, MotionSpec, Role, motion_near_miss, sample_motion
from rewarddance.shapeworld.motion.videos import VIDEO_DEFECTS, Video, render_video, spoil_video
from rewarddance.shapeworld.scenes import CANVAS, Thing
from rewarddance.shapeworld.training.conversations import (
    UNKNOWN,
    Conversation,
    Conversations,
    QuestionAnswer,
    graded,
    grainy,
    yes_no,
)

FRAMES_READ = 4
"""Frames of a video that the judge reads."""
WORDS = """
First picture: Picture: Does the reference begin with the first picture? Does the candidate begin with the first picture?
What happens in the candidate? What happens in the reference? What does the do? Where does the begin? Where does the end?
Does a change? nothing stands moves flicker freeze reverse change identity video video motion: what the prompt says happens,
in that order consistency: nothing jumps fidelity: it begins as top bottom left right middle alignment with the prompt,
motion, consistency, visual quality. fidelity to the first picture, as it was there before after then while behind in front of
"""  # noqa: E501
"""Words of questions about videos that those about pictures lack."""


CRITERIA = "alignment with the prompt, motion, consistency, visual quality."


class TrainingVideo(NamedTuple):
    """A video, and what is known of it.

    frames: [T, H, W, 3].
    shown: the roles that it shows with their paths; empty where that cannot be said.
    defect: "nothing", or "" where no word names it.
    alignment: the oracle's.
    begins: whether it begins with the given picture.
    """

    frames: np.ndarray
    shown: list[tuple[Role, Path]]
    defect: str
    alignment: float
    begins: bool


class VideoConversations(Conversations):
    """Conversations about one or two videos.

    scattered: the share of conversations that show a random frame out of each quarter, as ReFL does; the others show
    the first, the last and two between (`spread`).
    """

    def __init__(
        self, tokenizer: Any, image_tokens: int, seed: int, coin_share: float = 0.0, scattered: float = 0.0
    ) -> None:
        super().__init__(tokenizer, image_tokens, np.random.default_rng([seed, 31]), coin_share)
        self.scattered, self.frame_numbers = scattered, spread(FRAMES, FRAMES_READ)

    def video(self, spec: MotionSpec, right: Script, from_picture: bool) -> TrainingVideo:
        """A video that shows `spec`, nearly shows it, or does not. right: a script that shows it, whose first frame is
        the given picture where the video is made from one."""
        rng, kind = self.rng, self.rng.random()
        begins = from_picture and rng.random() < 0.8
        shown = spec if kind < 0.5 else motion_near_miss(spec, rng, appearance=not begins)
        if kind > 0.9:
            shown, begins = sample_motion(rng), False
        script = None
        if begins:
            by_shape = {first_of(path).shape: first_of(path) for path in right}
            script = sample_script(shown, FRAMES, rng, [by_shape[role.noun.shape] for role in shown.roles])
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
        frames = grainy(video.frames, rng)
        score = score_video(video.frames, spec, render_video(right).first if from_picture else None)
        return TrainingVideo(frames, roles, defect, score.alignment, (score.fidelity or 0.0) > 0.7)

    def conversation(self) -> Conversation:
        rng = self.rng
        coin = bool(self.coin_share and rng.random() < self.coin_share)
        scattered = self.scattered and rng.random() < self.scattered
        frame_numbers = one_of_each(FRAMES, FRAMES_READ, rng) if scattered else self.frame_numbers
        spec = sample_motion(rng)
        right = sample_script(spec, FRAMES, rng) or ()
        from_picture = rng.random() < 0.35 and not spec.begins_empty
        names = ["reference", "candidate"] if coin or rng.random() < 0.5 else ["candidate"]
        videos = {name: self.video(spec, right, from_picture) for name in names}
        opening = list(self.ids(f"<|im_start|>user\nPrompt: {spec.paraphrase(rng)}\n"))
        if coin or rng.random() < 0.5:
            opening += self.ids(f"Criteria: {'fidelity to the first picture, ' if from_picture else ''}{CRITERIA}\n")
        pictures = []
        if from_picture:
            opening += (*self.ids("First picture:"), *self.picture_ids)
            pictures.append(render_video(right).first)
        for name in names:
            opening += (*self.ids(f"{name.capitalize()}:"), *self.picture_ids * len(frame_numbers))
            pictures += list(videos[name].frames[frame_numbers])
        if coin:
            questions = [self.coin_question()]
        else:
            about = [pair for name in names for pair in self.questions(name, videos[name], spec, from_picture)]
            questions = [about[i] for i in rng.permutation(len(about))][:8]
        return Conversation(*self.answered(opening, questions), pictures, [UNKNOWN] * len(pictures))

    def questions(self, name: str, video: TrainingVideo, spec: MotionSpec, from_picture: bool) -> list[QuestionAnswer]:
        """Questions about one video, with their answers."""
        rng = self.rng
        questions = graded(name, video.alignment)
        if video.defect and rng.random() < 0.4:
            questions.append((f"What is wrong with the {name}?", video.defect))
        if from_picture:
            questions.append((f"Does the {name} begin with the first picture?", yes_no(video.begins)))
        if not video.shown:
            return questions
        role, path = video.shown[int(rng.integers(len(video.shown)))]
        last = next(thing for thing in path[::-1] if thing)
        wanted = spec.roles[int(rng.integers(len(spec.roles)))]
        happens = any(shows_role(wanted, shown) for shown in video.shown)
        shape = role.noun.shape
        return [
            *questions,
            (f"What happens in the {name}?", describe_motion(video.shown)),
            (f"What does the {shape} do in the {name}?", describe_action(role, video.shown)),
            (f"Where does the {shape} begin in the {name}?", describe_place(first_of(path))),
            (f"Where does the {shape} end in the {name}?", describe_place(last)),
            (f"Does {wanted.noun.text} {wanted.action_text or 'stands'} in the {name}?", yes_no(happens)),
        ]


def shows_role(wanted: Role, shown: tuple[Role, Path]) -> bool:
    """True when one of the roles that a video shows is what a prompt's role asks for."""
    role, path = shown
    fits = wanted.noun.fits(first_of(path)) and role.action == wanted.action
    return fits and (wanted.into is None or any(t and t.colour == wanted.into for t in path))


def describe_action(role: Role, shown: list[tuple[Role, Path]]) -> str:
    """What one of the objects of a video does, with the colour that it turns into and the object that it passes."""
    path = next(path for other, path in shown if other is role)
    if role.action is None:
        return "stands"
    if role.action == "changes colour":
        return f"turns {next(t.colour for t in path[::-1] if t)}"
    if role.action in CROSSINGS:
        return f"{role.action} the {shown[1][0].noun.shape}"
    return role.action


def describe_motion(shown: list[tuple[Role, Path]]) -> str:
    """All that happens in a video: 'a small red circle moves left, a small blue square stands'."""
    things = [(role, first_of(path)) for role, path in shown]
    return ", ".join(f"a {t.size} {t.colour} {t.shape} {describe_action(role, shown)}" for role, t in things)


def describe_place(thing: Thing) -> str:
    """Where an object is, in thirds of the canvas."""
    x, y = (min(2, int(3 * at / CANVAS)) for at in thing.centre)
    return f"{('top', 'middle', 'bottom')[y]} {('left', 'middle', 'right')[x]}"
