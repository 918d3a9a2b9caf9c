"""Random checkpoints of further real families, with their own processors: what a judge reads that no code names."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tiny import louder, scratch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AyaVisionProcessor,
    Gemma3Processor,
    Idefics3Processor,
    LlavaNextProcessor,
    LlavaProcessor,
    MllamaProcessor,
    PaliGemmaProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from rewarddance.shapeworld.training.tokenizer import prompt_corpus, train_tokenizer

OTHER_FAMILIES = ("llava", "llava_next", "idefics3", "aya_vision", "gemma3", "paligemma", "mllama")
SIDE = 32
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
_IMAGE = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.4, 0.3]}
_CLIP_IMAGE = _IMAGE | {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def _tokenizer(image: str, *special: str, **names: str) -> Any:
    return train_tokenizer(
        [*prompt_corpus(), "yes no Yes No user assistant Is the candidate better than the reference? " * 2],
        ["<pad>", "<s>", "</s>", image, *special],
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        **names,
    )


def _llava() -> tuple[dict[str, Any], Any]:
    tokenizer = _tokenizer("<image>")
    config = {"text_config": {"model_type": "llama"}, "vision_config": {"model_type": "clip_vision_model"}}
    processor = LlavaProcessor(
        LlavaImageProcessorPil(**_CLIP_IMAGE),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config | {"vision_feature_layer": -2}, processor


def _llava_next() -> tuple[dict[str, Any], Any]:
    grids = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = {"text_config": {"model_type": "qwen2"}, "vision_config": {"model_type": "clip_vision_model"}}
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(**_CLIP_IMAGE, image_grid_pinpoints=grids),
        _tokenizer("<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config | {"image_grid_pinpoints": grids}, processor


def _idefics3() -> tuple[dict[str, Any], Any]:
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(**(_IMAGE | {"size": {"longest_edge": SIDE}}), max_image_size={"longest_edge": SIDE}),
        _tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
        image_seq_len=4,
    )
    return {"text_config": {"model_type": "llama"}, "vision_config": {}, "scale_factor": 2}, processor


def _aya_vision() -> tuple[dict[str, Any], Any]:
    special = {
        "start_token": "<|START_OF_IMG|>",
        "end_token": "<|END_OF_IMG|>",
        "img_patch_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
        "tile_token": "TILE",
        "tile_global_token": "TILE_GLOBAL",
    }
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessorPil(**_IMAGE), _tokenizer("<image>", *special.values()), patch_size=16, img_size=SIDE
    )
    text = {"model_type": "cohere2", "layer_types": ["full_attention"] * 3, "logit_scale": 0.25}
    config = {"text_config": text, "vision_config": {"model_type": "siglip_vision_model"}, "downsample_factor": 2}
    return config | {"image_token": "<|IMG_PATCH|>", "vision_feature_layer": -1}, processor


def _gemma3() -> tuple[dict[str, Any], Any]:
    tokenizer = _tokenizer(
        "<image_soft_token>",
        "<start_of_image>",
        "<end_of_image>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    tokenizer.image_token_id, tokenizer.boi_token_id = 3, 4
    processor = Gemma3Processor(Gemma3ImageProcessorPil(**_IMAGE), tokenizer, image_seq_length=4)
    text = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    return {"text_config": text, "vision_config": {}, "mm_tokens_per_image": 4}, processor


def _paligemma() -> tuple[dict[str, Any], Any]:
    image = SiglipImageProcessorPil(**_IMAGE)
    image.image_seq_length = 16
    text = {"model_type": "gemma"}
    return {"text_config": text, "vision_config": {}, "projection_dim": 64}, PaliGemmaProcessor(
        image, _tokenizer("<image>")
    )


def _mllama() -> tuple[dict[str, Any], Any]:
    processor = MllamaProcessor(
        MllamaImageProcessorPil(**_IMAGE, max_image_tiles=2), _tokenizer("<|image|>", bos="<s>")
    )
    text = {"cross_attention_layers": [1], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "attention_heads": 2,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "intermediate_layers_indices": [0],
        "image_size": SIDE,
        "patch_size": 8,
        "max_num_tiles": 2,
        "vision_output_dim": 64,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    return {"text_config": text, "vision_config": vision}, processor


@functools.cache
def other_folder(family: str) -> Path:
    """A random checkpoint of `family` with its own processor, as save_pretrained writes both."""
    folder = scratch() / family
    config, processor = globals()[f"_{family}"]()
    tokenizer = processor.tokenizer
    config["text_config"] = _TEXT | {"vocab_size": len(tokenizer)} | config["text_config"]
    if family != "mllama":
        config["vision_config"] = _TOWER | config["vision_config"]
    placed = {"mllama": "<|image|>", "gemma3": "<start_of_image>"}.get(family, "<image>")
    processor.chat_template = _TEMPLATE.replace("IMAGE", placed)
    config["image_token_id" if family != "mllama" else "image_token_index"] = tokenizer.convert_tokens_to_ids(
        config.pop("image_token", {"mllama": "<|image|>", "gemma3": "<image_soft_token>"}.get(family, "<image>"))
    )
    torch.manual_seed(5)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **config))
    louder(model, 3)
    for name, weight in model.named_parameters():
        if "bias" not in name and not weight.any():  # Gemma3's projection and Mllama's gates begin shut
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
