"""The rows that the toolkit draws."""

from __future__ import annotations

import re

import pytest

from tests.support.elevater_goldens import golden, sampled
from vlkd_cli.elevater.sampler import few_shot, validation_split


def _multiclass() -> list[list[int]]:
    return [[int(label)] for label in sampled("fewshot.multiclass")["lab"]]


def _multilabel() -> list[list[int]]:
    return [
        [column for column, one in enumerate(row) if one]
        for row in sampled("fewshot.multilabel")["mat"]
    ]


@pytest.mark.parametrize("case", golden("fewshot.multiclass")["expected"])
def test_few_shot_rows_of_one_label_are_the_toolkits(case: str) -> None:
    shots, seed = map(int, re.findall(r"\d+", case))
    assert few_shot(_multiclass(), shots, seed) == golden("fewshot.multiclass")["expected"][case]


@pytest.mark.parametrize("case", golden("fewshot.multilabel")["expected"])
def test_few_shot_rows_of_several_labels_are_the_toolkits(case: str) -> None:
    shots, seed = map(int, re.findall(r"\d+", case))
    assert few_shot(_multilabel(), shots, seed) == golden("fewshot.multilabel")["expected"][case]


def test_drawing_ends_once_every_class_has_enough() -> None:
    rows = [[0], [1]] * 20 + [[], []]
    enough = few_shot(rows, 2, 0)
    assert sorted(rows[row] for row in enough) == [[0], [0], [1], [1]]
    # A third class that has no rows leaves the drawing open to unlabeled rows.
    waiting = few_shot(rows, 2, 0, num_classes=3)
    assert waiting[: len(enough)] == enough
    assert [rows[row] for row in waiting[len(enough) :]] == [[], []]


@pytest.mark.parametrize("case", golden("val_split")["expected"])
def test_validation_split_is_the_toolkits(case: str) -> None:
    expected = golden("val_split")["expected"][case]
    rows = _multiclass() if case.startswith("multiclass") else _multilabel()
    if "5shot" in case:
        rows = [rows[row] for row in few_shot(rows, 5, 0)]
    split = validation_split(rows, multi_label=case.startswith("multilabel"))
    assert (split.train, split.valid) == (expected["train_positions"], expected["val_positions"])


def test_a_five_shot_class_trains_on_four_and_validates_on_one() -> None:
    split = validation_split([[0], [1]] * 5)
    assert (len(split.train), len(split.valid)) == (8, 2)
