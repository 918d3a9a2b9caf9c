"""What the commands take: each field is an option of the command line, under its name and with its docstring as help.

They stand apart from the jobs that use them so that help is quick: nothing heavy is imported here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rewarddance.annotate.recipe import LEARNED, HandingOut, PageOptions
from rewarddance.data.recipe import Benchmark
from rewarddance.errors import InputError
from rewarddance.evaluation.recipe import AnswerForm, ExamRecipe, GenEvalRules, StressRecipe
from rewarddance.planning.recipe import PlanOptions
from rewarddance.runtime.config import MOST_WORKERS, GeneratorOptions, Precision, Recipe, changed
from rewarddance.search.recipe import Budget, JudgingName, read_budget
from rewarddance.serve.recipe import ServeOptions


class JudgeChoice(Recipe):
    """Which judge is asked, and what is asked of it differently from what its folder says."""

    judge: str
    """A trained reward's folder, a model's id, a bundled name, package.module:factory, or a server's address."""
    kind: str | None = None
    """pairwise, pointwise, regressive or clip, where it is not the judge's own."""
    orders: str | None = None
    """forward asks once; both also asks with the pictures swapped, and averages. Default: the judge's own."""
    instruction: str | None = None
    """A task instruction by name or file. Default: the judge's own."""
    criteria: str | None = None
    """A tree of criteria by name or file, asked in place of the instruction's question."""
    judge_options: dict[str, Any] = Field(default_factory=dict)
    """Further options of the judge, or of the factory."""
    device: str | None = None
    """cpu or cuda. Default: cuda where there is one."""
    dtype: Precision = "auto"
    """Of all weights: float32, bfloat16, float16, or auto, which is bfloat16 on a GPU and float32 elsewhere."""

    @model_validator(mode="after")
    def _asks_one_thing(self) -> JudgeChoice:
        if self.instruction and self.criteria:
            raise ValueError("criteria are asked in place of the instruction: leave one of them out")
        return self

    @property
    def changes(self) -> dict[str, Any]:
        """Options of `load_reward` that differ from what the judge's folder says."""
        named = self.model_dump(include={"kind", "orders", "instruction", "criteria"}, exclude_none=True)
        return named | self.judge_options


class ScoreOptions(Recipe):
    """How pictures and videos are scored, wherever they are from."""

    batch_size: int = Field(default=32, ge=1)
    """Rows read, asked and written together."""
    max_frames: int = Field(default=16, ge=1)
    """Frames of a longer video, evenly spaced."""
    explain: bool = False
    """Also write the judge's reasons, which takes longer."""


class ScoreRun(ScoreOptions, JudgeChoice):
    """`rewarddance score`: which judge answers what is asked in `input`, and where the answers go."""

    input: Path
    """A folder of pictures and videos, or a .jsonl or .parquet file of rows."""
    output: Path
    """The .jsonl or .parquet file to write."""
    prompt: str | None = None
    """Prompt of the rows that have none."""
    reference: Path | None = None
    """Picture or video that rows without a reference get."""
    strict: bool = Field(default=False, exclude=True)
    """Stop at the first row that fails while it is scored. Default: list such rows beside the output, and go on."""
    skip_faulty: bool = Field(default=False, exclude=True)
    """Leave out rows that cannot be scored, and list them with the reason; else a run with one does not begin."""
    ray: str | None = Field(default=None, exclude=True)
    """Ask on the machines of a Ray cluster at this address, or on this one (local)."""
    workers: int = Field(default=1, ge=1, le=MOST_WORKERS, exclude=True)
    """How many processes of Ray score, each with a judge of its own."""
    judge_sharded: bool = Field(default=False, exclude=True)
    """Split the judge's weights over the processes that torchrun started, for one that is larger than a device."""

    @model_validator(mode="after")
    def _workers_are_of_ray(self) -> ScoreRun:
        if self.workers > 1 and self.ray is None:
            raise ValueError("workers are those of Ray; say where it is (ray)")
        if self.judge_sharded and self.ray is not None:
            raise ValueError("a sharded judge is split over processes of torchrun, not of Ray: leave one of them out")
        return self

    @property
    def answer_keys(self) -> set[str]:
        return {"probability", "margin", "order", "orders"} | ({"reason"} if self.explain else set())


class SearchRun(JudgeChoice):
    """`rewarddance search`: the best pictures of a file's prompts."""

    prompts: Path
    """A .txt file with a prompt a line, or .jsonl, .json, .csv, .tsv or .parquet."""
    generator: str
    """A diffusers folder, a bundled name or an id of the model hub."""
    output: Path = Field(default=Path("runs/search"), exclude=True)
    """The folder for pictures and results.jsonl."""
    budget: Budget
    """For each prompt: samples=N, evaluations=N, questions=N or seconds=N, or several, with commas."""
    method: str = "best_of_n"
    """best_of_n, zero_order, paths, pruning or refine."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the method."""
    num_inference_steps: int = Field(default=28, ge=1)
    """The generator's steps."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """The generator's guidance. Default: its family's."""
    generator_options: GeneratorOptions = Field(default_factory=dict)
    """Further options of the generator, such as height=512."""
    judging: JudgingName | None = None
    """How pictures are compared. Default: as suits the judge."""
    seed: int = Field(default=0, ge=0)
    """Seed of all noises."""
    runners_up: int = Field(default=2, ge=0)
    """Pictures kept beside the winner."""
    batch_size: int = Field(default=64, ge=1)
    """Pictures made together, of all prompts."""
    prompts_at_once: int = Field(default=8, ge=1)
    """Prompts that share a batch."""
    held_out: str | None = None
    """Another judge, which says how often it prefers the winners to first samples."""
    judge_device: str | None = None
    """Where the judges are, such as cuda:1. Default: where the generator is."""
    judge_batch: int | None = Field(default=None, ge=1)
    """Questions that a judge looks at together. Default: its own."""
    judge_sharded: bool = Field(default=False, exclude=True)
    """Split the judges' weights over the processes that torchrun started, for one that is larger than a device."""
    skip_faulty: bool = Field(default=False, exclude=True)
    """Leave out prompts that cannot be used, and list them in faulty.jsonl; else a run with one does not begin."""

    @field_validator("budget", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return read_budget(value) if isinstance(value, str) else value


class EvaluateRun(JudgeChoice):
    """`rewarddance evaluate`: which judge is examined on which test sets, by name, and how."""

    tests: dict[str, Path] = Field(min_length=1)
    """A preferences file under its name; may be given again. A file alone goes by its own name."""
    output: Path | None = None
    """A folder. Default: evaluation beside a trained reward's folder, else evaluation-<name> where you are."""
    skip_faulty: bool = Field(default=False, exclude=True)
    """Leave out pairs that cannot be used, and list them in faulty.jsonl; else a run with one does not begin."""
    card: bool = Field(default=False, exclude=True)
    """Also write README.md, the model card, into the reward's folder."""
    stress: bool = False
    """Also measure what the reward pays for pictures that are no better: how hackable it is."""
    judge_sharded: bool = Field(default=False, exclude=True)
    """Split the judge's weights over the processes that torchrun started, for one that is larger than a device."""
    exam: ExamRecipe = ExamRecipe()
    """How thoroughly the judge is examined."""
    stress_options: StressRecipe = StressRecipe()
    """How it is stressed."""

    @model_validator(mode="after")
    def _options_are_of_a_stress(self) -> EvaluateRun:
        if not self.stress and self.stress_options != StressRecipe():
            raise ValueError("stress_options are given, and the reward is not stressed; set stress")
        return self

    @field_validator("tests", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return named_tests(value) if isinstance(value, list) else value


class BenchRun(JudgeChoice):
    """`rewarddance bench`: which benchmark is asked of which pictures, and by what."""

    benchmark: Benchmark
    """What is asked of the pictures."""
    prompts: Path
    """Its published file: evaluation_metadata.jsonl, geneval2_data.jsonl or tifa_v1.0_question_answers.json."""
    pictures: Path | None = None
    """The pictures: GenEval's folder, a folder of 0.png or 0_1.png, or a .json file of prompts and paths."""
    generator: str | None = None
    """Makes the pictures first: a diffusers folder, a bundled name or an id of the model hub."""
    output: Path = Field(default=Path("runs/bench"), exclude=True)
    """The folder for results.jsonl, scores.json and scores.md, and for pictures that are made."""
    samples: int | None = Field(default=None, ge=1)
    """Pictures of each prompt. Default: 4 of a generator, else all that there are."""
    judge: str | None = None
    """Answers the questions of geneval2 and tifa, and says colours where it is asked: a judge or any model's id."""
    answers: AnswerForm | None = None
    """How the judge answers. Default: first_token of a vision-language model here, else yes_no."""
    detector: str | None = None
    """Of geneval: mask2former (default), grounding-dino, owlv2, a checkpoint, or package.module:function."""
    colours: str | None = None
    """Tells an object's colour: a CLIP checkpoint, or judge. Default: GenEval's own CLIP; of a function none."""
    rules: GenEvalRules = GenEvalRules()
    """Which detections count. Default: as is customary for the detector."""
    num_inference_steps: int = Field(default=28, ge=1)
    """The generator's steps."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """The generator's guidance. Default: its family's."""
    generator_options: GeneratorOptions = Field(default_factory=dict)
    """Further options of the generator, such as height=512."""
    seed: int = Field(default=0, ge=0)
    """Seed of all noises."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures made, and looked at and written, together."""
    skip_faulty: bool = Field(default=False, exclude=True)
    """Leave out prompts that cannot be used, and list them in faulty.jsonl; else a run with one does not begin."""
    ray: str | None = Field(default=None, exclude=True)
    """Look at the pictures on the machines of a Ray cluster at this address, or on this one (local)."""
    workers: int = Field(default=1, ge=1, le=MOST_WORKERS, exclude=True)
    """How many processes of Ray work, each with its own models."""

    @model_validator(mode="after")
    def _fits_together(self) -> BenchRun:
        if (self.pictures is None) == (self.generator is None):
            raise ValueError("give either pictures, or a generator that makes them")
        if self.workers > 1 and self.ray is None:
            raise ValueError("workers are those of Ray; say where it is (ray)")
        drawing = ("num_inference_steps", "guidance_scale", "generator_options", "seed")
        if self.pictures is not None and (given := changed(self, *drawing)):
            raise ValueError(f"{given} is a generator's, and the pictures are there already")
        asks_judge = self.benchmark != "geneval" or self.colours == "judge"
        if asks_judge != (self.judge is not None):
            raise ValueError("a judge is for geneval2, tifa and colours=judge" if self.judge else "a judge is missing")
        if not asks_judge and (given := changed(self, "kind", "judge_options")):
            raise ValueError(f"{given} is of a judge, and none is asked: leave it out")
        geneval_only = {"detector": self.detector, "colours": self.colours, "rules": self.rules != GenEvalRules()}
        if self.benchmark != "geneval" and (given := [name for name, value in geneval_only.items() if value]):
            raise ValueError(f"{given[0]} is of geneval alone")
        if given := [name for name in ("instruction", "criteria", "orders") if getattr(self, name) is not None]:
            raise ValueError(f"a benchmark asks its own questions; leave out {given[0]}")
        if self.answers is not None and not asks_judge:
            raise ValueError("answers are a judge's, and none is asked")
        return self


class ExportRun(JudgeChoice):
    """`rewarddance export`: which judge becomes a folder for other servers."""

    output: Path
    """The folder to write."""
    merge: bool = False
    """Add a LoRA's weights to its base's."""
    one_spelling: bool = False
    """Ask for one spelling each of yes and no, here and there, so that other servers' P("yes") is exact."""
    dtype: str = "float32"
    """float32, bfloat16 or float16, of the weights."""


class ServeRun(JudgeChoice, ServeOptions):
    """`rewarddance serve`: which judge answers, and to whom."""


class AnnotateRun(PageOptions, HandingOut):
    """`rewarddance annotate`: who votes on what."""

    input: Path
    """Pairs or pictures: a .jsonl or .parquet file, a folder, a folder for each model; with a generator, prompts."""
    store: Path
    """The store of votes, an SQLite file; it is made, or gone on with."""
    tests: Path | None = None
    """A preferences file of test pairs, whose answers are known."""
    pairs_per_prompt: int = Field(default=6, ge=1)
    """Pairs of a prompt, where pictures are paired."""
    compare_pairs: int = Field(default=200, ge=2)
    """Pairs of a comparison, at most."""
    generator: tuple[str, ...] = ()
    """A generator that makes pictures for the prompts; give it again for another."""
    samples: int = Field(default=2, ge=1)
    """Pictures of each prompt by each generator."""
    num_inference_steps: int = Field(default=28, ge=1)
    """The generators' steps."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """The generators' guidance. Default: their families'."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures made together."""
    judge: str | None = None
    """A judge's folder or a bundled name: it learns (retrain), and the policies least_sure and disagreement ask it."""
    retrain: int | None = Field(default=None, ge=1)
    """Votes after which the judge learns anew, in the background, and chooses the next pairs."""
    judges: int = Field(default=3, ge=2)
    """Judges that learn, whose disagreement is looked at."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Keys of the judge's training, such as epochs=2."""

    @field_validator("generator", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_used(self) -> AnnotateRun:
        if self.compare is None and changed(self, "compare_pairs"):
            raise ValueError("compare_pairs is of a comparison; say of which models (compare), or leave it out")
        if self.tests is None and changed(self, "test_every"):
            raise ValueError("test_every is of test pairs, and there are none (tests): leave it out")
        if self.policy != "disagreement" and changed(self, "judges"):
            raise ValueError(f"judges disagree by the policy disagreement, and policy is {self.policy}: leave it out")
        return self

    @model_validator(mode="after")
    def _judge_is_used(self) -> AnnotateRun:
        if self.policy in LEARNED and self.judge is None:
            raise ValueError(f"the policy {self.policy} asks a judge; say which (judge)")
        if self.judge is None and (self.retrain or self.training):
            raise ValueError("retrain and training are of a judge; say which (judge)")
        if self.training and self.retrain is None:
            raise ValueError("training is how the judge learns; say how often it does (retrain)")
        drawing = ("samples", "num_inference_steps", "guidance_scale", "batch_size")
        if not self.generator and (given := changed(self, *drawing)):
            raise ValueError(f"{given} is a generator's; say which (generator)")
        if len(self.generator) * self.samples == 1:
            raise ValueError("of one picture a prompt there are no pairs; raise samples, or give another generator")
        if self.policy == "disagreement" and self.retrain is None:
            raise ValueError("the judges that disagree are trained on the votes; say how often (retrain)")
        if self.judge is not None and self.policy not in LEARNED and self.retrain is None:
            raise ValueError(
                f"the policy {self.policy} asks no judge, and without retrain none learns; say policy=least_sure, or "
                "leave judge out"
            )
        return self


class PlanRun(PlanOptions):
    """`rewarddance plan`: which recipe is planned, on what."""

    recipe: Path
    """A recipe file of train, align or search."""
    overrides: tuple[str, ...] = ()
    """Recipe keys to set."""
    output: Path | None = None
    """A recipe file to write: this one, with the first of the changes that make it fit where it does not."""
    json_output: bool = False
    """Print JSON, in bytes and seconds."""


class DistilRun(Recipe):
    """`rewarddance distil`: which pairs are shown to which teacher."""

    preferences: Path
    """A preferences file. Ties are not asked about."""
    endpoint: str
    """Address of an OpenAI-compatible server, up to /v1."""
    model: str
    """The teacher's name there."""
    output: Path
    """The preferences file with reasons to write; the journal and what failed stand beside it."""
    instruction: str = "t2i"
    """The question asked: a template's name or file."""
    orders: Literal["forward", "both"] = "both"
    """both also asks with the pictures swapped, for the reasons of that order."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; no key is sent where it is not set."""
    concurrency: int = Field(default=8, ge=1, le=MOST_WORKERS)
    """Questions at once."""
    retries: int = Field(default=5, ge=0)
    """Further tries where the server is busy, breaks off or sends no chat completion."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds for one answer."""
    body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, such as temperature=0."""

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, endpoint: str) -> str:
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError("an address begins with http:// or https://, such as http://localhost:8000/v1")
        return endpoint

    @field_validator("body")
    @classmethod
    def _leaves_the_question(cls, body: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"model", "messages", "stream"} & body.keys()):
            raise ValueError(f"{taken[0]} is the run's own and not a further field; leave it out")
        return body


def named_tests(words: list[str]) -> dict[str, Path]:
    """NAME=FILE, or FILE, which then has its own name. Raises InputError naming one without a name or given twice."""
    tests: dict[str, Path] = {}
    for text in words:
        name, equals, file = (Path(text).stem, "=", text) if Path(text).is_file() else text.partition("=")
        if not (name and equals and file):
            raise InputError(f"the test set {text!r} is not of the form NAME=FILE.", "Write e.g. ood=unseen.jsonl.")
        if name in tests:
            raise InputError(f"there are two test sets named {name!r}.", "Give each its own name.")
        tests[name] = Path(file)
    return tests
