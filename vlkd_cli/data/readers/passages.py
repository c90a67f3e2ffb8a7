"""Queries with passages: the judged pairs of a collection, or the triplets of `vlkd synthesize`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli import console
from vlkd_cli.data.files.fingerprints import digest_of, file_digest
from vlkd_cli.data.files.named_texts import MAIN
from vlkd_cli.data.files.passage_table import PassageTable, TextsById
from vlkd_cli.data.files.passages import Collection, collection_root, open_collection
from vlkd_cli.data.files.passages import read_judgments as read_grades
from vlkd_cli.data.files.relations import read_page, read_relations
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError
from vlkd_cli.recipe.types import Positive


class _Rows(NamedTuple):
    """Positions of query, positive and (of triplets) negative, `[N, 2]` or `[N, 3]` int32, and the
    margins `[N]` float32 of triplets."""

    positions: NDArray[np.int32]
    margins: NDArray[np.float32] | None = None


class Passages(Reader):
    """Queries, each with a passage that answers it (`text@positive`) and, of triplets, one that
    does so less (`text@negative`); the margin between the two is the sample's target.

    Args:
        path: a folder in BEIR's format (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), with MS
            MARCO's files, or with a text on each line (corpus.txt, queries.txt).
        relations: relations.tsv of `vlkd synthesize`, whose triplets are the samples; null: the
            judged pairs are.
        split: of the judgments, `train` by default.
        title: put a passage's title before its text.
        min_grade: the smallest grade of a judged pair.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"text"})
    offers_by_key: ClassVar[Mapping[str, str]] = {"relations": "target"}
    text_views: ClassVar[tuple[str, ...]] = ("positive",)
    text_views_by_key: ClassVar[Mapping[str, tuple[str, ...]]] = {"relations": ("negative",)}
    no_effect_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"relations": ("split", "min_grade")}

    def __init__(
        self,
        *,
        path: str,
        relations: str | None = None,
        split: str | None = None,
        title: bool = True,
        min_grade: Positive = 1,
    ) -> None:
        root = collection_root(path)
        collection = open_collection(
            root, None if relations else split or "train", judged=relations is None
        )
        self._table = PassageTable(collection, title=title)
        if relations is None:
            self._source = root / collection.judgments
            self._rows = _judged(collection, self._table, min_grade)
        else:
            self._source = Path(relations)
            self._rows = _related(self._source, collection, self._table)
        self.text_names = ("positive", "negative")[: self._rows.positions.shape[1] - 1]
        self.num_targets = 0 if self._rows.margins is None else 1

    def __len__(self) -> int:
        return len(self._rows.positions)

    def image(self, index: int) -> None:
        return None

    def captions(self, index: int) -> Sequence[str]:
        query, *passages = self._rows.positions[index].tolist()
        texts = [self._table.passages[position] for position in passages]
        return [self._table.queries[query], *texts]

    def text_span(self, index: int, name: str = MAIN) -> tuple[int, int]:
        first = (MAIN, *self.text_names).index(name) if name != MAIN else 0
        return first, first + 1

    def targets_of(self, indices: np.ndarray) -> np.ndarray:
        margins = self._rows.margins
        return super().targets_of(indices) if margins is None else margins[indices][:, None]

    def name(self, index: int) -> str:
        return f"{self._source}: pair {index + 1} (query '{self.id(index)}')"

    def id(self, index: int) -> str:
        return self._table.queries.id_of(int(self._rows.positions[index, 0]))

    def caption_start(self, index: int) -> int:
        return index * (1 + len(self.text_names))

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        starts: np.ndarray = np.asarray(indices, dtype=np.int64) * (1 + len(self.text_names))
        return starts

    def fingerprint(self) -> str:
        arrays = [array.tobytes() for array in self._rows if array is not None]
        rows = [hashlib.blake2b(array, digest_size=16).hexdigest() for array in arrays]
        return digest_of("passages", self._table.digest(), rows)


def _judged(collection: Collection, table: PassageTable, min_grade: float) -> _Rows:
    """The pairs of the judgments, in the file's order."""
    names = [table.queries.id_of(position) for position in range(len(table.queries))]
    judged = read_grades(collection, frozenset(names))
    pairs = [
        (query, passage)
        for query, grades in judged.items()
        for passage, grade in grades.items()
        if grade >= min_grade
    ]
    queries = table.queries.positions([query for query, _ in pairs])
    passages = table.passages.positions([passage for _, passage in pairs])
    known = (queries >= 0) & (passages >= 0)
    if not known.any():
        raise DataError(
            f"{collection.root / collection.judgments}: no pair with a grade of at least"
            f" {min_grade:g} has both texts in {collection.root}. Lower data.min_grade, or check"
            " data.path."
        )
    if not known.all():
        first = pairs[int(np.flatnonzero(~known)[0])]
        console.warn_once(
            f"{collection.root / collection.judgments}: {(~known).sum()} pairs are left out, since"
            f" a text of theirs is missing, e.g. {' '.join(first)}."
        )
    return _Rows(np.stack([queries[known], passages[known]], axis=1).astype(np.int32))


def _related(path: Path, collection: Collection, table: PassageTable) -> _Rows:
    """The triplets of a file of relations.

    Raises:
        DataError: it is damaged, or of another collection.
    """
    page = read_page(path)
    if page is not None:
        for role in ("corpus", "queries"):
            file = collection.root / getattr(collection, role)
            if page["files"].get(role) != file_digest(file):
                raise _foreign(path, collection.root, f"{file.name} differs", page["path"])
    found = read_relations(path)
    sides: tuple[tuple[TextsById, list[str]], ...] = (
        (table.queries, found.queries),
        (table.passages, found.positives),
        (table.passages, found.negatives),
    )
    columns = []
    for texts, ids in sides:
        positions = texts.positions(ids)
        if (positions < 0).any():
            row = int(np.flatnonzero(positions < 0)[0])
            what = f"line {row + 2} names '{ids[row]}', which is not there"
            raise _foreign(path, collection.root, what, None if page is None else page["path"])
        columns.append(positions)
    return _Rows(np.stack(columns, axis=1).astype(np.int32), np.array(found.margins, np.float32))


def _foreign(path: Path, root: Path, what: str, origin: str | None) -> DataError:
    made = "the folder they were made from" if origin is None else origin
    return DataError(
        f"data.relations {path}: made from another collection than {root}: {what}. Set data.path to"
        f" {made}, or run `vlkd synthesize` again."
    )
