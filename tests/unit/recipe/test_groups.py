"""Columns of groups that nothing reads are refused."""

from __future__ import annotations

import pytest

from tests.unit.recipe.test_evaluation_data import recipe
from vlkd_cli.errors import RecipeError


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "{suite: clustering, data: {reader: csv, path: a.csv, label: y, group: place}}",
            "evals[0].data.group: has no effect: 'clustering' gives no figures by group;"
            " caption_choice, few_shot, fine_tune, knn, linear_probe and zero_shot do. Remove it.",
        ),
        (
            "{suite: knn, data: {reader: csv, path: a.csv, label: y},"
            " train_data: {reader: csv, path: b.csv, label: y, group: place}}",
            "evals[0].train_data.group: has no effect: figures by group are those of `data`.",
        ),
    ],
)
def test_groups_that_a_suite_does_not_read_are_refused(entry: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(f"evals: [{entry}]")
    assert message in str(caught.value) and "r.yaml:" in str(caught.value)


def test_groups_of_training_data_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"r.yaml:5: data.group: has no effect: training"):
        recipe("data: {reader: csv, path: a.csv, group: place}\ndistillers: [{name: infonce}]")
    assert recipe("data: {reader: csv, path: a.csv, group: true}").data is not None
