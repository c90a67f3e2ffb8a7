"""Folders of text encoders as users have them: damaged, incomplete, saved by other classes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, T5Config, T5EncoderModel

from tests.support.encoders import SENTENCES, write_encoder, write_tokenizer
from vlkd_cli.builders.backbone import Backbone
from vlkd_cli.builders.huggingface.builder import HuggingFace
from vlkd_cli.builders.sbert.builder import SBERT
from vlkd_cli.errors import RecipeError, UserError, WeightsError

BUILDERS = {"huggingface": HuggingFace, "sbert": SBERT}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 133\n"
both = pytest.mark.parametrize("builder", BUILDERS)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_encoder(tmp_path / "bert")


def build(builder: str, folder: Path, **keys: Any) -> Backbone:
    return BUILDERS[builder](model=str(folder), **keys).build("text").eval()


@torch.no_grad()
def embed(backbone: Backbone, texts: list[str] = SENTENCES) -> torch.Tensor:
    return backbone(backbone.input(texts)).feature


def refused(builder: str, folder: Path, **keys: Any) -> str:
    with pytest.raises(UserError) as error:
        build(builder, folder, **keys)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)
    return str(error.value)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@both
@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("model.safetensors", POINTER, "is a Git LFS pointer"),
        ("model.safetensors", b"", "is empty"),
        ("model.safetensors", b"no weights at all", "cannot be read as weights"),
        ("tokenizer.json", POINTER, "is a Git LFS pointer"),
        ("tokenizer.json", b"", "is empty"),
        ("tokenizer.json", b'{"version": "1.0", "trun', ""),
        ("tokenizer.json", b"{}", ""),
        ("config.json", b"", "is empty"),
        ("config.json", b'{"model_type": "be', "config.json"),
        ("config.json", b"[1, 2]", "config.json"),
        ("config.json", b"[" * 5000, "config.json"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    builder: str, file: str, content: bytes, reason: str, bert: Path
) -> None:
    (bert / file).write_bytes(content)
    message = refused(builder, bert)
    assert reason in message and "bert" in message


@both
def test_a_folder_without_a_tokenizer_is_one_line(builder: str, bert: Path) -> None:
    for file in bert.glob("*token*"):
        file.unlink()
    assert "bert" in refused(builder, bert)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"num_hidden_layers": 0},
        {"hidden_act": "no such function"},
        {"model_type": "no_such_type"},
        {"hidden_size": 63},
    ],
)
def test_a_wrong_configuration_is_one_line(changes: dict[str, Any], bert: Path) -> None:
    edit_json(bert / "config.json", **changes)
    assert "bert" in refused("huggingface", bert)


@both
def test_a_tokenizer_without_padding_is_taken(builder: str, bert: Path) -> None:
    expected = embed(build(builder, bert))
    # transformers 5 writes the first alone.
    for name in {"tokenizer_config.json", "special_tokens_map.json"} & set(os.listdir(bert)):
        content = json.loads((bert / name).read_text())
        content.pop("pad_token")
        (bert / name).write_text(json.dumps(content))
    backbone = build(builder, bert)
    assert backbone.input.tokenizer.pad_token is None
    torch.testing.assert_close(embed(backbone), expected)


@both
def test_padding_on_the_left_changes_nothing(builder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = write_encoder(tmp_path / "gpt2", "gpt2", bos_token_id=2, eos_token_id=3)
    expected = embed(build(builder, folder))
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    backbone = build(builder, folder)
    assert backbone.input.tokenizer.padding_side == "left"
    torch.testing.assert_close(embed(backbone), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(embed(backbone, SENTENCES[1:2]), expected[1:2], rtol=0, atol=1e-5)


def test_a_text_without_tokens_has_a_feature(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = write_encoder(tmp_path / "gpt2", "gpt2", bos_token_id=2, eos_token_id=3)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    backbone = build("huggingface", folder)
    found = embed(backbone, ["", "the cat"])
    assert found.isfinite().all()
    torch.testing.assert_close(found[:1], embed(backbone, [""]), rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("limit", [-1, 0, 1, 2, 49, 4096])
def test_a_limit_that_no_text_fits_or_no_position_has_is_refused(
    builder: str, limit: int, bert: Path
) -> None:
    message = refused(builder, bert, max_length=limit)
    assert f"max_length: {limit}" in message
    assert ("at least 3" if limit < 3 else "the 48 positions of the model") in message


@both
def test_limits_up_to_the_positions_are_taken(builder: str, bert: Path) -> None:
    for limit in (3, 48):
        backbone = build(builder, bert, max_length=limit)
        inputs = backbone.input(["the cat " * 99])
        assert inputs["input_ids"].shape == (1, limit)
        assert backbone(inputs).feature.isfinite().all()


@pytest.mark.parametrize("is_encoder_decoder", [True, False])
def test_an_encoder_saved_by_itself_is_loaded(is_encoder_decoder: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=32, num_layers=1, num_heads=2, d_kv=16, d_ff=64)
    reference = T5EncoderModel(config).eval()
    reference.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    edit_json(tmp_path / "config.json", is_encoder_decoder=is_encoder_decoder)
    backbone = build("huggingface", tmp_path)
    inputs = backbone.input(SENTENCES)
    with torch.no_grad():
        states = reference(**inputs).last_hidden_state
    torch.testing.assert_close(backbone(inputs).tokens.values, states)
    assert not any("decoder" in name for name in backbone.state_dict())
    backbone.export(tmp_path / "out", tmp_path / "out", {})
    again = AutoModel.from_pretrained(tmp_path / "out").get_encoder().eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).last_hidden_state, states)


@both
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model._orig_mod.", "student."])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_under_a_wrappers_names_are_loaded(
    builder: str, prefix: str, name: str, bert: Path
) -> None:
    expected = embed(build(builder, bert))
    state = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    wrapped = {f"{prefix}{key}": value for key, value in state.items()}
    if name.endswith(".bin"):
        torch.save(wrapped, bert / name)
    else:
        save_file(wrapped, bert / name, metadata={"format": "pt"})
    torch.testing.assert_close(embed(build(builder, bert)), expected)


@both
def test_weights_of_another_model_are_never_replaced_by_random_ones(
    builder: str, bert: Path
) -> None:
    save_file({"other": torch.ones(1)}, bert / "model.safetensors", metadata={"format": "pt"})
    assert refused(builder, bert)


def test_a_pooler_that_is_read_must_be_in_the_weights(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    kept = {name: value for name, value in state.items() if "pooler" not in name}
    save_file(kept, bert / "model.safetensors", metadata={"format": "pt"})
    assert build("huggingface", bert).width == 64
    assert "'pooler.dense" in refused("huggingface", bert, own_pooler=True)


def test_the_exported_tokenizer_of_a_model_without_padding_pads(bert: Path, tmp_path: Path) -> None:
    for name in {"tokenizer_config.json", "special_tokens_map.json"} & set(os.listdir(bert)):
        content = json.loads((bert / name).read_text())
        content.pop("pad_token")
        (bert / name).write_text(json.dumps(content))
    build("huggingface", bert).export(tmp_path / "out", tmp_path / "out", {})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(SENTENCES, padding=True)["attention_mask"][1][-1] == 0


def test_sizes_are_positive_integers() -> None:
    for key, value in [("layers", 0), ("width", -8), ("heads", 0), ("width", "8"), ("heads", 2.0)]:
        config = {"layers": 1, "width": 16, "heads": 2, key: value}
        with pytest.raises(RecipeError, match=rf"config\.{key}: expected an integer above 0"):
            HuggingFace(config=config).build("text")


def test_a_hidden_file_is_not_opened(bert: Path) -> None:
    (bert / "notes").mkdir()
    shutil.copy(bert / "config.json", bert / "notes" / "config.json")
    assert build("huggingface", bert).width == 64
    with pytest.raises(WeightsError, match="no file or folder"):
        build("huggingface", bert / "missing")
