"""Suite `search` gives the golden numbers (tests/golden/search_tuning.json), whatever relevance
means, on any number of ranks; what has no effect or does not fit is one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.fakes import FakeReader, FakeTower, random_feature
from tests.support.ranks import run_on_ranks
from vlkd_cli.errors import UserError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suites.search import Search
from vlkd_cli.features.subject import Subject

GOLDENS = Path(__file__).parents[3] / "golden" / "search_tuning.json"
CASES = [
    case
    for case in json.loads(GOLDENS.read_text(encoding="utf-8"))["cases"]
    if case["kind"] == "search_metrics"
]
READER = f"{__name__}:Items"
NAMES = {"ap": "map", "rr": "mrr"}
TABLES: dict[str, Any] = {}
"""What the readers of a test hold, by name."""


class Items(FakeReader):
    """Items with the labels and ids of a table.

    Args:
        table: its name in TABLES.
        named: give each sample two further texts.
    """

    def __init__(self, *, table: str, offset: int = 0, named: bool = False) -> None:
        labels = TABLES[table]
        captions = [[f"picture {offset + n}"] for n in range(len(labels))]
        if named:
            captions = [
                [*own, *(f"picture {n} {k}" for k in "ab")] for n, own in enumerate(captions)
            ]
        super().__init__([int(label) for label in labels], captions, name=table, offset=offset)
        self.text_names = ("answer",) if named else ()

    def id(self, index: int) -> str:
        return f"{['doc', 'd', 'item'][index % 3]}{index}" if self._offset == 0 else f"q{index}"

    def text_span(self, index: int, name: str = "main") -> tuple[int, int]:
        if not self.text_names:
            return super().text_span(index, name)
        return {"main": (0, 1), "answer": (1, 3)}[name]


def sampled(case: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a golden case, as its `recipe` describes them."""
    text = case["inputs"]["recipe"]
    seed = int(text.split("RandomState(")[1].split(")")[0])
    high = int(text.split("randint(-")[1].split(",")[0]) if "randint(-" in text else 0
    rs = np.random.RandomState(seed)
    shape = tuple(map(int, text.split("x = ")[1].split("size=(")[1].split(")")[0].split(",")))

    def rows(shape: tuple[int, ...]) -> np.ndarray:
        found = rs.randint(-high, high + 1, size=shape).astype(float)
        found[(found == 0).all(1)] = 1
        return found

    found = {"x": rows(shape)}
    found["y"] = rs.randint(0, int(text.split("y = rs.randint(0,")[1].split(",")[0]), shape[0])
    if "q = " in text:
        count = int(text.split("q = rs.randint")[1].split("size=(")[1].split(",")[0])
        found["q"] = rows((count, shape[1]))
        found["qy"] = rs.randint(0, int(text.split("qy = rs.randint(0,")[1].split(",")[0]), count)
    else:
        count = int(text.split("first ")[1].split(" ")[0])
    if "grades" in text:
        found["grades"] = rs.randint(0, 4, size=(count, shape[0])) * (
            rs.rand(count, shape[0]) < 0.3
        )
    return {**found, "count": count}


def subject_of(vectors: dict[int, np.ndarray], **keys: Any) -> Subject:
    width = len(next(iter(vectors.values())))
    tower = FakeTower(
        "image", lambda number: torch.tensor(vectors[number], dtype=torch.float32), width
    )
    return Subject(tower, None, **keys)


def run_case(case: dict[str, Any], folder: Path) -> tuple[Result, dict[str, list[str]]]:
    data, inputs = sampled(case), case["inputs"]
    TABLES["index"] = data["y"]
    keys: dict[str, Any] = {"k": inputs["k"], "similarity": inputs["similarity"]}
    vectors = dict(enumerate(data["x"]))
    if "q" in data:
        vectors |= {1000 + n: row for n, row in enumerate(data["q"])}
        TABLES["queries"] = data["qy"]
        keys["data"] = {"reader": READER, "table": "queries", "offset": 1000, "name": "queries"}
        keys["index_data"] = {"reader": READER, "table": "index"}
    else:
        # Only the first rows ask: the others have no label of their own to be asked with.
        keys["data"] = {"reader": READER, "table": "index", "name": "queries"}
    if "grades" in data:
        lines = [
            f"q{n} 0 {['doc', 'd', 'item'][i % 3]}{i} {grade}"
            for n, own in enumerate(data["grades"])
            for i, grade in enumerate(own)
        ]
        (folder / "qrels.txt").write_text("\n".join(lines))
        keys["relevant"] = str(folder / "qrels.txt")
    (result,) = Search(**keys).run(subject_of(vectors, output=folder))
    lists: dict[str, list[str]] = {}
    for line in (folder / "search-queries.run").read_text().splitlines():
        query, _, item, *_ = line.split()
        lists.setdefault(query, []).append(item)
    return result, lists


def test_there_are_five_golden_cases():
    assert len(CASES) == 5


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_golden_case(case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = sampled(case)
    expected = case["expected"]
    if "q" not in data:
        # All rows are the index and the first ones ask.
        grades = Search._grades

        def of_first(self: Search, *words: Any) -> list[dict[int, float]]:
            found = grades(self, *words)
            return [own if n < data["count"] else {} for n, own in enumerate(found)]

        monkeypatch.setattr(Search, "_grades", of_first)
    result, lists = run_case(case, tmp_path)
    assert result.num_items == expected["queries_counted"]
    for name, value in expected["mean"].items():
        kind, at, k = name.partition("@")
        metric = f"{NAMES.get(kind, kind)}{at}{k}"
        assert result.metrics[metric] == pytest.approx(value, rel=1e-6, abs=1e-9), metric
    assert len(result.metrics) == len(expected["mean"])
    first = next(iter(lists.values()))
    ranking = expected["ranking_of_first_query"]
    assert first[: len(ranking)] == ranking


def knowing(width: int = 32) -> Subject:
    def of_text(text: str) -> torch.Tensor:
        return random_feature(width)(int(text.split()[1]))

    return Subject(
        FakeTower("image", random_feature(width), width), FakeTower("text", of_text, width)
    )


def data_of(labels: Sequence[int], table: str = "some", **keys: Any) -> dict[str, Any]:
    TABLES[table] = list(labels)
    return {"reader": READER, "table": table, "name": table, **keys}


def test_texts_find_the_images_of_their_rows_by_default():
    (result,) = Search(data=data_of(range(30)), relevant="row", k=[1, 5]).run(knowing())
    assert result.metrics["recall@1"] == result.metrics["ndcg@5"] == 1
    assert (result.settings["query"], result.settings["index"]) == ("text", "image")
    assert set(result.towers) == {"query", "index"} and result.towers["query"]["name"] == "text"
    assert result.chance["recall@5"] == pytest.approx(5 / 30)


def test_a_named_text_gives_an_item_for_each_wording():
    keys = {"data": data_of(range(10), named=True), "relevant": "row", "k": [2]}
    (result,) = Search(**keys, query="image", index="text@answer").run(knowing())
    assert result.settings["items"] == 20 and result.num_items == 10
    assert result.metrics["recall@2"] == 1


def test_a_query_s_own_item_is_dropped_unless_it_is_included():
    keys = {"data": data_of([0, 0, 1, 1, 2]), "query": "image", "index": "image", "k": [1]}
    (auto,) = Search(**keys).run(knowing())
    (kept,) = Search(**keys, self_match="keep").run(knowing())
    assert (auto.num_items, auto.num_skipped) == (4, 1)
    assert (kept.num_items, kept.num_skipped) == (5, 0)
    assert kept.metrics["hit@1"] == 1 and kept.metrics["recall@1"] == pytest.approx(0.6)
    assert auto.protocol == "exact_cosine_own_item_left_out" and kept.protocol == "exact_cosine"


def test_with_too_many_relevant_items_what_is_based_on_their_number_is_left_out(
    monkeypatch, capsys
):
    monkeypatch.setattr("vlkd_cli.evaluation.suites.search.MOST_RELEVANT", 3)
    keys = {"data": data_of([0] * 6), "query": "image", "index": "image", "k": [2]}
    (result,) = Search(**keys).run(knowing())
    assert "r_precision" not in result.metrics and "map@2" in result.metrics
    assert (
        "a query has 5 relevant items, so r_precision and map_at_r are" in capsys.readouterr().err
    )


def test_examples_are_written_with_what_was_found(tmp_path: Path):
    own = replace(knowing(), output=tmp_path)
    Search(data=data_of(range(8)), relevant="row", k=[3], examples=2).run(own)
    lines = (tmp_path / "search-some-examples.jsonl").read_text().splitlines()
    assert len(lines) == 2
    first = json.loads(lines[0])
    assert first["found"][0]["id"] == first["relevant"][0] == "doc0"
    assert first["found"][0]["grade"] == 1.0 and len(first["found"]) == 3


def test_classes_of_two_data_sets_are_matched_by_name(monkeypatch):
    def named(self: Items) -> list[str]:
        return ["a", "b"] if self._offset == 0 else ["b", "a"]

    monkeypatch.setattr(Items, "classes", property(named, lambda self, value: None))
    keys = {
        "data": data_of([0, 1], "asked", offset=10),
        "index_data": data_of([1, 0, 0], "searched"),
        "query": "image",
        "index": "image",
        "k": [1],
        "relevant": "label",
    }
    opened = Search(**keys).open(knowing())
    # Label 0 of the queries is "b", which is label 1 of the index.
    assert [sorted(own) for own in opened.grades] == [[0], [1, 2]]


def everything(folder: str) -> Any:
    TABLES["some"] = [n % 7 for n in range(300)]
    keys = {"data": {"reader": READER, "table": "some"}, "query": "image", "index": "image"}
    (result,) = Search(**keys, k=[1, 10]).run(knowing(4))
    return result.metrics


@pytest.mark.slow
def test_any_number_of_ranks_gives_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("vlkd_cli.evaluation.search_sides.ROWS_AT_ONCE", 64)
    expected = everything("")
    for metrics in run_on_ranks(everything, 2, str(tmp_path)):
        assert metrics == expected


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"query": "picture"}, "query: no tower 'picture'. Towers: image, text"),
        ({"index": "image.tokens"}, "'image.tokens' is not tower, tower.backbone or tower@TEXT"),
        ({"index": "image.2"}, "index: 'image.2' is not"),
        ({"index": "text@answr"}, "the data has no text 'answr'"),
        ({"query": "image", "query_prompt": "a "}, "query_prompt has no effect on tower 'image'"),
        ({"index": "image@b"}, "@b has no effect on tower 'image'"),
        ({"self_match": "drop"}, "self_match: drop has no effect"),
        ({"relevant": "gone.tsv"}, "relevant: gone.tsv: no such file. Use label, row, or a file"),
        ({"k": [0]}, "k is at least 1"),
        ({"gain": "binary"}, "gain has no effect with relevant: label"),
        ({"data": data_of([-1, -1], "none")}, "'none' has no labels"),
        ({"data": data_of([1, 2, 3], "lonely"), "query": "image"}, "no query of 'lonely' has"),
        (
            {"relevant": "row", "index_data": data_of([1], "other", offset=5)},
            "relevant: row needs the same data on both sides",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(keys: dict[str, Any], line: str):
    keys = {"data": data_of([0, 0, 1, 1]), **keys}
    with pytest.raises(UserError) as error:
        Search(**keys).open(knowing())
    assert line in str(error.value) and "\n" not in str(error.value)
