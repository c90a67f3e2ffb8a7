"""Passage collections on disk: MS MARCO's files, BEIR folders and plain lines, read in pieces
whatever their size."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.data.files.texts import (
    clean_text,
    decode_text,
    kind_of,
    number,
    parse_json,
    read_lines,
)
from vlkd_cli.errors import DataError

MARCO = ("collection.tsv", "queries.dev.small.tsv")
BEIR = ("corpus.jsonl", "queries.jsonl")
LINES = ("corpus.txt", "queries.txt")
"""A text on each line; its id is the number of the line, from 1."""

Judged = dict[str, dict[str, float]]


class Undecoded(NamedTuple):
    """A passage of MS MARCO, or a line, as its file holds it."""

    line: int
    text: bytes


Passage = Undecoded | dict[str, str]
"""A passage as it is read: text that is decoded where it is wanted, or a record of BEIR."""


class Collection(NamedTuple):
    """Which files hold what.

    Args:
        name: of the data set.
        split: of the judgments.
        root: the folder.
        corpus: the passages' file below it.
        queries: the queries' file.
        judgments: the judgments' file; empty where none are read.
        restricted: the judgments cover other queries too, which are left out.
    """

    name: str
    split: str
    root: Path
    corpus: str
    queries: str
    judgments: str
    restricted: bool = False

    @property
    def is_marco(self) -> bool:
        return self.corpus == MARCO[0]

    @property
    def is_lines(self) -> bool:
        return self.corpus == LINES[0]

    @property
    def files(self) -> list[str]:
        return [name for name in (self.corpus, self.queries, self.judgments) if name]


def collection_root(path: str) -> Path:
    """The folder of a collection.

    Raises:
        DataError: it holds none.
    """
    root = Path(path)
    if not any((root / files[0]).is_file() for files in (BEIR, MARCO, LINES)):
        raise DataError(
            f"data.path {path}: holds no {BEIR[0]}, {MARCO[0]} or {LINES[0]}. Name the folder"
            " of the passages."
        )
    return root


def open_collection(root: Path, split: str | None, *, judged: bool = True) -> Collection:
    """The files of a folder.

    MS MARCO: `collection.tsv`, `queries.dev.small.tsv` and `qrels.dev.small.tsv`, or the full
        `qrels.dev.tsv`, of which the small queries'
    judgments are used. BEIR: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`, in BEIR's format
    or trec_eval's. Plain lines:
    `corpus.txt`, `queries.txt`, `qrels/SPLIT.tsv` with the numbers of the lines.

    Args:
        split: of the judgments; by default dev.small (MS MARCO), else test, else dev.
        judged: false: no judgments are read, and their file need not be there.

    Raises:
        DataError: files are missing; all are named.
    """
    if (root / MARCO[0]).is_file():
        part = split or "dev.small"
        names = [f"queries.{part}.tsv", f"qrels.{part}.tsv"]
        full = "qrels.dev.tsv"
        restricted = judged and (
            part == "dev.small" and not (root / names[1]).is_file() and (root / full).is_file()
        )
        judgments = (full if restricted else names[1]) if judged else ""
        _insist_on(root, [names[0], *filter(None, [judgments])])
        return Collection(root.name, part, root, MARCO[0], names[0], judgments, restricted)
    part = split or next(
        (name for name in ("test", "dev") if (root / f"qrels/{name}.tsv").is_file()), "test"
    )
    corpus, queries = LINES if (root / LINES[0]).is_file() else BEIR
    judgments = f"qrels/{part}.tsv" if judged else ""
    there = ", ".join(sorted(path.stem for path in (root / "qrels").glob("*.tsv"))) or "none"
    files = [corpus, queries, *filter(None, [judgments])]
    _insist_on(root, files, f" Splits with judgments: {there}." if judged else "")
    return Collection(root.name, part, root, corpus, queries, judgments)


def _insist_on(root: Path, files: Sequence[str], remedy: str = "") -> None:
    missing = [name for name in files if not (root / name).is_file()]
    if missing:
        raise DataError(f"{root} lacks {', '.join(missing)}.{remedy}")


def read_queries(collection: Collection) -> dict[str, str]:
    """Query id -> text."""
    path = collection.root / collection.queries
    queries: dict[str, str] = {}
    for line_number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        if collection.is_marco:
            query, tab, text = line.partition("\t")
            if not tab:
                raise DataError(f"{path}:{line_number}: expected a query id, a TAB and the query.")
        elif collection.is_lines:
            query, text = str(line_number), line
        else:
            record = _record(line, path, line_number)
            query, text = record["_id"], record["text"]
        query = query.strip()
        if query in queries:
            raise DataError(f"{path}:{line_number}: query id '{query}' occurs more than once.")
        queries[query] = text.strip()
    return queries


def read_judgments(collection: Collection, queries: Container[str]) -> Judged:
    """Query id -> passage id -> grade, of queries that have a relevant passage.

    Raises:
        DataError: a line is malformed, no passage is relevant, or no judged query has a text.
    """
    path = collection.root / collection.judgments
    judged: Judged = {}
    for line_number, line in enumerate(read_lines(path), start=1):
        # BEIR's fields are separated by TABs, so that its ids may hold blanks; trec_eval's by
        # blanks of any kind.
        cells = line.split("\t" if "\t" in line and not collection.is_marco else None)
        if not cells or (
            not collection.is_marco and line_number == 1 and not _is_number(cells[-1])
        ):
            continue
        # trec_eval's lines, as MS MARCO's, have a 0 between query and passage.
        has_zero = collection.is_marco or (len(cells) == 4 and cells[1].strip() in ("0", "Q0"))
        if len(cells) < (4 if has_zero else 3):
            expected = "qid 0 pid grade" if has_zero else "query-id corpus-id score"
            raise DataError(f"{path}:{line_number}: has {len(cells)} fields; expected {expected}.")
        query, (passage, grade) = cells[0].strip(), cells[1 + has_zero : 3 + has_zero]
        if not collection.restricted or query in queries:
            found = number(grade, path, line_number, "the grade")
            judged.setdefault(query, {})[passage.strip()] = found
    judged = {
        query: grades
        for query, grades in judged.items()
        if any(grade > 0 for grade in grades.values())
    }
    if not judged:
        raise DataError(f"{path}: judges no passage of these queries relevant.")
    if not any(query in queries for query in judged):
        raise DataError(
            f"{path}: judges queries that {collection.queries} has no text for, such as"
            f" '{next(iter(judged))}'."
        )
    return judged


class Corpus:
    """The passages that are searched, by position; texts are read from disk whenever they are
    needed.

    Args:
        collection: their folder and files.
        title: put a passage's title before its text (BEIR).
        keep: ids that are included whatever `limit` is, `[K]` bytes.
        limit: number of passages in total: those of `keep` and the first of the others; None: all.
    """

    def __init__(
        self,
        collection: Collection,
        *,
        title: bool = True,
        keep: NDArray[np.bytes_] | None = None,
        limit: int | None = None,
    ) -> None:
        self.path = collection.root / collection.corpus
        self._is_marco, self._is_lines = collection.is_marco, collection.is_lines
        self._title = title
        pieces = [
            np.array(piece, dtype=np.bytes_)
            for piece in _pieces((row[0] for row in self._rows()), 1 << 18)
        ]
        if not pieces:
            raise DataError(f"{self.path}: holds no passages.")
        ids = np.concatenate(pieces)
        self.num_passages_on_disk = len(ids)
        self._chosen: NDArray[np.bool_] | None = None
        if limit is not None and limit < len(ids):
            needed = np.isin(ids, keep) if keep is not None else np.zeros(len(ids), dtype=np.bool_)
            rest = max(limit - int(needed.sum()), 0)
            self._chosen = needed | (~needed & (np.cumsum(~needed) <= rest))
            ids = ids[self._chosen]
        self.ids = ids
        order = np.argsort(ids, kind="stable")
        twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
        if len(twice):
            raise DataError(
                f"{self.path}: passage id '{ids[order][twice[0]].decode()}' occurs more than once."
            )
        # Rank of each id among all ids in ascending order: breaks ties between scores, and is a
        # passage's name in the search.
        self.keys = np.empty(len(ids), dtype=np.int64)
        self.keys[order] = np.arange(len(ids))
        self._by_key = order

    def __len__(self) -> int:
        return len(self.ids)

    def id_of(self, key: int) -> str:
        """The passage id of a key."""
        return str(self.ids[self._by_key[key]].decode())

    def num_missing(self, ids: NDArray[np.bytes_]) -> int:
        """How many of these ids, `[K]` bytes, are not in the corpus."""
        rows = np.searchsorted(self.ids, ids, sorter=self._by_key).clip(max=len(self.ids) - 1)
        return int((self.ids[self._by_key[rows]] != ids).sum())

    def texts(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[str]]]:
        """Chunks of `size` passages, each with its number; only those that are wanted are parsed
        into texts."""
        selected = (
            row
            for row_number, row in enumerate(self._rows())
            if self._chosen is None or self._chosen[row_number]
        )
        for chunk in range(-(-len(self) // size)):
            rows = itertools.islice(selected, size)
            if wanted(chunk):
                yield chunk, [self._text(row[1]) for row in rows]
            else:
                # Passed over without being held.
                for _ in rows:
                    pass

    def _text(self, content: Passage) -> str:
        if isinstance(content, Undecoded):
            return _decoded(content.text, self.path, content.line).strip()
        title = content["title"] if self._title else ""
        return f"{title} {content['text']}".strip()

    def _rows(self) -> Iterator[tuple[bytes, Passage]]:
        """Id and content of every passage."""
        with open(self.path, "rb") as file:
            for line_number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                if line_number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if self._is_marco:
                    passage, tab, text = line.rstrip(b"\r\n").partition(b"\t")
                    if not tab:
                        raise DataError(
                            f"{self.path}:{line_number}: expected a passage id, a TAB and the"
                            " passage."
                        )
                    if "\0" in _decoded(passage, self.path, line_number):
                        raise DataError(
                            f"{self.path}:{line_number}: the passage id holds a NUL character, so"
                            " this is not UTF-8 text. Restore the original file."
                        )
                    yield passage.strip(), Undecoded(line_number, text)
                elif self._is_lines:
                    yield str(line_number).encode(), Undecoded(line_number, line)
                else:
                    record = _record(line, self.path, line_number)
                    yield record["_id"].strip().encode(), record


def _decoded(content: bytes, path: Path, line: int) -> str:
    try:
        return decode_text(content)
    except ValueError as error:
        raise DataError(f"{path}:{line}: {error}. Restore the original file.") from None


def _record(line: str | bytes, path: Path, line_number: int) -> dict[str, str]:
    """`_id`, `title` (empty where there is none) and `text` of a BEIR record."""
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(f"{path}:{line_number}: is not a JSON record: {error}.") from None
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("_id"), (str, int))
        or not isinstance(record.get("text"), str)
    ):
        raise DataError(f"{path}:{line_number}: a record needs '_id' and 'text', a string.")
    title = record.get("title") or ""
    if not isinstance(title, str):
        raise DataError(f"{path}:{line_number}: 'title' is {kind_of(title)}; expected a string.")
    found = {"_id": str(record["_id"]), "title": title, "text": record["text"]}
    return {key: clean_text(value) for key, value in found.items()}


def _pieces(items: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while piece := list(itertools.islice(items, size)):
        yield piece


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
