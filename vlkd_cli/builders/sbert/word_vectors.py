"""Static word vectors: a vector per word, averaged over the text."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vlkd_cli import console
from vlkd_cli.builders.backbone import Backbone, Encoded, Export, Tokens
from vlkd_cli.builders.padding import pad
from vlkd_cli.builders.weight_files import check_file, first_line
from vlkd_cli.errors import WeightsError
from vlkd_cli.poolers import masked_mean
from vlkd_cli.preprocessing import TextInput

if TYPE_CHECKING:
    from sentence_transformers.models.tokenizer import WhitespaceTokenizer
    from tokenizers import Tokenizer

WORD_FILES = (".txt", ".vec", ".txt.gz", ".vec.gz")
WORDS = re.compile(r"\w+|[^\w\s]+", re.UNICODE)
_MARK = "\u2581"


class WordVectors(Backbone):
    """The mean of the vectors of a text's words; a text without a known word gives zeros.

    Words are runs of letters and digits, each looked up as written, else lower-cased; punctuation
    and unknown words are left out.

    Args:
        words: the vocabulary, most frequent first as files have it.
        vectors: `[V, D]` float32.
        max_length: words beyond it are cut off.
    """

    modality = "text"
    input: WordTokenizer

    def __init__(
        self, words: Sequence[str], vectors: np.ndarray, *, max_length: int | None = None
    ) -> None:
        super().__init__()
        self.encoder = nn.Embedding.from_pretrained(torch.from_numpy(vectors), freeze=False)
        self.input = WordTokenizer(words, max_length=max_length)
        self.width = self.token_width = vectors.shape[1]

    def run(self, inputs: TextInput, *, tokens: bool) -> Encoded:
        values = F.embedding(inputs["input_ids"], self.encoder.weight)
        mask = inputs["attention_mask"].bool()
        return Encoded(masked_mean(values, mask), Tokens(values, mask))

    def export(self, folder: Path, destination: Path, keys: Mapping[str, object]) -> Export:
        file = "vectors.txt"
        with (folder / file).open("w", encoding="utf-8") as lines:
            for word, row in self.input.rows.items():
                # Nine digits distinguish any two float32 numbers.
                lines.write(
                    f"{word}"
                    f" {' '.join(f'{value:.9g}' for value in self.encoder.weight[row].tolist())}\n"
                )
        limit = {"max_length": keys["max_length"]} if keys.get("max_length") else {}
        return Export(
            "word vectors",
            python=f"lines = open({str(destination / file)!r}, encoding='utf-8')"
            ".read().splitlines()",
            recipe={"builder": "sbert", "model": str(destination / file), **limit},
            feature="the mean of a text's words, each a line: the word and its numbers",
        )


class WordTokenizer:
    """Words to their rows in the table."""

    def __init__(self, words: Sequence[str], *, max_length: int | None = None) -> None:
        self.rows = {word: row for row, word in enumerate(words) if word}
        self.max_length = max_length

    def __call__(self, texts: Sequence[str]) -> TextInput:
        return pad([self._rows(text)[: self.max_length] for text in texts])

    def _rows(self, text: str) -> list[int]:
        found = (
            self.rows.get(word, self.rows.get(word.lower(), -1))
            for word in WORDS.findall(text)
            if word[0].isalnum() or word[0] == "_"
        )
        return [row for row in found if row >= 0]


def static_tokenizer(words: WordTokenizer) -> Tokenizer | None:
    """A tokenizer of the library `tokenizers` that gives a text's words, numbered in the order of
    `words.rows`; None where the vocabulary has words in upper case, since it lower-cases first."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    if any(word != word.lower() and WORDS.fullmatch(word) for word in words.rows):
        return None
    # Unknown words are left out: without merges they fall into characters, and no word of the
    # vocabulary is one character, since a mark that texts have lost is put before each.
    vocabulary = {f"{_MARK}{word}": number for number, word in enumerate(words.rows)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"[^\p{L}\p{N}_]+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_MARK, prepend_scheme="always")
    if words.max_length is not None:
        tokenizer.enable_truncation(words.max_length)
    return tokenizer


class WhitespaceWords:
    """sentence-transformers' own tokenizer of its WordEmbeddings module."""

    def __init__(self, tokenizer: WhitespaceTokenizer, *, max_length: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, texts: Sequence[str]) -> TextInput:
        return pad([list(self.tokenizer.tokenize(text))[: self.max_length] for text in texts])


class StaticTokenizer:
    """The tokenizer of sentence-transformers' StaticEmbedding: word pieces without start and end.

    Args:
        content: the tokenizer as JSON; it survives pickling, whatever the library's version.
    """

    def __init__(self, content: str, *, max_length: int | None = None) -> None:
        self.content = content
        self.max_length = max_length
        self._tokenizer: Tokenizer | None = None

    def __call__(self, texts: Sequence[str]) -> TextInput:
        if self._tokenizer is None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_str(self.content)
            self._tokenizer.no_padding()
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return pad([encoding.ids[: self.max_length] for encoding in encodings])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tokenizer": None}


def is_word_file(model: str) -> bool:
    """Whether a `model:` value names a text file of word vectors."""
    return model.endswith(WORD_FILES)


def read_word_vectors(path: Path) -> tuple[list[str], np.ndarray]:
    """Words and their vectors `[V, D]` of a GloVe or word2vec text file, also compressed.

    Words that are not UTF-8 are left out, and how many there are is reported.

    Raises:
        WeightsError: a line that is not a word with its numbers, a number that is not finite, or a
            file without words.
    """
    what = f"word vectors '{path}'"
    words: list[str] = []
    rows: list[np.ndarray] = []
    undecodable: list[int] = []
    for number, line in enumerate(_lines(path, what), start=1):
        try:
            fields = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip().split(" ")
        except UnicodeDecodeError:
            undecodable.append(number)
            continue
        if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
            continue
        width = len(rows[0]) if rows else len(fields) - 1
        try:
            # Some vocabularies hold words with spaces, so the numbers are counted from the right.
            row = np.asarray(fields[-width:], np.float32) if 0 < width < len(fields) else None
        except ValueError:
            row = None
        if row is None or not np.isfinite(row).all():
            raise WeightsError(
                f"{what}: line {number} is not a word with {width} numbers. Correct or remove the"
                " line."
            )
        words.append(" ".join(fields[:-width]))
        rows.append(row)
    if not rows:
        raise WeightsError(f"{what}: it holds no words. Give a GloVe or word2vec text file.")
    if undecodable:
        console.warn(
            f"{what}: {len(undecodable)} words that are not UTF-8 are left out, the first in line"
            f" {undecodable[0]}."
        )
    return words, np.stack(rows)


def _lines(path: Path, what: str) -> Iterator[bytes]:
    check_file(path, what)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise WeightsError(
            f"{what}: it cannot be read ({first_line(error)}). Replace the file, or correct its"
            " name."
        ) from error
