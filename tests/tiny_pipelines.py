"""One tiny random checkpoint a family: the real diffusers classes with the real classes of text encoders.

And what the tests of families have in common: generators of them, and the plain pipeline's own pictures.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from diffusers.pipelines.wan import pipeline_wan_i2v
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rewarddance.data.media import as_images
from rewarddance.generators.adapter import GeneratorOptions, PipelineGenerator
from rewarddance.generators.families.qwen_image_edit import PictureProcessor
from rewarddance.generators.pipelines import adapter_of, load_generator
from rewarddance.generators.sampling import sample
from rewarddance.types import Prompt

pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=str)  # it is called where it is not installed, too; PROMPTS need none

_megapixels, _megapixels_plus = (
    module.calculate_dimensions for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus)
)
pipeline_qwenimage_edit.calculate_dimensions = lambda area, ratio: _megapixels(area / 512, ratio)
pipeline_qwenimage_edit_plus.calculate_dimensions = lambda area, ratio: _megapixels_plus(area / 128, ratio)
"""These pipelines show their networks a source of a megapixel; here of 64 x 32, or of 112 x 74 and 40 x 28."""

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def _clip(projected: bool = False) -> tuple[Any, Any]:
    vocab = [*BYTES, *(f"{byte}</w>" for byte in BYTES), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({token: i for i, token in enumerate(vocab)}, [], model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=16, hidden_act="gelu" if projected else "quick_gelu", bos_token_id=len(vocab) - 2,
        eos_token_id=len(vocab) - 1, pad_token_id=len(vocab) - 1,
    )  # fmt: skip
    return tokenizer, (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5(kind: Any = T5EncoderModel, settings: Any = T5Config) -> tuple[Any, Any]:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(ord("a"), ord("z") + 1))]
    tokenizer = T5Tokenizer([(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0, model_max_length=512)
    return tokenizer, kind(settings(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


def _qwen_tokenizer(*further: str) -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *further]
    tokenizer = Qwen2Tokenizer({token: i for i, token in enumerate([*special, *BYTES])}, [])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = CHAT
    return tokenizer


def _qwen3(kind: Any, layers: int) -> tuple[Any, Any]:
    tokenizer = _qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=1024, pad_token_id=0,
    )  # fmt: skip
    return tokenizer, kind(config)


PICTURE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def _qwen2_5_vl(*further: str) -> tuple[Any, Any]:
    tokenizer = _qwen_tokenizer(*further)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 1, "num_heads": 2, "hidden_size": 16, "intermediate_size": 16, "patch_size": 4, "out_hidden_size": 16,
        "window_size": 16, "fullatt_block_indexes": [0],
    }  # fmt: skip
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(further or ["<|im_start|>"] * 4))
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, vision_start_token_id=start, vision_end_token_id=end,
        image_token_id=image, video_token_id=video,
    )  # fmt: skip
    return tokenizer, Qwen2_5_VLForConditionalGeneration(config)


def _vae(kind: Any = AutoencoderKL, channels: int = 4, **settings: Any) -> Any:
    return kind(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=channels, norm_num_groups=4, sample_size=32,
        **settings,
    )  # fmt: skip


def _unet(**settings: Any) -> Any:
    return UNet2DConditionModel(
        sample_size=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, attention_head_dim=2, **settings,
    )  # fmt: skip


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DDIM = {**BETAS, "clip_sample": False, "set_alpha_to_one": False}


def _stable_diffusion(scheduler: Any) -> Any:
    tokenizer, encoder = _clip()
    return StableDiffusionPipeline(
        _vae(), encoder, tokenizer, _unet(cross_attention_dim=16), scheduler, None, None, requires_safety_checker=False
    )


def _sdxl(scheduler: Any) -> Any:
    (tokenizer, encoder), (tokenizer_2, encoder_2) = _clip(), _clip(projected=True)
    unet = _unet(
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 16, transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    vae = _vae(scaling_factor=0.13025, force_upcast=True)
    return StableDiffusionXLPipeline(vae, encoder, encoder_2, tokenizer, tokenizer_2, unet, scheduler)


def _sd3() -> Any:
    (tokenizer, encoder), (tokenizer_2, encoder_2), (tokenizer_3, encoder_3) = _clip(True), _clip(True), _t5()
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        pos_embed_max_size=24, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), _vae(scaling_factor=1.5305, shift_factor=0.0609),
        encoder, tokenizer, encoder_2, tokenizer_2, encoder_3, tokenizer_3,
    )  # fmt: skip


def _flux(distilled: bool = True, kind: Any = FluxPipeline) -> Any:
    (tokenizer, encoder), (tokenizer_2, encoder_2) = _clip(), _t5()
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=distilled, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    vae = _vae(scaling_factor=0.3611, shift_factor=0.1159)
    return kind(scheduler, vae, encoder, tokenizer, encoder_2, tokenizer_2, transformer)


def _flux2_klein(distilled: bool = False) -> Any:
    tokenizer, encoder = _qwen3(Qwen3ForCausalLM, layers=28)
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
    )  # fmt: skip
    vae = _vae(AutoencoderKLFlux2)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return Flux2KleinPipeline(scheduler, vae, encoder, tokenizer, transformer, is_distilled=distilled)


def _qwen_image(kind: Any = QwenImagePipeline) -> Any:
    edits = kind is not QwenImagePipeline
    tokenizer, encoder = _qwen2_5_vl(*(PICTURE_TOKENS if edits else ()))
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, -0.4], latents_std=[0.5, 1.0, 1.5, 2.0],
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9)
    parts = {"scheduler": scheduler, "vae": vae, "text_encoder": encoder, "tokenizer": tokenizer}
    if edits:
        sides = {"shortest_edge": 8 * 8, "longest_edge": 128 * 128}
        seen = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=sides)
        parts["processor"] = PictureProcessor(seen, tokenizer, CHAT)
    return kind(**parts, transformer=transformer)


def _z_image() -> Any:
    tokenizer, encoder = _qwen3(Qwen3Model, layers=2)
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[2, 2, 4], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    return ZImagePipeline(scheduler, _vae(scaling_factor=0.3611, shift_factor=0.1159), encoder, tokenizer, transformer)


def _wan_parts(**settings: Any) -> dict[str, Any]:
    tokenizer, encoder = _t5(UMT5EncoderModel, UMT5Config)
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, -0.4], latents_std=[0.5, 1.0, 1.5, 2.0],
    )  # fmt: skip
    transformer = WanTransformer3DModel(
        out_channels=4, num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=16,
        ffn_dim=32, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        **{"in_channels": 4, **settings},
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    parts = {"tokenizer": tokenizer, "text_encoder": encoder, "vae": vae}
    return {**parts, "scheduler": scheduler, "transformer": transformer}


def _wan(**settings: Any) -> Any:
    return WanPipeline(**_wan_parts(), **settings)


def _wan_i2v(with_clip: bool) -> Any:
    """Wan 2.1's, whose network takes mask, picture and CLIP's view of it, or one without the last."""
    parts = _wan_parts(in_channels=4 + 4 + 4, **({"image_dim": 16, "added_kv_proj_dim": 24} if with_clip else {}))
    if not with_clip:
        return WanImageToVideoPipeline(**parts)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
    )
    seen = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return WanImageToVideoPipeline(**parts, image_encoder=CLIPVisionModel(vision), image_processor=seen)


def _ltx(kind: Any = LTXPipeline, **settings: Any) -> Any:
    tokenizer, encoder = _t5()
    four, five = (8,) * 4, (1,) * 5
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=four, decoder_block_out_channels=four, layers_per_block=five,
        decoder_layers_per_block=five, spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False), decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, patch_size=1, patch_size_t=1, **settings,
    )  # fmt: skip
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=2, caption_channels=32,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    return kind(scheduler, vae, encoder, tokenizer, transformer)


class Family(NamedTuple):
    """How a tiny checkpoint is made, and the options that the plain pipeline and ours are given alike.

    plain: its size and length. guided: its guidance by two branches, with a negative prompt. network: the part that is
    trained. idle: LoRA's places whose output nothing reads.
    """

    make: Callable[[], Any]
    plain: dict[str, Any]
    guided: dict[str, Any]
    network: str = "transformer"
    idle: str = "nothing"


SIZE = {"height": 32, "width": 48}
GUIDED = {"guidance_scale": 3.0, "negative_prompt": "a dull picture"}
TRUE_CFG = {"true_cfg_scale": 3.0, "negative_prompt": "a dull picture"}
SHORT = {"max_sequence_length": 64}
VIDEO = {"num_frames": 5}
WIDE = {"height": 32, "width": 64}
LAST_TEXT = r"blocks\.{}\.(attn\.(add_q_proj|to_add_out)|ff_context|txt_mlp)"

FAMILIES = {
    "sd15-ddim": Family(lambda: _stable_diffusion(DDIMScheduler(**DDIM)), SIZE, GUIDED, "unet"),
    "sd15-v": Family(
        lambda: _stable_diffusion(DDIMScheduler(**DDIM, prediction_type="v_prediction")), SIZE, GUIDED, "unet"
    ),
    "sdxl-euler": Family(
        lambda: _sdxl(EulerDiscreteScheduler(**BETAS, timestep_spacing="leading")), SIZE, GUIDED, "unet"
    ),
    "sdxl-euler-v": Family(
        lambda: _sdxl(
            EulerDiscreteScheduler(
                **BETAS, prediction_type="v_prediction", timestep_spacing="trailing", use_karras_sigmas=True
            )
        ),
        SIZE, GUIDED, "unet",
    ),
    "sd3": Family(_sd3, {**SIZE, **SHORT}, GUIDED, idle=LAST_TEXT.format(2)),
    "flux-dev": Family(_flux, {**SIZE, **SHORT, "guidance_scale": 3.5}, TRUE_CFG),
    "flux-schnell": Family(lambda: _flux(distilled=False), {**SIZE, **SHORT}, TRUE_CFG),
    "flux2-klein": Family(_flux2_klein, {**SIZE, "max_sequence_length": 96}, {"guidance_scale": 3.0}),
    "qwen-image": Family(_qwen_image, SIZE, TRUE_CFG, idle=LAST_TEXT.format(1)),
    "wan": Family(_wan, {**SIZE, **SHORT, **VIDEO}, GUIDED),
    "wan-2.2": Family(lambda: _wan(expand_timesteps=True), {**SIZE, **SHORT, **VIDEO}, GUIDED),
    "ltx": Family(_ltx, {**WIDE, **SHORT, **VIDEO, "frame_rate": 8}, GUIDED),
    "ltx-0.9.1": Family(lambda: _ltx(timestep_conditioning=True), {**WIDE, **SHORT, **VIDEO}, GUIDED),
    "wan-i2v": Family(lambda: _wan_i2v(True), {**SIZE, **VIDEO}, GUIDED),
    "wan-i2v-no-clip": Family(lambda: _wan_i2v(False), {**SIZE, **SHORT, **VIDEO}, GUIDED),
    "wan-2.2-i2v": Family(
        lambda: WanImageToVideoPipeline(**_wan_parts(), expand_timesteps=True), {**SIZE, **SHORT, **VIDEO}, GUIDED
    ),
    "ltx-i2v": Family(lambda: _ltx(LTXImageToVideoPipeline), {**WIDE, **SHORT, **VIDEO, "frame_rate": 8}, GUIDED),
    "ltx-i2v-0.9.1": Family(
        lambda: _ltx(LTXImageToVideoPipeline, timestep_conditioning=True), {**WIDE, **SHORT, **VIDEO}, GUIDED
    ),
    "flux-kontext": Family(
        lambda: _flux(kind=FluxKontextPipeline), {**SIZE, **SHORT, "guidance_scale": 2.5}, TRUE_CFG
    ),
    "flux2-klein-edit": Family(
        _flux2_klein, {"height": 64, "width": 96, "max_sequence_length": 96}, {"guidance_scale": 3.0}
    ),
    "qwen-image-edit": Family(
        lambda: _qwen_image(QwenImageEditPipeline), SIZE, TRUE_CFG, idle=LAST_TEXT.format(1)
    ),
    "qwen-image-edit-plus": Family(
        lambda: _qwen_image(QwenImageEditPlusPipeline), SIZE, TRUE_CFG, idle=LAST_TEXT.format(1)
    ),
    "z-image": Family(_z_image, {**SIZE, **SHORT}, GUIDED),
}  # fmt: skip


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="rewarddance-tests-")


@torch.no_grad()
def _louder(model: nn.Module, factor: float) -> None:
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.mul_(factor)


@functools.cache
def pipeline_folder(family: str) -> Path:
    """A pipeline with random weights as a diffusers folder; they are large, so that prompts matter."""
    folder = Path(_scratch().name) / family
    torch.manual_seed(7)
    pipeline = FAMILIES[family].make()
    _louder(getattr(pipeline, FAMILIES[family].network), 2)
    pipeline.save_pretrained(folder)
    return folder


FIRST_FRAMES = torch.rand(2, 1, 3, 24, 40, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
"""Of another size than the videos, in 8 bits."""
SOURCES = torch.rand(2, 1, 3, 64, 96, generator=torch.Generator().manual_seed(1)).mul(255).round() / 255
SOURCES[1] = SOURCES[1].mul(51).round() / 255
"""Of edits, a bright and a dark one, cut to the family's size."""
PROMPTS = ["a red circle", "two small blue crosses left of a square"]
SEEDS = [3, 1]
STEPS = 3


def options(family: str, guided: bool = False) -> dict[str, Any]:
    return {**FAMILIES[family].plain, **(FAMILIES[family].guided if guided else {})}


@functools.cache
def plain(family: str) -> Any:
    """The plain pipeline, which no test changes."""
    folder = pipeline_folder(family)
    pipeline = DiffusionPipeline.from_pretrained(folder, **adapter_of(family, folder).own_parts(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_copy(family: str) -> Any:
    """The plain pipeline with a network of its own, which a test may change."""
    part, pipeline = FAMILIES[family].network, plain(family)
    copied = type(pipeline)(**{**pipeline.components, part: copy.deepcopy(getattr(pipeline, part))})
    copied.register_to_config(**{key: value for key, value in pipeline.config.items() if key == "expand_timesteps"})
    copied.set_progress_bar_config(disable=True)
    return copied


@functools.cache
def frozen(family: str, guided: bool = False) -> PipelineGenerator:
    """A generator that no test changes."""
    return load_generator(str(pipeline_folder(family)), STEPS, **options(family, guided))


def fresh(family: str, dtype: torch.dtype | None = None) -> PipelineGenerator:
    """One that a test may change, from a copy in memory, which is quicker than `load_generator`."""
    pipeline = copy.deepcopy(plain(family)).to(dtype) if dtype else plain_copy(family)
    return type(frozen(family))(pipeline, GeneratorOptions(num_inference_steps=STEPS, **options(family)))


def own_call(pipeline: Any, family: str, guided: bool = False, steps: int = STEPS) -> Any:
    """The plain pipeline's pictures from the same seeds, [B, C, H, W], or its videos [B, T, C, H, W]."""
    asked = options(family, guided)
    if "guidance_scale" in FAMILIES[family].guided and not guided:
        asked["guidance_scale"] = 0.0 if family == "z-image" else 1.0
    if "negative_prompt" in asked:
        asked["negative_prompt"] = [asked["negative_prompt"]] * len(PROMPTS)
    if given_pictures(family) is not None:  # such a pipeline takes one picture a call
        asked["num_inference_steps"] = steps
        return torch.cat([_own_from_picture(pipeline, family, row, dict(asked)) for row in range(2)])
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    drawn = pipeline(prompt=list(PROMPTS), generator=noise, num_inference_steps=steps, output_type="pt", **asked)
    return drawn.frames if "num_frames" in asked else drawn.images


def given_pictures(family: str) -> torch.Tensor | None:
    """The two pictures that the family's prompts come with: first frames of another size, or sources of edits."""
    if "i2v" in family:
        return FIRST_FRAMES
    asked = options(family)
    height, width = asked["height"], asked["width"]
    return SOURCES[..., :height, :width].clone() if "edit" in family or "kontext" in family else None


def prompts_of(family: str, frames: Sequence[int] = (0, 1)) -> list[Prompt]:
    """PROMPTS, each with one of its pictures where the family is given one."""
    pictures = given_pictures(family)
    images = [None if pictures is None else pictures[number] for number in frames]
    if len(set(frames)) < len(frames):  # prompts that share a picture hold the very same tensor
        images = [images[0]] * len(frames)
    return [Prompt(text, image=image) for text, image in zip(PROMPTS, images, strict=True)]


def drawn(
    generator: PipelineGenerator, family: str, seeds: Sequence[int] = (3, 1), frames: Sequence[int] = (0, 1)
) -> torch.Tensor:
    """Our pictures or videos of PROMPTS, each with its first frame where the family is given one."""
    return sample(generator, prompts_of(family, frames), [*seeds])


def _own_from_picture(pipeline: Any, family: str, row: int, asked: dict[str, Any]) -> torch.Tensor:
    if "negative_prompt" in asked:
        asked["negative_prompt"] = asked["negative_prompt"][row]
    if family == "flux-kontext":
        asked |= {"max_area": asked["height"] * asked["width"], "_auto_resize": False}
    picture, noise = as_images(given_pictures(family)[row])[0], torch.Generator().manual_seed(SEEDS[row])
    drawn = pipeline(picture, PROMPTS[row], generator=noise, output_type="pt", **asked)
    return drawn.frames if "num_frames" in asked else drawn.images
