"""Files of relevance judgments: BEIR's `query-id corpus-id score`, or trec_eval's `query 0 id
grade`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from vlkd_cli.data.files.texts import number, read_lines
from vlkd_cli.errors import DataError


class Qrels(NamedTuple):
    """Query id -> item id -> grade, and a digest of the file."""

    grades: dict[str, dict[str, float]]
    digest: str


def read_qrels(path: Path) -> Qrels:
    """The judgments of a file. Cells are separated by tabs if a line has any, else by blanks.

    Raises:
        DataError: it cannot be read, a line is malformed, or there is no judgment.
    """
    if not path.is_file():
        raise DataError(
            f"suite 'search': relevant: {path}: no such file. Use label, row, or a file of"
            " judgments."
        )
    grades: dict[str, dict[str, float]] = {}
    for line_number, line in enumerate(read_lines(path), start=1):
        cells = [cell.strip() for cell in line.split("\t" if "\t" in line else None)]
        if not any(cells) or (line_number == 1 and cells[0] in ("query-id", "query_id")):
            continue
        if len(cells) not in (3, 4):
            raise DataError(
                f"{path}:{line_number}: has {len(cells)} fields; expected query-id corpus-id"
                " score, or query 0 id grade."
            )
        grade = number(cells[-1], path, line_number, "the grade")
        grades.setdefault(cells[0], {})[cells[-2]] = grade
    if not grades:
        raise DataError(f"{path}: holds no judgments.")
    return Qrels(grades, hashlib.sha256(path.read_bytes()).hexdigest()[:16])
