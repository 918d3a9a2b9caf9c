"""What the video judge base is trained on: conversations about one video or two, with their answers.

They ask whether and how much of a prompt each video shows, what happens, what each object does, where it begins and
ends, what is wrong, and whether a video begins with a given picture. Which video is better is asked in the last stage,
and answered by a coin.
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
    new_script,
    script_like,
)
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
    roles: those that it shows, with their paths; empty where that cannot be said.
    defect: "nothing" if there is none, "" if no word names it.
    alignment: the oracle's.
    begins_as_given: whether it begins with the given picture.
    """

    frames: np.ndarray
    roles: list[tuple[Role, Path]]
    defect: str
    alignment: float
    begins_as_given: bool


class VideoConversations(Conversations):
    """Conversations about one or two videos.

    scattered: the share of conversations that show a random frame of each quarter, as ReFL does; the others show the
    first, the last and two between (`spread`).
    """

    def __init__(
        self, tokenizer: Any, image_tokens: int, seed: int, coin_share: float = 0.0, scattered: float = 0.0
    ) -> None:
        super().__init__(tokenizer, image_tokens, np.random.default_rng([seed, 31]), coin_share)
        self.scattered, self.frame_numbers = scattered, spread(FRAMES, FRAMES_READ)

    def video(self, spec: MotionSpec, correct: Script, from_picture: bool) -> TrainingVideo:
        """A video that shows `spec`, nearly shows it, or does not. correct: a script that shows it, whose first frame
        is the given picture where the video is made from one."""
        rng, kind = self.rng, self.rng.random()
        same_start = from_picture and rng.random() < 0.8
        spec_shown = spec if kind < 0.5 else motion_near_miss(spec, rng, appearance=not same_start)
        if kind > 0.9:
            spec_shown, same_start = sample_motion(rng), False
        script = script_like(spec_shown, correct, same_start, rng)
        paths = script[::-1] if spec_shown.roles[0].action == "passes in front of" else script
        roles, defect = list(zip(spec_shown.roles, paths, strict=True)), "nothing"
        if rng.random() < 0.08:
            script, roles, defect = changed_identity(script, float(rng.uniform(0.4, 1)), rng), [], "change"
        video = render_video(script, style="sketch" if rng.random() < 0.15 else "flat", seed=int(rng.integers(2**31)))
        if defect == "nothing" and rng.random() < 0.25:
            defect, level = VIDEO_DEFECTS[int(rng.integers(len(VIDEO_DEFECTS)))], float(rng.uniform(0.2, 0.9))
            video = spoil_video(video, defect, level, int(rng.integers(2**31)))
            if level > 0.45 or defect in ("freeze", "reverse"):
                roles = []
        elif rng.random() < 0.15:  # like a prediction half way through: blurred, with a ghost of another
            other, share = new_script(spec, FRAMES, rng), float(rng.uniform(0.1, 0.5))
            mixed = (1 - share) * video.frames + share * render_video(other).frames
            video = spoil_video(Video(mixed), "blur", float(rng.uniform(0.1, 0.4)), 0)
            roles, defect = [], ""
        frames = grainy(video.frames, rng)
        score = score_video(video.frames, spec, render_video(correct).first if from_picture else None)
        return TrainingVideo(frames, roles, defect, score.alignment, (score.fidelity or 0.0) > 0.7)

    def conversation(self) -> Conversation:
        rng = self.rng
        coin = bool(self.coin_share and rng.random() < self.coin_share)
        scattered = self.scattered and rng.random() < self.scattered
        frame_numbers = one_of_each(FRAMES, FRAMES_READ, rng) if scattered else self.frame_numbers
        spec = sample_motion(rng)
        correct = new_script(spec, FRAMES, rng)
        from_picture = rng.random() < 0.35 and not spec.begins_empty
        names = ["reference", "candidate"] if coin or rng.random() < 0.5 else ["candidate"]
        videos = {name: self.video(spec, correct, from_picture) for name in names}
        opening = list(self.ids(f"<|im_start|>user\nPrompt: {spec.paraphrase(rng)}\n"))
        if coin or rng.random() < 0.5:
            opening += self.ids(f"Criteria: {'fidelity to the first picture, ' if from_picture else ''}{CRITERIA}\n")
        pictures = []
        if from_picture:
            opening += (*self.ids("First picture:"), *self.picture_ids)
            pictures.append(render_video(correct).first)
        for name in names:
            opening += (*self.ids(f"{name.capitalize()}:"), *self.picture_ids * len(frame_numbers))
            pictures += list(videos[name].frames[frame_numbers])
        if coin:
            questions = [self.coin_question()]
        else:
            questions = [q for name in names for q in self.questions(name, videos[name], spec, from_picture)]
            questions = [questions[i] for i in rng.permutation(len(questions))][:8]
        return Conversation(*self.answered(opening, questions), pictures, [UNKNOWN] * len(pictures))

    def questions(self, name: str, video: TrainingVideo, spec: MotionSpec, from_picture: bool) -> list[QuestionAnswer]:
        """Questions about one video, with their answers."""
        rng = self.rng
        questions = graded(name, video.alignment)
        if video.defect and rng.random() < 0.4:
            questions.append((f"What is wrong with the {name}?", video.defect))
        if from_picture:
            questions.append((f"Does the {name} begin with the first picture?", yes_no(video.begins_as_given)))
        if not video.roles:
            return questions
        role, path = video.roles[int(rng.integers(len(video.roles)))]
        last = next(thing for thing in path[::-1] if thing)
        wanted = spec.roles[int(rng.integers(len(spec.roles)))]
        happens = any(plays(role_shown, path_shown, wanted) for role_shown, path_shown in video.roles)
        shape = role.noun.shape
        return [
            *questions,
            (f"What happens in the {name}?", describe_motion(video.roles)),
            (f"What does the {shape} do in the {name}?", describe_action(role, video.roles)),
            (f"Where does the {shape} begin in the {name}?", describe_place(first_of(path))),
            (f"Where does the {shape} end in the {name}?", describe_place(last)),
            (f"Does {wanted.noun.text} {wanted.action_text or 'stands'} in the {name}?", yes_no(happens)),
        ]


def plays(role: Role, path: Path, wanted: Role) -> bool:
    """Is a role that a video shows, with its path, what a prompt's role asks for?"""
    fits = wanted.noun.fits(first_of(path)) and role.action == wanted.action
    return fits and (wanted.into is None or any(t and t.colour == wanted.into for t in path))


def describe_action(role: Role, roles: list[tuple[Role, Path]]) -> str:
    """What one of the objects of a video does, with the colour that it turns into and the object that it passes."""
    path = next(path for other, path in roles if other is role)
    if role.action is None:
        return "stands"
    if role.action == "changes colour":
        return f"turns {next(t.colour for t in path[::-1] if t)}"
    if role.action in CROSSINGS:
        return f"{role.action} the {roles[1][0].noun.shape}"
    return role.action


def describe_motion(roles: list[tuple[Role, Path]]) -> str:
    """All that happens in a video: 'a small red circle moves left, a small blue square stands'."""
    things = [(role, first_of(path)) for role, path in roles]
    return ", ".join(f"a {t.size} {t.colour} {t.shape} {describe_action(role, roles)}" for role, t in things)


def describe_place(thing: Thing) -> str:
    """Where an object is, in thirds of the canvas."""
    x, y = (min(2, int(3 * at / CANVAS)) for at in thing.centre)
    return f"{('top', 'middle', 'bottom')[y]} {('left', 'middle', 'right')[x]}"
