"""What the tests run on: random checkpoints of real classes, small generators and judges with known answers."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer
import yaml
from diffusers import AutoencoderKL, AutoencoderKLWan, CogView4Transformer2DModel, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    InternVLConfig,
    LlamaConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from rewarddance.cli import main
from rewarddance.cli.app import app
from rewarddance.data.media import write_picture
from rewarddance.generators.flow import euler_step, predicted_x_0
from rewarddance.protocols import RewardModel
from rewarddance.reward.instructions import Picture, load_instruction
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import train_judge
from rewarddance.runtime.checkpoint import BUNDLED
from rewarddance.runtime.tracking import Metrics
from rewarddance.shapeworld.training.clip import build_clip_base, save_clip_base
from rewarddance.shapeworld.training.edit_generator import build_edit_pipeline
from rewarddance.shapeworld.training.edit_judge import build_edit_judge_base
from rewarddance.shapeworld.training.generator import BASE, build_pipeline, untrained
from rewarddance.shapeworld.training.judge import CHAT_TEMPLATE, LARGEST, build_judge_base, save_judge_base
from rewarddance.shapeworld.training.loop import TrainingFile
from rewarddance.shapeworld.training.tokenizer import prompt_corpus, train_tokenizer
from rewarddance.shapeworld.training.video_generator import BASE as VIDEO_BASE
from rewarddance.shapeworld.training.video_generator import build_video_pipeline
from rewarddance.shapeworld.training.video_judge import build_video_judge_base
from rewarddance.types import PixelBatch, Preference, Prompt, Question, Scales, Verdict, as_prompt


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="rewarddance-tests-")


def scratch() -> Path:
    """A folder that is gone when the tests are done."""
    return Path(_scratch().name)


@torch.no_grad()
def louder(model: nn.Module, factor: float) -> None:
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "position" not in name:
            weight.mul_(factor)


def small_judge_config() -> InternVLConfig:
    """The bundled judge's architecture with half of its width, and two layers in each of its parts."""
    config = InternVLConfig.from_pretrained(BUNDLED / LARGEST)
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    text |= {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "layer_types": None}
    vision |= {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2}
    config.text_config, config.vision_config = type(config.text_config)(**text), type(config.vision_config)(**vision)
    return config


@functools.cache
def judge_folder() -> Path:
    """An InternVL with random weights as a save_pretrained folder; they are large, so that margins differ."""
    folder = scratch() / "judge"
    model, tokenizer = build_judge_base(seed=1, config=small_judge_config())
    louder(model, 6)
    save_judge_base(model, tokenizer, folder)
    return folder


@functools.cache
def deep_judge_folder() -> Path:
    """The same in the bundled judge's size, for what is of depth or of bytes."""
    folder = scratch() / "deep-judge"
    model, tokenizer = build_judge_base(seed=1)
    louder(model, 4)
    save_judge_base(model, tokenizer, folder)
    return folder


@functools.cache
def clip_folder() -> Path:
    """A CLIP with random weights as a save_pretrained folder; they are large, so that margins differ."""
    folder = scratch() / "clip"
    model, tokenizer = build_clip_base(seed=1)
    louder(model, 8)
    save_clip_base(model, tokenizer, folder)
    return folder


FAMILIES = ("internvl", "qwen2_5_vl", "qwen3_vl")
_QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
_QWEN_SPECIAL += ["<|image_pad|>", "<|video_pad|>"]


INTERNVL_LLAMA = "internvl_llama"
"""An InternVL as its 26B is: a Llama that reads, rotary factors for longer texts, a tower with normalised queries."""


def _internvl_llama(folder: Path) -> Path:
    config = InternVLConfig.from_pretrained(judge_folder())
    known = config.text_config.to_dict()
    text = {key: known[key] for key in ("hidden_size", "intermediate_size", "max_position_embeddings")}
    rotary = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": rotary}
    config.text_config = LlamaConfig(**text)
    config.vision_config.norm_type, config.vision_config.use_qk_norm = "rms_norm", True
    config.vision_config.attention_bias = config.tie_word_embeddings = False
    model, tokenizer = build_judge_base(seed=2, config=config)
    louder(model, 4)
    save_judge_base(model, tokenizer, folder)
    return folder


@functools.cache
def family_folder(family: str) -> Path:
    """A vision-language model of `family` with random weights, a few layers deep, grouped queries where it has them."""
    if family == "internvl":
        return judge_folder()
    folder = scratch() / family
    if family == INTERNVL_LLAMA:
        return _internvl_llama(folder)
    tokenizer = train_tokenizer(
        [*prompt_corpus(), "yes no Yes No user assistant Is the candidate better than the reference? " * 2],
        _QWEN_SPECIAL,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<IMG_CONTEXT>\n", "<|vision_start|><|image_pad|><|vision_end|>")
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    }
    vision = {"depth": 3, "num_heads": 2, "intermediate_size": 64, "patch_size": 4, "out_hidden_size": 64}
    ids = {
        f"{name}_token_id": tokenizer.vocab[f"<|{token}|>"]
        for name, token in {
            "image": "image_pad",
            "video": "video_pad",
            "vision_start": "vision_start",
            "vision_end": "vision_end",
        }.items()
    }
    torch.manual_seed(5)
    if family == "qwen3_vl":
        text |= {"head_dim": 16}
        text["rope_parameters"]["mrope_interleaved"] = True
        vision |= {"hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))
    else:
        vision |= {"hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [2]}
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    louder(model, 3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.4, 0.3],
        "size": {"shortest_edge": 16 * 16, "longest_edge": 48 * 48},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    return folder


@functools.cache
def generator_folder() -> Path:
    """A small CogView4 pipeline of random weights as a diffusers folder; they are large, so that prompts matter."""
    folder = scratch() / "generator"
    pipeline = build_pipeline(seed=1)
    torch.manual_seed(1)
    pipeline.transformer = untrained(
        CogView4Transformer2DModel, BASE / "transformer", num_layers=2, num_attention_heads=2
    )
    pipeline.vae = untrained(AutoencoderKL, BASE / "vae", scaling_factor=1.0, block_out_channels=(8, 16, 24))
    louder(pipeline.transformer, 4)
    louder(pipeline.text_encoder, 2)
    pipeline.save_pretrained(folder)
    return folder


@functools.cache
def deep_generator_folder() -> Path:
    """The same in the bundled generator's size, for what is of depth or of bytes."""
    folder = scratch() / "deep-generator"
    pipeline = build_pipeline(seed=1)
    louder(pipeline.transformer, 3)
    louder(pipeline.text_encoder, 2)
    pipeline.save_pretrained(folder)
    return folder


def pictures(n: int, seed: int = 0, size: int = 32) -> PixelBatch:
    """`n` random pictures [n, 1, 3, size, size] whose values are whole 255ths."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 3, size, size), generator=rng) / 255


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth shades with grain and an edge, as a photograph has them; uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / max(height, width)
    shades = np.stack([0.5 + 0.4 * np.sin(7 * x + 3 * y), 0.3 + 0.6 * x * y, 0.7 - 0.5 * (x > 0.4) * y], -1)
    return (255 * np.clip(shades + 0.06 * rng.standard_normal(shades.shape), 0, 1)).round().astype(np.uint8)


def drawing(height: int, width: int) -> np.ndarray:
    """Flat paint with hard edges and thin lines, black to white; uint8 [H, W, 3]."""
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[height // 5 : height // 2, width // 4 : width // 2] = (255, 0, 0)
    canvas[height // 2 :, 2 * width // 3 :] = 255
    canvas[::7] = (0, 255, 80)
    return canvas


def normalised(pixels: Tensor) -> Tensor:
    """As `judge_folder` takes them, of its own size."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / deviation[:, None, None]


def pointwise_inputs(tokenizer: Any, prompt: str, pixels: Tensor) -> dict[str, Tensor]:
    """What the plain model of `judge_folder` is given of one picture; nothing of ours but the template."""
    text = "<|im_start|>user\n"
    for part in load_instruction("t2i-brief").pointwise_question(prompt):
        text += "<img>" + "<IMG_CONTEXT>" * 16 + "</img>\n" if isinstance(part, Picture) else part
    text += "<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    return {"input_ids": ids, "pixel_values": normalised(pixels)}


def picture_folder(folder: Path) -> Path:
    """Three pictures of a red circle, each with its prompt beside it."""
    for number, pixels in enumerate(pictures(3)):
        write_picture(pixels, folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red circle")
    return folder


def align_recipe(folder: Path, refl: dict[str, object] | None = None, **changes: object) -> Path:
    """A recipe of `align` that takes one short step, on prompts.txt in `folder`; its run is `folder`/run."""
    content = {
        "generator": str(generator_folder()),
        "num_inference_steps": 2,
        "judge": str(judge_folder()),
        "prompts": str(folder / "prompts.txt"),
        "output": str(folder / "run"),
        "references": {"candidates": 3},
        "refl": {"steps": 1, "prompts_per_step": 1, "group_size": 2, "lora_rank": 2, "lora_alpha": 2, **(refl or {})},
    }
    (folder / "align.yaml").write_text(yaml.safe_dump(content | changes))
    return folder / "align.yaml"


def colour_preferences(n: int, seed: int = 0) -> list[Preference]:
    """`n` pairs of a red and a blue noisy picture; red is always better, and stands first in every second pair."""
    rng = torch.Generator().manual_seed(seed)
    pairs = []
    for i in range(n):
        red, blue = (0.2 * torch.rand(1, 3, 32, 32, generator=rng) for _ in range(2))
        red[:, 0] += 0.7
        blue[:, 2] += 0.7
        first, second = (red, blue) if i % 2 else (blue, red)
        pairs.append(Preference(f"a small {('circle', 'cross')[i // 2 % 2]}", first, second, float(i % 2 == 0)))
    return pairs


def training_recipe(kind: str = "pairwise", **changes: object) -> JudgeRecipe:
    """A short training on `colour_preferences`: several epochs, the last one cut in half, checkpoints inside epochs."""
    options = {"kind": kind, "learning_rate": 1e-3, "batch_size": 4, "pixel_noise": 0.05, "save_every": 5}
    options["epochs"] = 4.5 if kind in ("pairwise", "clip") else 2.5
    options |= (
        {"base": str(clip_folder())} if kind == "clip" else {"base": str(judge_folder()), "instruction": "t2i-brief"}
    )
    return JudgeRecipe.model_validate(options | changes)


def train_colours(
    folder: Path, recipe: JudgeRecipe, evaluate: Any = None, preferences: Sequence[Preference] | None = None
) -> Any:
    """A judge trained on 16 pairs, or on those given."""
    pairs = colour_preferences(16) if preferences is None else preferences
    return train_judge(recipe, pairs, folder, Metrics(folder / "metrics.jsonl"), seed=7, evaluate=evaluate)


@functools.cache
def trained_folder(kind: str) -> Path:
    """What `training_recipe` leaves where nothing interrupts it."""
    folder = scratch() / f"trained-{kind}"
    train_colours(folder, training_recipe(kind))
    return folder


class Done(NamedTuple):
    """What a command left: its exit code, and its standard output and error."""

    code: int
    out: str
    err: str


built = functools.cache(typer.main.get_command)
"""The commands of an application, which typer would make anew at every call: that takes longer than most of them."""


def command(*arguments: str | Path, commands: typer.Typer = app) -> Done:
    """Run the command line in this process, as `rewarddance ARGUMENTS` would."""
    out, err, before = StringIO(), StringIO(), sys.argv
    sys.argv, code = ["rewarddance", *map(str, arguments)], 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(built(commands))
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return Done(code, out.getvalue(), err.getvalue())


def untaught(name: str, build: Callable[..., Any]) -> Path:
    """A folder of a judge base that has learned nothing, two layers deep; large text weights make answers differ."""
    folder = scratch() / name
    model, tokenizer = build(seed=1)
    of_text, of_vision = model.config.text_config, model.config.vision_config
    of_text.num_hidden_layers = of_vision.num_hidden_layers = 2
    of_text.layer_types = of_text.layer_types[:2]
    model.model.language_model.layers = model.model.language_model.layers[:2]
    model.model.vision_tower.encoder.layer = model.model.vision_tower.encoder.layer[:2]
    louder(model.model.language_model, 1.5)
    save_judge_base(model, tokenizer, folder)
    return folder


@functools.cache
def video_judge_folder() -> Path:
    """The video judge base before it has learned, as a save_pretrained folder; its text weights are large."""
    return untaught("video-judge", build_video_judge_base)


@functools.cache
def video_generator_folder() -> Path:
    """A Wan with random weights that draws ShapeWorld's videos, from a text and from a picture too."""
    folder = scratch() / "video-generator"
    pipeline = build_video_pipeline(seed=1)
    small = {"num_layers": 2, "num_attention_heads": 2, "ffn_dim": 96}
    pipeline.transformer = untrained(WanTransformer3DModel, VIDEO_BASE / "transformer", **small)
    of_latents = {"latents_mean": [0.0] * 8, "latents_std": [1.0] * 8}
    pipeline.vae = untrained(AutoencoderKLWan, VIDEO_BASE / "vae", base_dim=8, **of_latents)
    pipeline.vae.decoder.conv_out.bias.data -= 0.5  # dark: in bright noise the oracle looks at a hundred specks a frame
    pipeline.save_pretrained(folder)
    return folder


def video_quickstart_recipe(folder: Path, task: str) -> Path:
    """A recipe file of the whole job on videos with random checkpoints."""
    drawing = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 24}
    drawing |= {"pipeline": "WanImageToVideoPipeline"} if task == "i2v" else {}
    of_videos = {"instruction": f"{task}-brief", "frames": 4, "fps": 8, "freeze_vision_tower": True, "epochs": 1}
    content = yaml.safe_load(quickstart_recipe(folder).read_text())
    content |= {"task": task, "generator": str(video_generator_folder()), "generator_options": drawing}
    content["preferences"] |= {"drawn": 2, "overlaid": 1, "id_prompts": 2, "ood_prompts": 2, "test_pairs": 2}
    content["judge"] |= {"base": str(video_judge_folder()), **of_videos}
    content["refl"] |= {"frames": 4, "jitter_copies": 1, "steps": 2, "save_every": 1}
    content["evaluation"] |= {"n": 2}
    path = folder / f"tiny-{task}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@contextmanager
def killed_after_save(times: int) -> Iterator[None]:
    """Within the block the training of a base is cut off when it has saved `times` times."""
    save, left = TrainingFile.save, [times]

    def save_and_die(self: TrainingFile, **state: Any) -> None:
        save(self, **state)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    TrainingFile.save = save_and_die  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainingFile.save = save  # type: ignore[method-assign]


@functools.cache
def edit_judge_folder() -> Path:
    """The edit judge base before it has learned, as a save_pretrained folder; its text weights are large."""
    return untaught("edit-judge", build_edit_judge_base)


@functools.cache
def editor_folder() -> Path:
    """A FLUX.1-Kontext with random weights that edits ShapeWorld's pictures."""
    folder = scratch() / "editor"
    pipeline = build_edit_pipeline(seed=1)
    network = pipeline.transformer
    pipeline.transformer = type(network).from_config(network.config, num_layers=1, num_single_layers=1)
    pipeline.save_pretrained(folder)
    return folder


def edit_quickstart_recipe(folder: Path) -> Path:
    """A recipe file of the whole job on edits with random checkpoints."""
    content = yaml.safe_load(quickstart_recipe(folder).read_text())
    drawing = {"height": 32, "width": 32, "max_sequence_length": 24}
    content |= {"task": "edit", "generator": str(editor_folder()), "generator_options": drawing}
    content["guidance_scale"] = None
    content["preferences"] |= {"drawn": 2, "overlaid": 1, "id_prompts": 2, "ood_prompts": 2, "test_pairs": 2}
    content["judge"] |= {"base": str(edit_judge_folder()), "instruction": "edit-brief", "epochs": 1}
    content["refl"] |= {"steps": 2, "save_every": 1}
    content["evaluation"] |= {"n": 2}
    path = folder / "tiny-edit.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def quickstart_recipe(folder: Path) -> Path:
    """A recipe file of the whole job on random checkpoints, in seconds."""
    content = {
        "seed": 3,
        "generator": str(generator_folder()),
        "num_inference_steps": 3,
        "preferences": {
            "train_prompts": 6,
            "samples": 2,
            "pairs": 4,
            "id_prompts": 4,
            "ood_prompts": 4,
            "test_pairs": 3,
        },
        "judge": {
            "base": str(judge_folder()),
            "instruction": "t2i-brief",
            "learning_rate": 1e-3,
            "batch_size": 8,
            "epochs": 2,
            "pixel_noise": 0.02,
            "save_every": 2,
        },
        "references": {"candidates": 3},
        "refl_prompts": 4,
        "refl": {
            "steps": 4,
            "prompts_per_step": 2,
            "group_size": 2,
            "learning_rate": 0.05,
            "lora_rank": 2,
            "lora_alpha": 2,
            "loss": "margin",
            "jitter_copies": 2,
            "jitter_shift": 1,
            "jitter_noise": 0.05,
            "ema_decay": 0.2,
            "probe_every": 2,
            "save_every": 2,
        },
        "nft": {
            "steps": 2,
            "prompts_per_step": 2,
            "group_size": 2,
            "learning_rate": 0.05,
            "lora_rank": 2,
            "lora_alpha": 2,
            "probe_every": 2,
            "save_every": 1,
        },
        "nft_prompts": 5,
        "evaluation": {
            "prompts": 6,
            "n": 3,
            "aligned_samples": 2,
            "probe_prompts": 6,
            "probe_samples": 2,
            "gallery_prompts": 2,
            "exam": {"probes": 2, "groups": 1, "pictures": 3},
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def comparing(answer: Callable[[Sequence[Question]], Verdict]) -> RewardModel:
    """A function as a reward that compares with a reference."""
    answer.needs_reference = True  # type: ignore[attr-defined]
    return answer  # type: ignore[return-value]


class BrightnessJudge:
    """Margin = 8 (mean of the candidate - mean of the reference) + bias. `asked` counts questions."""

    needs_reference = True

    def __init__(self, bias: float = 0.0) -> None:
        self.bias, self.asked = bias, 0

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        self.asked += len(questions)
        found = [
            8 * (q.candidate.mean() - q.reference.mean()) + self.bias for q in questions if q.reference is not None
        ]
        return Verdict(torch.stack(found) if found else torch.zeros(0))


class TinyGenerator:
    """A Trainable: pictures of 4x4 pixels, a velocity that acts on each value alone, and a LoRA over all of them and 1.

    All of its own weights are one: how much of x_t its velocity is. `started` keeps every seed that it began from.
    """

    def __init__(self, num_steps: int = 4) -> None:
        self.num_steps = num_steps
        self.sigmas = torch.linspace(1, 0, num_steps + 1).tolist()
        self.started: list[int] = []
        self.lora: list[nn.Parameter] = []
        self.whole = nn.Parameter(torch.tensor([[0.5]]), requires_grad=False)
        self.trained = True

    def encode(self, prompts: Sequence[str | Prompt]) -> Tensor:
        return torch.tensor([0.1 * (len(as_prompt(prompt).text) % 5) for prompt in prompts])[:, None, None, None]

    def init_noise(self, seeds: Sequence[int]) -> Tensor:
        self.started += list(seeds)
        return torch.stack([torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(s)) for s in seeds])

    def predict(self, x_t: Tensor, step: int, condition: Tensor) -> Tensor:
        v = (self.whole if self.trained else 0.5) * x_t + condition
        if self.lora and self.trained:
            down, up = self.lora
            seen = torch.cat([x_t.flatten(1), torch.ones(len(x_t), 1)], 1)
            v = v + (seen @ down.T @ up.T).view_as(x_t)
        return v

    def advance(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        return euler_step(x_t, prediction, self.sigmas[step], self.sigmas[step + 1])

    def predict_x0(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        return predicted_x_0(x_t, prediction, self.sigmas[step])

    def scales(self, step: int) -> Scales:
        return Scales(1 - self.sigmas[step], self.sigmas[step])

    def error_scale(self, step: int) -> float:
        return 1 / self.sigmas[step]

    def decode(self, x_0: Tensor) -> PixelBatch:
        return x_0.sigmoid().unsqueeze(1)

    def check_encodes(self) -> None:
        """It can."""

    def encode_pictures(self, pictures: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(pictures)).logit()

    def add_lora(self, rank: int, alpha: int, targets: Sequence[str] = (), sharded: bool = False) -> list[nn.Parameter]:
        assert not sharded
        self.lora = [nn.Parameter(torch.randn(rank, 49)), nn.Parameter(torch.zeros(48, rank))]
        return self.lora

    def train_all(self, sharded: bool = False) -> list[nn.Parameter]:
        assert not sharded
        return [self.whole.requires_grad_()]

    def checkpointed(self, network: bool = True, decoder: bool = True) -> nullcontext[None]:
        return nullcontext()  # there are no layers

    def without_guidance(self) -> nullcontext[None]:
        return nullcontext()  # there is none

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"whole": self.whole.detach()}, folder / "whole.safetensors")

    @contextmanager
    def as_before_training(self) -> Iterator[None]:
        self.trained = False
        try:
            yield
        finally:
            self.trained = True

    def save_lora(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(zip(("down", "up"), self.lora, strict=True)), folder / "lora.safetensors")

    def check_lora_goes_on(self, folder: Path, rank: int, alpha: int, targets: Sequence[str] = ()) -> None:
        """It does."""

    def continue_lora(self, folder: Path) -> None:
        saved = load_file(folder / "lora.safetensors")
        for weight, name in zip(self.lora, ("down", "up"), strict=True):
            weight.data.copy_(saved[name])


class GaussianGenerator:
    """x_0 is N(mean, deviation^2) in every value, the velocity the exact E[eps - x_0 | x_t]; pixels are latents."""

    def __init__(self, mean: float, deviation: float, num_steps: int) -> None:
        self.mean, self.variance, self.num_steps = mean, deviation**2, num_steps
        self.sigmas = torch.linspace(1, 0, num_steps + 1).tolist()

    def posterior(self, x_t: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t] and E[eps | x_t], by conditioning the joint Gaussian of (x_0, eps, x_t)."""
        away = (x_t - (1 - sigma) * self.mean) / ((1 - sigma) ** 2 * self.variance + sigma**2)
        return self.mean + (1 - sigma) * self.variance * away, sigma * away

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        return None

    def init_noise(self, seeds: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds])

    def predict(self, x_t: Tensor, step: int, condition: None) -> Tensor:
        x_0, eps = self.posterior(x_t, self.sigmas[step])
        return eps - x_0

    def advance(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        return euler_step(x_t, prediction, self.sigmas[step], self.sigmas[step + 1])

    def predict_x0(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        return predicted_x_0(x_t, prediction, self.sigmas[step])

    def scales(self, step: int) -> Scales:
        return Scales(1 - self.sigmas[step], self.sigmas[step])

    def decode(self, x_0: Tensor) -> PixelBatch:
        return x_0.unsqueeze(1)
