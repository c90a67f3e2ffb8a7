from __future__ import annotations

from vlkd_cli.recipe.difference import first_difference


def test_the_first_difference_is_named_by_its_path() -> None:
    assert first_difference({"a": [{"b": 1}]}, {"a": [{"b": 2}]}) == ("a[0].b", 1, 2)
    assert first_difference({"a": 1}, {"a": 1}) is None
    assert first_difference({}, {"c": 3}) == ("c", None, 3)
