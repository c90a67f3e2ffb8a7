"""Strings to token ids: small callables that survive pickling, so that loader workers can run
them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch

from vlkd_cli.builders.padding import pad
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import TextInput

if TYPE_CHECKING:
    from open_clip.tokenizer import HFTokenizer
    from transformers import PreTrainedTokenizerBase

CLIP_VOCABULARY = 49408
CLIP_BASE_TOKENS = 512
MAX_REMEMBERED_WORDS = 200_000
LONGEST_TOKEN = 32
"""Bytes of CLIP's longest token."""


def well_formed(text: str) -> str:
    """The text with a replacement character for each lone surrogate, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Shared:
    """A tokenizer is never changed, so copies of its tower refer to it: copying the tables of a
    vocabulary would take longer than building the tower."""

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


class ClipTokenizer(Shared):
    """CLIP's byte-pair encoding; it comes with open_clip, so nothing is downloaded.

    Args:
        context_length: longest caption in tokens, start and end included; longer ones are
            truncated before their end token.
        trim: cut the batch to its longest caption instead of padding to the context length.
        vocabulary_size: with fewer than CLIP's 49408 tokens, only the most frequent merges are
            used, for small embedding tables.
        masked: also give the attention mask, for encoders that need it.
        pad: id that fills up short captions.
        shift: added to every other id, so that `pad` may be a number of its own.
        clean: how open_clip cleans the text.
    """

    def __init__(
        self,
        *,
        context_length: int = 77,
        trim: bool = True,
        vocabulary_size: int = CLIP_VOCABULARY,
        masked: bool = False,
        pad: int = 0,
        shift: int = 0,
        clean: str = "lower",
    ) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        least = CLIP_BASE_TOKENS + 2
        if not least <= vocabulary_size <= CLIP_VOCABULARY:
            raise RecipeError(
                f"vocab_size: {vocabulary_size} does not fit CLIP's tokenizer. Choose between"
                f" {least} and {CLIP_VOCABULARY}."
            )
        self.context_length = context_length
        self.trim = trim
        self.masked = masked
        self.pad = pad
        self.shift = shift
        self.vocabulary_size = vocabulary_size
        self._bpe = SimpleTokenizer(context_length=context_length, clean=clean)
        if vocabulary_size < CLIP_VOCABULARY:
            merges = sorted(self._bpe.bpe_ranks, key=self._bpe.bpe_ranks.__getitem__)[
                : vocabulary_size - least
            ]
            self._bpe.bpe_ranks = {merge: place for place, merge in enumerate(merges)}
        self._start, self._end = vocabulary_size - 2, vocabulary_size - 1
        self._bpe.encoder["<start_of_text>"], self._bpe.encoder["<end_of_text>"] = (
            self._start,
            self._end,
        )
        self.eot = self._end + shift
        self._lowers = clean == "lower"
        self._words: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> TextInput:
        rows = []
        for text in texts:
            ids = [self._start, *self._encode(well_formed(text)), self._end]
            if len(ids) > self.context_length:
                ids = [*ids[: self.context_length - 1], self._end]
            rows.append([token + self.shift for token in ids] if self.shift else ids)
        length = max(map(len, rows), default=1) if self.trim else self.context_length
        # One conversion for the whole batch: a tensor per caption costs more than its tokens.
        input_ids = torch.tensor(
            [ids + [self.pad] * (length - len(ids)) for ids in rows], dtype=torch.long
        ).view(len(rows), length)
        if not self.masked:
            return {"input_ids": input_ids}
        lengths = torch.tensor([len(ids) for ids in rows])
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(length)[None] < lengths[:, None]).long(),
        }

    def vocabulary(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Every piece with the id that calls give it, and the merges in their order. Ids without a
        piece are called `<unused...>`."""
        pieces = {
            piece: number + self.shift
            for piece, number in self._bpe.encoder.items()
            if number < self._start
        }
        pieces |= {
            "<start_of_text>": self._start + self.shift,
            "<end_of_text>": self.eot,
            "<pad>": self.pad,
        }
        unused = set(range(self.vocabulary_size + self.shift)) - set(pieces.values())
        return pieces | {f"<unused{number}>": number for number in unused}, sorted(
            self._bpe.bpe_ranks, key=self._bpe.bpe_ranks.__getitem__
        )

    def _encode(self, text: str) -> list[int]:
        # Printable ASCII without an ampersand has nothing that the repair of broken Unicode and
        # HTML could change, and that repair costs more than the encoding.
        plain = self._lowers and "&" not in text and text.isascii() and text.isprintable()
        text = " ".join(text.split()).lower() if plain else self._bpe.clean_fn(text)
        ids: list[int] = []
        for word in self._bpe.pat.findall(text):
            known = self._words.get(word)
            if known is None:
                known = self._encode_word(word)
            ids.extend(known)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        # Whatever follows these letters is cut off; merging them would take the square of their
        # number.
        word = word[: LONGEST_TOKEN * self.context_length]
        letters = "".join(self._bpe.byte_encoder[byte] for byte in word.encode("utf-8"))
        ids = [self._bpe.encoder[piece] for piece in self._bpe.bpe(letters).split(" ")]
        if len(self._words) >= MAX_REMEMBERED_WORDS:
            self._words.clear()
            self._bpe.cache = {
                "<start_of_text>": "<start_of_text>",
                "<end_of_text>": "<end_of_text>",
            }
        self._words[word] = ids
        return ids


class PretrainedTokenizer(Shared):
    """A tokenizer of transformers: ids and attention mask, padded on the right to the longest
    caption of the batch.

    A text without any tokens becomes one token of padding.

    Args:
        tokenizer: the fast or slow tokenizer object. It needs no padding token: the mask hides
            whatever fills up.
        max_length: longest caption in tokens; longer ones are cut.
        lower: lower-case the texts first (some sentence encoders ask for it).
        fills: pad every caption to `max_length`, on the tokenizer's own side: the feature depends
            on it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        lower: bool = False,
        fills: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.fills = fills
        self.lower = lower
        self.pad = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else 0

    def __call__(self, texts: Sequence[str]) -> TextInput:
        rows = self.tokenizer(
            [well_formed(text.lower() if self.lower else text) for text in texts],
            padding=False,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        rows = [row or [self.pad] for row in rows]
        if self.fills and self.tokenizer.padding_side == "left":
            rows = [[self.pad] * (self.max_length - len(row)) + row for row in rows]
        return pad(rows, self.pad, least=self.max_length if self.fills else 1)


class PaddedTokenizer(Shared):
    """open_clip's wrappers around a transformers tokenizer, which pad to the context length as
    their models were trained."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> TextInput:
        return {"input_ids": self.tokenizer(list(texts))}
