"""Vectors as a parquet table: columns `id` and `vector`, and the page of the rows in its
metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlkd_cli.data.files.texts import parse_json
from vlkd_cli.errors import MissingPackageError

if TYPE_CHECKING:
    from vlkd_cli.engine.vectors import Writer

METADATA = "vlkd"
"""The key of the page, whose `ids` are a digest of the column."""


@contextmanager
def table_writer(path: Path, content: Mapping[str, Any]) -> Iterator[Writer]:
    """Writes a table of `id` and `vector`, a list of fixed size.

    Args:
        content: of the page, see `vectors.content_of`.
    """
    arrow, parquet = require_pyarrow("OUT .parquet")
    width, dtype = content["width"], content["dtype"]
    value = arrow.from_numpy_dtype(np.dtype(dtype))
    page = {**content, "ids": _digest(map(_plain, content["ids"]))}
    schema = arrow.schema(
        [("id", arrow.string()), ("vector", arrow.list_(value, width))],
        metadata={METADATA: json.dumps(page)},
    )
    with parquet.ParquetWriter(path, schema) as table:

        class Parquet:
            def write(self, ids: Sequence[str], block: np.ndarray) -> None:
                flat = arrow.array(np.ascontiguousarray(block, dtype=dtype).reshape(-1))
                vectors = arrow.FixedSizeListArray.from_arrays(flat, width)
                names = [_plain(name) for name in ids]
                table.write_table(arrow.table([arrow.array(names), vectors], schema=schema))

        yield Parquet()


def read_table(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The vectors `[N, width]` of a table, and the content of its page.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what `table_writer` wrote.
    """
    arrow, parquet = require_pyarrow("INDEX .parquet")
    table = parquet.read_table(path)
    stored = (table.schema.metadata or {}).get(METADATA.encode())
    if stored is None or {"id", "vector"} - set(table.column_names):
        raise ValueError("`vlkd encode` did not write it")
    if not arrow.types.is_fixed_size_list(table.schema.field("vector").type):
        raise ValueError("its vectors are of another type")
    content = parse_json(stored)
    ids, rows = table["id"].to_pylist(), table["vector"].combine_chunks()
    if not isinstance(content, dict) or content.get("ids") != _digest(map(str, ids)):
        raise ValueError("its rows are not those that `vlkd encode` wrote")
    vectors: np.ndarray = rows.flatten().to_numpy(zero_copy_only=False)
    return vectors.reshape(len(ids), -1), {**content, "ids": ids}


def require_pyarrow(what: str) -> tuple[Any, Any]:
    """The package pyarrow and its module for parquet.

    Args:
        what: needs it, for the message.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(what, "parquet") from None
    return pyarrow, pyarrow.parquet


def _plain(name: str) -> str:
    """Names of files may hold bytes that are not text."""
    return name.encode(errors="backslashreplace").decode()


def _digest(ids: Iterator[str]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
