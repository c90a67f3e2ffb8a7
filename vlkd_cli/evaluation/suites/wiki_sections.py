"""Triplets of Wikipedia sections: is a sentence closer to one of its own section than to one of
another section of the article?"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from vlkd_cli.data.files.texts import read_text
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.text_files import file_hashes, find_folder
from vlkd_cli.evaluation.metrics.correlation import SIMILARITIES
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.sentence_encoder import SentenceEncoder
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import Point
from vlkd_cli.features.subject import Subject

_COLUMNS = (("Sentence1", "Sentence2", "Sentence3"), ("anchor", "positive", "negative"))

Triplet = tuple[str, str, str]


class WikiSections(Suite):
    """Fraction of triplets whose anchor is more similar to the sentence of its own section; a tie
    is wrong.

    Args:
        data: folder with `test.csv` (`validation.csv`, `train.csv`): comma-separated with a header,
            columns Sentence1 (anchor), Sentence2 (same section), Sentence3 (other section), or
            anchor, positive, negative. By default `--data`.
        split: which of the files.
        limit: only the first so many triplets (some published figures used 1,000); by default all.
        similarity: `max` is the best of cosine, Euclid and Manhattan, which sentence-transformers
            before 3.0 returned.
        margin: by how much the positive must be more similar.
        features: features after the head, or before it.

    Source: Ein Dor et al., Learning Thematic Similarity Metric from Article Sections Using Triplet
    Networks, ACL 2018; measured by sentence-transformers' TripletEvaluator.
    """

    modalities = frozenset({"text"})
    libraries = ("sentence-transformers",)

    def __init__(
        self,
        *,
        data: str | None = None,
        split: Literal["test", "validation", "train"] = "test",
        limit: int | None = None,
        similarity: Literal["cosine", "dot", "euclidean", "manhattan", "max"] = "cosine",
        margin: float = 0.0,
        features: Literal["head", "backbone"] = "head",
    ) -> None:
        if limit is not None and limit < 1:
            raise RecipeError("suite 'wiki_sections': limit must be at least 1.")
        self.data, self.split, self.limit = data, split, limit
        self.similarity, self.margin = similarity, margin
        self.features: Point = features

    def open(self, subject: Subject) -> tuple[Path, list[Triplet]]:
        """The file and its triplets."""
        file = f"{self.split}.csv"
        below = ("wiki_sections", "wikipedia-sections-triplets", "wikipedia-sections", "wiki")
        root = find_folder(subject, self.data, "wiki_sections", holds=(file,), below=below)
        return root / file, read_triplets(root / file, self.limit)

    def measures(self, opened: tuple[Path, list[Triplet]]) -> Measures:
        return Measures(["wikipedia-sections"], ["accuracy"])

    def run(self, subject: Subject) -> list[Result]:
        path, triplets = self.open(subject)
        from sentence_transformers.sentence_transformer.evaluation import TripletEvaluator

        kinds = [
            kind
            for kind in SIMILARITIES
            if kind == self.similarity or (self.similarity == "max" and kind != "dot")
        ]
        anchors, positives, negatives = (list(column) for column in zip(*triplets, strict=True))
        encoder = SentenceEncoder(
            subject, [text for triplet in triplets for text in triplet], point=self.features
        )
        evaluator = TripletEvaluator(
            anchors,
            positives,
            negatives,
            margin=self.margin,
            write_csv=False,
            similarity_fn_names=list(kinds),
        )
        found = evaluator(encoder)
        accuracies = {kind: float(found[f"{kind}_accuracy"]) for kind in kinds}
        split = self.split if self.limit is None else f"{self.split}[:{self.limit}]"
        return [
            self.result(
                subject,
                DataIdentity("wikipedia-sections", split, file_hashes(path.parent, [path.name])),
                protocol=f"triplet_{self.similarity}",
                metrics={"accuracy": max(accuracies.values())},
                primary_metric="accuracy",
                chance={"accuracy": 0.5},
                num_items=len(triplets),
                details={"accuracy": accuracies},
            )
        ]


def read_triplets(path: Path, limit: int | None = None) -> list[Triplet]:
    """Anchor, positive and negative of every row.

    Raises:
        DataError: unreadable, columns are missing, a row is short, or there are no rows.
    """
    triplets: list[Triplet] = []
    with _opened(path) as rows:
        header = next(rows, [])
        names = next((names for names in _COLUMNS if set(names) <= set(header)), None)
        if names is None:
            found = ", ".join(header) or "nothing"
            raise DataError(
                f"{path}:1: the header should have the columns {', '.join(_COLUMNS[0])}; it has"
                f" {found}."
            )
        first, second, third = (header.index(name) for name in names)
        for line_number, row in enumerate(rows, start=2):
            if not row:
                continue
            if limit is not None and len(triplets) == limit:
                break
            if len(row) < len(header):
                raise DataError(
                    f"{path}: row {line_number} has {len(row)} fields; expected {len(header)}."
                )
            triplets.append((row[first], row[second], row[third]))
    if not triplets:
        raise DataError(f"{path}: holds no triplets.")
    return triplets


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[list[str]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield csv.reader(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        # The table is read in pieces, and the error counts from the start of one of them.
        read_text(path)
        raise
    except csv.Error as error:
        raise DataError(
            f"{path}: is not a comma-separated table: {error}. Restore the original file."
        ) from error
