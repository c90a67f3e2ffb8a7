"""Texts padded to one length for a whole data set."""

from __future__ import annotations

from tests.support.fakes import FakeReader
from vlkd_cli.builders.tokenizers import ClipTokenizer
from vlkd_cli.data.fixed_length import FixedLength, longest_text

TEXTS = [["a", "red disc"], ["a red disc on a blue ground"], ["two"]]


def test_every_batch_is_as_long_as_the_longest_text_of_the_data() -> None:
    tokenize = ClipTokenizer()
    longest = longest_text(FakeReader([0, 0, 0], TEXTS), tokenize)
    assert longest == "a red disc on a blue ground"
    fixed = FixedLength(tokenize, longest)
    alone, beside = fixed(["two"])["input_ids"], fixed(["two", longest])["input_ids"]
    assert alone.shape == (1, 9) and beside[:1].equal(alone)
    assert alone[:, : tokenize(["two"])["input_ids"].shape[1]].equal(tokenize(["two"])["input_ids"])
