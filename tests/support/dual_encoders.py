"""Small dual encoders of transformers with random weights, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedTokenizerFast

from tests.support.vision_types import PLAIN

WORDS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "a", "red", "blue", "square", "above", "circle", "two")
CAPTIONS = ["a red square", "a blue circle above a red square", "two circle"]
TEXT: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
SIGLIP2 = {key: value for key, value in PLAIN.items() if key != "image_size"}
EFFICIENT = {
    "width_coefficient": 0.25,
    "depth_coefficient": 0.1,
    "image_size": 64,
    "hidden_dim": 320,
}
DUALS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "aimv2": ("Aimv2", TEXT, PLAIN, {"projection_dim": 8}),
    "align": ("Align", TEXT, EFFICIENT, {"projection_dim": 80}),
    "altclip": (
        "AltCLIP",
        {**TEXT, "max_position_embeddings": 20, "project_dim": 12},
        PLAIN,
        {"projection_dim": 8},
    ),
    "chinese_clip": ("ChineseCLIP", TEXT, PLAIN, {"projection_dim": 8}),
    "clip": ("CLIP", TEXT, PLAIN, {"projection_dim": 8}),
    "clipseg": ("CLIPSeg", TEXT, PLAIN, {"projection_dim": 8}),
    "metaclip_2": ("MetaClip2", TEXT, PLAIN, {"projection_dim": 8}),
    "siglip": ("Siglip", TEXT, PLAIN, {}),
    # Its tokenizer of transformers 5 adds special tokens of its own.
    "siglip2": ("Siglip2", {**TEXT, "vocab_size": 16}, {**SIGLIP2, "num_patches": 16}, {}),
    # Its class token is not its feature: the library projects the tanh pooler of the ViT.
    "vision-text-dual-encoder": (
        "VisionTextDualEncoder",
        {**TEXT, "model_type": "bert"},
        {**PLAIN, "model_type": "vit"},
        {"projection_dim": 8},
    ),
}
"""model_type -> name of the classes, configurations of texts and images, keys of the whole."""


def make_dual(kind: str, folder: Path) -> Any:
    """Write a dual encoder with its tokenizer and image processor; returns the library's model."""
    name, text, vision, keys = DUALS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **keys)
    whole = AutoModel.from_config(config)
    with torch.no_grad():
        for weight in whole.vision_model.parameters():
            if kind == "align" and weight.ndim == 4:
                # As the library starts them, features of so many layers would vanish.
                torch.nn.init.kaiming_normal_(weight)
        if hasattr(whole, "logit_scale"):
            whole.logit_scale.fill_(2.5)
        if hasattr(whole, "logit_bias"):
            whole.logit_bias.fill_(-3.0)
    whole.save_pretrained(folder)
    words = models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inputs = ["input_ids"] if kind.startswith("siglip") else ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_max_length=16,
        model_input_names=inputs,
    ).save_pretrained(folder)
    return whole.eval()
