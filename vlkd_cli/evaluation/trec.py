"""Ranked lists on disk, as trec_eval reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlkd_cli.errors import DataError


def write_run(path: Path, answers: Mapping[str, Sequence[tuple[str, float]]]) -> None:
    """Write ranked lists in TREC's format: query, Q0, item, rank, score, name of the run. Blanks
    in ids, which the format cannot hold, become underscores.

    Args:
        answers: query id -> item ids with their scores, best first.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            for query, found in answers.items():
                for rank, (item, score) in enumerate(found, start=1):
                    file.write(f"{_word(query)} Q0 {_word(item)} {rank} {score:.8g} vlkd\n")
    except OSError as error:
        raise DataError(
            f"{path}: the ranked lists cannot be written: {error.strerror}. Choose another folder"
            " or make room."
        ) from error


def _word(name: str) -> str:
    return "_".join(name.split())
