from __future__ import annotations

import numpy as np
import pytest

from vlkd_cli.data.files.class_numbers import class_number, dense_numbers, number_labels
from vlkd_cli.errors import DataError


def numbered(*labels: str) -> tuple[list[int], list[str] | None]:
    numbers, names = number_labels(labels, "here")
    assert numbers.dtype == np.int64
    return numbers.tolist(), names


def test_small_numbers_are_class_numbers_with_or_without_gaps() -> None:
    assert numbered("3", "0", "", "7", "-1", "-5") == ([3, 0, -1, 7, -1, -1], None)
    assert numbered("99999", "2") == ([99999, 2], None)


def test_numbers_that_leave_great_gaps_are_ids_and_numbered_by_size() -> None:
    assert numbered("1000000000002", "1000000000000", "", "5") == (
        [2, 1, -1, 0],
        ["5", "1000000000000", "1000000000002"],
    )


def test_numbers_that_occur_are_class_numbers_however_many() -> None:
    labels, names = dense_numbers(np.arange(300_000)[::-1])
    assert names is None and labels[0] == 299_999


def test_numbers_of_any_length_are_ids() -> None:
    assert numbered(str(10**20 + 1), "9", str(10**20), "0" * 5000) == (
        [3, 1, 2, 0],
        ["0" * 5000, "9", str(10**20), str(10**20 + 1)],
    )


def test_anything_else_is_a_name_in_alphabetical_order() -> None:
    assert numbered("pear", "apple", "", "10", "9") == (
        [3, 2, -1, 0, 1],
        ["10", "9", "apple", "pear"],
    )
    assert numbered("1.0", "0.5") == ([1, 0], ["0.5", "1.0"])
    assert numbered("1_000", "٣") == ([0, 1], ["1_000", "٣"])
    with pytest.raises(DataError, match="here: the column holds 100,001 different names"):
        number_labels([f"n{k}" for k in range(100_001)], "here")


def test_members_that_hold_no_class_number_have_no_class() -> None:
    assert [class_number(text) for text in (b" 12\n", b"0", b"", b"cat", b"\xff", b"-3")] == [
        *(12, 0, -1, -1, -1, -1)
    ]
    assert class_number(b"9" * 5000) == -1
