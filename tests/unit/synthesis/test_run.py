"""From texts to relations: interruptions, ranks, what is left out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.passages import (
    BY_TABLE,
    ScoredByTable,
    subject_of_rows,
    write_numbered,
    written_relations,
)
from tests.support.ranks import run_on_ranks
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.recipe.schema import SynthesisSpec
from vlkd_cli.synthesis import run
from vlkd_cli.synthesis.parts import Parts

RANDOM = np.random.RandomState(0)
QUERIES, PASSAGES = RANDOM.randn(7, 4), RANDOM.randn(12, 4)


def spec_of(root: Path, **keys: Any) -> SynthesisSpec:
    given = {"reader": "passages", "path": str(root)}
    base = {"miners": ["text_0"], "scorers": [{"name": "tower"}], "relations": 4, "depth": 6}
    return SynthesisSpec.model_validate({"data": given, **base, **keys})


def synthesized(folder: Path, root: Path, **keys: Any) -> bytes:
    subject = subject_of_rows(QUERIES, [PASSAGES], folder / "cache")
    return run.synthesize(spec_of(root, **keys), subject, folder / "out").relations.read_bytes()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_numbered(tmp_path / "corpus", queries=7, passages=12)


@pytest.fixture
def two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "QUERIES_PER_BLOCK", 2)


def test_an_interrupted_synthesis_continues_to_the_same_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_at_a_time: None
) -> None:
    expected = synthesized(tmp_path / "whole", root)
    assert expected.count(b"\n") == 1 + 7 * 3
    write_block, written = Parts.write_block, []

    def dying(self: Parts, block: int, *found: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(block)
        write_block(self, block, *found)

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write_block", dying)
        with pytest.raises(KeyboardInterrupt):
            synthesized(tmp_path / "cut", root)
    assert written == [0, 1] and not (tmp_path / "cut" / "out" / "relations.tsv").exists()
    monkeypatch.setattr(Parts, "write_lists", None)  # the mined lists are stored
    assert synthesized(tmp_path / "cut", root) == expected
    assert not (tmp_path / "cut" / "out" / "parts").exists()


def on_a_rank(root: str, folder: str) -> bytes:
    run.QUERIES_PER_BLOCK = 2
    return synthesized(Path(folder), Path(root), miners=["text_0", "bm25"])


@pytest.mark.slow
def test_ranks_write_the_bytes_of_one_process(root: Path, tmp_path: Path) -> None:
    (alone,) = run_on_ranks(on_a_rank, 1, str(root), str(tmp_path / "alone"))
    for world_size in (2, 3):
        found = run_on_ranks(on_a_rank, world_size, str(root), str(tmp_path / str(world_size)))
        assert found == [alone] * world_size
        page = (tmp_path / str(world_size) / "out" / "synthesis.json").read_bytes()
        assert page == (tmp_path / "alone" / "out" / "synthesis.json").read_bytes()


def test_a_complete_synthesis_is_not_repeated_and_another_one_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = synthesized(tmp_path, root)
    assert synthesized(tmp_path, root) == first
    assert "is complete already" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"synthesis\.json is of other settings, models or data"):
        synthesized(tmp_path, root, relations=3)
    (tmp_path / "out" / "synthesis.json").write_text("{")
    with pytest.raises(DataError, match=r"synthesis\.json is damaged. Delete"):
        synthesized(tmp_path, root)


def test_a_folder_with_other_files_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty. Name a new folder"):
        synthesized(tmp_path, root)


def test_a_list_that_is_cut_off_is_mined_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = synthesized(tmp_path / "whole", root)

    def dying(*words: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write_block", dying)
        with pytest.raises(KeyboardInterrupt):
            synthesized(tmp_path / "cut", root)
    file = tmp_path / "cut" / "out" / "parts" / "mined-text_0.npy"
    file.write_bytes(file.read_bytes()[:-40])
    assert synthesized(tmp_path / "cut", root) == expected


def test_scores_that_are_not_finite_end_in_one_line(root: Path, tmp_path: Path) -> None:
    ScoredByTable.table = np.full((7, 12), np.nan)
    with pytest.raises(DataError, match="gives scores that are NaN or infinite. Choose other"):
        synthesized(tmp_path, root, scorers=[{"name": BY_TABLE}])


def test_each_pair_is_scored_once_and_only_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScoredByTable, "table", RANDOM.randn(7, 12))
    rows, _ = written_relations(tmp_path, QUERIES, [PASSAGES], relations=3, depth=6)
    used = {(row[0], row[k]) for row in rows for k in (1, 2)}
    asked = [(f"q{query}", f"p{place}") for query, place in ScoredByTable.asked]
    assert len(asked) == len(set(asked)) and set(asked) == used


def test_judged_passages_are_positives_with_a_block_of_rows_each(
    root: Path, tmp_path: Path
) -> None:
    (root / "qrels").mkdir()
    judged = "q0\tp3\t1\nq0\tp4\t2\nq1\tp5\t2\nq2\tgone\t2\n"
    (root / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    lines = synthesized(tmp_path, root, positive="judged").decode().splitlines()[1:]
    cells = [line.split("\t")[:3] for line in lines]
    assert [cell[:2] for cell in cells] == [["q0", "p3"]] * 3 + [["q0", "p4"]] * 3 + [
        ["q1", "p5"]
    ] * 3
    assert not {"p3", "p4"} & {cell[2] for cell in cells[:6]}
    page = json.loads((tmp_path / "out" / "synthesis.json").read_text())
    assert page["counts"]["queries_without_positive"] == 5
    assert set(page["data"]["files"]) == {"corpus", "queries", "judgments"}


def test_queries_that_give_nothing_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "corpus.txt").write_text("red fox\nred dog\nblue sea\n\n")
    (root / "queries.txt").write_text("red\nblue\n?!\nnothing here\n")
    keys = {"miners": ["bm25"], "scorers": [{"name": "bm25"}]}
    lines = synthesized(tmp_path, root, **keys).decode().splitlines()
    assert [line.split("\t")[:3] for line in lines[1:]] == [["1", "2", "1"]]
    page = json.loads((tmp_path / "out" / "synthesis.json").read_text())
    assert page["counts"] == {
        "negative_margins": 0,
        "queries": 1,
        "queries_with_fewer": 1,
        "queries_without_negative": 1,
        "queries_without_passages": 2,
        "relations": 1,
    }
    assert page["data"]["passages_without_text"] == 0


def test_an_id_that_no_table_can_hold_is_refused(root: Path, tmp_path: Path) -> None:
    corpus = root / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace('"_id": "p3"', '"_id": "p\\t3"'))
    with pytest.raises(DataError, match=r"corpus\.jsonl: id 'p\\t3' holds a tab or a line break"):
        synthesized(tmp_path, root)


def test_no_relation_at_all_is_one_line(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "corpus.txt").write_text("red fox\nblue sea\n")
    (root / "queries.txt").write_text("green\n")
    message = r"no query has a positive and a negative passage \(1 without a mined passage\)"
    with pytest.raises(DataError, match=message):
        synthesized(tmp_path, root, miners=["bm25"], scorers=[{"name": "bm25"}])


def test_passages_without_text_are_never_mined(root: Path, tmp_path: Path) -> None:
    corpus = root / "corpus.jsonl"
    best = int((QUERIES[0] @ PASSAGES.T / np.linalg.norm(PASSAGES, axis=1)).argmax())
    corpus.write_text(corpus.read_text().replace(f'"text": "p{best}"', '"text": " "'))

    lines = synthesized(tmp_path, root, relations=6, sampling="top").decode().splitlines()
    named = {cell for line in lines[1:] for cell in line.split("\t")[1:3]}
    assert f"p{best}" not in named and len(named) > 5


def test_a_scorer_of_another_package_is_taken(root: Path, tmp_path: Path) -> None:
    ScoredByTable.table = np.arange(84.0).reshape(7, 12)
    lines = synthesized(tmp_path, root, scorers=[{"name": BY_TABLE}]).decode().splitlines()
    query, positive, negative, margin = lines[1].split("\t")[:4]
    assert float(margin) == int(positive[1:]) - int(negative[1:]) and query == "q0"


KEYS: dict[str, Any] = {
    "miners": ["bm25"],
    "scorers": [{"name": "tower"}],
    "relations": 3,
    "depth": 7,
    "similarity": "dot",
    "sampling": "top",
    "positive": "judged",
    "seed": 5,
}


def test_every_key_of_the_section_changes_the_relations(root: Path, tmp_path: Path) -> None:
    (root / "qrels").mkdir()
    (root / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tp3\t1\n")
    for name in ("queries", "corpus"):  # one word that all share, for bm25
        file = root / f"{name}.jsonl"
        file.write_text(file.read_text().replace('"text": "', '"text": "q p '))
    assert set(KEYS) == set(SynthesisSpec.model_fields) - {"data"}
    base = {"scorers": [{"name": "tower"}, {"name": "bm25"}]}
    before = words_of_all(tmp_path / "before", root, **base)
    for key, value in KEYS.items():
        assert words_of_all(tmp_path / key, root, **{**base, key: value}) != before, key


def words_of_all(folder: Path, root: Path, **keys: Any) -> bytes:
    """As `synthesized`, for towers that read the number at the end of a text."""
    subject = subject_of_rows(QUERIES, [PASSAGES], folder / "cache")
    tower: Any = subject.towers["text_0"]
    tower._feature, feature = (lambda text: feature(text.split()[-1])), tower._feature
    return run.synthesize(spec_of(root, **keys), subject, folder / "out").relations.read_bytes()
