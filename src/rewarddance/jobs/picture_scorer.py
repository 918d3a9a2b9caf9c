"""The models that `rewarddance bench` asks, loaded once in each process, and the row of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

from rewarddance.data.media import read_picture
from rewarddance.data.object_prompts import GenEval2Row, GenEvalRow, TifaQuestion
from rewarddance.data.prompt_pictures import Shot
from rewarddance.errors import InputError, RewardDanceError
from rewarddance.evaluation.detectors import load_detector
from rewarddance.evaluation.object_colours import CLIP, AskedColours, ClipColours
from rewarddance.evaluation.object_scores import Detection, geneval_verdict, kept, soft_tifa, tifa
from rewarddance.evaluation.visual_questions import Answerer, VisualQuestion, answerer
from rewarddance.jobs.recipes import BenchRun
from rewarddance.protocols import RewardModel
from rewarddance.reward.function_reward import is_factory
from rewarddance.reward.loading import load_reward
from rewarddance.types import Pixels


class PictureScorer:
    """Called with pictures, it gives each one's row, or the error that says why there is none.

    judge: in the place of the one that the run names.
    Raises InputError where a model of the run cannot be loaded or cannot do what the run asks of it.
    """

    def __init__(self, run: BenchRun, judge: RewardModel | None = None) -> None:
        self.run, device = run, run.device or "cpu"
        self.answerer: Answerer | None = None
        self.colours: ClipColours | AskedColours | None = None
        if run.judge is not None:
            judge = judge or load_reward(run.judge, device, run.dtype, **run.changes)
            self.answerer = answerer(judge, run.answers)
        if run.benchmark != "geneval":
            return
        name = run.detector or "mask2former"
        self.detector = load_detector(name, device)
        if run.colours == "judge" and self.answerer is not None:
            self.colours = AskedColours(self.answerer)
        elif run.colours is not None or not is_factory(name):
            self.colours = ClipColours(load_reward(run.colours or CLIP, device, "float32", kind="clip"))

    def __call__(self, shots: Sequence[Shot]) -> list[dict[str, Any] | RewardDanceError]:
        return [self._row(shot) for shot in shots]

    def _row(self, shot: Shot) -> dict[str, Any] | RewardDanceError:
        prompt = shot.prompt
        row = {"number": prompt.number, "prompt": prompt.text, "sample": shot.sample, "picture": str(shot.path)}
        try:
            picture = read_picture(shot.path)
            if isinstance(prompt.asked, GenEvalRow):
                return row | self._geneval(picture, prompt.asked)
            if isinstance(prompt.asked, GenEval2Row):
                return row | self._geneval2(picture, prompt.asked)
            if isinstance(prompt.asked, tuple):
                return row | {"id": prompt.key} | self._tifa(picture, prompt.asked)
            assert_never(prompt.asked)
        except RewardDanceError as error:
            return error

    def _geneval(self, picture: Pixels, asked: GenEvalRow) -> dict[str, Any]:
        rules = self.run.rules
        objects = kept(self.detector(picture[0], asked.classes), asked.tag, rules)

        def colours_of(name: str, found: Sequence[Detection]) -> list[str]:
            if self.colours is None:
                raise InputError(
                    f"the detector does not say the colour of the {name}, and nobody else is to be asked.",
                    "Name who says colours: --colours CLIP-CHECKPOINT, or --colours judge.",
                )
            return self.colours(picture, name, found)

        correct, reason = geneval_verdict(objects, asked, colours_of, rules)
        seen = {name: [[*one.box, round(one.score, 4)] for one in found] for name, found in objects.items()}
        return {"tag": asked.tag, "correct": correct, "reason": reason, "objects": seen}

    def _geneval2(self, picture: Pixels, asked: GenEval2Row) -> dict[str, Any]:
        answers = self._asked()
        questions = [VisualQuestion(picture, question, answer) for question, answer in asked.vqa_list]
        chances = answers.probabilities(questions).tolist()
        am, gm = soft_tifa(chances)
        row = {"atom_count": asked.atom_count, "skills": [*asked.skills], "probabilities": chances, "am": am, "gm": gm}
        return row | {"answers_by": answers.form}

    def _tifa(self, picture: Pixels, asked: Sequence[TifaQuestion]) -> dict[str, Any]:
        answers = self._asked()
        chosen = [answers.choose(picture, one.question, one.choices) for one in asked]
        correct, score = tifa(chosen, [one.answer for one in asked])
        row = {"element_types": [one.element_type for one in asked], "answers": chosen, "correct": correct}
        return row | {"score": score, "answers_by": answers.form}

    def _asked(self) -> Answerer:
        assert self.answerer is not None  # the recipe refuses a run without one
        return self.answerer
