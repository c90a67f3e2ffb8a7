"""Prompt templates for ELEVATER's data sets: vlkd's own, or the originals from a file or a package
that the user has."""

from __future__ import annotations

from pathlib import Path

from vlkd_cli.data.files.texts import parse_json, read_text
from vlkd_cli.data.readers.elevater import Elevater
from vlkd_cli.data.readers.elevater_index import check_class_order
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.prompts import prompts


def prompts_of(reader: Elevater, chosen: str | list[str] | None) -> list[list[str]]:
    """The prompts of every class in column order.

    Args:
        chosen: as of suite `zero_shot`: a list, a file, `open_clip:imagenet`, `clip_benchmark`; or
            a JSON object from data set names to templates, or to `{"classes": [...], "templates":
            [...]}`, whose class names then count too. By default the data set's own.

    Raises:
        DataError: the file does not fit the data set.
    """
    names, name = list(reader.classes), reader.facts.name
    if isinstance(chosen, str) and chosen.endswith(".json") and Path(chosen).is_file():
        table = _table(Path(chosen))
        if name in table:
            entry = table[name]
            templates = entry.get("templates") if isinstance(entry, dict) else entry
            if not isinstance(templates, list) or not templates:
                raise DataError(f"{chosen}: data set '{name}' has no list of templates.")
            own = entry.get("classes") if isinstance(entry, dict) else None
            return prompts(
                (
                    names
                    if own is None
                    else _in_column_order(own, names, f"{chosen}: data set '{name}'")
                ),
                reader,
                templates,
                name,
            )
    return prompts(names, reader, chosen, name)


def _in_column_order(own: list[str | list[str]], names: list[str], where: str) -> list[str]:
    """Other names for the classes; of several for one, the first."""
    chosen = [name if isinstance(name, str) else name[0] for name in own]
    if len(chosen) != len(names):
        raise DataError(
            f"{where}: {len(chosen)} class names, and the data set has {len(names)} classes."
        )
    check_class_order(chosen, names, where)
    return chosen


def _table(path: Path) -> dict[str, object]:
    try:
        found = parse_json(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None
    return found if isinstance(found, dict) else {}
