from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, BertTokenizerFast, T5Config

from vlkd_cli.builders.huggingface.builder import HuggingFace
from vlkd_cli.builders.huggingface.configs import load_config, longest_input
from vlkd_cli.builders.huggingface.folders import find_model, refuse_foreign_code
from vlkd_cli.errors import RecipeError, WeightsError

CAPTIONS = ["a red square", "two blue circles above a green triangle on the left"]
SIZES = {"layers": 2, "width": 32, "heads": 2, "vocab_size": 600, "max_length": 64}
TYPES = [
    "bert",
    "roberta",
    "mpnet",
    "distilbert",
    "albert",
    "electra",
    "deberta-v2",
    "clip_text_model",
    "modernbert",
    "gpt2",
    "t5",
]
LIBRARY_WARNINGS = pytest.mark.filterwarnings("ignore::FutureWarning")


@LIBRARY_WARNINGS
@pytest.mark.parametrize("kind", TYPES)
def test_encoders_of_every_kind_are_built_from_scratch_and_learn(kind: str) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "type": kind}
    if kind == "t5":
        del sizes["max_length"]
    backbone = HuggingFace(config=sizes).build("text").eval()
    assert backbone.width == 32
    features = backbone(backbone.input(CAPTIONS)).feature
    # A caption is encoded alike alone and with a longer one.
    torch.testing.assert_close(
        features[:1], backbone(backbone.input(CAPTIONS[:1])).feature, rtol=1e-4, atol=1e-5
    )
    features.square().sum().backward()
    assert [
        name
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ] == []
    assert 1 <= len(backbone.layers()) <= 3
    longest = backbone.input(["word " * 300])
    assert backbone(longest).feature.isfinite().all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer, as a folder of transformers."""
    place = tmp_path_factory.mktemp("bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "square",
        "two",
        "blue",
        "circles",
    ]
    (place / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=11,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    AutoModel.from_config(config).save_pretrained(place)
    return place


def test_a_folder_gives_the_librarys_features(folder: Path) -> None:
    backbone = HuggingFace(model=str(folder)).build("text").eval()
    reference = AutoModel.from_pretrained(folder).eval()
    inputs = backbone.input(CAPTIONS)
    states = reference(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    torch.testing.assert_close(backbone(inputs).feature, (states * mask).sum(1) / mask.sum(1))
    torch.testing.assert_close(backbone(inputs).tokens.values, states)
    assert not any("pooler" in name for name in backbone.state_dict())
    own = HuggingFace(model=str(folder), own_pooler=True).build("text").eval()
    torch.testing.assert_close(own(inputs).feature, reference(**inputs).pooler_output)


def test_pretrained_false_uses_the_architecture_only(folder: Path) -> None:
    torch.manual_seed(1)
    drawn = HuggingFace(model=str(folder), pretrained=False).build("text")
    loaded = HuggingFace(model=str(folder)).build("text")
    assert drawn.width == loaded.width
    assert not drawn.state_dict()["encoder.embeddings.word_embeddings.weight"].equal(
        loaded.state_dict()["encoder.embeddings.word_embeddings.weight"]
    )


def test_fewer_layers_keep_the_first_ones(folder: Path) -> None:
    short = HuggingFace(model=str(folder), config={"layers": 1}).build("text")
    whole = HuggingFace(model=str(folder)).build("text").state_dict()
    assert len(short.encoder.encoder.layer) == 1
    assert all(tensor.equal(whole[name]) for name, tensor in short.state_dict().items())


def test_weights_that_do_not_fit_name_the_first_difference(folder: Path) -> None:
    with pytest.raises(WeightsError, match="'encoder.layer.2.*is not in them"):
        HuggingFace(model=str(folder), config={"layers": 3}).build("text")
    with pytest.raises(WeightsError, match=r"do not fit: '.*' is \[32\] here") as error:
        HuggingFace(model=str(folder), config={"width": 32}).build("text")
    assert "\n" not in str(error.value)


def test_an_encoder_decoder_gives_its_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=600,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)
    backbone = HuggingFace(
        model=str(tmp_path), pretrained=False, tokenizer="clip", config={"vocab_size": 550}
    ).build("text")
    assert backbone(backbone.input(CAPTIONS)).feature.shape == (2, 16)
    assert not any("decoder" in name for name in backbone.state_dict())


@pytest.mark.parametrize("key", ["auto_map", "_attn_implementation_internal"])
def test_configurations_that_run_foreign_code_are_refused(
    key: str, folder: Path, tmp_path: Path
) -> None:
    content = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, key: "someone/kernel"}))
    with pytest.raises(
        RecipeError, match=rf"'{key}', which runs code of the model's author\. Add `trust: true`"
    ):
        load_config(str(tmp_path))
    with pytest.raises(RecipeError, match=key):
        refuse_foreign_code({"text_config": {key: "x"}}, "model", trust=False)
    refuse_foreign_code({key: "x"}, "model", trust=True)


def test_what_cannot_be_fetched_names_files_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expected = (
        r"huggingface model 'some/encoder': weights are not on disk.*hub id 'some/encoder' into"
        rf" {tmp_path}/huggingface/some/encoder\."
    )
    with pytest.raises(WeightsError, match=expected) as error:
        HuggingFace(model="some/encoder", cache_dir=str(tmp_path)).build("text")
    assert "\n" not in str(error.value)


def test_files_put_into_the_named_folder_are_found(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "huggingface" / "some").mkdir(parents=True)
    (tmp_path / "huggingface" / "some" / "encoder").symlink_to(folder)
    assert find_model("some/encoder", cache_dir=str(tmp_path)) == str(
        tmp_path / "huggingface" / "some" / "encoder"
    )
    assert HuggingFace(model="some/encoder", cache_dir=str(tmp_path)).build("text").width == 16


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "set `model: ID` or `config:"),
        ({"config": {"type": "bret"}}, r"knows no type 'bret'\. Did you mean 'bert'\?"),
        (
            {"config": {"layer": 2}},
            r"config has no key 'layer' for type 'bert'\. Did you mean 'layers'\?",
        ),
        ({"config": {"width": 30, "heads": 4}}, "4 heads do not divide width 30"),
        ({"pretrained": True, "config": {"layers": 1}}, "`pretrained: true` needs a `model`"),
    ],
)
def test_mistakes_are_named_with_their_remedy(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        HuggingFace(**keys).build("text")


def test_the_error_of_a_damaged_folder_names_missing_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no readable config\.json"):
        HuggingFace(model=str(tmp_path)).build("text")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for file in folder.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    with pytest.raises(
        WeightsError, match=r"has no readable weights\. Put model\.safetensors there"
    ):
        HuggingFace(model=str(tmp_path)).build("text")


def test_roberta_positions_leave_room_for_padding() -> None:
    from transformers import RobertaConfig

    assert longest_input(RobertaConfig(max_position_embeddings=514, pad_token_id=1), None) == 512
    assert longest_input(BertConfig(max_position_embeddings=512), None) == 512
