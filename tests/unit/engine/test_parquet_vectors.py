"""A parquet table of vectors comes back with its page, and one that was changed is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.engine.test_vectors import PAGE
from vlkd_cli.engine.parquet_vectors import METADATA, table_writer
from vlkd_cli.engine.vectors import content_of, read_vectors
from vlkd_cli.errors import DataError

pq: Any = pytest.importorskip("pyarrow.parquet")
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "x.parquet"
    with table_writer(path, content_of(PAGE)) as writer:
        writer.write(PAGE.ids[:2], ROWS[:2])
        writer.write(PAGE.ids[2:], ROWS[2:])
    return path


def test_vectors_and_page_come_back_from_any_number_of_blocks(table: Path):
    rows, page = read_vectors(table)
    assert rows.dtype == np.float32 and page == PAGE
    np.testing.assert_array_equal(rows, ROWS)


def test_half_precision_and_names_that_are_not_text(tmp_path: Path):
    path, page = tmp_path / "x.parquet", PAGE._replace(dtype="float16", ids=["a", "\udcff", "c"])
    with table_writer(path, content_of(page)) as writer:
        writer.write(page.ids, ROWS)
    rows, found = read_vectors(path)
    assert rows.dtype == np.float16 and found.ids == ["a", "\\udcff", "c"]
    np.testing.assert_array_equal(rows, ROWS)


def plain(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def filtered(path: Path) -> None:
    pq.write_table(pq.read_table(path)[1:], path)


def reordered(path: Path) -> None:
    pq.write_table(pq.read_table(path).take([1, 0, 2]), path)


def nested(path: Path) -> None:
    stored = pq.read_table(path)
    pq.write_table(stored.replace_schema_metadata({METADATA: "[" * 100_000}), path)


def of_words(path: Path) -> None:
    stored = pq.read_table(path)
    pq.write_table(stored.set_column(1, "vector", [["a", "b", "c"]]), path)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda path: path.write_bytes(b"x"), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (plain, "`vlkd encode` did not write it"),
        (nested, "it is nested too deeply"),
        (of_words, "its vectors are of another type"),
        (filtered, "its rows are not those that `vlkd encode` wrote"),
        (reordered, "its rows are not those that `vlkd encode` wrote"),
    ],
)
def test_a_damaged_or_changed_table_is_one_line(damage, line, table: Path):
    damage(table)
    with pytest.raises(DataError, match=line) as caught:
        read_vectors(table)
    assert "\n" not in str(caught.value) and "Write it again: vlkd encode" in str(caught.value)
