from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.data_sets import csv_data
from tests.support.recipes import problems_with
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.errors import DataError
from vlkd_cli.recipe.column_names import names_problems


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"caption": []}, "is empty. Name what it is read from, or write null."),
        ({"target": ["score", "grade", "score"]}, "names 'score' twice. Leave one of them out."),
    ],
)
def test_a_list_that_names_nothing_or_one_thing_twice_is_refused(
    tmp_path: Path, keys: dict[str, Any], expected: str
) -> None:
    ((key, problem),) = names_problems(keys)
    assert (key, problem) == (next(iter(keys)), expected)
    with pytest.raises(DataError) as raised:
        open_reader(csv_data(tmp_path) | keys)
    assert str(raised.value) == f"data.{key} {expected}"


def test_the_check_of_a_recipe_refuses_it() -> None:
    problem, *_ = problems_with("data={reader: parquet, path: x, image: [], caption: [a, b]}")
    assert problem.startswith("data.image: is empty.")
