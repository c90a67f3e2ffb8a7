"""The scores of scorer `cross_encoder` are the logits of sentence-transformers' CrossEncoder, from
a folder that this library saved; models that score no pairs end in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.encoders import WORDS, write_tokenizer
from vlkd_cli.errors import UserError, WeightsError
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.schema import SynthesisSpec
from vlkd_cli.synthesis.scorers.scorer import Pairs
from vlkd_cli.synthesis.sources import Sources, open_sources

QUERIES = ["a photo of the big red dog", " ".join(WORDS[3:12])]
PASSAGES = ["the cat", " ".join(WORDS * 3), "mat", "a blue square looks at the cat", "unknown  "]
PAIRS = [Pairs(1, np.array([2, 0, 1])), Pairs(0, np.array([1, 3, 4]))]
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
}


def saved(folder: Path, model_type: str = "bert", labels: int = 1, **keys: Any) -> Path:
    """A small cross-encoder with random weights as sentence-transformers writes it, with 24
    positions."""
    from sentence_transformers import CrossEncoder
    from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](
        vocab_size=40,
        intermediate_size=32,
        max_position_embeddings=24,
        num_labels=labels,
        initializer_range=1.0,
        pad_token_id=0,
        **SIZES[model_type],
    )
    plain = folder.with_name(f"{folder.name}_plain")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(plain)
    write_tokenizer(plain)
    CrossEncoder(str(plain), device="cpu", **keys).save_pretrained(str(folder))
    return folder


def opened(folder: Path) -> Sources:
    folder.mkdir()
    for name, texts in (("queries", QUERIES), ("corpus", PASSAGES)):
        (folder / f"{name}.txt").write_text("".join(f"{text}\n" for text in texts))
    spec = SynthesisSpec.model_validate(
        {
            "data": {"reader": "passages", "path": str(folder)},
            "miners": ["bm25"],
            "scorers": [{"name": "bm25"}],
        }
    )
    return open_sources(spec, Subject(None, None))


def ours(model: Path, folder: Path, **keys: Any) -> np.ndarray:
    scorer = make("scorer", "cross_encoder", {"model": str(model), "batch_size": 2, **keys})
    scorer.open(opened(folder))
    found = scorer.scores(PAIRS)
    assert [(own.dtype, len(own)) for own in found] == [(np.float64, 3), (np.float64, 3)]
    return np.concatenate(found)


def theirs(model: Path, **keys: Any) -> np.ndarray:
    from sentence_transformers import CrossEncoder

    pairs = [(QUERIES[query], PASSAGES[place].strip()) for query, own in PAIRS for place in own]
    return CrossEncoder(str(model), device="cpu", **keys).predict(pairs, activation_fn=None)


@pytest.mark.parametrize("cut", [None, 11])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_scores_are_the_library_s_logits(model_type: str, cut: int | None, tmp_path: Path) -> None:
    # Roberta's first position comes after the padding's: it reads 23 tokens of 24 positions.
    longest = cut or {"bert": 24, "roberta": 23}[model_type]
    model = saved(tmp_path / "model", model_type, activation_fn=torch.nn.Identity())
    found = ours(model, tmp_path / "texts", **({} if cut is None else {"max_length": cut}))
    np.testing.assert_allclose(found, theirs(model, max_length=longest), rtol=1e-4, atol=1e-5)
    assert found.std() > 0.01


def test_the_activation_function_is_left_out(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", activation_fn=torch.nn.Sigmoid())
    found = ours(model, tmp_path / "texts")
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), theirs(model), rtol=1e-4)


def test_the_model_s_default_prompt_is_put_before_the_query(tmp_path: Path) -> None:
    model = saved(
        tmp_path / "model",
        activation_fn=torch.nn.Identity(),
        prompts={"search": "look at "},
        default_prompt_name="search",
    )
    found = ours(model, tmp_path / "texts")
    np.testing.assert_allclose(found, theirs(model), rtol=1e-4, atol=1e-5)
    page = model / "config_sentence_transformers.json"
    page.write_text(json.dumps(json.loads(page.read_text()) | {"default_prompt_name": None}))
    assert np.abs(ours(model, tmp_path / "again") - found).max() > 0.01


def test_numbers_of_the_two_texts_are_for_models_that_read_them(tmp_path: Path) -> None:
    # The tokenizer gives them, and DistilBERT takes none.
    found = ours(saved(tmp_path / "model", "distilbert"), tmp_path / "texts")
    assert np.isfinite(found).all()


def test_a_model_that_scores_no_pairs_is_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    for number, (length, line) in enumerate(((25, "25 tokens do not fit"), (1, "from 2 up to 24"))):
        with pytest.raises(UserError, match=line):
            ours(model, tmp_path / f"texts_{number}", max_length=length)
    two = saved(tmp_path / "two", labels=2)
    with pytest.raises(WeightsError, match="gives 2 numbers for a pair instead of one score"):
        ours(two, tmp_path / "of_two")
    with pytest.raises(UserError) as reported:
        make("scorer", "cross_encoder", {"model": "nobody/nothing"}).open(opened(tmp_path / "none"))
    assert "\n" not in str(reported.value) and "nobody/nothing" in str(reported.value)
    (two / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        ours(two, tmp_path / "cut_off")
