from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from vlkd_cli.data import keys
from vlkd_cli.data.keys import caption_keys, column_grades, column_keys, keys_of
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.errors import DataError


def table(folder: Path, grades: tuple[str, ...] = ("0.5", "1", "0")) -> Reader:
    with (folder / "t.csv").open("w", newline="") as file:
        rows = [[f"a {n % 2}", f" p {n % 2} ", grade] for n, grade in enumerate(grades)]
        csv.writer(file).writerows([["title", "product", "grade"], *rows, ["b", "", "1"]])
    reader = open_reader({"reader": "csv", "path": str(folder / "t.csv"), "image": None})
    assert isinstance(reader, Reader)
    return reader


def test_keys_of_captions_stand_in_the_rows_of_the_table_of_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    reader = Shapes(num_samples=5)
    wanted = keys_of([text for row in range(5) for text in reader.captions(row)])
    np.testing.assert_array_equal(caption_keys(reader), wanted)
    monkeypatch.setattr(keys, "_STORE_ABOVE", 3)
    np.testing.assert_array_equal(caption_keys(reader), wanted)
    monkeypatch.setattr(Shapes, "captions", None)
    np.testing.assert_array_equal(caption_keys(reader), wanted)


def test_columns_are_keys_or_grades(tmp_path: Path) -> None:
    reader = table(tmp_path)
    products = column_keys(reader, "product")
    assert products[0] == products[2] != products[1] and products[3] == -1
    assert column_grades(reader, "grade").tolist() == [0.5, 1, 0, 1]


@pytest.mark.parametrize("grade", ["1.5", "-1", "x", ""])
def test_a_grade_outside_0_to_1_is_named_with_its_row(tmp_path: Path, grade: str) -> None:
    with pytest.raises(DataError, match=f"t.csv.*: column 'grade' is '{grade}', and a grade is"):
        column_grades(table(tmp_path, ("0.5", grade)), "grade")


def test_a_column_that_is_not_there_is_named_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'produkt'\. Did you mean 'product'\?"):
        column_keys(table(tmp_path), "produkt")
