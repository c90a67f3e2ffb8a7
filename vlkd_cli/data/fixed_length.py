"""Texts padded to one length for a whole data set, so that what an encoder makes of one does not
depend on the others in its batch, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.preprocessing import TextInput, Tokenizer

_AT_ONCE = 1024


class FixedLength:
    """A tokenizer whose batches are as long as the longest text of a data set.

    Args:
        tokenize: pads to the longest text of its batch, or to a length of its own.
        longest: that text.
    """

    def __init__(self, tokenize: Tokenizer, longest: str) -> None:
        self.tokenize, self.longest = tokenize, longest

    def __call__(self, texts: Sequence[str]) -> TextInput:
        return {name: values[:-1] for name, values in self.tokenize([*texts, self.longest]).items()}


def longest_text(reader: Reader, tokenize: Tokenizer) -> str:
    """The text with most tokens among all of a reader's."""
    longest, most = "", 0
    texts = _texts(reader)
    while window := list(islice(texts, _AT_ONCE)):
        if _length(tokenize(window)) > most:
            longest = max(window, key=lambda text: _length(tokenize([text])))
            most = _length(tokenize([longest]))
    return longest


def _texts(reader: Reader) -> Iterator[str]:
    for index in range(len(reader)):
        try:
            yield from reader.captions(index)
        except Broken:
            continue


def _length(tokens: TextInput) -> int:
    return int(next(iter(tokens.values())).shape[1])
