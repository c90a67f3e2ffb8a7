"""What the columns of Arrow tables may hold, and their cells as texts and class numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.class_numbers import dense_numbers, number_labels
from vlkd_cli.data.files.texts import NotText, clean_text, decode_text

_INT64 = np.iinfo(np.int64)


def holds_texts(kind: pa.DataType) -> bool:
    """Whether a column holds texts, one in each row."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return str(kind) in ("string", "large_string", "string_view")


def holds_lists(kind: pa.DataType) -> bool:
    """Whether a column may hold several values in a row."""
    return str(kind).partition("<")[0] in (
        *("list", "large_list", "fixed_size_list", "list_view", "large_list_view"),
    )


def image_problem(kind: pa.DataType) -> str:
    """Why a column cannot hold images: encoded bytes, paths, or structs with `bytes` or `path`;
    empty where it can."""
    if pa.types.is_struct(kind):
        fields = [kind.field(number).name for number in range(kind.num_fields)]
        if {"bytes", "path"} & {*fields}:
            return ""
        return f"holds structs of {', '.join(fields)}, without 'bytes' and 'path'"
    if holds_texts(kind) or holds_bytes(kind) or pa.types.is_null(kind):
        return ""
    return f"holds {kind}, not encoded images or their paths"


def text_problem(kind: pa.DataType) -> str:
    """Why a column cannot hold texts, or lists of them; empty where it can."""
    inner = kind.value_type if holds_lists(kind) else kind
    return f"holds {kind}, not texts or lists of them" if pa.types.is_nested(inner) else ""


def value_problem(kind: pa.DataType) -> str:
    """Why a column cannot hold one class or number in each row; empty where it can."""
    return f"holds {kind}, not one value in each row" if pa.types.is_nested(kind) else ""


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, one string of them in each row."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return str(kind).partition("[")[0] in (
        *("binary", "large_binary", "binary_view", "fixed_size_binary"),
    )


def plain_value(cell: pa.Scalar) -> object:
    """A cell as Python has it; texts that are not UTF-8 as their bytes."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        pass  # some programs write other encodings; what reads the cell reports it
    if isinstance(cell, pa.DictionaryScalar):
        return plain_value(cell.value)
    if holds_lists(cell.type):
        return [plain_value(each) for each in cell.values]
    if isinstance(cell, pa.StructScalar):
        return {name: plain_value(each) for name, each in cell.items()}
    return cell.as_buffer().to_pybytes()


def plain_rows(table: pa.Table) -> list[dict[str, object]]:
    """The rows of a table, see `plain_value`."""
    try:
        rows: list[dict[str, object]] = table.to_pylist()
        return rows
    except UnicodeDecodeError:
        columns = {name: [plain_value(cell) for cell in table[name]] for name in table.column_names}
        return [
            {name: cells[row] for name, cells in columns.items()} for row in range(table.num_rows)
        ]


def text_of_cell(cell: object) -> str:
    """A cell as text, stripped; empty where there is none. Some programs write texts as bytes.

    Raises:
        Broken: it holds bytes that are not text.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    try:
        text = decode_text(cell) if isinstance(cell, bytes) else clean_text(str(cell))
    except NotText as error:
        raise Broken(f"its text cannot be read: {error}") from None
    return text.strip()


def sourced(cells: Sequence[object]) -> list[tuple[int, str]]:
    """The texts in the cells of several columns, each with the position of its column; where there
    may be several, empty ones do not count.

    Raises:
        Broken: a cell holds bytes that are not text.
    """
    if len(cells) == 1 and not isinstance(cells[0], list):
        return [(0, text_of_cell(cells[0]))]
    texts = [
        (source, text_of_cell(text))
        for source, cell in enumerate(cells)
        for text in (cell if isinstance(cell, list) else [cell])
    ]
    return [(source, text) for source, text in texts if text]


def number_cells(cells: Sequence[object], where: str) -> tuple[np.ndarray, list[str] | None]:
    """Class numbers and names, as `number_labels` gives them. Integers may be stored as
    floating-point ones, as libraries do where cells are empty.

    Raises:
        DataError: there are too many names.
    """
    plain = [_plain(cell) for cell in cells]
    given = [-1 if each is None else each for each in plain if isinstance(each, int | None)]
    if len(given) == len(plain):
        return dense_numbers(np.array(given, dtype=np.int64))
    return number_labels([_label_text(each) for each in plain], where)


def _label_text(cell: object) -> str:
    """A label that is not text is none."""
    try:
        return text_of_cell(cell)
    except Broken:
        return ""


def _plain(cell: object) -> object:
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, int) and not _INT64.min <= cell <= _INT64.max:
        return str(cell)
    return None if isinstance(cell, float) and math.isnan(cell) else cell
