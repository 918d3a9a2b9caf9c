"""A generator of image to video begins from the picture that it is given, and says so where there is none."""

from __future__ import annotations

import pytest
import torch
from tiny_pipelines import FAMILIES, FIRST_FRAMES, PROMPTS, SEEDS, STEPS, drawn, fresh, frozen, prompts_of

from rewarddance.errors import InputError
from rewarddance.generators.families.video import given_first_frame
from rewarddance.generators.flow import euler_step, predicted_x_0
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import encoded, predictions, rollout, sample
from rewarddance.types import Prompt

I2V = [family for family in FAMILIES if "i2v" in family]
KEEPING = ["wan-2.2-i2v", "ltx-i2v", "ltx-i2v-0.9.1"]
every_family = pytest.mark.parametrize("family", I2V)


@every_family
def test_another_first_frame_is_another_video(family):
    generator = frozen(family)
    videos = drawn(generator, family, seeds=[3, 3]), drawn(generator, family, seeds=[3, 3], frames=[1, 1])
    assert (videos[0][0] - videos[1][0]).abs().max() > 5e-3


@every_family
def test_a_picture_that_many_share_is_encoded_once_and_rows_are_kept(family):
    generator, seen = fresh(family), []
    picture = generator._picture
    generator._picture = lambda image: seen.append(image) or picture(image)
    shared, other = FIRST_FRAMES
    images = {"a": shared, "b": shared.clone(), "c": other, "d": shared}
    prompts = [Prompt(text, image=image) for text, image in images.items()]
    found = encoded(generator, prompts, torch.tensor([3, 0, 2]))
    assert len(seen) == 2
    alone = generator.encode([prompts[row] for row in (3, 0, 2)])
    for name, rows in found.picture.items():
        assert len(rows) == 3 and torch.equal(rows, alone.picture[name])


@every_family
def test_a_prompt_without_a_picture_or_with_a_video_is_refused_by_name(family):
    generator = frozen(family)
    first = Prompt(PROMPTS[0], image=FIRST_FRAMES[0])
    for row, prompts in enumerate((PROMPTS, [first, PROMPTS[1]])):
        with pytest.raises(InputError, match=r"begins from a picture, and the prompt .* has none") as caught:
            generator.encode(prompts)
        assert PROMPTS[row] in caught.value.what and "image" in caught.value.remedy
    with pytest.raises(InputError, match="a video of 2 frames"):
        generator.encode([first, Prompt(PROMPTS[1], image=FIRST_FRAMES[:, 0])])


@pytest.mark.parametrize("family", ["wan", "sd3", "sdxl-euler", "shapeworld-generator"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_generator_that_is_given_no_picture_refuses_one(family, guided):
    generator = frozen(family, guided) if family in FAMILIES else load_generator(family, STEPS, 3.0 if guided else None)
    with pytest.raises(InputError, match=r"takes no picture, and the prompt .*two small.* comes with one"):
        generator.encode([PROMPTS[0], Prompt(PROMPTS[1], image=FIRST_FRAMES[0])])


@pytest.mark.parametrize("family", KEEPING)
@pytest.mark.parametrize("guided", [False, True])
def test_the_clean_first_frame_is_exact_at_every_step_and_the_steps_lead_to_it(family, guided):
    generator, sizes = frozen(family, guided), []
    condition = generator.encode(prompts_of(family))
    first = (lambda x: x[:, :, :1]) if "wan" in family else (lambda x: x[:, : 2 * x.shape[1] // 4])
    done = first(rollout(generator, prompts_of(family), SEEDS, STEPS).x_t)
    x_t = generator.init_noise(SEEDS)
    for step in range(STEPS):
        with torch.no_grad():
            v = generator.predict(x_t, step, condition)
        torch.testing.assert_close(first(generator.predict_x0(x_t, v, step)), done, atol=1e-5, rtol=0)
        x_t = generator.advance(x_t, v, step)
        sizes.append(len(x_t))
    assert sizes == [2] * STEPS
    torch.testing.assert_close(first(x_t), done, atol=1e-5, rtol=0)


def test_a_first_frame_that_was_noised_again_is_found_again():
    """x_0 of a posterior N(mean, std^2): the line to it is the one that a flow's steps and estimate follow."""
    rng = torch.Generator().manual_seed(0)
    mean, std, eps = (torch.rand(2, 5, generator=rng) for _ in range(3))
    x_0 = mean + std * eps
    for sigma, after in ((1.0, 0.7), (0.7, 0.2), (0.2, 0.0)):
        x_t = (1 - sigma) * x_0 + sigma * eps
        clean, v = given_first_frame(x_t, mean, std, sigma)
        torch.testing.assert_close(clean, x_0)
        torch.testing.assert_close(predicted_x_0(x_t, v, sigma), x_0)
        torch.testing.assert_close(euler_step(x_t, v, sigma, after), (1 - after) * x_0 + after * eps)
    noised = 0.4 * mean + 0.6 * torch.randn(2, 5, generator=rng)
    torch.testing.assert_close(given_first_frame(noised, mean, 0.0, 0.6)[0], mean)


def test_clips_texts_have_the_one_length_that_the_network_splits_at():
    options = frozen("wan-i2v").options.model_copy(update={"max_sequence_length": 64})
    with pytest.raises(InputError, match="takes texts of 512 tokens"):
        type(frozen("wan-i2v"))(frozen("wan-i2v").pipeline, options)


def test_a_videos_pictures_may_come_in_any_number_at_once():
    generator = frozen("wan-2.2-i2v", True)
    parts = sample(generator, prompts_of("wan-2.2-i2v"), SEEDS, batch_size=1)
    torch.testing.assert_close(parts, drawn(generator, "wan-2.2-i2v"), atol=1e-5, rtol=0)


def test_early_predictions_are_of_videos_from_the_same_pictures():
    generator, prompts = frozen("wan-2.2-i2v"), prompts_of("wan-2.2-i2v")
    early, final = predictions(generator, prompts, SEEDS, [0, STEPS - 1], batch_size=1)
    torch.testing.assert_close(final, drawn(generator, "wan-2.2-i2v"), atol=1e-5, rtol=0)
    torch.testing.assert_close(early[1], final[1], atol=1e-4, rtol=0)  # the last step lands on its own estimate
    assert (early[0] - final[0]).abs().max() > 5e-3
