"""A text's feature is its own: whatever the family of the encoder, the side that its tokenizer pads
on, and the other texts of its batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vlkd_cli.builders.huggingface.builder import HuggingFace
from vlkd_cli.builders.huggingface.text import HuggingFaceText

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT, LONG = "cat", "a photo of cat and dog with the number 1 2 3 4"
SIZES = {"layers": 2, "width": 32, "heads": 2}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "bart": {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2},
    "bert": {},
    "bloom": {},
    "camembert": {},
    "clip_text_model": {},
    "convbert": {},
    "data2vec-text": {},
    "deberta": {},
    "deberta-v2": {},
    "distilbert": {},
    "electra": {"embedding_size": 16},
    "ernie": {},
    "esm": {},
    "falcon": {},
    "flaubert": {},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16},
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "ibert": {},
    "llama": {"num_key_value_heads": 2},
    "longformer": {},
    "mamba": {"heads": None},
    "mistral": {"num_key_value_heads": 2},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "modernbert": {},
    "mpnet": {},
    "mpt": {},
    "mt5": {"num_decoder_layers": 1, "d_kv": 16, "d_ff": 32},
    "nystromformer": {},
    "opt": {"word_embed_proj_dim": 16, "ffn_dim": 32},
    "phi": {},
    "qwen2": {"num_key_value_heads": 2},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": {},
    "roformer": {},
    "squeezebert": {"embedding_size": 32},
    "t5": {"num_decoder_layers": 1, "d_kv": 16, "d_ff": 32},
    "umt5": {"num_decoder_layers": 1, "d_kv": 16, "d_ff": 32},
    "xlm": {},
    "xlm-roberta": {},
    "xlnet": {"d_inner": 32},
}
LEAKING = {"convbert", "nystromformer"}
"""Families that read their padding; their texts are encoded by length."""

ANY_LENGTH = {"bloom", "mamba", "mpt", "mt5", "t5", "umt5", "xlnet"}


@pytest.fixture(scope="module", params=["left", "right"])
def words(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that pads on this side."""
    vocabulary = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *sorted(set(LONG.split()))]
    model = models.WordLevel({w: n for n, w in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("words")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side=request.param,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    return folder


def build(kind: str, words: Path, **config: Any) -> HuggingFaceText:
    torch.manual_seed(0)
    sizes = {"type": kind, **SIZES, **FAMILIES[kind], **config}
    keys = {key: value for key, value in sizes.items() if value is not None}
    backbone = HuggingFace(config=keys, tokenizer=str(words)).build("text")
    assert isinstance(backbone, HuggingFaceText)
    return backbone.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_feature_does_not_depend_on_other_texts_of_the_batch(kind: str, words: Path) -> None:
    backbone = build(kind, words)
    alone = backbone(backbone.input([SHORT])).feature
    beside = backbone(backbone.input([LONG, SHORT, LONG])).feature
    assert alone.shape == (1, backbone.width) and alone.abs().max() > 0
    torch.testing.assert_close(beside[1:2], alone, rtol=0, atol=1e-5)
    assert backbone.by_length == (kind in LEAKING)
    tokens = backbone(backbone.input([SHORT, LONG])).tokens
    own = backbone(backbone.input([SHORT])).tokens
    torch.testing.assert_close(tokens.values[0][tokens.mask[0]], own.values[0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_longest_text_fits_the_positions(kind: str, words: Path) -> None:
    backbone = build(kind, words, **({} if kind in ANY_LENGTH else {"max_length": 24}))
    inputs = backbone.input([" ".join([LONG] * 99)])
    assert inputs["input_ids"].shape[1] in ((512,) if kind in ANY_LENGTH else (24, 22))
    assert backbone(inputs).feature.isfinite().all()


def test_families_that_encode_no_texts_are_refused(words: Path) -> None:
    from vlkd_cli.errors import RecipeError

    for kind in ("vit", "wav2vec2", "no_such_type"):
        with pytest.raises(RecipeError, match=r"^builder 'huggingface': ") as error:
            HuggingFace(config={"type": kind}, tokenizer=str(words)).build("text")
        assert "\n" not in str(error.value)
