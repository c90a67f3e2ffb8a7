"""Prediction files: one per data set and seed, in the toolkit's keys, order and rounding, written
and read row by row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TextIO, TypedDict, TypeGuard

from vlkd_cli.data.files.texts import read_json
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.whole_file import whole_file

DECIMALS = 6
PROVENANCE = "provenance"
"""Folder next to the prediction files; the toolkit's merge reads every .json of a folder, but none
below it."""
_CHUNK = 1 << 16


class Rows(Protocol):
    """Rows of numbers: a tensor or an array `[N, C]`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> Block: ...


class Block(Protocol):
    """A few of them."""

    def tolist(self) -> list[list[float]]: ...


class Header(NamedTuple):
    """The metadata of a prediction file."""

    model_name: str
    dataset_name: str
    num_trainable_params: float
    num_params: float
    num_visual_params: float
    num_backbone_params: float
    n_shot: int
    rnd_seeds: list[int]


KEYS = Header._fields
"""The keys before `predictions`, in this order."""


class Hashes(TypedDict):
    """Digests of what a prediction depends on in the data."""

    row_order: str
    class_order: str
    files: str


class Provenance(TypedDict, total=False):
    """Where the rows of a prediction file come from, as `elevater.run` writes it."""

    dataset: str
    split: str
    metric: str
    seed: int
    score: float
    key: str
    """Changes with whatever the predictions depend on."""
    weights: str
    settings: dict[str, object]
    details: dict[str, object]
    row_order: str
    class_order: str
    files: str
    row_source: str
    class_names_confirmed: bool
    doubts: list[str]
    """What speaks against the official order, a sentence each."""
    version: str
    labels: list[list[int]]


def file_name(dataset: str, shots: int, seed: int) -> str:
    """`NAME.json` for zero-shot, else `seed0_NAME.json`, as the toolkit calls them."""
    return f"{dataset}.json" if shots == 0 else f"seed{seed}_{dataset}.json"


def row_text(row: Iterable[float]) -> str:
    """A row as JSON with every number rounded to 6 decimals: `[0.25, 1e-06, 0.0]`."""
    return json.dumps([round(value, DECIMALS) for value in row])


def write_predictions(
    path: Path, header: Header, probabilities: Rows, provenance: Provenance
) -> None:
    """Write a prediction file and, below `provenance/`, where its rows come from. All of it or
    nothing.

    Args:
        path: of the prediction file.
        probabilities: `[N, C]` of this one seed.
        provenance: plain values; see `submission`.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        (path.parent / PROVENANCE).mkdir(parents=True, exist_ok=True)
        # The provenance is written first, so that a prediction file never exists without it.
        _replace(path.parent / PROVENANCE / path.name, [json.dumps(provenance)])
        _replace(path, _record(header, probabilities))
    except OSError as error:
        raise UserError(
            f"{path}: predictions cannot be written: {error.strerror}. Choose another folder or"
            " make room."
        ) from error


def _record(header: Header, probabilities: Rows) -> Iterator[str]:
    yield header_text(header._asdict()) + "[["
    for start in range(0, len(probabilities), 64):
        rows = probabilities[start : start + 64].tolist()
        yield (", " if start else "") + ", ".join(map(row_text, rows))
    yield "]]}"


def header_text(values: Mapping[str, object]) -> str:
    """A record's text up to the value of `predictions`."""
    return json.dumps(values)[:-1] + ', "predictions": '


def _replace(path: Path, parts: Iterable[str]) -> None:
    with whole_file(path) as partial, partial.open("w", encoding="ascii") as file:
        file.writelines(parts)


def read_provenance(path: Path) -> Provenance | None:
    """What lies below `provenance/` for a prediction file; None where there is nothing (files of
    another tool)."""
    beside = path.parent / PROVENANCE / path.name
    try:
        found: Provenance = read_json(beside)
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        for key in ("labels", "doubts"):
            if not isinstance(found.get(key, []), list):
                raise ValueError(f"'{key}' is not a list")
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{beside}: cannot be read: {error}. Evaluate this data set again."
        ) from error


class Field(NamedTuple):
    """A key of a prediction file with its value; `predictions` is not among them."""

    key: str
    value: object


class Row(NamedTuple):
    """One row of the predictions."""

    seed: int
    """Position in `rnd_seeds`."""
    values: list[object]


def are_numbers(values: list[object]) -> TypeGuard[list[float]]:
    """Whether a row holds nothing but numbers."""
    return set(map(type, values)) <= {int, float}


def read_predictions(path: Path) -> Iterator[Field | Row]:
    """The fields and rows of a prediction file as they come, holding one row at a time.

    Raises:
        DataError: the file is missing or is not a prediction file.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Reader(file).record()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: no prediction file ({error}). Evaluate this data set again."
        ) from error


class _Reader:
    """JSON of a known shape, taken from a file in pieces."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def record(self) -> Iterator[Field | Row]:
        self._expect("{")
        while True:
            key = self._value()
            self._expect(":")
            if key == "predictions":
                for seed in self._items():
                    for _ in self._items():
                        yield Row(seed, self._row())
            else:
                yield Field(str(key), self._value())
            if self._expect(",}") == "}":
                break
        if self._peek():
            raise ValueError("text follows the record")

    def _items(self) -> Iterator[int]:
        """Step through a list whose items the caller takes."""
        self._expect("[")
        if self._peek() == "]":
            self._expect("]")
            return
        number = 0
        while True:
            yield number
            number += 1
            if self._expect(",]") == "]":
                return

    def _row(self) -> list[object]:
        if self._peek() != "[":
            raise ValueError("predictions are a list of seeds of rows of numbers")
        while (end := self._text.find("]", self._at)) < 0:
            if not self._more():
                raise ValueError("the file ends inside a row")
        row: list[object] = json.loads(self._text[self._at : end + 1])
        self._at = end + 1
        return row

    def _value(self) -> object:
        """A small value. Enough text is at hand for it to be whole."""
        self._peek()
        while len(self._text) - self._at < 4096 and self._more():
            pass
        value: object
        value, self._at = self._decoder.raw_decode(self._text, self._at)
        return value

    def _expect(self, letters: str) -> str:
        letter = self._peek()
        if letter not in letters or not letter:
            raise ValueError(f"expected one of '{letters}', found '{letter or 'the end'}'")
        self._at += 1
        return letter

    def _peek(self) -> str:
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        chunk = self._file.read(_CHUNK)
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)
