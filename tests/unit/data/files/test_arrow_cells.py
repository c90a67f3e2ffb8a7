from __future__ import annotations

import pyarrow as pa
import pytest

from vlkd_cli.data.files.arrow_cells import (
    holds_bytes,
    holds_lists,
    holds_texts,
    image_problem,
    sourced,
    text_problem,
    value_problem,
)


def test_types_are_distinguished_however_they_are_stored() -> None:
    text, codes = pa.large_string(), pa.dictionary(pa.int32(), pa.string())
    assert holds_texts(text) and holds_texts(codes) and not holds_texts(pa.binary())
    assert holds_bytes(pa.binary(4)) and holds_bytes(pa.large_binary()) and not holds_bytes(text)
    assert holds_lists(pa.large_list(text)) and not holds_lists(pa.map_(text, text))


@pytest.mark.parametrize("kind", [pa.map_(pa.string(), pa.string()), pa.list_(pa.list_(pa.int8()))])
def test_a_value_nested_too_deeply_is_refused(kind: pa.DataType) -> None:
    assert text_problem(kind) and value_problem(kind) and image_problem(kind)
    assert not text_problem(pa.list_(pa.string())) and not value_problem(pa.float16())


def test_empty_texts_count_where_a_row_has_one_text_only() -> None:
    assert sourced([None]) == sourced([float("nan")]) == [(0, "")]
    assert sourced([None, " a "]) == [(1, "a")] and sourced([[None, "", "b"]]) == [(0, "b")]
