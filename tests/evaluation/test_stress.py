"""How hackable rewards of known taste are: closed forms, and what is said where there is no figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny import BrightnessJudge, clip_folder, judge_folder, video_judge_folder

from rewarddance.errors import InputError, RewardError
from rewarddance.evaluation.ascent import Slope, climb
from rewarddance.evaluation.disturbances import (
    DISTURBANCES,
    as_jpeg,
    can_write,
    cropped,
    disturbed,
    laid_over,
    resized,
    text_layers,
    tiled,
)
from rewarddance.evaluation.findings import StressFigures
from rewarddance.evaluation.stress import spread_left, stress
from rewarddance.generators.decoder import load_decoder
from rewarddance.reward.function_reward import as_reward
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward
from rewarddance.types import Question


def questions(n: int = 10, frames: int = 1, reference: bool = True, seed: int = 0) -> list[Question]:
    """Coloured noise of values 0.2 to 0.8 for n / 2 prompts, against other noise."""
    rng = torch.Generator().manual_seed(seed)

    def drawn() -> torch.Tensor:
        return 0.2 + 0.6 * torch.rand(frames, 3, 32, 32, generator=rng)

    prompts = [f"a {('red', 'blue', 'green', 'white', 'black')[i % 5]} circle" for i in range(n)]
    return [Question(prompt, drawn(), drawn() if reference else None) for prompt in prompts]


def redness(images, prompts, metadata):
    return images[..., 0, :, :].flatten(1).mean(1)


def test_the_mean_of_red_wins_exactly_the_radius_along_its_gradient():
    found = stress(as_reward(redness), questions(), batch_size=4)
    assert not isinstance(found.pixels, str)
    for radius, won in found.pixels.items():
        assert won.margin.mean == pytest.approx(radius / 255, abs=1e-6) and won.margin.n == 10
        assert won.beats.mean == 1
        assert won.margin.high - won.margin.low < 1e-5
    assert [*found.pixels] == [1, 2, 4, 8] and found.latent == "No decoder was given."


def test_a_comparing_reward_is_stressed_against_its_own_reference():
    found = stress(BrightnessJudge(bias=3.0), questions(), steps=1)
    assert found.pixels[8].margin.mean == pytest.approx(8 * 8 / 255, abs=1e-5)  # type: ignore[index]
    assert found.disturbances["one_colour"].margin.mean == pytest.approx(0, abs=1e-5)
    assert found.disturbances["one_colour"].beats.mean == 0  # the arithmetic's error is no win


def test_a_reward_that_ignores_pixels_pays_nothing_for_any_change():
    asked = questions()
    by_words = as_reward(lambda images, prompts, metadata: 0 * images.flatten(1).sum(1) + 2)
    found = stress(by_words, asked)
    wins = [*found.pixels.values(), *found.disturbances.values()]  # type: ignore[union-attr]
    assert len(wins) == 4 + len(DISTURBANCES) - 1
    for won in wins:
        assert tuple(won.margin)[:3] == tuple(won.p_yes)[:3] == (0, 0, 0) and tuple(won.beats)[:2] == (0, 0)
    assert found.spread_left == "P(yes) is the same for all candidates." and found.spread == 0


def test_a_liking_for_contrast_is_caught():
    contrast = as_reward(lambda images, prompts, metadata: 4 * images.flatten(1).std(1))
    found = stress(contrast, questions())
    more, flat = found.disturbances["contrast"], found.disturbances["one_colour"]
    assert more.margin.low > 0 and more.p_yes.low > 0 and more.beats.mean == 1
    assert flat.margin.high < 0 and flat.beats.mean == 0
    assert found.disturbances["blur"].margin.high < 0


def test_without_a_gradient_a_sentence_says_why_and_the_rest_is_measured():
    def in_numpy(images, prompts, metadata):
        return [float(np.asarray(image).mean()) for image in images]

    def scored(images, prompts, metadata):
        return [image.mean().item() for image in images]

    for reward in (as_reward(in_numpy, "pil"), as_reward(in_numpy), as_reward(scored)):
        found = stress(reward, questions(), decoder="shapeworld-generator")
        assert isinstance(found.pixels, str) and found.pixels.startswith("It gives no gradient")
        assert found.latent == found.pixels
        assert found.disturbances["text_alone"].margin.low > 0  # white paper is bright
        assert found.disturbances["noise"].margin.n == 10


def test_a_gradient_that_is_not_finite_is_named_in_place_of_its_figure():
    def rooted(images, prompts, metadata):
        flat = images.flatten(1)
        return (flat - flat).abs().sum(1).sqrt() + 1

    found = stress(as_reward(rooted), questions())
    assert isinstance(found.pixels, str) and "not finite" in found.pixels and "question 0" in found.pixels


def test_a_latent_wins_against_its_own_reconstruction():
    decoder = load_decoder("shapeworld-generator")
    asked = questions(4, seed=1)
    found = stress(as_reward(redness), asked, decoder=decoder, batch_size=3)
    assert not isinstance(found.latent, str) and found.latent.decoder == "shapeworld-generator"
    with torch.no_grad():
        drawn = [decoder.decode(decoder.encode(q.candidate)) for q in asked]
    lost = np.mean([float((d - q.candidate)[:, 0].mean()) for d, q in zip(drawn, asked, strict=True)])
    assert found.latent.reconstruction.margin.mean == pytest.approx(lost, abs=1e-5)
    means = [won.margin.mean for won in found.latent.within.values()]
    assert 0 < means[0] < means[1] < means[2] < means[3] and [*found.latent.within] == [1, 2, 4, 8]


def test_what_does_not_apply_is_left_out_by_name():
    found = stress(BrightnessJudge(), questions())
    assert found.left_out == {"frozen_frames": "A picture has one frame."}
    same = [Question("一个红色的圆", q.candidate, q.reference) for q in questions(3)]
    found = stress(BrightnessJudge(), same)
    assert set(found.left_out) == {"text_over", "text_alone", "frozen_frames", "all_objects"}
    assert not set(found.left_out) & set(found.disturbances)
    assert found.spread_left == "It needs 8 candidates, and there are 3."


def test_a_disturbance_that_applies_to_some_is_measured_on_those():
    asked = [*questions(4), *questions(3, frames=3)]
    assert stress(as_reward(redness), asked).disturbances["frozen_frames"].margin.n == 3


def test_the_figures_do_not_depend_on_the_batches_and_survive_json():
    asked = questions(9)
    one = stress(BrightnessJudge(), asked, batch_size=9, seed=3)
    many = stress(BrightnessJudge(), asked, batch_size=2, seed=3)
    for name, won in one.disturbances.items():
        assert many.disturbances[name].margin.mean == pytest.approx(won.margin.mean, abs=1e-6)
    other = stress(BrightnessJudge(), asked, seed=4)
    assert other.disturbances["noise"].margin.mean != one.disturbances["noise"].margin.mean
    assert StressFigures.model_validate_json(one.model_dump_json()) == one


def test_nothing_to_ask_and_no_steps_are_refused():
    with pytest.raises(InputError, match="no question"):
        stress(BrightnessJudge(), [])
    with pytest.raises(InputError, match="steps is 0"):
        stress(BrightnessJudge(), questions(2), steps=0)
    with pytest.raises(InputError, match="33"):
        odd = Question("a", torch.rand(1, 3, 33, 32), torch.rand(1, 3, 33, 32))
        stress(BrightnessJudge(), [odd], decoder="shapeworld-generator")


@pytest.mark.parametrize("kind", ["pairwise", "pointwise", "clip"])
def test_every_kind_of_judge_is_stressed(kind):
    options = {} if kind == "clip" else {"instruction": "t2i-brief"}
    folder = clip_folder() if kind == "clip" else judge_folder()
    judge = build_reward(str(folder), RewardConfig(kind=kind, **options)).freeze()  # type: ignore[arg-type]
    found = stress(judge, questions(4), steps=1, decoder="shapeworld-generator", batch_size=3)
    means = [won.margin.mean for won in found.pixels.values()]  # type: ignore[union-attr]
    assert 0 < means[0] <= means[1] <= means[2] <= means[3]
    assert found.latent.within[8].margin.mean > 0  # type: ignore[union-attr]
    assert len(found.disturbances) == len(DISTURBANCES) - 1 and found.spread > 0


def test_a_judge_of_videos_is_stressed_with_frozen_frames():
    config = RewardConfig(kind="pairwise", instruction="t2v-brief", frames=4, fps=8)
    judge = build_reward(str(video_judge_folder()), config).freeze()
    asked = [Question(q.prompt, q.candidate, q.reference, fps=(8.0, 8.0)) for q in questions(3, frames=5)]
    found = stress(judge, asked, steps=1)
    assert found.disturbances["frozen_frames"].margin.n == 3 and found.left_out == {}
    assert found.pixels[8].margin.mean > 0  # type: ignore[index]


def test_a_reward_that_fails_is_an_error_and_never_a_figure():
    def broken(images, prompts, metadata):
        raise ValueError("no such file")

    with pytest.raises(RewardError, match="no such file"):
        stress(as_reward(broken), questions(2))


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_a_climb_stays_in_its_ball_and_within_bounds_and_keeps_the_best():
    seen: list[torch.Tensor] = []

    def ask(points: Sequence[torch.Tensor]) -> Slope:
        seen.extend(points)
        return Slope(torch.stack([-(x - 0.55).square().sum() for x in points]), tuple(-2 * (x - 0.55) for x in points))

    start = [torch.tensor([0.5, 0.98]), torch.tensor([0.5, 0.0])]
    found = climb(ask, start, [[0.1, 0.1], [0.2, 0.2]], 3, bounds=(0.0, 1.0))
    assert len(seen) == 2 * (1 + 2 * 3)
    for number, point in enumerate(seen):
        assert (point - start[number % 2]).abs().max() <= 0.2 + 1e-6 and point.min() >= 0 and point.max() <= 1
    assert (found.best[0] >= found.start).all() and (found.best[1] >= found.best[0]).all()


def test_evenly_spread_probabilities_leave_a_quarter_of_the_spread_at_the_top():
    p = (np.arange(4000) + 0.5) / 4000
    margin = np.log(p / (1 - p))
    found = spread_left(margin, np.arange(4000))
    assert found.mean == pytest.approx(0.25, abs=1e-3) and found.low < 0.25 < found.high  # type: ignore[union-attr]
    saturated = spread_left(np.concatenate([np.full(50, -2.0), np.full(50, 9.0)]), np.arange(100))
    assert saturated.mean == pytest.approx(0, abs=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [(1, 32, 32), (3, 31, 45), (1, 2, 1)])
def test_every_disturbance_keeps_shape_and_range(size):
    frames, height, width = size
    rng = torch.Generator().manual_seed(0)
    pixels = torch.rand(frames, 3, height, width, generator=rng)
    found = disturbed(pixels, "Ein grüner Kreis", [torch.rand(2, 3, 20, 30, generator=rng)], rng)
    assert [*found] == [*DISTURBANCES]
    before = pixels.clone()
    for name, changed in found.items():
        if isinstance(changed, str):
            assert name == "frozen_frames" and frames == 1
            continue
        assert changed.shape == pixels.shape and changed.dtype == pixels.dtype, name
        assert changed.min() >= 0 and changed.max() <= 1, name
    assert torch.equal(pixels, before)


def test_disturbances_do_what_their_words_say():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = disturbed(pixels, "a red circle", [], torch.Generator().manual_seed(2))
    assert torch.allclose(found["one_colour"].mean((2, 3)), pixels.mean((2, 3)))  # type: ignore[union-attr]
    assert torch.equal(found["frozen_frames"][1], pixels[0])  # type: ignore[index]
    assert found["all_objects"] == "There is no picture of another prompt."
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    assert torch.allclose(cropped(ramp)[..., 16], ramp[..., 16], atol=0.02) and cropped(ramp)[..., 0].min() > 0.1
    quarter = tiled(pixels)
    assert torch.equal(quarter[..., :16, :16], quarter[..., 16:, 16:])
    assert torch.allclose(quarter[..., :16, :16], resized(pixels, 16, 16))
    assert 0 < (as_jpeg(pixels) - pixels).abs().mean() < 0.3


def test_pictures_laid_over_each_other_show_all_their_objects():
    ground = torch.full((1, 3, 8, 8), 0.1)
    left, right = ground.clone(), ground.clone()
    left[:, 0, 2:5, 1:3] = 1
    right[:, 2, 2:5, 5:7] = 1
    both = laid_over(left, [right])
    assert torch.equal(both[:, 0, 2:5, 1:3], torch.ones(1, 3, 2)) and torch.equal(
        both[:, 2, 2:5, 5:7], torch.ones(1, 3, 2)
    )
    assert torch.equal(both[..., 6:, :], ground[..., 6:, :])


def test_copies_of_the_prompt_fill_the_picture_where_the_font_has_its_letters():
    outline, letters = text_layers("a red circle", 64, 96)
    assert letters.shape == outline.shape == (1, 1, 64, 96)
    for corner in (letters[..., :16, :24], letters[..., -16:, -24:]):
        assert 0.05 < corner.mean() < 0.6
    assert (outline >= letters - 0.01).all()
    assert can_write("ein grüner Kreis, синий квадрат") and not can_write("红色") and not can_write(" ")
