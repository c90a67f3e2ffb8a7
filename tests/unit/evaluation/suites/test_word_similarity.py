from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.fakes import FakeTower
from tests.support.text_folders import (
    WIDTH,
    meaning,
    perfect_subject,
    random_subject,
    write_word_similarity,
)
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.suites.word_similarity import WordSimilarity, read_pairs, score_pairs
from vlkd_cli.features.subject import Subject


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_word_similarity(tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize("templates", ["none", "prototype", "expand"])
def test_a_perfect_encoder_scores_one(root: Path, templates: str) -> None:
    suite = WordSimilarity(
        data=str(root), templates=templates, template_set=["a photo of {}.", "the word {}"]
    )  # type: ignore[arg-type]
    results = suite.run(perfect_subject())
    assert [result.dataset for result in results] == ["RG65", "SimLex999", "WordSim353"]
    for result in results:
        assert result.metrics["spearman"] > 0.999
        assert (result.metrics["coverage"], result.num_items, result.num_skipped) == (1, 40, 0)


def test_a_random_encoder_stays_near_nothing(root: Path) -> None:
    assert all(
        abs(result.metrics["spearman"]) < 0.4
        for result in WordSimilarity(data=str(root)).run(random_subject())
    )


def test_words_without_a_vector_are_counted_reported_and_skipped(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def static(word: str) -> torch.Tensor:
        return torch.zeros(WIDTH) if word in ("left3", "left5") else meaning(word)

    subject = Subject(None, FakeTower("text", static, WIDTH))  # type: ignore[arg-type]
    result = WordSimilarity(data=str(root), files=["EN-RG-65.txt"]).run(subject)[0]
    assert (result.dataset, result.num_items, result.num_skipped, result.metrics["coverage"]) == (
        "EN-RG-65",
        38,
        2,
        0.95,
    )
    assert result.details["words_without_vector"] == ["left3", "left5"]
    assert "2 of 40 pairs have a word without a vector (left3, left5)" in " ".join(
        capsys.readouterr().err.split()
    )
    zero = WordSimilarity(data=str(root), files=["EN-RG-65.txt"], oov="zero").run(subject)[0]
    assert (zero.num_items, zero.num_skipped, zero.details["pairs_without_vector"]) == (40, 0, 2)


def test_expanding_templates_takes_one_correlation_over_all_rows() -> None:
    random = np.random.RandomState(0)
    vectors = random.randn(6, 3, 5).astype(np.float32)
    first, second, gold = np.array([0, 1, 2]), np.array([3, 4, 5]), np.array([1.0, 3.0, 2.0])
    cosines = [
        float(
            vectors[a, t]
            @ vectors[b, t]
            / np.linalg.norm(vectors[a, t])
            / np.linalg.norm(vectors[b, t])
        )
        for a, b in zip(first, second, strict=True)
        for t in range(3)
    ]
    from scipy.stats import spearmanr

    score, used = score_pairs(vectors, first, second, gold, np.ones(6, dtype=bool), "skip")
    assert score == pytest.approx(spearmanr(cosines, np.repeat(gold, 3)).statistic) and used == 3


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (
            "tiger\ttiger\t10.00\r\ncat\tdog\t7\t3\r\n",
            [("tiger", "tiger", 10.0), ("cat", "dog", 7.0)],
        ),
        (
            "gem ; jewel ; 3.94\ncord;smile;0.02 \n",
            [("gem", "jewel", 3.94), ("cord", "smile", 0.02)],
        ),
        ("Word 1,Word 2,Human (mean)\nlove,sex,6.77\n", [("love", "sex", 6.77)]),
        ("gem jewel 3.94\n\n", [("gem", "jewel", 3.94)]),
        (
            '"love","sex",6.77\n"tiger, big", "cat", "7.35"\n',
            [("love", "sex", 6.77), ("tiger, big", "cat", 7.35)],
        ),
        ("ice cream\thot dog\t2\n", [("ice cream", "hot dog", 2.0)]),
        ("word1\tword2\tPOS\tSimLex999\tolder\nold\tnew\tA\t1.58\t2\n", [("old", "new", 1.58)]),
    ],
)
def test_every_usual_spelling_is_read(
    tmp_path: Path, text: str, pairs: list[tuple[str, str, float]]
) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes(text.encode())
    found = read_pairs(path)
    assert list(zip(found.first, found.second, found.gold.tolist(), strict=True)) == pairs


def test_a_line_without_a_score_is_reported_with_its_position(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("gem\tjewel\t3.9\nmidday\tnoon\n")
    with pytest.raises(DataError, match=r"pairs\.txt:2: expected two words and a score"):
        read_pairs(path)


def test_lists_that_are_not_there_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_word_similarity(tmp_path)
    (tmp_path / "combined.csv").unlink()
    assert len(WordSimilarity(data=str(tmp_path)).run(perfect_subject())) == 2
    assert "lacks WordSim353 (EN-WS-353-ALL.txt or combined.tab" in " ".join(
        capsys.readouterr().err.split()
    )
    with pytest.raises(DataError, match="lacks other.txt"):
        WordSimilarity(data=str(tmp_path), files=["other.txt", "EN-RG-65.txt"]).run(
            perfect_subject()
        )


@pytest.mark.parametrize(
    "text", ["gem\tjewel\tnan\nmidday\tnoon\tnan\n", "gem;jewel;3\n;noon;4\n", "one;two;score\n"]
)
def test_pairs_without_words_or_a_finite_score_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(
        DataError, match=r"expected two words and a score|holds no word pairs below its header"
    ):
        read_pairs(path)
