"""What `vlkd encode` reads: images, meshes or texts of a folder, a table or a file, each with an
id."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlkd_cli.catalog import did_you_mean_path
from vlkd_cli.data.batch import Broken, Skipped
from vlkd_cli.data.files.table import Table
from vlkd_cli.data.files.texts import decode_text, parse_json, read_file, split_lines, text_of
from vlkd_cli.data.meshes.files import holds_meshes
from vlkd_cli.data.modality import modality_of_file
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.params import signature_of
from vlkd_cli.recipe.types import ModalityName
from vlkd_cli.recipe.yaml_file import plain_values

STANDARD = "-"
TABLES = (".csv", ".tsv")
CORPUS = "corpus.jsonl"
USUAL_COLUMNS: dict[ModalityName, tuple[str, ...]] = {
    "image": ("filepath", "image", "path"),
    "text": ("title", "caption", "text"),
    "mesh": ("mesh", "file", "filepath", "path"),
}
"""Columns that need no --column; the first are the defaults of reader csv."""
READERS: dict[ModalityName, str] = {"image": "images", "mesh": "meshes"}
"""What reads a folder, or a list of paths of images."""
COLUMN_KEYS: dict[ModalityName, str] = {
    "image": "image",
    "text": "caption",
    "mesh": "mesh",
}
"""The key of reader csv that names the column."""


class Input(NamedTuple):
    """Where items are: plain values, which an index stores.

    Args:
        path: of a file or folder, or `-`.
        column: of a table.
        reader: keys of the reader.
    """

    path: str
    column: str | None = None
    reader: Mapping[str, Any] = {}


class Items:
    """Images or meshes of a reader, or texts.

    Args:
        ids: of all of them, in order.
        fingerprint: changes whenever they do.
        reader: of images or meshes.
        texts: None where there is a reader.
        skipped: texts that were left out.
    """

    def __init__(
        self,
        ids: Sequence[str],
        fingerprint: str,
        *,
        reader: Reader | None = None,
        texts: Sequence[str] | None = None,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.ids, self.fingerprint, self.reader = ids, fingerprint, reader
        self.texts, self.skipped = texts, skipped


def modalities_of(source: Input) -> tuple[ModalityName, ...]:
    """What an input may hold, the likeliest first.

    Raises:
        UserError: there is no such file or folder.
    """
    path = Path(source.path)
    if source.path == STANDARD:
        return ("text",)
    if not path.exists():
        raise UserError(
            f"INPUT {path}: no such file or folder (relative to {Path.cwd()})."
            f"{did_you_mean_path(path)}"
        )
    single = None if path.is_dir() or "reader" in source.reader else modality_of_file(source.path)
    if single is not None:
        raise UserError(
            f"INPUT {path}: it is a single file of {FACTS[single].plural}. Name its folder, or a"
            " table with a column of paths."
        )
    if path.is_dir():
        if (path / CORPUS).is_file():
            return ("text", "image")
        # Images next to meshes are their textures.
        return ("mesh", "image") if holds_meshes(path) else ("image", "text")
    return ("text", "image", "mesh") if is_table(source.path) else ("text", "image")


def open_items(source: Input, modality: ModalityName, lines: Sequence[str] | None = None) -> Items:
    """The items of an input for a tower of this modality.

    Args:
        lines: of standard input, where that is the input.

    Raises:
        UserError: the input is not of a kind that holds such items, or an option has no effect on
            it.
        DataError: it cannot be read, or holds nothing.
    """
    path, tabular = Path(source.path), is_table(source.path)
    if source.column is not None and not tabular:
        raise UserError(f"--column has no effect on {path}, which is not a .csv or .tsv table.")
    facts = FACTS[modality]
    is_plain = not path.is_dir() and not tabular and "reader" not in source.reader
    if not facts.has_views and (is_plain or _is_corpus(path, source)):
        return _of_texts(source, lines)
    if source.path == STANDARD:
        raise UserError(f"standard input holds texts, and the tower encodes {facts.plural}.")
    reader = _reader(source, modality)
    if facts.has_views:
        ids = [_short(reader.id(index), source.path) for index in range(len(reader))]
        return Items(ids, reader.fingerprint(), reader=reader)
    return _texts(_captions(reader, source.path), source)


def shown(source: Input) -> str:
    """What messages call an input."""
    return "standard input" if source.path == STANDARD else source.path


def standard_lines() -> list[str]:
    """The lines of standard input.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return split_lines(decode_text(sys.stdin.buffer.read()))
    except ValueError as error:
        raise DataError(f"standard input: {error}. Send UTF-8.") from None


def parse_keys(settings: Sequence[str]) -> dict[str, object]:
    """`--reader KEY=VALUE` words as keys of a reader; values are YAML.

    Raises:
        UserError: a word is not of this form.
    """
    keys: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--reader {setting}: expected KEY=VALUE, e.g. --reader sep=';'.")
        try:
            keys[key] = plain_values(value)
        except ValueError:
            keys[key] = value
    return keys


def is_table(path: str) -> bool:
    """Whether a path is that of a delimited table."""
    return path.lower().removesuffix(".gz").endswith(TABLES)


def _is_corpus(path: Path, source: Input) -> bool:
    return path.is_dir() and (path / CORPUS).is_file() and "reader" not in source.reader


def _reader(source: Input, modality: ModalityName) -> Reader:
    """The reader of images, meshes, tables, and of anything that `--reader reader=NAME` names."""
    keys = dict(source.reader)
    name = keys.pop("reader", None)
    column = COLUMN_KEYS.get(modality)
    if name is None and is_table(source.path) and column is not None:
        name = "csv"
        others = dict.fromkeys(COLUMN_KEYS.values())
        keys = {**others, column: source.column or _column(source.path, modality, keys), **keys}
    name = name or READERS.get(modality)
    if name is None:
        raise UserError(
            f"{source.path} holds no {CORPUS}, and the tower encodes {FACTS[modality].plural}. Give"
            " a BEIR folder, a .txt, .csv, .tsv or .jsonl file, or --tower of another modality."
        )
    if "path" not in signature_of("reader", name).key_names():
        raise UserError(f"--reader reader={name}: this reader takes no path. Encode files.")
    try:
        reader = open_reader({"reader": name, **keys, "path": source.path})
    except DataError as error:
        raise DataError(_as_options(str(error), column)) from error
    if not isinstance(reader, Reader):
        raise DataError(
            f"{source.path} can only be read as a stream; encoding needs every sample at its"
            " position. Use local files."
        )
    return reader


def _as_options(message: str, column: str | None) -> str:
    """A reader's message, which speaks of keys of `data:`, in the words of the command."""
    words = {"path": "INPUT", column: "--column"}
    return re.sub(r"\bdata\.(\w+)", lambda key: words.get(key[1], f"--reader {key[1]}"), message)


def _column(path: str, modality: ModalityName, keys: Mapping[str, Any]) -> str:
    """The column that is encoded without --column."""
    try:
        table = Table(
            path,
            sep=keys.get("sep"),
            encoding=keys.get("encoding", "utf-8"),
            quotes=keys.get("quotes", True),
        )
    except DataError as error:
        raise DataError(_as_options(str(error), None)) from error
    usual = [name for name in USUAL_COLUMNS[modality] if name in table.columns]
    if usual or len(table.columns) == 1:
        return usual[0] if usual else table.columns[0]
    raise UserError(
        f"{path}: which column holds the {FACTS[modality].plural}? Give --column NAME. Its columns:"
        f" {', '.join(table.columns)}."
    )


def _of_texts(source: Input, lines: Sequence[str] | None) -> Items:
    """The texts of a corpus, of a file of records, or of lines."""
    path = Path(source.path)
    if source.path == STANDARD or path.suffix.lower() == ".txt":
        if source.reader:
            raise UserError(f"--reader has no effect on {path}, whose lines are the texts.")
        if lines is None:
            lines = _lines(path)
        return _texts(((f"line {n}", line) for n, line in enumerate(lines, start=1)), source)
    file = path / CORPUS if path.is_dir() else path
    if file.suffix.lower() != ".jsonl":
        raise UserError(
            f"INPUT {path}: texts are read from .txt, .csv, .tsv and .jsonl files and BEIR folders."
            " Rename it, or give --reader reader=NAME."
        )
    if set(source.reader) - {"title"}:
        raise UserError(f"--reader has no effect on {path} but for title=false.")
    return _texts(_records(file, bool(source.reader.get("title", True))), source)


def _lines(path: Path) -> list[str]:
    try:
        return split_lines(decode_text(read_file(path)))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}. Save the file as UTF-8.") from None


def _records(file: Path, title: bool) -> Iterator[tuple[str, str | Broken]]:
    """Ids and texts of BEIR's records."""
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        name: str = f"line {number}"
        try:
            record = parse_json(line)
            if not isinstance(record, dict):
                raise ValueError("it is not a record")
            name = str(record.get("_id", name))
            text = record.get("text")
            if text is None:
                raise ValueError("the record has no 'text'")
            heading = text_of(record.get("title") or "") if title else ""
            yield name, f"{heading} {text_of(text)}".strip()
        except ValueError as error:
            yield name, Broken(str(error))


def _captions(reader: Reader, path: str) -> Iterator[tuple[str, str | Broken]]:
    """The main texts of every sample; several of one sample are numbered."""
    for index in range(len(reader)):
        name = _short(reader.id(index), path)
        try:
            first, stop = reader.text_span(index)
            own = reader.captions(index)[first:stop]
        except Broken as error:
            yield name, error
            continue
        if not own:
            yield name, Broken("has no text")
        for number, text in enumerate(own, start=1):
            yield name if len(own) == 1 else f"{name}#{number}", text


def _texts(found: Iterable[tuple[str, str | Broken]], source: Input) -> Items:
    """The texts that can be encoded."""
    ids: list[str] = []
    texts: list[str] = []
    skipped: list[Skipped] = []
    digest = hashlib.sha256()
    for name, text in found:
        if isinstance(text, Broken):
            skipped.append(Skipped(name, str(text)))
        elif not text.strip():
            skipped.append(Skipped(name, "is empty"))
        else:
            ids.append(name)
            texts.append(text)
            digest.update(json.dumps([name, text]).encode())
    if not texts:
        first = f" The first: {skipped[0].name}: {skipped[0].reason}." if skipped else ""
        raise DataError(f"{shown(source)} holds no text that can be encoded.{first}")
    return Items(ids, digest.hexdigest(), texts=texts, skipped=skipped)


def _short(name: str, path: str) -> str:
    """An id without the path of the input in front."""
    for start in (path, os.path.abspath(path)):
        rest = name.removeprefix(start.rstrip("/"))
        if rest != name and rest[:1] in ("/", " ") and len(rest) > 1:
            return rest[1:]
    return name
