"""What miners and scorers read: the queries, the passages and the towers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli.data.files.fingerprints import file_digest
from vlkd_cli.data.files.passage_table import PassageTable, TextsById
from vlkd_cli.data.files.passages import (
    Collection,
    Judged,
    collection_root,
    open_collection,
    read_judgments,
)
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.passage_search import fingerprint_of, search, stored_passages
from vlkd_cli.evaluation.run import with_tower
from vlkd_cli.features.encode import normalize, project_texts
from vlkd_cli.features.subject import Subject
from vlkd_cli.features.table import projected_blocks, text_table
from vlkd_cli.recipe.schema import SynthesisSpec

if TYPE_CHECKING:
    from vlkd_cli.features.store import FeatureStore


@dataclass
class Sources:
    """The texts of a collection, and the towers that read them.

    Args:
        collection: whose files they are.
        table: queries and passages by position.
        files: sha256 of the collection's files, by what they hold: corpus, queries, judgments.
        title: whether titles are part of the passages.
        judged: query id -> passage id -> grade; empty where no judgments are read.
        min_grade: the smallest grade of a passage that answers its query.
        subject: towers, device and cache folder.
        similarity: by which towers compare.
    """

    collection: Collection
    table: PassageTable
    files: Mapping[str, str]
    title: bool
    judged: Judged
    min_grade: float
    subject: Subject
    similarity: Literal["cosine", "dot"]

    @property
    def queries(self) -> TextsById:
        """The queries by position."""
        return self.table.queries

    @property
    def passages(self) -> TextsById:
        """The passages by position."""
        return self.table.passages

    @functools.cached_property
    def blank(self) -> NDArray[np.int64]:
        """Positions of passages without text, which no query can mean."""
        return self.passages.blank()

    def query_vectors(self, tower: str) -> Tensor:
        """The tower's vectors of the queries, `[Q, D]` float32, not normalized, the same on every
        rank."""
        subject = with_tower(self.subject, tower)
        texts = [self.queries[position] for position in range(len(self.queries))]
        # Whole windows: the numbers do not depend on interruptions.
        table = text_table(subject, texts, whole=True)
        return torch.cat(list(projected_blocks(subject, table, table.wanted)))

    def nearest(self, tower: str, depth: int) -> NDArray[np.int64]:
        """Positions of the best passages of every query, `[Q, min(depth, N)]`, the same on every
        rank: by score, then id, descending."""
        _, keys = search(
            with_tower(self.subject, tower),
            self.query_vectors(tower),
            self.passages,
            depth,
            similarity=self.similarity,
            fingerprint=self._fingerprint(),
        )
        return self.passages.of_keys(keys)

    def passage_features(self, tower: str) -> FeatureStore:
        """The backbone's features of all passages, in the cache folder."""
        subject = with_tower(self.subject, tower)
        return stored_passages(subject, self.passages, fingerprint=self._fingerprint())

    def projected(self, tower: str, features: Tensor) -> Tensor:
        """Features of the backbone through the tower's head, ready to be compared."""
        return self.comparable(project_texts(with_tower(self.subject, tower), features))

    def comparable(self, vectors: Tensor) -> Tensor:
        """Vectors whose inner products are the similarity."""
        return normalize(vectors) if self.similarity == "cosine" else vectors

    def _fingerprint(self) -> str:
        return fingerprint_of(self.files["corpus"], title=self.title)


def open_sources(spec: SynthesisSpec, subject: Subject) -> Sources:
    """The texts that a recipe's section `synthesis` names.

    Raises:
        DataError: they cannot be read.
    """
    keys = spec.data
    root, title = collection_root(str(keys["path"])), bool(keys.get("title", True))
    is_judged = spec.positive == "judged"
    split = keys.get("split") or ("train" if is_judged else None)
    collection = open_collection(root, split, judged=is_judged)
    table = PassageTable(collection, title=title)
    for name, texts in ((collection.queries, table.queries), (collection.corpus, table.passages)):
        _check_ids(texts, str(collection.root / name))
    names = frozenset(table.queries.id_of(position) for position in range(len(table.queries)))
    roles = ("corpus", "queries", "judgments")
    files = {role: getattr(collection, role) for role in roles}
    return Sources(
        collection=collection,
        table=table,
        files={role: file_digest(collection.root / name) for role, name in files.items() if name},
        title=title,
        judged=read_judgments(collection, names) if is_judged else {},
        min_grade=float(keys.get("min_grade", 1)),
        subject=subject,
        similarity=spec.similarity,
    )


def _check_ids(texts: TextsById, file: str) -> None:
    """Ids that a line of cells can hold."""
    for mark in (b"\t", b"\n", b"\r"):
        found = np.flatnonzero(np.char.find(texts.ids, mark) >= 0)
        if len(found):
            raise DataError(
                f"{file}: id {texts.id_of(int(found[0]))!r} holds a tab or a line break, which a"
                " file of relations cannot. Rename it."
            )
