"""Reader passages: judged pairs, triplets with margins, and files that do not belong together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_sets import write_passages
from vlkd_cli.data.files.relations import HEADER, PAGE, Relation
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.passages import Passages
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.recipe.load import parse_recipe

TRIPLETS = (
    Relation("q1", "p1", "p4", 3.5, 1.25, 2, "text"),
    Relation("q0", "p5", "p2", -1.0, 0.5, 4, "bm25"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_passages(tmp_path / "corpus")


def relations_of(folder: Path, *, page_of: Path | None = None) -> str:
    """A file of relations, and the page that names the collection it was made from."""
    folder.mkdir(exist_ok=True)
    path = folder / "relations.tsv"
    path.write_text(HEADER + "".join(relation.line() for relation in TRIPLETS))
    if page_of is not None:
        names = {"corpus": "corpus.jsonl", "queries": "queries.jsonl"}
        files = {
            role: hashlib.sha256((page_of / name).read_bytes()).hexdigest()
            for role, name in names.items()
        }
        page = {"data": {"path": str(page_of), "files": files}}
        (folder / PAGE).write_text(json.dumps(page))
    return str(path)


def test_judged_pairs_are_samples_from_the_smallest_grade_on(root: Path) -> None:
    assert len(Passages(path=str(root))) == 8
    reader = Passages(path=str(root), min_grade=2)
    assert [list(reader.captions(n)) for n in range(2)] == [
        ["question 0", "title 0 passage 0"],
        ["question 1", "title 1 passage 1"],
    ]
    assert len(reader) == 4 and reader.text_names == ("positive",) and reader.num_targets == 0
    assert list(Passages(path=str(root), title=False).captions(1)) == ["question 0", "passage 1"]


@pytest.mark.parametrize("zero", ["\t0\t", " Q0 "])
def test_judgments_in_the_format_of_trec_eval_are_the_same_pairs(root: Path, zero: str) -> None:
    file = root / "qrels" / "train.tsv"
    rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    (root / "qrels" / "trec.tsv").write_text(
        "".join(f"{q}{zero}{p}{zero[-1]}{grade}\n" for q, p, grade in rows)
    )
    readers = [Passages(path=str(root), split=split) for split in ("train", "trec")]
    one, other = ([list(each.captions(n)) for n in range(len(each))] for each in readers)
    assert one == other


def test_triplets_have_three_texts_and_their_margin(root: Path, tmp_path: Path) -> None:
    path = relations_of(tmp_path / "out", page_of=root)
    reader = Passages(path=str(root), relations=path)
    assert list(reader.captions(0)) == ["question 1", "title 1 passage 1", "title 4 passage 4"]
    assert [reader.text_span(1, name) for name in ("main", "positive", "negative")] == [
        (0, 1),
        (1, 2),
        (2, 3),
    ]
    np.testing.assert_allclose(reader.targets_of(np.array([1, 0])), [[-1.5], [2.25]])
    assert reader.id(1) == "q0" and reader.caption_start(2) == 6
    other = Passages(path=str(root)).fingerprint()
    assert reader.fingerprint() != other


def test_lines_of_plain_text_are_numbered_from_1(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.txt").write_text("first\n\nthird \u2028 line\n", encoding="utf-8")
    (tmp_path / "queries.txt").write_text("who?\n")
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n1\t3\t1\n")
    assert list(Passages(path=str(tmp_path)).captions(0)) == ["who?", "third \u2028 line"]
    with pytest.raises(DataError, match=r"data.title has no effect: corpus\.txt holds no titles"):
        Passages(path=str(tmp_path), title=False)


def test_relations_of_another_corpus_are_refused(root: Path, tmp_path: Path) -> None:
    other = write_passages(tmp_path / "other", passages=4)
    unknown = r"line 3 names 'p5', which is not there. Set data.path to the folder they were made"
    with pytest.raises(DataError, match=unknown):
        Passages(path=str(other), relations=relations_of(tmp_path / "a"))
    # The ids are there, but the texts are others.
    corpus = write_passages(tmp_path / "renamed") / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("passage", "text"))
    differs = rf"corpus.jsonl differs. Set data.path to {root}, or run `vlkd synthesize` again"
    with pytest.raises(DataError, match=differs):
        Passages(path=str(corpus.parent), relations=relations_of(tmp_path / "b", page_of=root))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q0\tp0\tp1\t1\n", "its first line is not 'query_id ... miner'"),
        (HEADER, "holds no relations"),
        (HEADER + "q0\tp0\n", ":2: has 2 fields; expected 8"),
        (HEADER + "q0\tp0\tp1\tx\t1\t1\t2\ttext\n", ":2: the margin should be a number"),
        (HEADER + "q0\tp0\tp1\tnan\t1\t1\t2\ttext\n", ":2: the margin should be a number"),
    ],
)
def test_a_damaged_file_of_relations_is_one_line(
    content: str, message: str, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "relations.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        Passages(path=str(root), relations=str(tmp_path / "relations.tsv"))


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no corpus\.jsonl, collection\.tsv or corpus\.txt"):
        Passages(path=str(tmp_path))
    with pytest.raises(DataError, match=r"lacks qrels/val\.tsv. Splits with judgments: train"):
        Passages(path=str(root), split="val")
    with pytest.raises(DataError, match="no pair with a grade of at least 5 has both texts"):
        Passages(path=str(root), min_grade=5)
    with pytest.raises(DataError, match="no such file. `vlkd synthesize RECIPE OUT` writes"):
        Passages(path=str(root), relations=str(tmp_path / "nothing.tsv"))


def test_pairs_without_a_text_are_left_out_and_reported(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "qrels" / "train.tsv"
    file.write_text(file.read_text() + "q0\tgone\t1\n")
    assert len(Passages(path=str(root))) == 8
    assert "1 pairs are left out, since a text of theirs is missing, e.g. q0 gone" in (
        capsys.readouterr().err
    )


def test_keys_without_effect_next_to_relations_are_refused(root: Path, tmp_path: Path) -> None:
    section = {"reader": "passages", "path": str(root), "relations": relations_of(tmp_path / "r")}
    for key, value in (("split", "test"), ("min_grade", 2)):
        with pytest.raises(RecipeError, match=rf"{key}: has no effect with 'relations'"):
            open_reader({**section, key: value})


def test_the_negative_is_there_only_with_relations() -> None:
    recipe = """
towers: {text: {builder: sbert, model: x}}
data: {reader: passages, path: corpus}
distillers: [{name: simcse, student: text, teacher: [text@positive, text@negative]}]
"""
    with pytest.raises(RecipeError, match="negative"):
        parse_recipe(recipe, "recipe.yaml")
    parse_recipe(recipe.replace("path: corpus", "path: corpus, relations: r.tsv"), "recipe.yaml")
