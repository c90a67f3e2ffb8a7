"""The files of `vlkd synthesize`: relations.tsv, and the page next to it with what they were made
from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlkd_cli.data.files.texts import number, read_json, read_lines
from vlkd_cli.errors import DataError
from vlkd_cli.whole_file import whole_file

FILE, PAGE = "relations.tsv", "synthesis.json"
COLUMNS = (
    "query_id",
    "positive_id",
    "negative_id",
    "margin",
    "positive_score",
    "negative_score",
    "negative_rank",
    "miner",
)
HEADER = "\t".join(COLUMNS) + "\n"


class Relation(NamedTuple):
    """A triplet: ids of a query, a passage that answers it and one that does so less, with their
    scores, the negative's rank in the mined list (the first is 1) and the miner that found it."""

    query: str
    positive: str
    negative: str
    positive_score: float
    negative_score: float
    rank: int
    miner: str

    @property
    def margin(self) -> float:
        """How much better the positive is; negative where the scorers disagree with the miner."""
        return self.positive_score - self.negative_score

    def line(self) -> str:
        """The relation as a line of the file."""
        numbers = (self.margin, self.positive_score, self.negative_score)
        cells = [self.query, self.positive, self.negative, *(f"{value:.9g}" for value in numbers)]
        return "\t".join([*cells, str(self.rank), self.miner]) + "\n"


class Relations(NamedTuple):
    """The columns that are trained on."""

    queries: list[str]
    positives: list[str]
    negatives: list[str]
    margins: list[float]


def read_relations(path: Path) -> Relations:
    """The triplets of a file.

    Raises:
        DataError: it is missing, damaged, or holds none.
    """
    if not path.is_file():
        raise DataError(
            f"data.relations {path}: no such file. `vlkd synthesize RECIPE OUT` writes OUT/{FILE}."
        )
    lines = read_lines(path)
    if not lines or lines[0] + "\n" != HEADER:
        raise DataError(
            f"data.relations {path}: its first line is not '{COLUMNS[0]} ... {COLUMNS[-1]}'. Give a"
            f" {FILE} of `vlkd synthesize`."
        )
    found = Relations([], [], [], [])
    for line_number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(COLUMNS):
            raise DataError(
                f"{path}:{line_number}: has {len(cells)} fields; expected {len(COLUMNS)}. Run `vlkd"
                " synthesize` again."
            )
        for column, cell in zip(found[:3], cells, strict=False):
            column.append(cell)
        found.margins.append(number(cells[3], path, line_number, "the margin"))
    if not found.queries:
        raise DataError(f"{path}: holds no relations. Run `vlkd synthesize` again.")
    return found


def read_page(path: Path) -> Mapping[str, Any] | None:
    """The section `data` of the page next to a file of relations: `path` of the collection and the
    sha256 of its `files`. None where there is no page.

    Raises:
        DataError: it is damaged.
    """
    page = path.with_name(PAGE)
    if not page.is_file():
        return None
    try:
        data = read_json(page)["data"]
        return {"path": str(data["path"]), "files": dict(data["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{page} is damaged. Run `vlkd synthesize` again.") from None


def write_whole(path: Path, texts: Iterable[str]) -> None:
    """Write a file that appears only when it is whole."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(texts)
        file.flush()
        os.fsync(file.fileno())
