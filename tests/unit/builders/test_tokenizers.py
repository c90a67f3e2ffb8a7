from __future__ import annotations

import copy
import pickle

import open_clip
import pytest

from vlkd_cli.builders.tokenizers import ClipTokenizer
from vlkd_cli.errors import RecipeError

TEXTS = [
    "A dog runs.",
    "  two   spaces\tand a tab\n",
    "it's the children's 3rd photo, isn't it?",
    "Ünïcödé 東京 – “quotes” &amp; &lt;html&gt;",
    "AT&T &amp;amp; co",
    "",
    "word " * 100,
    "control \x1b[31mred\x1b[0m \x00 letters",
    "<start_of_text> inside <end_of_text>",
]


def test_ids_are_open_clips() -> None:
    own = ClipTokenizer(context_length=77, trim=False)(TEXTS)["input_ids"]
    assert own.equal(open_clip.tokenize(TEXTS))
    assert own.equal(ClipTokenizer(context_length=77, trim=False)(TEXTS)["input_ids"])


def test_copies_of_a_tower_share_its_tokenizer() -> None:
    tokenizer = ClipTokenizer(context_length=77)
    assert copy.deepcopy({"input": tokenizer})["input"] is tokenizer


def test_a_cut_batch_holds_the_same_ids() -> None:
    tokenizer = ClipTokenizer(context_length=77)
    short = tokenizer(TEXTS[:3])["input_ids"]
    assert short.shape[1] == 15
    assert short.equal(open_clip.tokenize(TEXTS[:3])[:, :15])
    assert tokenizer(TEXTS)["input_ids"].shape[1] == 77


def test_a_small_vocabulary_contains_the_most_frequent_merges_and_its_own_ends() -> None:
    ids = ClipTokenizer(vocabulary_size=600)(TEXTS)["input_ids"]
    assert int(ids.max()) == 599 and (ids[:, 0] == 598).all()
    with pytest.raises(RecipeError, match="Choose between 514 and 49408"):
        ClipTokenizer(vocabulary_size=100)


def test_shifted_ids_leave_padding_a_number_of_its_own() -> None:
    plain = ClipTokenizer(context_length=20)(["!", "a dog runs"])
    shifted = ClipTokenizer(context_length=20, masked=True, pad=1, shift=2)(["!", "a dog runs"])
    mask = shifted["attention_mask"].bool()
    assert mask.sum(1).tolist() == [3, 5]
    assert (shifted["input_ids"][mask] == plain["input_ids"][mask] + 2).all()
    assert (shifted["input_ids"][~mask] == 1).all() and (shifted["input_ids"][mask] > 1).all()


def test_a_copy_by_pickle_gives_the_same_ids() -> None:
    tokenizer = ClipTokenizer(vocabulary_size=1000)
    assert pickle.loads(pickle.dumps(tokenizer))(TEXTS)["input_ids"].equal(
        tokenizer(TEXTS)["input_ids"]
    )
