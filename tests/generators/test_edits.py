"""A generator of edits sees its source, keeps to its size, and says so where it is given none."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch
from tiny_pipelines import PROMPTS, SEEDS, drawn, fresh, frozen, given_pictures, prompts_of

from rewarddance.errors import InputError
from rewarddance.generators.families.qwen_image_edit import PictureProcessor
from rewarddance.generators.sampling import encoded, sample
from rewarddance.types import Prompt

NEEDING = ["flux-kontext", "qwen-image-edit", "qwen-image-edit-plus"]
every_family = pytest.mark.parametrize("family", [*NEEDING, "flux2-klein-edit"])


@every_family
@pytest.mark.parametrize("guided", [False, True])
def test_another_source_is_another_picture(family, guided):
    generator = frozen(family, guided)
    pictures = [drawn(generator, family, seeds=[3, 3], frames=[n, n]) for n in (0, 1)]
    assert (pictures[0][0] - pictures[1][0]).abs().max() > 2e-3


@every_family
def test_a_source_that_many_share_is_encoded_once_and_rows_are_kept(family):
    generator, seen = fresh(family), []
    picture = generator._picture
    generator._picture = lambda image: seen.append(image) or picture(image)
    shared, other = given_pictures(family)
    images = {"a": shared, "bb": shared.clone(), "c": other, "ddd": shared}
    prompts = [Prompt(text, image=image) for text, image in images.items()]
    found = encoded(generator, prompts, torch.tensor([3, 0, 2]))
    assert len(seen) == 2
    alone = generator.encode([prompts[row] for row in (3, 0, 2)])
    for name, rows in found.picture.items():
        assert len(rows) == 3 and torch.equal(rows, alone.picture[name])


@pytest.mark.parametrize("family", NEEDING)
def test_a_prompt_without_a_source_is_refused_by_name(family):
    generator, sources = frozen(family), given_pictures(family)
    for row, prompts in enumerate((PROMPTS, [Prompt(PROMPTS[0], image=sources[0]), PROMPTS[1]])):
        with pytest.raises(InputError, match=r"begins from a picture, and the prompt .* has none") as caught:
            generator.encode(prompts)
        assert PROMPTS[row] in caught.value.what


@every_family
def test_a_source_of_another_size_or_a_video_is_refused_by_name(family):
    generator, (source, _) = frozen(family), given_pictures(family)
    first = Prompt("fine", image=source)
    with pytest.raises(InputError, match=rf"source .*{PROMPTS[1]}.* is 16 x 16, and .* draws \d+ x \d+") as caught:
        generator.encode([first, Prompt(PROMPTS[1], image=source[..., :16, :16])])
    assert "height and width" in caught.value.remedy
    with pytest.raises(InputError, match=rf"{PROMPTS[1]}.* a video of 2 frames"):
        generator.encode([first, Prompt(PROMPTS[1], image=source.expand(2, -1, -1, -1))])


def test_klein_draws_from_nothing_too_but_not_in_the_same_batch():
    generator = frozen("flux2-klein-edit")
    prompts = prompts_of("flux2-klein-edit")
    free = sample(generator, PROMPTS, SEEDS)
    assert (free - drawn(generator, "flux2-klein-edit")).abs().max() > 2e-3
    with pytest.raises(InputError, match=rf"{PROMPTS[1]}.* comes with no picture, and others beside it do"):
        generator.encode([prompts[0], PROMPTS[1]])


def test_a_decoder_that_is_off_the_device_comes_back_to_see_a_source(monkeypatch):
    generator, there = fresh("flux2-klein-edit"), []
    generator.offload(["vae"])
    present, picture = generator._present, generator._picture

    @contextmanager
    def noted(part):
        there.append(part)
        with present(part):
            yield
        there.remove(part)

    monkeypatch.setattr(generator, "_present", noted)
    monkeypatch.setattr(generator, "_picture", lambda image: ("vae" in there) and picture(image))
    assert generator.encode(prompts_of("flux2-klein-edit")).picture["latents"].shape[0] == 2 and not there


def test_texts_of_different_lengths_are_drawn_together_as_alone():
    """The encoder of Qwen-Image-Edit reads each text beside its source; shorter ones are masked."""
    family = "qwen-image-edit"
    generator, sources = frozen(family, True), given_pictures(family)
    prompts = [Prompt("a", image=sources[0]), Prompt("a much longer wish than the first one", image=sources[1])]
    together = sample(generator, prompts, SEEDS)
    for row in (0, 1):
        alone = sample(generator, prompts[row : row + 1], SEEDS[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


def test_the_processor_without_videos_is_read_from_a_published_folder(tmp_path):
    processor = frozen("qwen-image-edit").pipeline.processor
    processor.tokenizer.save_pretrained(tmp_path)
    settings = processor.image_processor.to_dict() | {"image_processor_type": "Qwen2VLImageProcessorFast"}
    settings["processor_class"] = "Qwen2VLProcessor"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    again = PictureProcessor.of_folder(tmp_path)
    picture = torch.rand(3, 32, 64).mul(255).byte().permute(1, 2, 0).numpy()
    text = "<|vision_start|><|image_pad|><|vision_end|>a"
    ours, theirs = (one(text=[text], images=picture, return_tensors="pt") for one in (again, processor))
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    tokens = (ours["input_ids"] == again.image_token_id).sum()
    assert tokens == ours["image_grid_thw"].prod() // 4
