"""Tiny text encoders of transformers on disk, one folder each: configuration, random weights and a
word tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = (
    "a photo of the cat dog sits on mat and looks at big red blue green small round square circle"
).split()
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SENTENCES = [
    "a photo of the big red dog",
    "the cat",
    "a small round blue circle sits on the mat and looks at the dog",
]

_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 48,
}
_OWN: dict[str, dict[str, Any]] = {
    "distilbert": {
        "vocab_size": 40,
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 128,
        "max_position_embeddings": 48,
    },
    "t5": {
        "vocab_size": 40,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
    },
    "electra": {**_SIZES, "embedding_size": 32},
    "albert": {**_SIZES, "embedding_size": 32},
    "deberta-v2": {**_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "clip_text_model": {**_SIZES, "projection_dim": 64, "eos_token_id": 3},
}


def write_encoder(folder: Path, model_type: str = "bert", **changes: Any) -> Path:
    """Write a tiny encoder of a type with weights from torch's current generator, and return
    its folder."""
    from transformers import CONFIG_MAPPING, AutoModel

    sizes = {**_OWN.get(model_type, _SIZES), "pad_token_id": 0, **changes}
    AutoModel.from_config(CONFIG_MAPPING[model_type](**sizes)).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer with one token per word of WORDS, [CLS] before and [SEP] behind, padding on the
    right."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32, **SPECIAL
    ).save_pretrained(folder)
