from __future__ import annotations

import random
import subprocess
import sys

import pytest

from vlkd_cli.builders.word_pieces import learn_pieces


def test_pieces_are_merged_by_how_often_they_occur_together() -> None:
    # Pairs: ##b ##a 5 (cba twice: 2, dba: 3), then c and d before ##ba.
    assert learn_pieces({"cba": 2, "dba": 3}, 10) == ["##a", "##b", "c", "d", "##ba", "dba", "cba"]


def test_ties_go_to_the_pair_that_comes_first_by_text() -> None:
    assert learn_pieces({"xy": 1, "uv": 1, "ab": 1}, 7)[6:] == ["ab"]
    assert learn_pieces({"ab": 1, "uv": 1, "xy": 1}, 9)[6:] == ["ab", "uv", "xy"]


def test_a_run_of_one_letter_is_merged_from_the_left() -> None:
    assert learn_pieces({"aaaaa": 1}, 5) == ["##a", "a", "##aa", "##aaaa", "aaaaa"]


def test_the_most_frequent_letters_fill_a_small_vocabulary() -> None:
    assert learn_pieces({"ab": 3, "c": 2, "d": 1}, 3) == ["##b", "a", "c"]
    assert learn_pieces({"ab": 3}, 0) == []


def test_words_that_no_model_of_word_pieces_knows_teach_nothing() -> None:
    assert learn_pieces({"a" * 300_000: 5, "bc": 1}, 100) == ["##c", "b", "bc"]


def test_the_pieces_are_the_same_in_every_process() -> None:
    program = (
        "import random; from vlkd_cli.builders.word_pieces import learn_pieces;"
        " draw = random.Random(0);"
        " words = {''.join(draw.choices('abcde', k=draw.randint(1, 6))) for _ in range(300)};"
        " print(learn_pieces(dict.fromkeys(words, 1), 200))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1
    assert len(eval(outputs.pop())) == 200


def test_the_pieces_are_those_of_the_library_where_nothing_ties() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    draw = random.Random(0)
    words = sorted({"".join(draw.choices("abc", k=draw.randint(1, 5))) for _ in range(200)})
    counts = {word: draw.randint(1, 3000) for word in words}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=31, special_tokens=["[UNK]"], show_progress=False
    )
    model.train_from_iterator((" ".join([word] * count) for word, count in counts.items()), trainer)
    assert set(learn_pieces(counts, 30)) == set(model.get_vocab()) - {"[UNK]"}
