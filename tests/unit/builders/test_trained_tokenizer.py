from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlkd_cli.builders.backbone import Backbone, BuildContext
from vlkd_cli.builders.huggingface.builder import HuggingFace
from vlkd_cli.errors import CheckpointError, RecipeError

CAPTIONS = ["a red square", "a blue circle above a square, twice"]
FILE = "tokenizers/text.json"


def build(**context: Any) -> Backbone:
    sizes = {"layers": 1, "width": 16, "heads": 2, "max_length": 16, "vocab_size": 120}
    builder = HuggingFace(config=sizes, tokenizer="trained")
    return builder.build("text", BuildContext("text", **context))


def ids(backbone: Backbone, *texts: str) -> list[list[int]]:
    return backbone.input(list(texts))["input_ids"].tolist()


def test_captions_of_any_case_give_the_ids_of_lower_case() -> None:
    backbone = build(captions=lambda: CAPTIONS)
    assert ids(backbone, "A Red SQUARE") == ids(backbone, "a red square")
    assert len(ids(backbone, "a red square")[0]) == 5
    assert backbone.encoder.config.vocab_size == len(backbone.input.tokenizer) <= 120


def test_the_same_captions_give_the_same_tokenizer_in_any_order() -> None:
    first = build(captions=lambda: CAPTIONS).files
    assert list(first) == [FILE]
    assert build(captions=lambda: CAPTIONS[::-1]).files == first


def test_a_checkpoint_holds_the_tokenizer(tmp_path: Path) -> None:
    trained = build(captions=lambda: CAPTIONS)
    restored = build(files=trained.files, run_folder=tmp_path)
    assert ids(restored, *CAPTIONS) == ids(trained, *CAPTIONS)
    assert restored.encoder.config.vocab_size == trained.encoder.config.vocab_size
    assert restored.files == trained.files


def test_the_run_folder_holds_it_too_for_runs_that_have_not_saved_yet(tmp_path: Path) -> None:
    trained = build(captions=lambda: CAPTIONS, run_folder=tmp_path)
    assert (tmp_path / FILE).read_bytes() == trained.files[FILE]
    assert ids(build(run_folder=tmp_path), *CAPTIONS) == ids(trained, *CAPTIONS)
    assert [path.name for path in (tmp_path / "tokenizers").iterdir()] == ["text.json"]


def test_a_lost_tokenizer_is_never_replaced_by_a_new_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tower 'text'.*neither in the checkpoint nor in"):
        build(run_folder=tmp_path)
    with pytest.raises(CheckpointError, match="has no captions to train on"):
        build()


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b'{"version": "1.0", "tru', b"\xff\xfe"])
@pytest.mark.parametrize("where", ["folder", "checkpoint"])
def test_a_damaged_tokenizer_is_one_line(content: bytes, where: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / FILE).write_bytes(content)
    files = {FILE: content} if where == "checkpoint" else {}
    with pytest.raises(
        CheckpointError, match=r"tower 'text': .*tokenizers/text\.json.* is not a tokenizer \("
    ) as error:
        build(files=files, run_folder=tmp_path, captions=lambda: CAPTIONS)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    from tokenizers import Tokenizer, models

    other = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1}, unk_token="[UNK]")).to_str()
    with pytest.raises(CheckpointError, match=r"has no token \[PAD\]"):
        build(files={FILE: other.encode()})


def test_captions_without_words_and_tiny_vocabularies_are_refused() -> None:
    with pytest.raises(RecipeError, match="found no words in the captions"):
        build(captions=lambda: [" ", ""])
    builder = HuggingFace(
        config={"layers": 1, "width": 16, "heads": 2, "vocab_size": 5}, tokenizer="trained"
    )
    with pytest.raises(RecipeError, match=r"config\.vocab_size: 5 has no room"):
        builder.build("text", BuildContext("text", captions=lambda: CAPTIONS))


def test_lone_surrogates_and_endless_words_are_taken() -> None:
    backbone = build(captions=lambda: ["smile \ud83d here", "a" * 300_000, *CAPTIONS])
    unknown = backbone.input.tokenizer.unk_token_id
    assert ids(backbone, "a" * 300_000)[0][1] == unknown
    assert len(ids(backbone, "here")[0]) >= 3
