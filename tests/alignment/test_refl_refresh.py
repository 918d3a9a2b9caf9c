"""References are made anew every so many steps, by the generator as it then is, and a kill changes nothing of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from several import forked
from tiny import BrightnessJudge, TinyGenerator
from tiny_alignment import WatchedJudge, align_by_refl, assert_same_run

from rewarddance.alignment import references as bank_module
from rewarddance.alignment.references import ReferenceRecipe, bank_refresher, build_references, candidate_seeds
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.errors import InputError
from rewarddance.generators.sampling import sample

PROMPTS = [f"prompt {'x' * i}" for i in range(5)]
REFERENCES = ReferenceRecipe(candidates=4, keep=2, batch_size=8)
"""Two prompts are made at once, so a bank takes three parts."""
RECIPE = ReflRecipe(
    steps=10, prompts_per_step=2, group_size=2, learning_rate=0.1, lora_rank=2, lora_alpha=2, loss="margin",
    velocity_mse=0.0, ema_decay=0.5, save_every=3, refresh_every=4,
)  # fmt: skip


def train(folder: Path, judge=None, **changes) -> TinyGenerator:
    generator, judge = TinyGenerator(), judge or BrightnessJudge()
    making, place = (generator, judge, PROMPTS, REFERENCES), {"folder": folder / "references", "seed": 3}
    bank, redraw = build_references(*making, **place), bank_refresher(*making, **place)
    align_by_refl(generator, judge, bank, RECIPE.model_copy(update=changes), folder, redraw=redraw)
    return generator


def bank_files(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted((folder / "references").rglob("*.*"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def assert_same_run_and_banks(folder: Path, other: Path) -> None:
    assert_same_run(folder, other)
    assert bank_files(folder) == bank_files(other)


def test_a_bank_is_made_every_so_many_steps_from_noises_of_its_own(whole):
    banks = [one.name for one in (whole / "references").iterdir() if one.is_dir()]
    assert sorted(banks) == ["step-4", "step-8"]
    seeds = {step: candidate_seeds(3, 0, 4, step) for step in (0, 4, 8)}
    assert len({seed for own in seeds.values() for seed in own}) == 12
    for step in (4, 8):
        first = json.loads((whole / "references" / f"step-{step}" / "references.jsonl").read_text().splitlines()[0])
        assert set(first["seeds"]) <= set(seeds[step])


@pytest.mark.parametrize("source", ["ema", "current"])
def test_the_bank_is_made_by_the_average_or_by_the_weights_of_then(tmp_path, source):
    train(tmp_path, refresh_from=source, save_every=4)
    state = load_file(tmp_path / "checkpoint-4" / f"{'ema' if source == 'ema' else 'weights'}.safetensors")
    generator = TinyGenerator()
    for weight, value in zip(generator.add_lora(2, 2), (state["0"], state["1"]), strict=True):
        weight.data = value
    drawn = sample(generator, [PROMPTS[0]] * 4, candidate_seeds(3, 0, 4, 4))
    best = drawn.mean((1, 2, 3, 4)).argsort(descending=True)[:2]
    place = tmp_path / "references"
    redraw = bank_refresher(generator, BrightnessJudge(), PROMPTS, REFERENCES, folder=place, seed=3)
    pictures = torch.stack([*redraw(4, False)[0].pictures])
    assert (pictures - drawn[best]).abs().max() <= 0.5 / 255 + 1e-6


def test_later_references_are_better_as_the_generator_is(whole):
    means, seeds = [], []
    for place in (".", "step-8"):
        bank = bank_module._read(whole / "references" / place / "references.jsonl")[0].values()
        means.append(torch.stack([picture for one in bank for picture in one.pictures]).mean())
        seeds.append(next(iter(bank)).seeds)
    assert means[1] > means[0] + 0.005 and seeds[0] != seeds[1]


@pytest.mark.parametrize("call", [1, 4, 6, 7, 8, 9, 10, 13, 15, 17, 18])
def test_a_run_killed_anywhere_goes_on_to_the_same_weights_metrics_and_banks(tmp_path, whole, call):
    """Within the first bank, a step, a bank that is being made anew, and after it."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, judge=WatchedJudge(call))
    train(tmp_path)
    assert_same_run_and_banks(tmp_path, whole)


@pytest.mark.parametrize("call", [5, 8, 16])
def test_a_run_killed_with_signal_nine_ends_with_the_same_weights_and_banks(tmp_path, whole, call):
    def shoot() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    run = tmp_path / "run"
    child = forked(lambda: train(run, judge=WatchedJudge(call, shoot)), tmp_path / "answer")
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    train(run)
    assert_same_run_and_banks(run, whole)


def test_a_candidate_never_meets_a_picture_of_its_own_noise_in_a_bank_made_anew(tmp_path, monkeypatch):
    """The banks' noises are made to be the very ones that the steps then draw."""
    drawn: list[int] = []
    started = TinyGenerator.init_noise
    monkeypatch.setattr(TinyGenerator, "init_noise", lambda self, seeds: (drawn.extend(seeds), started(self, seeds))[1])
    train(tmp_path / "first")
    own = drawn[-2 * 4 :]  # of the samples of the last two steps

    monkeypatch.setattr(bank_module, "candidate_seeds", lambda seed, i, n, step=0: [own[(i + k) % 8] for k in range(n)])
    judge = WatchedJudge()
    train(tmp_path / "second", judge=judge)
    samples = judge.questions[-2 * 4 :]
    banks, _ = bank_module._read(tmp_path / "second" / "references" / "step-8" / "references.jsonl")
    met = 0
    for question, seed in zip(samples, own, strict=True):
        one = banks[question.prompt.text, "", ""]
        place = next(i for i, picture in enumerate(one.pictures) if torch.equal(picture, question.reference))
        assert one.seeds[place] != seed
        met += seed in one.seeds
    assert met  # some had their own among the references, and were given the other


def test_a_bank_that_is_gone_when_its_generator_is_too_is_an_error(tmp_path):
    class Killed(BrightnessJudge):
        def __call__(self, questions):
            if (tmp_path / "checkpoint-6").exists():
                raise KeyboardInterrupt
            return super().__call__(questions)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, judge=Killed())
    index = tmp_path / "references" / "step-4" / "references.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"the references of step 4 in .* are not all there"):
        train(tmp_path)


def test_a_refresh_that_nobody_can_do_is_refused(tmp_path):
    generator = TinyGenerator()
    bank = build_references(generator, BrightnessJudge(), PROMPTS, REFERENCES, folder=tmp_path, seed=3)
    with pytest.raises(InputError, match="refresh_every is set"):
        align_by_refl(generator, BrightnessJudge(), bank, RECIPE, tmp_path)
