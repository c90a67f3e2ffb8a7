"""Search images, texts or other samples in an index of them, and measure the ranked lists."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli import console
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.distributed.runtime import is_main
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.dataset import Dataset, open_dataset
from vlkd_cli.evaluation.datasets.qrels import read_qrels
from vlkd_cli.evaluation.metrics.ranking import (
    KINDS,
    R_KINDS,
    Gain,
    list_chance,
    list_metrics,
    mean_of,
)
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.search_sides import Side, open_side, search_rows, side_addresses
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.evaluation.trec import write_run
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource, NonNegativeInt, PositiveInt

MOST_RELEVANT = 1000
"""With more relevant items for a query, metrics that look at that many ranks are left out."""
USUAL_K = 10


class Opened(NamedTuple):
    """Queries, index, and what belongs to each query.

    Args:
        grades: of each query, positions in the index to grades; all above 0.
        own: of each query, the position that is dropped from its list, or -1.
    """

    queries: Side
    items: Side
    grades: list[dict[int, float]]
    own: NDArray[np.int64]
    identity: DataIdentity


class Search(Suite):
    """Search an index with queries: precision, recall, f1, hits, mean average precision, mean
    reciprocal rank, dcg and ndcg at each k, R-precision and map_at_r.

    Each sample of a tower for images is an item; of a tower for texts, each text of the name in
    the address. The search is exact; items of equal score are ordered by their ids as text,
    descending. Queries without a relevant item do not count and are reported as skipped.

    Args:
        data: the queries, `{reader: ..., ...}` or the name of a data set.
        index_data: what is searched; by default the same data.
        query: address of the queries, `tower[.backbone][@text]`; by default the only tower, else
            the text tower.
        index: address of the index; by default the only tower, else the image tower.
        relevant: which items are: those of the query's `label`, those of its own `row`, or those
            that a file of judgments names (BEIR's or TREC's format, over the readers' ids).
        k: the cut-offs.
        similarity: of queries and items.
        self_match: whether a query's own item is dropped from its list and from its relevant ones;
            `auto`: where both sides are the same rows and address.
        gain: of dcg and ndcg: `linear` is the grade, `binary` is 1.
        query_prompt: put before every text of the queries.
        index_prompt: put before every text of the index.
        examples: write the lists of so many queries as `search-NAME-examples.jsonl`.

    Source: trec_eval and BEIR (Thakur et al. 2021) for the measures; map_at_r of Musgrave et al.,
        A Metric Learning Reality Check, ECCV 2020.
    """

    modalities = frozenset()
    data_keys = frozenset({"data", "index_data"})
    report_keys = frozenset({"examples"})
    address_keys: ClassVar[tuple[str, ...]] = ("query", "index")

    def __init__(
        self,
        *,
        data: DataSource = None,
        index_data: DataSource = None,
        query: str | None = None,
        index: str | None = None,
        relevant: str = "label",
        k: list[PositiveInt] | None = None,
        similarity: Literal["cosine", "dot"] = "cosine",
        self_match: Literal["auto", "keep", "drop"] = "auto",
        gain: Gain = "linear",
        query_prompt: str = "",
        index_prompt: str = "",
        examples: NonNegativeInt = 0,
    ) -> None:
        self.data, self.index_data, self.relevant = data, index_data, relevant
        self.query, self.index = query, index
        self.k = sorted(set(k or (1, 5, 10, 20)))
        if self.k[0] < 1 or examples < 0:
            raise RecipeError("suite 'search': k is at least 1, and examples at least 0.")
        self.similarity, self.self_match, self.gain = similarity, self_match, gain
        self.query_prompt, self.index_prompt = query_prompt, index_prompt
        self.examples = examples
        self._judged_by_file = relevant not in ("label", "row")
        if gain == "binary" and not self._judged_by_file:
            raise RecipeError(
                f"suite 'search': gain has no effect with relevant: {relevant}, whose grades are 1."
                " Leave it out."
            )

    def open(self, subject: Subject) -> Opened:
        """Both sides with their texts, and the relevant items of each query."""
        query, index = side_addresses(subject, self.query, self.index)
        data = open_dataset(subject, self.data)
        searched = data if self.index_data is None else open_dataset(subject, self.index_data)
        queries = open_side(subject, query, data.reader, self.query_prompt, "query_prompt")
        items = open_side(subject, index, searched.reader, self.index_prompt, "index_prompt")
        is_same = data.row_hash == searched.row_hash
        own = np.full(len(queries.ids), -1, dtype=np.int64)
        if self._drops(is_same and query == index, query == index):
            own = np.arange(len(queries.ids))
        grades = self._grades(data, searched, queries, items, is_same)
        for each, position in zip(grades, own.tolist(), strict=True):
            each.pop(position, None)
        if not any(grades):
            raise DataError(
                f"suite 'search': no query of '{data.name}' has a relevant item ({self.relevant})."
                " Check `relevant:` and the data."
            )
        hashes = {"rows": data.row_hash, "index_rows": searched.row_hash}
        if self._judged_by_file:
            hashes["judgments"] = read_qrels(Path(self.relevant)).digest
        classes = data.reader.classes if self.relevant == "label" else None
        identity = DataIdentity(data.name, data.split, hashes, len(classes) if classes else None)
        return Opened(queries, items, grades, own, identity)

    def identity(self, opened: Opened) -> DataIdentity:
        return opened.identity

    def measures(self, opened: Opened) -> Measures:
        names = [f"{kind}@{k}" for k in self.k for kind in KINDS]
        return Measures([opened.identity.dataset], [*names, *R_KINDS])

    def run(self, subject: Subject) -> list[Result]:
        opened = self.open(subject)
        queries, items, grades = opened.queries, opened.items, opened.grades
        asked = [n for n, own in enumerate(grades) if own]
        largest = max(len(grades[n]) for n in asked)
        r_based = largest <= MOST_RELEVANT
        if not r_based and is_main():
            console.warn(
                f"search: a query has {largest:,} relevant items, so {' and '.join(R_KINDS)} are"
                f" left out (at most {MOST_RELEVANT:,})."
            )
        depth = max(self.k[-1], largest if r_based else 0) + 1
        scores, found = search_rows(subject, queries, items, depth, self.similarity)
        lists = {
            n: [
                (position, score)
                for position, score in zip(found[n].tolist(), scores[n].tolist(), strict=True)
                if position != opened.own[n]
            ][: depth - 1]
            for n in asked
        }
        if subject.output is not None and is_main():
            self._write(Path(subject.output), opened, lists)
        rows = [self._measured(lists[n], grades[n], r_based) for n in asked]
        dropped = opened.own >= 0
        counts = [len(items.ids) - int(dropped[n]) for n in asked]
        gains = [self._gains(grades[n].values()) for n in asked]
        chance = [
            list_chance(own, count, self.k, r_based=r_based)
            for own, count in zip(gains, counts, strict=True)
        ]
        nearest = min(self.k, key=lambda k: (abs(k - USUAL_K), k))
        result = self.result(
            subject,
            opened.identity,
            protocol=f"exact_{self.similarity}"
            + ("_own_item_left_out" if opened.own.max() >= 0 else ""),
            metrics=mean_of(rows),
            primary_metric=f"ndcg@{nearest}",
            chance=mean_of(chance),
            num_items=len(asked),
            num_skipped=len(grades) - len(asked),
            settings={
                "k": self.k,
                "query": str(queries.address),
                "index": str(items.address),
                "items": len(items.ids),
                "ties": "score, then id as text, descending",
            },
            towers={"query": queries.tower, "index": items.tower},
        )
        return [result]

    def _drops(self, is_same_items: bool, is_same_address: bool) -> bool:
        if self.self_match == "drop" and not is_same_items:
            raise RecipeError(
                "suite 'search': self_match: drop has no effect where queries and index are not the"
                " same rows and address. Leave it out."
            )
        return is_same_items and self.self_match != "keep"

    def _grades(
        self, data: Dataset, searched: Dataset, queries: Side, items: Side, is_same: bool
    ) -> list[dict[int, float]]:
        """Of each query, the grades of its relevant items by their positions in the index."""
        if self._judged_by_file:
            return _judged(Path(self.relevant), queries, items)
        if self.relevant == "row":
            if not is_same:
                raise RecipeError(
                    "suite 'search': relevant: row needs the same data on both sides. Leave"
                    " index_data out."
                )
            return _equal(queries.owner, items.owner)
        return _equal(*_labels(data, searched, queries, items))

    def _gains(self, grades: Iterable[float]) -> NDArray[np.float64]:
        found = np.fromiter(grades, dtype=np.float64)
        return (found > 0).astype(np.float64) if self.gain == "binary" else found

    def _measured(
        self, ranked: Sequence[tuple[int, float]], grades: Mapping[int, float], r_based: bool
    ) -> dict[str, float]:
        gains = self._gains(grades.get(position, 0.0) for position, _ in ranked)
        return list_metrics(gains, self._gains(grades.values()), self.k, r_based=r_based)

    def _write(
        self, folder: Path, opened: Opened, lists: Mapping[int, Sequence[tuple[int, float]]]
    ) -> None:
        """The ranked lists in TREC's format, and examples."""
        ids, asked = opened.items.names(), opened.queries.names()
        name = f"search-{opened.identity.dataset}"
        write_run(
            folder / f"{name}.run",
            {asked[n]: [(ids[row], score) for row, score in own] for n, own in lists.items()},
        )
        if not self.examples:
            return
        lines = []
        for n in list(lists)[: self.examples]:
            found = [
                {"id": ids[row], "score": score, "grade": opened.grades[n].get(row, 0.0)}
                for row, score in lists[n][: self.k[-1]]
            ]
            relevant = [ids[row] for row in list(opened.grades[n])[:USUAL_K]]
            lines.append(json.dumps({"query": asked[n], "relevant": relevant, "found": found}))
        (folder / f"{name}-examples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _equal(queries: NDArray[np.int64], items: NDArray[np.int64]) -> list[dict[int, float]]:
    """Of each query, the items of equal value; values below 0 equal nothing."""
    order = np.argsort(items, kind="stable")
    ordered = items[order]
    first = np.searchsorted(ordered, queries, side="left")
    stop = np.searchsorted(ordered, queries, side="right")
    return [
        dict.fromkeys(order[a:b].tolist(), 1.0) if value >= 0 else {}
        for value, a, b in zip(queries.tolist(), first.tolist(), stop.tolist(), strict=True)
    ]


def _labels(
    data: Dataset, searched: Dataset, queries: Side, items: Side
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels of queries and items, by name where both data sets name their classes."""

    def labels(reader: Reader, side: Side) -> NDArray[np.int64]:
        found: NDArray[np.int64] = reader.labels_of(np.arange(len(reader)))[side.owner]
        if (found < 0).all():
            raise DataError(
                f"suite 'search': '{data.name}' has no labels. Give its reader a label, or set"
                " relevant: row or a file of judgments."
            )
        return found

    asked, own = labels(data.reader, queries), labels(searched.reader, items)
    names, other = data.reader.classes, searched.reader.classes
    if names and other and list(names) != list(other):
        number = {name: n for n, name in enumerate(names)}
        table = np.array([number.get(name, -1) for name in other], dtype=np.int64)
        own = np.where(own < 0, -1, table[own.clip(min=0)])
    return asked, own


def _judged(path: Path, queries: Side, items: Side) -> list[dict[int, float]]:
    """Grades out of a file of judgments."""
    judged = read_qrels(path).grades
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(items.ids):
        positions.setdefault(name, []).append(position)
    return [
        {
            position: grade
            for name, grade in judged.get(query, {}).items()
            if grade > 0
            for position in positions.get(name, ())
        }
        for query in queries.ids
    ]
