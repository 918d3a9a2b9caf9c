"""Parts that are off the device while unused: a device is played by a note of where each part is said to be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import generator_folder, judge_folder
from tiny_pipelines import fresh
from torch import nn

from rewarddance.alignment.recipe import AlignRun
from rewarddance.errors import InputError
from rewarddance.generators import adapter
from rewarddance.jobs import align as job
from rewarddance.jobs.align import run_alignment
from rewarddance.runtime.config import parse_recipe
from rewarddance.runtime.memory import modules_on
from rewarddance.types import Prompt

PROMPTS = ["a red circle", "two crosses", "a star"]
OFFLOAD = ["text_encoders", "vae", "judge"]


class Notes:
    """Which modules are on the device now, and what happened on it: in order, without repetition."""

    def __init__(self) -> None:
        self.there: set[int] = set()
        self.seen: list[str] = []

    @contextmanager
    def modules_on(self, modules, device) -> Iterator[None]:
        new = {id(module) for module in modules} - self.there
        self.there |= new
        yield
        self.there -= new

    def watch(self, name: str, module: nn.Module) -> None:
        """From now on the module, and the way back through it, must be there."""

        def note(what: str) -> None:
            assert id(module) in self.there, f"{what} was needed and was not on the device"
            if self.seen[-1:] != [what]:
                self.seen.append(what)

        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.register_forward_pre_hook(lambda *_: note(name))
                part.register_full_backward_pre_hook(lambda *_: note(f"{name}, back"))


@pytest.fixture
def notes(monkeypatch) -> Notes:
    notes = Notes()
    for module in (adapter, job):
        monkeypatch.setattr(module, "on_device", notes.on_device)
    return notes


def recipe(folder: Path, name: str, **changes: object) -> AlignRun:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    content = {
        "generator": str(generator_folder()),
        "num_inference_steps": 3,
        "judge": str(judge_folder()),
        "held_out": str(judge_folder()),
        "prompts": folder / "prompts.txt",
        "output": folder / name,
        "references": {"candidates": 2, "keep": 1},
        "refl": {"prompts_per_step": 2, "group_size": 2, "steps": 2, "learning_rate": 1e-3, "decode_batch": 2},
    }
    return parse_recipe(AlignRun, content | changes, "the recipe")


def test_what_refl_needs_is_there_when_it_is_needed_and_only_then(tmp_path, notes, monkeypatch):
    run_alignment(recipe(tmp_path, "plain"))
    load_policy, load_reward = job.load_policy, job.load_reward

    def watched_policy(*arguments):
        generator = load_policy(*arguments)
        notes.watch("text encoder", generator.pipeline.text_encoder)
        notes.watch("vae", generator.pipeline.vae.decoder)
        offload = generator.offload
        generator.offload = lambda parts: (
            offload(parts),
            generator._offloaded["vae"].append(generator.pipeline.vae.decoder),
        )
        return generator

    def watched_reward(*arguments, **options):
        judge = load_reward(*arguments, **options)
        notes.watch("judge", judge.model)
        return judge

    monkeypatch.setattr(job, "load_policy", watched_policy)
    monkeypatch.setattr(job, "load_reward", watched_reward)
    monkeypatch.setattr(AlignRun, "devices", lambda self: ("cpu", "cpu"))
    run_alignment(recipe(tmp_path, "off", offload=OFFLOAD))
    assert not notes.there
    assert {"text encoder", "vae", "vae, back", "judge", "judge, back"} <= {*notes.seen}
    one, other = (load_file(next((tmp_path / name / "lora").glob("*.safetensors"))) for name in ("plain", "off"))
    away = torch.cat([(one[name] - other[name]).flatten() for name in one])
    assert away.square().mean().sqrt() < 1e-6, "but for rounding: hooks have autograd add up in another order"


def test_modules_go_to_the_device_and_come_back():
    class Part(nn.Linear):
        at = "cpu"

        def to(self, device):
            log.append((self.at, str(device)))
            self.at = str(device)
            return super().to("meta" if device == "meta" else "cpu") if device == "meta" else self

    log: list = []
    first, there = Part(1, 1), nn.Linear(1, 1, device="meta")
    with modules_on([first, there], "meta"):
        assert log == [("cpu", "meta")]
        with modules_on([first], "meta"):
            assert len(log) == 1, "it is there already"
    assert log == [("cpu", "meta"), ("meta", "cpu")], "and what was there before stays"


def test_encoded_texts_are_read_from_the_folder_by_other_processes(tmp_path, monkeypatch):
    first, second, third, plain = (fresh("sd3") for _ in range(4))
    for generator in (first, second):
        generator.keep_texts(tmp_path / "texts")
    expected = plain.encode(["a star", "a cross"])
    first.encode(["a star", "a cross"])
    assert len(list((tmp_path / "texts").glob("*.pt"))) == 2
    second.check_prompts([Prompt("a star")])  # it learns how much the encoders read by asking them
    monkeypatch.setattr(second, "_text", lambda texts: pytest.fail(f"{texts} were encoded again"))
    found = second.encode(["a star", "a cross"])
    assert same(found, expected)
    next((tmp_path / "texts").glob("*.pt")).write_bytes(b"cut off")
    third.keep_texts(tmp_path / "texts")
    assert same(third.encode(["a star", "a cross"]), expected), "a broken file is made again"


def same(one, other) -> bool:
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_what_cannot_be_offloaded_is_refused(tmp_path):
    with pytest.raises(InputError, match="vae cannot be moved off the CPU"):
        recipe(tmp_path, "o", offload=["vae"], device="cpu").devices()
    with pytest.raises(InputError, match="stays on its device"):
        recipe(tmp_path, "o", offload=["judge"], judge_sharded=True)
    with pytest.raises(InputError, match="stays on its device"):
        recipe(tmp_path, "o", offload=["judge"], judge_options={"base_precision": "int8"})
