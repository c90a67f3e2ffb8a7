from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.fakes import FakeTower
from tests.support.text_folders import perfect_subject, random_subject, write_wiki_sections
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.suites.wiki_sections import WikiSections
from vlkd_cli.features.subject import Subject

GOLDENS = json.loads(
    (Path(__file__).parents[3] / "golden" / "text_evals.json").read_text(encoding="utf-8")
)


def test_a_perfect_encoder_scores_one_and_a_random_one_a_half(tmp_path: Path) -> None:
    suite = WikiSections(data=str(write_wiki_sections(tmp_path, triplets=200)))
    assert suite.run(perfect_subject())[0].metrics["accuracy"] == 1
    (result,) = suite.run(random_subject())
    assert abs(result.metrics["accuracy"] - 0.5) < 0.12 and result.chance["accuracy"] == 0.5


def test_a_limit_shows_in_the_split_and_a_missing_file_is_named(tmp_path: Path) -> None:
    write_wiki_sections(tmp_path / "wiki")
    (result,) = WikiSections(limit=10).run(perfect_subject(data_root=tmp_path))
    assert (result.split, result.num_items, list(result.hashes)) == ("test[:10]", 10, ["test.csv"])
    with pytest.raises(DataError, match=r"holds no validation\.csv"):
        WikiSections(split="validation").run(perfect_subject(data_root=tmp_path))


def test_wrong_columns_are_reported(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("a,b,c\n1,2,3\n")
    with pytest.raises(
        DataError,
        match=(
            r"test\.csv:1: the header should have the columns Sentence1, Sentence2, Sentence3; it"
            r" has a, b, c"
        ),
    ):
        WikiSections(data=str(tmp_path)).run(perfect_subject())


def test_accuracies_equal_the_golden_ones_and_a_tie_is_wrong(tmp_path: Path) -> None:
    data = GOLDENS["data"]["tri"]
    expected = {case["name"]: case["expected"] for case in GOLDENS["cases"]}
    table = {
        f"{side} {i}": torch.tensor(vector) for side in data for i, vector in enumerate(data[side])
    }
    rows = [
        ",".join(f"{side} {i}" for side in ("anchor", "positive", "negative")) for i in range(12)
    ]
    (tmp_path / "test.csv").write_text("\n".join(["anchor,positive,negative", *rows]))
    subject = Subject(None, FakeTower("text", table.__getitem__, 5))  # type: ignore[arg-type]

    def accuracy(**keys: object) -> float:
        return WikiSections(data=str(tmp_path), **keys).run(subject)[0].metrics["accuracy"]  # type: ignore[arg-type]

    for kind in ("cosine", "dot", "euclidean", "manhattan"):
        assert accuracy(similarity=kind) == pytest.approx(
            expected["triplet_accuracy"][f"{kind}_accuracy"], abs=1e-6
        )
    assert accuracy(margin=0.3) == pytest.approx(
        expected["triplet_accuracy"]["cosine_accuracy_with_margin_0.3"], abs=1e-6
    )
    assert accuracy(similarity="max") == pytest.approx(
        expected["st22_triplet_return_value"]["return"], abs=1e-6
    )


def test_blank_rows_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_bytes(b"Sentence1,Sentence2,Sentence3\r\na,b,c\r\n\r\nd,e,f\r\n")
    assert WikiSections(data=str(tmp_path)).run(random_subject())[0].num_items == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"a\xff,b,c", r"test\.csv:2: byte 31 \(0xff\) is not utf-8 text"),
        (b"a" * 200_000 + b",b,c", "is not a comma-separated table: field larger"),
    ],
)
def test_a_file_that_is_not_a_table_is_one_line(tmp_path: Path, row: bytes, message: str) -> None:
    (tmp_path / "test.csv").write_bytes(b"Sentence1,Sentence2,Sentence3\n" + row + b"\n")
    with pytest.raises(DataError, match=message):
        WikiSections(data=str(tmp_path)).run(random_subject())
