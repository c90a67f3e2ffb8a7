"""Texts of a sample other than its captions, each with a name: `texts: {answer: column}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlkd_cli.errors import DataError

MAIN = "main"
"""The captions proper, instead of a named text."""


def checked_texts(
    texts: Mapping[str, str | Sequence[str]] | None,
) -> dict[str, list[str]]:
    """A recipe's `texts`, each with the list of what it is read from.

    Raises:
        DataError: a name is not a word or is taken, or a text is read from nothing.
    """
    checked = {
        name: [source] if isinstance(source, str) else list(source)
        for name, source in (texts or {}).items()
    }
    for name, sources in checked.items():
        if not name.isidentifier() or name == MAIN:
            raise DataError(
                f"data.texts.{name}: a name is a word of letters, digits and _, and '{MAIN}' is"
                " taken by the captions."
            )
        if not sources:
            raise DataError(f"data.texts.{name} is empty. Name what it is read from.")
    return checked


def span_of(counts: Mapping[str, int], name: str) -> tuple[int, int]:
    """Where a text's wordings are among all texts of a sample.

    Args:
        counts: number of wordings by name, in the order in which `captions` gives them.

    Raises:
        KeyError: no text has this name.
    """
    return spans_of(counts)[name]


def spans_of(counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Where the wordings of each text are among all texts of a sample."""
    spans, first = {}, 0
    for name, count in counts.items():
        spans[name] = (first, first + count)
        first += count
    return spans
